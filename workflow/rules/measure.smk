# These stages work through a batch of cells in one process (config key cells_per_job). Their files
# lie in the folder of each cell and are kept while they are up to date, so a batch with one new cell
# costs only that cell.
rule embed:
    input:
        manifests=manifests_in(EXPERIMENT.batches),
        stores=stores_in(EXPERIMENT.batches),
    output:
        (
            HERE.list_of("embed", "{batch}")
            if EXPERIMENT.setting("keep_embeddings")
            else temp(HERE.list_of("embed", "{batch}"))
        ),
    log:
        RESULTS.log("embed"),
    benchmark:
        RESULTS.benchmark("embed")
    resources:
        **SITE.resources("gpu", gpus=1),
        mem_mb=memory_of(embed_estimate, EXPERIMENT.batches),
        runtime=minutes_of(embed_estimate, EXPERIMENT.batches),
        cpus_per_task=cpus_for(EXPERIMENT.batches),
    params:
        stores=store_options_in(EXPERIMENT.batches),
        dtype=EXPERIMENT.setting("embedding_type"),
        recalibrate=embedding_options("--recalibrate"),
        unless_measured=(
            ""
            if EXPERIMENT.setting("keep_embeddings")
            else f"--unless-measured {FULL_AT} --reference {EXPERIMENT.reference}"
        ),
        keep="--keep" if EXPERIMENT.setting("keep_embeddings") else "",
        workers=workers_option,
        version=VERSIONS["embed"],
    shell:
        "logged {log:q} "
        "cltools embed {input.manifests:q} {params.stores:q} --dtype {params.dtype:q} "
        "{params.recalibrate} {params.unless_measured} {params.keep} --done {output:q} "
        "--threads {threads} {params.workers} "


rule measure:
    input:
        manifests=manifests_in(EXPERIMENT.batches),
        embedded=HERE.list_of("embed", "{batch}"),
    output:
        HERE.list_of("measure", "{batch}"),
    log:
        RESULTS.log("measure"),
    benchmark:
        RESULTS.benchmark("measure")
    group:
        group_of_embed if MEASURED_AT_ONCE else None
    resources:
        **measure_site(),
        mem_mb=memory_of(measure_estimate, EXPERIMENT.batches),
        runtime=minutes_of(measure_estimate, EXPERIMENT.batches),
    params:
        full_at=FULL_AT,
        reference=EXPERIMENT.reference,
        discard="" if EXPERIMENT.setting("keep_embeddings") else "--discard-embeddings",
        recalibrated=embedding_options("--recalibrated"),
        dtype=EXPERIMENT.setting("embedding_type"),
        version=VERSIONS["measure"],
    shell:
        "logged {log:q} "
        "cltools measure {input.manifests:q} --full-at {params.full_at:q} "
        "--reference {params.reference:q} --dtype {params.dtype:q} "
        "{params.discard} {params.recalibrated} --done {output:q} --threads {threads} "


rule theory:
    input:
        manifests=manifests_in(EXPERIMENT.batches),
        stores=stores_in(EXPERIMENT.batches),
        measured=HERE.list_of("measure", "{batch}"),
    output:
        HERE.list_of("theory", "{batch}"),
    log:
        RESULTS.log("theory"),
    benchmark:
        RESULTS.benchmark("theory")
    group:
        group_of_embed if THEORY_AT_ONCE else None
    resources:
        **SITE.resources("gpu", gpus=1),
        mem_mb=memory_of(theory_estimate, EXPERIMENT.batches),
        runtime=minutes_of(theory_estimate, EXPERIMENT.batches),
    params:
        stores=store_options_in(EXPERIMENT.batches),
        settings=stage_settings("theory"),
        version=VERSIONS["theory"],
    shell:
        "logged {log:q} "
        "cltools theory {input.manifests:q} {params.stores:q} --measured {input.measured:q} "
        "--settings {params.settings:q} --done {output:q} --threads {threads} "


rule merge:
    input:
        manifests=manifests_in(MERGED),
        stores=stores_in(MERGED),
    output:
        HERE.list_of("merge", "{batch}"),
    log:
        RESULTS.log("merge"),
    benchmark:
        RESULTS.benchmark("merge")
    resources:
        **SITE.resources("gpu", gpus=1),
        mem_mb=memory_of(merge_estimate, MERGED),
        runtime=minutes_of(merge_estimate, MERGED),
        cpus_per_task=cpus_for(MERGED),
    params:
        stores=store_options_in(MERGED),
        settings=stage_settings("merge", without=("sweeps",)),
        reference=EXPERIMENT.reference,
        version=VERSIONS["merge"],
    shell:
        "logged {log:q} "
        "cltools merge {input.manifests:q} {params.stores:q} --settings {params.settings:q} "
        "--reference {params.reference:q} --done {output:q} --threads {threads} "


rule layers:
    input:
        manifests=manifests_in(WITH_LAYERS),
        stores=stores_in(WITH_LAYERS),
    output:
        HERE.list_of("layers", "{batch}"),
    log:
        RESULTS.log("layers"),
    benchmark:
        RESULTS.benchmark("layers")
    resources:
        **SITE.resources("gpu", gpus=1),
        mem_mb=memory_of(layers_estimate, WITH_LAYERS),
        runtime=minutes_of(layers_estimate, WITH_LAYERS),
        cpus_per_task=cpus_for(WITH_LAYERS),
    params:
        stores=store_options_in(WITH_LAYERS),
        settings=stage_settings("layers", without=("sweeps",)),
        reference=EXPERIMENT.reference,
        recalibrate=(
            "--recalibrate" if EXPERIMENT.setting("recalibrate_batchnorm") else ""
        ),
        workers=workers_option,
        version=VERSIONS["layers"],
    shell:
        "logged {log:q} "
        "cltools layers {input.manifests:q} {params.stores:q} --settings {params.settings:q} "
        "--reference {params.reference:q} {params.recalibrate} --done {output:q} "
        "--threads {threads} {params.workers} "


rule project:
    input:
        manifest=pictured_manifest,
        store=pictured_store,
    output:
        HERE.table("project"),
    log:
        RESULTS.log("project"),
    benchmark:
        RESULTS.benchmark("project")
    resources:
        **SITE.resources("gpu", gpus=1),
        mem_mb=grows(16000),
        runtime=grows(120),
    params:
        settings=stage_settings("project"),
        store=subpath(input.store, parent=True),
        recalibrate=(
            "--recalibrate" if EXPERIMENT.setting("recalibrate_batchnorm") else ""
        ),
        version=VERSIONS["project"],
    shell:
        "logged {log:q} "
        "cltools project {input.manifest:q} --store {params.store:q} {params.recalibrate} "
        "--settings {params.settings:q} --output {output:q} --threads {threads} "


rule plan:
    output:
        HERE.plan,
    log:
        RESULTS.log("plan"),
    benchmark:
        RESULTS.benchmark("plan")
    localrule: True
    resources:
        mem_mb=grows(500),
        runtime=grows(10),
    params:
        config=plan_config,
        version=VERSIONS["plan"],
    shell:
        "logged {log:q} " "cltools plan {params.config:q} --output {output:q} "


rule collect:
    input:
        plan=HERE.plan,
        manifests=[manifest_of(cell) for cell in EXPERIMENT.plans],
        measured=[OWN.list_of("measure", batch) for batch in EXPERIMENT.batches],
        merged=[OWN.list_of("merge", batch) for batch in MERGED],
        theory=[OWN.list_of("theory", batch) for batch in EXPERIMENT.batches],
        layers=[OWN.list_of("layers", batch) for batch in WITH_LAYERS],
    output:
        **({"layers": HERE.table("layers")} if WITH_LAYERS else {}),
        measures=HERE.table("measures"),
        log=HERE.table("log"),
        theory=HERE.table("theory"),
    log:
        RESULTS.log("collect"),
    benchmark:
        RESULTS.benchmark("collect")
    localrule: True
    resources:
        mem_mb=grows(4000),
        runtime=grows(30),
    params:
        layers=lambda wildcards, output: (
            options([("layers", output.layers)]) if WITH_LAYERS else []
        ),
        version=VERSIONS["collect"],
    shell:
        "logged {log:q} "
        "cltools collect {input.measured:q} {input.merged:q} {input.theory:q} {input.layers:q} "
        "--plan {input.plan:q} --measures {output.measures:q} --log {output.log:q} "
        "--theory {output.theory:q} {params.layers:q} "
