# Stages without trained cells: the papers' surrogate dynamics, free embeddings, and a small network
# followed step by step.
rule surrogate:
    output:
        "results/{experiment}/surrogate.parquet",
    log:
        "results/logs/surrogate/{experiment}.log",
    benchmark:
        "results/benchmarks/surrogate/{experiment}.tsv"
    resources:
        **SITE.resources("cpu"),
        mem_mb=grows(2000),
        runtime=grows(60),
    params:
        settings=stage_settings("surrogate"),
        version=VERSIONS["surrogate"],
    shell:
        "cltools surrogate --settings {params.settings:q} --output {output} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"


rule minimise:
    output:
        "results/{experiment}/minimise.parquet",
    log:
        "results/logs/minimise/{experiment}.log",
    benchmark:
        "results/benchmarks/minimise/{experiment}.tsv"
    resources:
        **SITE.resources("cpu"),
        mem_mb=grows(2000),
        runtime=grows(60),
    params:
        settings=stage_settings("minimise"),
        version=VERSIONS["minimise"],
    shell:
        "cltools minimise --settings {params.settings:q} --output {output} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"


rule regularity:
    input:
        store=regularity_store,
    output:
        "results/{experiment}/regularity.parquet",
    log:
        "results/logs/regularity/{experiment}.log",
    benchmark:
        "results/benchmarks/regularity/{experiment}.tsv"
    resources:
        **SITE.resources("cpu"),
        mem_mb=grows(4000),
        runtime=grows(60),
    params:
        cell=regularity_cell,
        settings=stage_settings("regularity", without=("set",)),
        store=subpath(input.store, parent=True),
        version=VERSIONS["regularity"],
    shell:
        "cltools regularity --cell {params.cell:q} --store {params.store} "
        "--settings {params.settings:q} --output {output} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"
