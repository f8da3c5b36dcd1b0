"""Stage `train`: one coupled run of one cell, to its stopping point, from wherever it stands."""

import logging
import time
from collections.abc import Iterable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import cltools
from cltools.config.cells import canonical_cell, cell_id, training_key
from cltools.config.durations import SECONDS_BETWEEN_SAVES, Duration
from cltools.data.image_set import cell_subset, image_set, open_store
from cltools.data.store import ImageStore
from cltools.layout import VERSIONS, CellFolder, RunFolder
from cltools.maths.bounds import gap_bound
from cltools.runtime.errors import InputError, Stopped
from cltools.runtime.files import only_process, remove_scratch, sha256_file, whole_file, write_json
from cltools.runtime.processor import has_bfloat16, instructions
from cltools.runtime.progress import track
from cltools.runtime.stopping import StopRequest, stop_requests
from cltools.runtime.tensors import save_tensors
from cltools.training.distributed import join_ranks
from cltools.training.states import State, States
from cltools.training.trainer import CoupledTrainer

STEPS_BETWEEN_TALKS = 10  # of several ranks, which wait for the device to learn who is to stop
log = logging.getLogger("cltools")


@dataclass(frozen=True)
class Saves:
    """When the resume state is saved: every so many seconds, and every so many steps."""

    every_seconds: float = SECONDS_BETWEEN_SAVES
    every_steps: int | None = None


USUAL_SAVES = Saves()


def run(
    *,
    cell: dict[str, Any],
    store: Path,
    run: Path,
    manifest: Path,
    until: Duration | None = None,
    device: str = "auto",
    saves: Saves = USUAL_SAVES,
    workers: int | None = None,
) -> None:
    """Train until `until` (default: the horizon) and write the manifest that lists what was made.

    `run` holds weights, log and the resume states; it outlives kills and later, longer runs. A run
    that is already further only has its manifest written, if it kept the weights of that moment.
    Two states are kept while training goes on (see `states`), one at its end. `workers`: see
    `image_set`.

    SIGTERM, SIGINT and SIGUSR1 end training after the step at hand, once the state is saved.
    Several ranks talk about it every few steps, so that all stop at the same one.

    Started by torchrun, its processes train the cell together: all resume from the same state, rank
    0 writes. Their number is no part of the cell, but decides the last bits of sums; the manifest's
    `trained_by` says how many ranks there were, from which step on.

    Raises InputError for settings that do not fit the data or the ranks, for a store or a resume
    state of another cell, for a run that another process trains, for a loss that is not finite, and
    as `states` does; Stopped after a signal.
    """
    torch.set_num_threads(cell["threads"])
    ranks, chosen = join_ranks(device)
    opened, folder = open_store(store, cell), RunFolder(run)
    images = image_set(opened, cell, "train", chosen, workers)
    slow = cell["precision"] == "bfloat16" and chosen.type == "cpu" and not has_bfloat16()
    if slow and ranks.first:
        log.warning(
            "this processor has no instructions for bfloat16, which is several times slower here "
            "than float32: set precision to float32, or train on another machine"
        )
    trainer = CoupledTrainer(cell, images, chosen, ranks)
    until = until or Duration.parse(cell["horizon"])
    stop = until.in_steps(trainer.steps_per_epoch)
    if stop > trainer.horizon:
        raise InputError(
            f"training is to stop after {until} ({stop} steps), but the horizon is "
            f"{cell['horizon']} ({trainer.horizon} steps): raise horizon"
        )
    steps = sorted({trainer.in_steps(c) for c in cell["checkpoints"]} | {stop})
    checkpoints = [step for step in steps if step <= stop]

    with only_process(run) if ranks.first else nullcontext():
        if ranks.first:
            settings = CellFolder(run.parent).settings
            for place, stem in (
                (run, "*"),
                (folder.all_weights, "*"),
                (settings.parent, settings.stem),
                (manifest.parent, manifest.stem),
            ):
                remove_scratch(place, stem)
            write_json(settings, {"id": cell_id(cell), "cell": cell})
        version = VERSIONS["train"]
        about = {"cell": canonical_cell(cell), "store": opened.content, "version": version}
        progress = _resume(trainer, folder, about, until, stop, checkpoints)
        trainer.check_replicas()  # a shared file system may show some ranks an older state
        if trainer.step:
            log.info("resumed at step %d of %d", trainer.step, stop)
        with closing(trainer), stop_requests() as request:
            _train(trainer, progress, request, checkpoints, saves)
        ranks.leave()
        if ranks.first:
            _write_manifest(trainer, opened, folder, manifest, until, checkpoints, progress.saved)


@dataclass
class _Progress:
    """What a run has on disk: its states, and the entries of the checkpoints saved so far.

    `about` says in each state whose it is. `apart`: a longer run has been here before, whose states
    and weights stay as they are.
    """

    run: RunFolder
    states: States
    about: dict[str, Any]
    saved: dict[str, Any]
    apart: bool = False

    def save_weights(self, trainer: CoupledTrainer) -> None:
        """Save the weights of a checkpoint, unless they are kept from an earlier run."""
        if str(trainer.step) not in self.saved:
            self.saved[str(trainer.step)] = _save_weights(trainer, self.run)

    def save_state(self, trainer: CoupledTrainer, last: bool = False) -> None:
        """Save the resume state; the `last` one of a run that nothing continues is without slots.

        The slots of the optimisers are what only further steps need. The rest serves later calls
        that want the manifest of the run, or of an earlier stop.

        Raises InputError for a loss that is not finite, before anything is written: the states on
        disk are good ones.
        """
        if not trainer.ranks.first:
            return
        tensors, state = trainer.state()
        if last:
            tensors = {k: v for k, v in tensors.items() if not k.startswith("optimizer/")}
        self.states.save(tensors, {**self.about, **state, "saved": self.saved})


def _train(
    trainer: CoupledTrainer,
    progress: _Progress,
    request: StopRequest,
    checkpoints: list[int],
    saves: Saves,
) -> None:
    """Train to the last of the checkpoints, saving on the way.

    Raises Stopped when a signal asked to stop before, once the state is saved.
    """
    ranks, stop = trainer.ranks, checkpoints[-1]
    last_save, stopped_by = time.monotonic(), 0
    steps_left: Iterable[int] = range(trainer.step, stop)
    if ranks.first:  # it alone shows how far they all are
        steps_left = track(steps_left, stop - trainer.step, "training")
    for step in steps_left:
        if step in checkpoints:
            progress.save_weights(trainer)
        trainer.train_step()
        if ranks.size == 1 or trainer.step % STEPS_BETWEEN_TALKS == 0:
            stopped_by = ranks.largest(request.number)
        if stopped_by and trainer.step < stop:
            progress.save_state(trainer)
            ranks.largest(0)  # the first to leave has torchrun end the others: wait for rank 0
            where = f"at step {trainer.step} of {stop}: saved; start again to go on"
            raise Stopped(stopped_by, where)
        due = saves.every_steps and trainer.step % saves.every_steps == 0
        if due or time.monotonic() - last_save > saves.every_seconds:
            progress.save_state(trainer)
            last_save = time.monotonic()
    if trainer.step == stop:
        if str(stop) not in progress.saved:
            progress.save_weights(trainer)
            progress.save_state(trainer, last=progress.apart or stop == trainer.horizon)
        if ranks.first:
            progress.states.drop_previous()


def _write_manifest(
    trainer: CoupledTrainer,
    store: ImageStore,
    run: RunFolder,
    manifest: Path,
    until: Duration,
    checkpoints: list[int],
    saved: dict[str, Any],
) -> None:
    """Write the log up to the last checkpoint, and the manifest that lists what was made."""
    cell, stop = trainer.cell, checkpoints[-1]
    log_file = run.log(until.slug)
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
                "version": VERSIONS["train"],
                "cltools": cltools.__version__,
                "torch": torch.__version__,
                "processor": _processor(trainer.device),
            },
        },
    )


def _processor(device: torch.device) -> str:
    """What rounded: the kind of GPU, or the vector instructions of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {instructions()}"


def _save_weights(trainer: CoupledTrainer, run: RunFolder) -> dict[str, Any]:
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
            run.weights(objective, trainer.step),
            network.state_dict(),
            {"training_key": key, "objective": objective, "step": trainer.step},
        )
        for objective, network in trainer.networks.items()
    }
    return {"weights": hashes, "digests": trainer.digests}


def _resume(
    trainer: CoupledTrainer,
    run: RunFolder,
    about: dict[str, Any],
    until: Duration,
    stop: int,
    checkpoints: list[int],
) -> _Progress:
    """Take up the state that serves to train to `stop`, if there is one.

    A state does not serve when it is of another version of this stage, or when weights saved before
    it were lost: then training starts again, and a warning says so. Nor does one beyond `stop` when
    a checkpoint up to there was not kept. That one is left alone, for it took longer to make than
    what is asked for: training up to `stop` has states of its own, in a folder of the run.

    Raises InputError where no state is intact, and for states of another cell or store.
    """
    progress = _Progress(run, States(run.path), about, {})
    state = _load(progress)
    if state and state[1]["step"] > stop:
        kept = _intact(run, state[1]["saved"], checkpoints)
        if len(kept) < len(checkpoints):
            log.info(
                "%s is at step %d, but lacks weights up to step %d: training to there once more",
                run.path,
                state[1]["step"],
                stop,
            )
            states = States(run.apart(until.slug).path)
            progress = _Progress(run, states, about, kept, apart=True)
            state = _load(progress)
    if state is None:
        return progress
    tensors, found = state
    wanted = [step for step in checkpoints if str(step) in found["saved"]]
    if len(_intact(run, found["saved"], wanted)) < len(wanted):
        log.warning("weights of %s are lost: training again from the start", run.path)
        return progress
    trainer.restore(tensors, found)
    progress.saved = {**found["saved"], **progress.saved}
    return progress


def _load(progress: _Progress) -> State | None:
    """The latest state, if it is of this version. Raises InputError where it is of another run."""
    state = progress.states.load()
    if state is None:
        return None
    for key, what in (("cell", "settings"), ("store", "images")):
        if state[1][key] != progress.about[key]:
            raise InputError(
                f"{progress.states.latest} is of a run with other {what} than this one: delete the "
                f"folder {progress.run.path} to train again, or give the ones it was made with"
            )
    if state[1]["version"] != progress.about["version"]:
        log.warning(
            "%s is of another version of the trainer: training again from the start",
            progress.states.latest,
        )
        return None
    return state


def _intact(run: RunFolder, saved: dict[str, Any], steps: list[int]) -> dict[str, Any]:
    """The entries of `saved` at these steps whose weights lie there as they were saved."""
    kept = {str(step): saved[str(step)] for step in steps if str(step) in saved}
    for step, entry in list(kept.items()):
        for objective, sha256 in entry["weights"].items():
            file = run.weights(objective, int(step))
            if not file.exists() or sha256_file(file) != sha256:
                log.warning("%s is missing or damaged", file)
                kept.pop(step, None)
    return kept


def _write_log(trainer: CoupledTrainer, until: int, path: Path) -> None:
    """The training log as parquet: losses in nats, NaN (never null) where undefined."""
    columns = trainer.log(until)
    images = [trainer.images_among(step) for step in columns["step"].tolist()]
    bound = partial(gap_bound, tau=trainer.cell["tau"])
    columns["gap_bound"] = np.array(list(map(bound, columns["n_max"].tolist(), images)))
    table = pl.DataFrame(columns)
    with whole_file(path) as scratch:
        table.write_parquet(scratch)
