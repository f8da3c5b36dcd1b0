# One self-contained HTML file. It shows what jobs took, so it alone differs from run to run.
rule report:
    input:
        plan="results/{experiment}/plan.json",
        measures="results/{experiment}/measures.parquet",
        claims="results/{experiment}/claims.parquet",
        figures=expand(
            "results/{{experiment}}/figures/{figure}.png", figure=FIGURES_DRAWN
        ),
        manifests=[manifest_of(cell) for cell in EXPERIMENT.plans],
    output:
        report(
            "results/{experiment}/report.html",
            caption="../report/report.rst",
            category="Report",
            labels={"experiment": "{experiment}"},
        ),
    log:
        "results/logs/report/{experiment}.log",
    benchmark:
        "results/benchmarks/report/{experiment}.tsv"
    localrule: True
    resources:
        mem_mb=grows(4000),
        runtime=grows(30),
    params:
        config=shown_config,
        figures=figures_folder,
        version=VERSIONS["report"],
    shell:
        "cltools report {input.manifests} --plan {input.plan} --measures {input.measures} "
        "--claims {input.claims} --figures {params.figures} --config {params.config:q} "
        "--benchmarks results/benchmarks --output {output} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"
