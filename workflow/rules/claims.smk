# Editing a claim tests all of them again, and does nothing else.
rule claims:
    input:
        plan=HERE.plan,
        measures=HERE.table("measures"),
        log=HERE.table("log"),
        theory=HERE.table("theory"),
        without_cells=[HERE.table(stage) for stage in EXPERIMENT.without_cells],
    output:
        table=HERE.claims,
        readable=HERE.readable_claims,
    log:
        RESULTS.log("claims"),
    benchmark:
        RESULTS.benchmark("claims")
    localrule: True
    resources:
        mem_mb=grows(4000),
        runtime=grows(30),
    params:
        without_cells=options_of_tables,
        claims=sha256_file(CLAIMS),
        version=VERSIONS["claims"],
    shell:
        "logged {log:q} "
        "cltools claims --plan {input.plan:q} --measures {input.measures:q} --log {input.log:q} "
        "--theory {input.theory:q} {params.without_cells:q} --output {output.table:q} "
