"""The commands by panel of `cltools --help`, each with the example that its own help ends with."""

from collections.abc import Callable, Mapping
from typing import Any

from cltools.cli import everyday, stages
from cltools.layout import RESULTS

MADE = RESULTS.experiment("quickstart")
MANIFEST = RESULTS.cell("CELL").manifest("20epochs")
STORE = f"--store {RESULTS.store('STORE').path}"
PLAN = f"--plan {MADE.plan}"

PANELS: Mapping[str, Mapping[Callable[..., Any], str]] = {
    "Everyday": {
        everyday.status: "cltools status config/config.yaml",
        everyday.watch: "cltools watch config/config.yaml",
        everyday.partial: "cltools partial config/config.yaml",
        stages.compare: "cltools compare mine.npy theirs.npy --labels labels.npy",
        stages.plan: "cltools plan config/laptop/digits.yaml",
        everyday.bench: "cltools bench config/config.yaml --output bench.json",
        stages.plot: f"cltools plot losses_training {PLAN} --log "
        f"{MADE.table('log')} --output losses",
    },
    "Stages of the workflow": {
        stages.prepare: f"cltools prepare --name photos --store {RESULTS.store('photos').path} "
        "--definition "
        """'{"source": "folder", "path": "photos", "size": 32}'""",
        stages.train: """cltools train --cell '{"dataset": "digits", "horizon": 20}' """
        f"{STORE} --run run --manifest trained.json",
        stages.embed: f"cltools embed {MANIFEST} {STORE} --done embedded.json",
        stages.measure: f"cltools measure {MANIFEST} --done measured.json",
        stages.merge: f"cltools merge {MANIFEST} {STORE} --done merged.json",
        stages.layers: f"cltools layers {MANIFEST} {STORE} --done layers.json",
        stages.project: f"cltools project {MANIFEST} {STORE} --output project.parquet",
        stages.collect: f"cltools collect measured.json {PLAN} --measures measures.parquet --log "
        "training_log.parquet",
        stages.claims: f"cltools claims {PLAN} --measures {MADE.table('measures')} "
        "--output claims.parquet",
        stages.report: f"cltools report {MANIFEST} {PLAN} --measures measures.parquet --claims "
        f"claims.parquet --figures {MADE.figures} --output report.html",
    },
    "Theory": {
        stages.theory: f"cltools theory {MANIFEST} --measured measured.json {STORE} --done "
        "theory.json",
        stages.surrogate: "cltools surrogate --output surrogate.parquet",
        stages.minimise: "cltools minimise --output minimise.parquet",
        stages.regularity: """cltools regularity --cell '{"dataset": "digits", "horizon": 20}' """
        f"{STORE} --output regularity.parquet",
    },
    "With other programs": {
        stages.export: f"cltools export {MANIFEST} --objective dcl --to timm --output encoder",
        everyday.workflow_path: "snakemake --snakefile $(cltools workflow-path) --cores 2",
        everyday.with_gpus: "cltools with-gpus 2 -- torchrun --standalone --nproc-per-node 2 -m "
        "cltools.cli train --help",
    },
}
