# Weights, log and resume state are in the cell's run/ folder and are not declared as outputs, because
# Snakemake deletes declared outputs before every attempt. The output is the manifest with their
# hashes. Its name says where training stops, so that a longer run continues the shorter one.
rule train:
    input:
        store_of_cell,
    output:
        RESULTS.cell("{cell}").manifest("{until}"),
    log:
        RESULTS.log("train"),
    benchmark:
        RESULTS.benchmark("train")
    threads: cell_threads
    resources:
        **SITE.resources("gpu", gpus=GPUS.each, nodes=GPUS.nodes),
        **on_nodes(),
        mem_mb=train_memory,
        runtime=train_minutes,
        cpus_per_task=train_cpus,
    params:
        cltools=cltools_on_gpus,
        options=train_options,
        workers=workers_option,
        settings=cell_settings,
        store=subpath(input[0], parent=True),
        run=run_folder,
        version=VERSIONS["train"],
    shell:
        "logged {log:q} "
        "{params.cltools} train --cell {params.settings:q} --until {wildcards.until:q} "
        "--store {params.store:q} --run {params.run:q} --manifest {output:q} "
        "{params.options} {params.workers} "
