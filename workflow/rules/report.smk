# One self-contained HTML file. It shows the time that jobs took, so it is the only
# file that differs from run to run.
rule report:
    input:
        plan=HERE.plan,
        measures=HERE.table("measures"),
        claims=HERE.claims,
        tables=report_tables,
        figures=[HERE.figure(figure, "png") for figure in FIGURES_DRAWN],
        manifests=[manifest_of(cell) for cell in EXPERIMENT.plans],
    output:
        report(
            HERE.report,
            caption="../report/report.rst",
            category="Report",
            labels={"experiment": "{experiment}"},
        ),
    log:
        RESULTS.log("report"),
    benchmark:
        RESULTS.benchmark("report")
    localrule: True
    resources:
        mem_mb=grows(4000),
        runtime=grows(30),
    params:
        config=shown_config,
        figures=figures_folder,
        tables=report_options,
        benchmarks=str(PLACED.benchmarks),
        version=VERSIONS["report"],
    shell:
        "logged {log:q} "
        "cltools report {input.manifests:q} --plan {input.plan:q} --measures {input.measures:q} "
        "--claims {input.claims:q} --figures {params.figures:q} --config {params.config:q} "
        "{params.tables:q} "
        "--benchmarks {params.benchmarks:q} --output {output:q} "
