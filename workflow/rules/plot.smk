rule plot:
    input:
        unpack(figure_tables),
        papers=figure_papers,
        plan="results/{experiment}/plan.json",
    output:
        "results/{experiment}/figures/{figure}.pdf",
        report(
            "results/{experiment}/figures/{figure}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        "results/{experiment}/figures/{figure}.csv",
    log:
        "results/logs/plot/{experiment}-{figure}.log",
    benchmark:
        "results/benchmarks/plot/{experiment}-{figure}.tsv"
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
        "cltools plot {wildcards.figure} --plan {input.plan} {params.tables} "
        "--style {params.style:q} --output {params.stem} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"
