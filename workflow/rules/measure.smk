# Both stages work through a batch of cells in one process (config key cells_per_job). Their files
# lie with each cell and are kept while they are up to date, so that a batch with a new cell costs
# the new cell only.
rule embed:
    input:
        manifests=manifests_in(EXPERIMENT.batches),
        stores=stores_in(EXPERIMENT.batches),
    output:
        (
            "results/{experiment}/embedded/{batch}.json"
            if EXPERIMENT.setting("keep_embeddings")
            else temp("results/{experiment}/embedded/{batch}.json")
        ),
    log:
        "results/logs/embed/{experiment}-{batch}.log",
    benchmark:
        "results/benchmarks/embed/{experiment}-{batch}.tsv"
    resources:
        **SITE.resources("gpu", gpus=1),
        mem_mb=memory_of(embed_needs, EXPERIMENT.batches),
        runtime=minutes_of(embed_needs, EXPERIMENT.batches),
    params:
        stores=store_options_in(EXPERIMENT.batches),
        dtype=EXPERIMENT.setting("embedding_type"),
        recalibrate=(
            "--recalibrate" if EXPERIMENT.setting("recalibrate_batchnorm") else ""
        ),
        unless_measured=(
            ""
            if EXPERIMENT.setting("keep_embeddings")
            else f"--unless-measured {EXPERIMENT.setting('measure', 'full_at')}"
        ),
        keep="--keep" if EXPERIMENT.setting("keep_embeddings") else "",
        version=VERSIONS["embed"],
    shell:
        "cltools embed {input.manifests} {params.stores} --dtype {params.dtype} "
        "{params.recalibrate} {params.unless_measured} {params.keep} --done {output} "
        "--threads {threads} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"


rule measure:
    input:
        manifests=manifests_in(EXPERIMENT.batches),
        embedded="results/{experiment}/embedded/{batch}.json",
    output:
        "results/{experiment}/measured/{batch}.json",
    log:
        "results/logs/measure/{experiment}-{batch}.log",
    benchmark:
        "results/benchmarks/measure/{experiment}-{batch}.tsv"
    resources:
        **SITE.resources("gpu"),  # on the CPU mostly, but in one job with embed
        mem_mb=memory_of(measure_needs, EXPERIMENT.batches),
        runtime=minutes_of(measure_needs, EXPERIMENT.batches),
    params:
        full_at=EXPERIMENT.setting("measure", "full_at"),
        discard="" if EXPERIMENT.setting("keep_embeddings") else "--discard-embeddings",
        recalibrated=(
            "--recalibrated" if EXPERIMENT.setting("recalibrate_batchnorm") else ""
        ),
        dtype=EXPERIMENT.setting("embedding_type"),
        version=VERSIONS["measure"],
    shell:
        "cltools measure {input.manifests} --full-at {params.full_at} --dtype {params.dtype} "
        "{params.discard} {params.recalibrated} --done {output} --threads {threads} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"


rule theory:
    input:
        manifests=manifests_in(EXPERIMENT.batches),
        stores=stores_in(EXPERIMENT.batches),
        measured="results/{experiment}/measured/{batch}.json",
    output:
        "results/{experiment}/theory/{batch}.json",
    log:
        "results/logs/theory/{experiment}-{batch}.log",
    benchmark:
        "results/benchmarks/theory/{experiment}-{batch}.tsv"
    resources:
        **SITE.resources("gpu", gpus=1),
        mem_mb=memory_of(theory_estimate, EXPERIMENT.batches),
        runtime=minutes_of(theory_estimate, EXPERIMENT.batches),
    params:
        stores=store_options_in(EXPERIMENT.batches),
        settings=stage_settings("theory"),
        version=VERSIONS["theory"],
    shell:
        "cltools theory {input.manifests} {params.stores} --measured {input.measured} "
        "--settings {params.settings:q} --done {output} --threads {threads} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"


rule merge:
    input:
        manifests=manifests_in(EXPERIMENT.merge_batches),
        stores=stores_in(EXPERIMENT.merge_batches),
    output:
        "results/{experiment}/merged/{batch}.json",
    log:
        "results/logs/merge/{experiment}-{batch}.log",
    benchmark:
        "results/benchmarks/merge/{experiment}-{batch}.tsv"
    resources:
        **SITE.resources("gpu", gpus=1),
        mem_mb=memory_of(merge_estimate, EXPERIMENT.merge_batches),
        runtime=minutes_of(merge_estimate, EXPERIMENT.merge_batches),
    params:
        stores=store_options_in(EXPERIMENT.merge_batches),
        settings=stage_settings("merge", without=("sweeps",)),
        version=VERSIONS["merge"],
    shell:
        "cltools merge {input.manifests} {params.stores} --settings {params.settings:q} "
        "--done {output} --threads {threads} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"


rule project:
    input:
        manifest=pictured_manifest,
        store=pictured_store,
    output:
        "results/{experiment}/project.parquet",
    log:
        "results/logs/project/{experiment}.log",
    benchmark:
        "results/benchmarks/project/{experiment}.tsv"
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
        "cltools project {input.manifest} --store {params.store} {params.recalibrate} "
        "--settings {params.settings:q} --output {output} --threads {threads} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"


rule plan:
    output:
        "results/{experiment}/plan.json",
    log:
        "results/logs/plan/{experiment}.log",
    benchmark:
        "results/benchmarks/plan/{experiment}.tsv"
    localrule: True
    resources:
        mem_mb=grows(500),
        runtime=grows(10),
    params:
        config=plan_config,
        version=VERSIONS["plan"],
    shell:
        "cltools plan {params.config:q} --output {output} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"


rule collect:
    input:
        plan="results/{experiment}/plan.json",
        manifests=[manifest_of(cell) for cell in EXPERIMENT.plans],
        measured=[
            f"results/{EXPERIMENT.name}/measured/{batch}.json"
            for batch in EXPERIMENT.batches
        ],
        merged=[
            f"results/{EXPERIMENT.name}/merged/{batch}.json"
            for batch in EXPERIMENT.merge_batches
        ],
        theory=[
            f"results/{EXPERIMENT.name}/theory/{batch}.json"
            for batch in EXPERIMENT.batches
        ],
    output:
        measures="results/{experiment}/measures.parquet",
        log="results/{experiment}/training_log.parquet",
        theory="results/{experiment}/theory.parquet",
    log:
        "results/logs/collect/{experiment}.log",
    benchmark:
        "results/benchmarks/collect/{experiment}.tsv"
    localrule: True
    resources:
        mem_mb=grows(4000),
        runtime=grows(30),
    params:
        version=VERSIONS["collect"],
    shell:
        "cltools collect {input.measured} {input.merged} {input.theory} --plan {input.plan} "
        "--measures {output.measures} --log {output.log} --theory {output.theory} "
        "> {log} 2>&1 || (tail -n 3 {log} >&2; exit 2)"
