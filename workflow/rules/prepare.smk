rule prepare:
    output:
        "results/stores/{store}/store.json",
    log:
        "results/logs/prepare/{store}.log",
    benchmark:
        "results/benchmarks/prepare/{store}.tsv"
    resources:
        mem_mb=6000,  # SVHN with its extra images; encoded images take less
        runtime=60,
    params:
        definition=definition,
        store=subpath(output[0], parent=True),
        version=VERSIONS["prepare"],
    shell:
        "cltools prepare --name {wildcards.store} --definition {params.definition:q} "
        "--store {params.store} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"
