# Stages without trained cells: the papers' surrogate dynamics, free embeddings, and a small network
# followed step by step.
rule surrogate:
    output:
        HERE.table("surrogate"),
    log:
        RESULTS.log("surrogate"),
    benchmark:
        RESULTS.benchmark("surrogate")
    resources:
        **SITE.resources("cpu"),
        mem_mb=grows(2000),
        runtime=grows(60),
    params:
        settings=stage_settings("surrogate"),
        version=VERSIONS["surrogate"],
    shell:
        "logged {log:q} "
        "cltools surrogate --settings {params.settings:q} --output {output:q} "


rule minimise:
    output:
        HERE.table("minimise"),
    log:
        RESULTS.log("minimise"),
    benchmark:
        RESULTS.benchmark("minimise")
    resources:
        **SITE.resources("cpu"),
        mem_mb=grows(2000),
        runtime=grows(60),
    params:
        settings=stage_settings("minimise"),
        version=VERSIONS["minimise"],
    shell:
        "logged {log:q} "
        "cltools minimise --settings {params.settings:q} --output {output:q} "


rule regularity:
    input:
        store=regularity_store,
    output:
        HERE.table("regularity"),
    log:
        RESULTS.log("regularity"),
    benchmark:
        RESULTS.benchmark("regularity")
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
        "logged {log:q} "
        "cltools regularity --cell {params.cell:q} --store {params.store:q} "
        "--settings {params.settings:q} --output {output:q} "
