rule prepare:
    output:
        RESULTS.store("{store}").manifest,
    log:
        RESULTS.log("prepare"),
    benchmark:
        RESULTS.benchmark("prepare")
    resources:
        **SITE.resources("cpu"),
        mem_mb=prepare_memory,
        runtime=prepare_minutes,
    params:
        identity=store_identity,
        definition=definition,
        store=subpath(output[0], parent=True),
        version=VERSIONS["prepare"],
    shell:
        "logged {log:q} "
        "cltools prepare --name {wildcards.store:q} --definition {params.definition:q} "
        "--store {params.store:q} "
