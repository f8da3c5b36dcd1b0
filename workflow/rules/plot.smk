rule plot:
    input:
        plan="results/{experiment}/plan.json",
        measures="results/{experiment}/measures.parquet",
        log="results/{experiment}/training_log.parquet",
        theory="results/{experiment}/theory.parquet",
    output:
        multiext("results/{experiment}/figures/{figure}", ".pdf", ".png", ".csv"),
    log:
        "results/logs/plot/{experiment}-{figure}.log",
    benchmark:
        "results/benchmarks/plot/{experiment}-{figure}.tsv"
    localrule: True
    resources:
        mem_mb=grows(2000),
        runtime=grows(30),
    params:
        stem=subpath(output[0], strip_suffix=".pdf"),
        style=canonical_json(EXPERIMENT.setting("figures")),
        version=VERSIONS["plot"],
    shell:
        "cltools plot {wildcards.figure} --plan {input.plan} --measures {input.measures} "
        "--log {input.log} --theory {input.theory} --style {params.style:q} --output {params.stem} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"
