"""Stage `train`: one coupled run of one cell, to its stopping point, from wherever it stands."""

import logging
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import cltools
from cltools.cells import canonical_cell, cell_id, training_key
from cltools.durations import Duration
from cltools.engine.data import cell_subset, image_set, open_store
from cltools.engine.distributed import join_ranks
from cltools.engine.tensors import load_tensors, save_tensors
from cltools.engine.trainer import CoupledTrainer
from cltools.errors import InputError
from cltools.files import sha256_file, whole_file, write_json
from cltools.maths.bounds import gap_bound
from cltools.progress import track
from cltools.versions import VERSIONS

VERSION = VERSIONS["train"]
RESUME = "resume.safetensors"
log = logging.getLogger("cltools")


def train(
    cell: dict[str, Any],
    store_folder: Path,
    run: Path,
    manifest: Path,
    until: Duration | None = None,
    device_name: str = "auto",
    save_every_seconds: float = 120.0,
    save_every_steps: int | None = None,
    workers: int | None = None,
) -> None:
    """Train until `until` (default: the horizon) and write the manifest that lists what was made.

    `run` holds weights, log and the resume state; it outlives kills and later, longer runs. A run
    that is already further only has its manifest written, if it kept the weights of that moment.
    `workers`: see `image_set`.

    Started by torchrun, its processes train the cell together: all resume from the same state, rank
    0 writes. Their number is no part of the cell, but decides the last bits of sums; the manifest's
    `trained_by` says how many ranks there were, from which step on.

    Raises InputError for settings that do not fit the data or the ranks, for a store or a resume
    state of another cell, and for a loss that is not finite.
    """
    torch.set_num_threads(cell["threads"])
    ranks, device = join_ranks(device_name)
    store = open_store(store_folder, cell)
    images = image_set(store, cell, "train", device, workers)
    trainer = CoupledTrainer(cell, images, device, ranks)
    until = until or Duration.parse(cell["horizon"])
    stop = until.in_steps(trainer.steps_per_epoch)
    if stop > trainer.horizon:
        raise InputError(
            f"training is to stop after {until} ({stop} steps), but the horizon is "
            f"{cell['horizon']} ({trainer.horizon} steps): raise horizon"
        )
    steps = sorted({trainer.in_steps(c) for c in cell["checkpoints"]} | {stop})
    checkpoints = [step for step in steps if step <= stop]

    if ranks.first:
        write_json(run.parent / "cell.json", {"id": cell_id(cell), "cell": cell})
    about = {"cell": canonical_cell(cell), "store": store.content, "version": VERSION}
    saved = _resume(trainer, run / RESUME, about, stop, checkpoints)
    trainer.check_replicas()  # a shared file system may show some ranks an older state
    if trainer.step:
        log.info("resumed at step %d of %d", trainer.step, stop)

    last_save = time.monotonic()
    steps_left = range(trainer.step, stop)
    if ranks.first:  # which shows for all how far they are
        steps_left = track(steps_left, len(steps_left), "training")
    with closing(trainer):
        for step in steps_left:
            if step in checkpoints:
                saved[str(step)] = _save_weights(trainer, run)
            trainer.train_step()
            due = save_every_steps and trainer.step % save_every_steps == 0
            if due or time.monotonic() - last_save > save_every_seconds:
                _save_state(trainer, run / RESUME, about, saved)
                last_save = time.monotonic()
    if trainer.step == stop:
        saved[str(stop)] = _save_weights(trainer, run)
        _save_state(trainer, run / RESUME, about, saved)
    ranks.leave()
    if not ranks.first:
        return

    log_file = run / f"log-{until.slug}.parquet"
    _write_log(trainer, stop, log_file)
    write_json(
        manifest,
        {
            "id": cell_id(cell),
            "cell": cell,
            "until": str(until),
            "steps": stop,
            "steps_per_epoch": trainer.steps_per_epoch,
            "train_images": len(trainer.data.labels),
            "class_ids": list(cell_subset(store, cell, "train").class_ids),
            "store": store.content,
            "peak_lr": trainer.peak_lr,
            "skipped_steps": trainer.skipped_steps(stop),
            "trained_by": {s: n for s, n in trainer.trained_by.items() if int(s) < stop},
            "checkpoints": {str(step): saved[str(step)] for step in checkpoints},
            "log": {"file": log_file.name, "sha256": sha256_file(log_file)},
            "made_by": {
                "stage": "train",
                "version": VERSION,
                "cltools": cltools.__version__,
                "torch": torch.__version__,
            },
        },
    )


def weights_file(run: Path, objective: str, step: int) -> Path:
    """Where a run keeps the weights of one objective before training step `step`."""
    return run / "weights" / f"{objective}-{step:07d}.safetensors"


def saved_weights(manifest: dict[str, Any]) -> list[tuple[int, dict[str, str]]]:
    """(step, objective -> hash of its weights) of every checkpoint, in order of both."""
    objectives = manifest["cell"]["objectives"]
    checkpoints = sorted(manifest["checkpoints"].items(), key=lambda entry: int(entry[0]))
    return [
        (int(step), {o: saved["weights"][o] for o in objectives}) for step, saved in checkpoints
    ]


def _save_weights(trainer: CoupledTrainer, run: Path) -> dict[str, Any]:
    """Save every network as it is before the next step; rank 0 does, for all ranks.

    Returns the entry of this checkpoint: hashes of the files by objective, and digests of the
    randomness used up to here. Raises InputError when the ranks hold different weights.
    """
    trainer.check_replicas()
    if not trainer.ranks.first:
        return {}
    key = training_key(trainer.cell)
    hashes = {
        objective: save_tensors(
            weights_file(run, objective, trainer.step),
            network.state_dict(),
            {"training_key": key, "objective": objective, "step": trainer.step},
        )
        for objective, network in trainer.networks.items()
    }
    return {"weights": hashes, "digests": trainer.digests}


def _save_state(
    trainer: CoupledTrainer, path: Path, about: dict[str, Any], saved: dict[str, Any]
) -> None:
    if not trainer.ranks.first:
        return
    tensors, state = trainer.state()
    save_tensors(path, tensors, {**about, **state, "saved": saved})


def _resume(
    trainer: CoupledTrainer, path: Path, about: dict[str, Any], stop: int, checkpoints: list[int]
) -> dict[str, Any]:
    """Take up the state in `path` if there is one that serves; the checkpoints already saved.

    A state does not serve when it is of another version of this stage, when weights saved before it
    were lost, or when it is beyond `stop` and a checkpoint up to there was not kept: then training
    starts again. Raises InputError for a state that is damaged or of another cell or store.
    """
    if not path.exists():
        return {}
    tensors, state = load_tensors(path, remedy="delete it to train this cell from the start")
    for key, what in (("cell", "settings"), ("store", "images")):
        if state[key] != about[key]:
            raise InputError(
                f"{path} is of a run with other {what} than this one: delete the folder "
                f"{path.parent} to train again, or give the ones it was made with"
            )
    if state["version"] != about["version"]:
        log.warning("%s is of another version of the trainer: training again from the start", path)
        return {}
    saved = state["saved"]
    if state["step"] > stop and not {str(step) for step in checkpoints} <= saved.keys():
        return {}
    for step, entry in saved.items():
        for objective, sha256 in entry["weights"].items():
            file = weights_file(path.parent, objective, int(step))
            if not file.exists() or sha256_file(file) != sha256:
                log.warning("%s is missing or damaged: training again from the start", file)
                return {}
    trainer.restore(tensors, state)
    return saved


def _write_log(trainer: CoupledTrainer, until: int, path: Path) -> None:
    """The training log as parquet: losses in nats, NaN (never null) where undefined."""
    columns = trainer.log(until)
    images = [trainer.images_among(step) for step in columns["step"].tolist()]
    bound = partial(gap_bound, tau=trainer.cell["tau"])
    columns["gap_bound"] = np.array(list(map(bound, columns["n_max"].tolist(), images)))
    table = pl.DataFrame(columns)
    with whole_file(path) as scratch:
        table.write_parquet(scratch)
