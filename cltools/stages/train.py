"""Stage `train`: train one cell from its last saved state, if any, to its stopping point."""

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import cltools
from cltools.config.architectures import TIMM
from cltools.config.cells import canonical_cell, cell_id, training_key
from cltools.config.durations import (
    LATER_SECONDS_BETWEEN_SAVES,
    SECONDS_BETWEEN_SAVES,
    SECONDS_OF_FREQUENT_SAVES,
    Duration,
)
from cltools.config.sharing import Share
from cltools.config.tracking import Tracker
from cltools.data.image_set import cell_subset, image_set, open_store
from cltools.data.store import ImageStore
from cltools.layout import VERSIONS, CellFolder, RunFolder
from cltools.maths.bounds import gap_bound
from cltools.maths.labellings import dropped_pairs
from cltools.maths.objectives import labels_of
from cltools.objectives import package_of
from cltools.runtime.devices import talk_of_precision
from cltools.runtime.errors import InputError, Stopped
from cltools.runtime.files import only_process, remove_scratch, sha256_file, whole_file
from cltools.runtime.processor import instructions
from cltools.runtime.progress import track
from cltools.runtime.sealed import write_json
from cltools.runtime.stopping import StopRequest, stop_requests
from cltools.runtime.tensors import save_tensors
from cltools.training.distributed import Ranks, join_ranks
from cltools.training.live import TAIL, Follower, LastValues, latest, read_live, settle
from cltools.training.observers import (
    SECONDS_AT_THE_END,
    SECONDS_IN_A_HURRY,
    LiveLog,
    Tracking,
)
from cltools.training.states import State, States
from cltools.training.trackers import Tracked, check_installed
from cltools.training.trainer import CoupledTrainer

# Of several ranks. Where they split the batch, each talk waits for the device.
STEPS_BETWEEN_TALKS = 10
log = logging.getLogger("cltools")


@dataclass(frozen=True)
class Saves:
    """How often the resume state is saved: in seconds, and unless None also in steps.

    Without seconds it is every two minutes in the first hour of training, every ten minutes later.
    """

    every_seconds: float | None = None
    every_steps: int | None = None

    def seconds_between(self, trained: float) -> float:
        """Seconds between two saves when training has gone on for `trained` seconds."""
        if self.every_seconds is not None:
            return self.every_seconds
        early = trained < SECONDS_OF_FREQUENT_SAVES
        return SECONDS_BETWEEN_SAVES if early else LATER_SECONDS_BETWEEN_SAVES


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
    share: Share = "auto",
    tracker: Tracker | None = None,
) -> None:
    """Train until `until` (default: the horizon) and write the manifest, which lists the files.

    The folder `run` holds weights, log and resume states. A killed run continues from it, and so
    does a later, longer run. If the run is already past `until`, only the manifest is written,
    provided that the weights of that step were kept. While training goes on, two states are kept
    (see `states`), at its end one. `workers` is described in `image_set`.

    Rows for watching the run are appended to `live.csv` beside them (see `live`), and go to
    `tracker` if one is given. Neither changes what is trained, nor ends training when it fails.

    The signals of `stop_requests` end training after the current step, once the state is saved.
    Several ranks exchange such signals every few steps, so that all stop at the same step.

    The processes that torchrun starts train the cell together, and `share` says how (see
    `distributed`). All resume from the same state. Where they train different objectives, the files
    are those of one process, byte for byte. Where they split batches, their number is not a setting
    of the cell, but it changes the last bits of sums: the manifest's `trained_by` says how many
    there were, and from which step on.

    Raises InputError for settings that do not fit the data or the ranks, for fewer than two classes
    or a class without images in either split (no more is needed), for a store or a resume
    state of another cell, for a run that another process is training, for a tracker that is not
    installed, for a loss that is not finite, and as `states` does. Raises Stopped after a signal.
    """
    torch.set_num_threads(cell["threads"])
    if tracker is not None:
        check_installed(tracker)
    ranks, chosen = join_ranks(device, share, len(cell["objectives"]))
    if ranks.size > 1:
        what = "the objectives" if ranks.parts == 1 else "each batch"
        log.info("%d processes share %s", ranks.size, what)
    with ranks.failing_together():
        opened = open_store(store, cell)
        trainer = _trainer(cell, opened, chosen, ranks, workers)
        until = until or Duration.parse(cell["horizon"])
        checkpoints = _checkpoints(trainer, until)
        _train_cell(trainer, opened, run, manifest, until, checkpoints, saves, tracker)


def _trainer(
    cell: dict[str, Any],
    store: ImageStore,
    device: torch.device,
    ranks: Ranks,
    workers: int | None,
) -> CoupledTrainer:
    cell_subset(store, cell, "test")  # fail now, not after training, if there are too few images
    images = image_set(store, cell, "train", device, workers)
    if ranks.first:
        talk_of_precision(cell["precision"], device)
    return CoupledTrainer(cell, images, device, ranks)


def _checkpoints(trainer: CoupledTrainer, until: Duration) -> list[int]:
    """The steps at which weights are saved, the last of which is the stopping point."""
    stop = until.in_steps(trainer.steps_per_epoch)
    if stop > trainer.horizon:
        raise InputError(
            f"training is to stop after {until} ({stop} steps), but the horizon is "
            f"{trainer.cell['horizon']} ({trainer.horizon} steps): raise horizon"
        )
    steps = {trainer.in_steps(checkpoint) for checkpoint in trainer.cell["checkpoints"]}
    return sorted(step for step in steps | {stop} if step <= stop)


def _train_cell(
    trainer: CoupledTrainer,
    store: ImageStore,
    run: Path,
    manifest: Path,
    until: Duration,
    checkpoints: list[int],
    saves: Saves,
    tracker: Tracker | None,
) -> None:
    """Resume, train to the last checkpoint and write the manifest."""
    cell, ranks, folder = trainer.cell, trainer.ranks, RunFolder(run)
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
        about = {"cell": canonical_cell(cell), "store": store.content, "version": version}
        progress = _resume(trainer, folder, store, about, until, checkpoints)
        live = progress.states.run
        if ranks.first:
            settle(live, trainer.step)  # no rank writes there until all have passed the next line
        trainer.check_replicas()  # on a shared file system some ranks may have read an older state
        if trainer.step:
            log.info("resumed at step %d of %d", trainer.step, checkpoints[-1])
        with (
            closing(trainer),
            closing(progress.states),
            stop_requests() as request,
            _observed(trainer, live, tracker),
        ):
            _train(trainer, progress, request, checkpoints, saves)
        ranks.leave()
        if ranks.first:
            _write_manifest(trainer, store, folder, manifest, until, checkpoints, progress.saved)


@contextmanager
def _observed(trainer: CoupledTrainer, live: RunFolder, tracker: Tracker | None) -> Iterator[None]:
    """While the block trains, rows of the log go to the live file, and from there to the tracker.

    Of several ranks, each writes the rows that it alone has, and the first reads those of all.
    """
    tracking = None
    if trainer.ranks.writes_weights:
        trainer.observers.append(LiveLog(trainer, live))
    if trainer.ranks.first and tracker is not None:
        tracked = Tracked(
            id=cell_id(trainer.cell),
            cell=trainer.cell,
            step=trainer.step,
            folder=live.tensorboard,
            told=live.told(tracker),
        )
        tracking = Tracking(tracker, tracked, Follower(live, trainer.models))
        trainer.observers.append(tracking)
    patience = SECONDS_IN_A_HURRY
    try:
        yield
        patience = SECONDS_AT_THE_END
    finally:
        if tracking is not None:
            tracking.close(patience)
    if trainer.ranks.first:
        settle(live, trainer.step)


@dataclass
class _Progress:
    """The files of a run: its states, and the manifest entries of the checkpoints saved so far.

    `about` is written to each state and says which cell, store and version it belongs to. `apart`
    is True if an earlier, longer run used the same folder: its states and weights stay unchanged.
    """

    run: RunFolder
    store: ImageStore
    states: States
    about: dict[str, Any]
    saved: dict[str, Any]
    apart: bool = False

    def save_weights(self, trainer: CoupledTrainer) -> None:
        """Save the weights of a checkpoint, unless an earlier run saved them."""
        if str(trainer.step) not in self.saved:
            self.saved[str(trainer.step)] = _save_weights(trainer, self.run)

    def save_state(self, trainer: CoupledTrainer, last: bool = False) -> None:
        """Begin to save the resume state. The `last` of a run that nothing continues has no slots.

        Slots are the optimizer's buffers, which only further steps need. Later calls use the rest
        of the state to write the manifest of the run, or that of an earlier stop. All ranks must
        call it at the same step.

        Raises InputError for a loss that is not finite. Nothing is written then, so that the states
        on disk are usable.
        """
        if not trainer.ranks.writes_weights:
            return
        self.store.check(wait=False)
        tensors, state = trainer.state()
        if not trainer.ranks.first:
            return
        if last:
            tensors = {k: v for k, v in tensors.items() if not k.startswith("optimizer/")}
        self.states.save(tensors, {**self.about, **state, "saved": dict(self.saved)})


def _train(
    trainer: CoupledTrainer,
    progress: _Progress,
    request: StopRequest,
    checkpoints: list[int],
    saves: Saves,
) -> None:
    """Train to the last checkpoint, and save weights and states on the way.

    Raises Stopped when a signal asks to stop earlier, once the state is saved.
    """
    ranks, stop = trainer.ranks, checkpoints[-1]
    began = last_save = time.monotonic()
    stopped_by, overdue = 0, False
    steps_left: Iterable[int] = range(trainer.step, stop)
    if ranks.first:  # it alone shows how far they all are
        note = partial(_last_values, progress.states.run, trainer.models)
        steps_left = track(steps_left, stop, "training", "step", first=trainer.step, note=note)
    for step in steps_left:
        if step in checkpoints:
            progress.save_weights(trainer)
        trainer.train_step()
        progress.states.check()
        if ranks.size == 1 or trainer.step % STEPS_BETWEEN_TALKS == 0:
            now = time.monotonic()
            overdue = now - last_save > saves.seconds_between(now - began)
            stopped_by, overdue = ranks.talk(request.number, overdue)
        if stopped_by and trainer.step < stop:
            progress.save_state(trainer)
            progress.states.wait()
            ranks.talk()  # torchrun ends all ranks when one leaves: wait for rank 0
            where = f"at step {trainer.step} of {stop}: saved; start again to go on"
            raise Stopped(stopped_by, where)
        if overdue or (saves.every_steps and trainer.step % saves.every_steps == 0):
            progress.save_state(trainer)
            last_save, overdue = time.monotonic(), False
    if trainer.step == stop:
        if str(stop) not in progress.saved:
            progress.save_weights(trainer)
            progress.save_state(trainer, last=progress.apart or stop == trainer.horizon)
        progress.states.wait()
        if ranks.first:
            progress.states.drop_previous()
    trainer.merge_logs()


def _last_values(live: RunFolder, models: list[str]) -> str:
    """What the last rows of all ranks say, for a line of the log, which says the time left."""
    rows = latest(read_live(live, TAIL), models)
    return LastValues.of(rows, stop=None).words() if rows else ""


def _write_manifest(
    trainer: CoupledTrainer,
    store: ImageStore,
    run: RunFolder,
    manifest: Path,
    until: Duration,
    checkpoints: list[int],
    saved: dict[str, Any],
) -> None:
    """Write the log up to the last checkpoint, and the manifest that lists the files."""
    store.check()
    cell, stop = trainer.cell, checkpoints[-1]
    packages = {o: package for o in cell["objectives"] if (package := package_of(o))}
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
            **_made_labels(trainer),
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
                **({"timm": version("timm")} if cell["architecture"].startswith(TIMM) else {}),
                **({"objectives": packages} if packages else {}),
            },
        },
    )


def _made_labels(trainer: CoupledTrainer) -> dict[str, Any]:
    """For the manifest: of labels that are not the data set's, which pairs NSCL drops with them."""
    true = trainer.data.labels.numpy()
    found = {
        objective: {
            "sha256": hashlib.sha256(labels.values.numpy().tobytes()).hexdigest(),
            "classes": labels.classes,
            "dropped": dropped_pairs(labels.values.numpy(), true)._asdict(),
        }
        for objective, labels in trainer.labels.items()
        if labels_of(objective)
    }
    return {"labels": found} if found else {}


def _processor(device: torch.device) -> str:
    """What decides the rounding: the GPU model, or the vector instructions of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {instructions()}"


def _save_weights(trainer: CoupledTrainer, run: RunFolder) -> dict[str, Any]:
    """Save every network as it is before the next step.

    Returns the manifest's entry of this checkpoint: hashes of the files by objective, and digests
    of the randomness used so far. Raises InputError when the ranks are at different steps, or hold
    different weights of one objective.
    """
    trainer.check_replicas()
    key, hashes = training_key(trainer.cell), {}
    if trainer.ranks.writes_weights:
        hashes = {
            objective: save_tensors(
                run.weights(objective, trainer.step),
                network.state_dict(),
                {"training_key": key, "objective": objective, "step": trainer.step},
            )
            for objective, network in trainer.networks.items()
        }
    entry: dict[str, Any] = {"weights": {}, "digests": dict(trainer.digests)}
    for written, digests in trainer.ranks.exchange((hashes, trainer.own_digests())):
        entry["weights"] |= written
        entry["digests"] |= digests
    return entry


def _resume(
    trainer: CoupledTrainer,
    run: RunFolder,
    store: ImageStore,
    about: dict[str, Any],
    until: Duration,
    checkpoints: list[int],
) -> _Progress:
    """Load the state from which training to the last checkpoint can continue, if there is one.

    A state of another version of this stage is not used, nor one whose earlier weights were lost:
    training then starts again, and a warning says so. A state beyond that stop is not used either
    if the weights of a checkpoint up to it were not kept. It is not overwritten, because it took
    longer to make than what is asked for now: training up to the stop keeps its own states, in a
    folder inside that of the run.

    Raises InputError when no state is intact, and for states of another cell or store.
    """
    progress, stop = _Progress(run, store, States(run.path), about, {}), checkpoints[-1]
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
            progress = _Progress(run, store, states, about, kept, apart=True)
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
    """The latest state, if it is of this version. Raises InputError if it is of another run."""
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
    """The entries of `saved` at these steps whose files of weights exist and are unchanged."""
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
