# Editing a claim tests all of them again, and does nothing else.
rule claims:
    input:
        plan="results/{experiment}/plan.json",
        measures="results/{experiment}/measures.parquet",
        log="results/{experiment}/training_log.parquet",
        theory="results/{experiment}/theory.parquet",
        without_cells=expand(
            "results/{{experiment}}/{stage}.parquet", stage=EXPERIMENT.without_cells
        ),
    output:
        table="results/{experiment}/claims.parquet",
        readable="results/{experiment}/claims.md",
    log:
        "results/logs/claims/{experiment}.log",
    benchmark:
        "results/benchmarks/claims/{experiment}.tsv"
    localrule: True
    resources:
        mem_mb=grows(4000),
        runtime=grows(30),
    params:
        without_cells=options_of_tables,
        claims=sha256_file(CLAIMS),
        version=VERSIONS["claims"],
    shell:
        "cltools claims --plan {input.plan} --measures {input.measures} --log {input.log} "
        "--theory {input.theory} {params.without_cells} --output {output.table} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"
