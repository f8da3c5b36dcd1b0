rule prepare:
    output:
        "results/stores/{store}/store.json",
    log:
        "results/logs/prepare/{store}.log",
    benchmark:
        "results/benchmarks/prepare/{store}.tsv"
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
        "cltools prepare --name {wildcards.store} --definition {params.definition:q} "
        "--store {params.store} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"
