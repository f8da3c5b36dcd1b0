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
        cpus_per_task=cpus_for_preparing,
    params:
        identity=store_identity,
        definition=definition,
        store=subpath(output[0], parent=True),
        workers=workers_option,
        version=VERSIONS["prepare"],
    shell:
        "logged {log:q} "
        "cltools prepare --name {wildcards.store:q} --definition {params.definition:q} "
        "--store {params.store:q} {params.workers} "
