rule plot:
    input:
        unpack(figure_tables),
        papers=figure_papers,
        plan=HERE.plan,
    output:
        HERE.figure("{figure}", "pdf"),
        report(
            HERE.figure("{figure}", "png"),
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        HERE.figure("{figure}", "csv"),
        HERE.figure("{figure}", "txt"),
    log:
        RESULTS.log("plot"),
    benchmark:
        RESULTS.benchmark("plot")
    localrule: True
    resources:
        mem_mb=grows(2000),
        runtime=grows(30),
    params:
        tables=figure_options,
        stem=subpath(output[0], strip_suffix=".pdf"),
        style=canonical_json(EXPERIMENT.setting("figures")),
        version=VERSIONS["plot"],
    shell:
        "logged {log:q} "
        "cltools plot {wildcards.figure:q} --plan {input.plan:q} {params.tables:q} "
        "--style {params.style:q} --output {params.stem:q} "
