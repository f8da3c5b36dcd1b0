# Weights, log and resume state live undeclared in the cell's run/ folder, since Snakemake deletes
# declared outputs before every attempt. The declared output is the manifest with their hashes; its
# name says where training stops, so that a longer run continues the shorter one.
rule train:
    input:
        store_of_cell,
    output:
        "results/cells/{cell}/trained-{until}.json",
    log:
        "results/logs/train/{cell}-{until}.log",
    benchmark:
        "results/benchmarks/train/{cell}-{until}.tsv"
    threads: cell_threads
    resources:
        **SITE.resources("gpu", gpus=EXPERIMENT.setting("gpus_per_cell")),
        mem_mb=train_memory,
        runtime=train_minutes,
    params:
        cltools=cltools_on_gpus,
        last_words=what_went_wrong,
        settings=cell_settings,
        store=subpath(input[0], parent=True),
        run=subpath(output[0], parent=True),
        version=VERSIONS["train"],
    shell:
        "{params.cltools} train --cell {params.settings:q} --until {wildcards.until} "
        "--store {params.store} --run {params.run}/run --manifest {output} "
        "> {log} 2>&1 || ({params.last_words} {log} >&2; exit 2)"
