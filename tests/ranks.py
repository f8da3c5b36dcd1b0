"""Work on several ranks: gloo processes on the CPU."""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from waiting import HANGS

from cltools.config.cells import canonical_cell

# A server that has imported everything once, and forks: one import for all ranks of all tests.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["cltools.stages.train", "cltools.stages.prepare", "torch._dynamo"])


def on_ranks(size: int, work: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
    """What `work` returns on each of `size` ranks; fails where a rank failed."""
    ranks, answers = start_ranks(size, work, *arguments, **options)
    results = sorted((answers.get(timeout=HANGS) for _ in ranks), key=itemgetter(0))
    for rank in ranks:
        rank.join()
    faults = [fault for _, _, fault in results if fault]
    assert not faults, faults[0]
    return [answer for _, answer, _ in results]


def start_ranks(
    size: int, work: Callable[..., Any], *arguments: Any, **options: Any
) -> tuple[list[Any], Any]:
    """The processes of `size` ranks that have begun to `work`, and the queue of their answers.

    An answer is the rank, what the work returned, and the traceback where it failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = SERVER.Queue()
    ranks = [
        SERVER.Process(
            target=_as_rank, args=(rank, size, port, answers, partial(work, *arguments, **options))
        )
        for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    return ranks, answers


def _as_rank(rank, size, port, answers, work):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    try:
        answers.put((rank, work(), None))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))


def command(
    settings: dict[str, Any], store: Path, folder: Path, size: int, *options: Any
) -> list[str]:
    """`torchrun … cltools train …`, saving its state after every step."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start += ["--nproc-per-node", size, "-m", "--", "cltools.cli", "train"]
    start += ["--cell", canonical_cell(settings), "--store", store, "--run", folder / "run"]
    start += ["--manifest", folder / "trained.json", "--device", "cpu", "--save-every-steps", 1]
    return [str(part) for part in (*start, *options)]
