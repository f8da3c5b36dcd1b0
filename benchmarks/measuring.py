"""Time and memory of one call, and files of numbers, for the other benchmarks in this folder.

Time and memory are for Linux with glibc only.
"""

import ctypes
import json
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from threadpoolctl import threadpool_info


class Run(NamedTuple):
    seconds: float  # elapsed time
    cpu: float  # CPU seconds of all threads of this process, so that other load does not count
    memory: float  # GB at the peak, minus those before the call
    result: Any


def measured(call: Callable[[], Any]) -> Run:
    ctypes.CDLL(None).malloc_trim(0)  # return free memory, since its reuse could not be measured
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak that the kernel reports
    before = _gigabytes("VmRSS")
    start, start_cpu = time.perf_counter(), time.process_time()
    result = call()
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return Run(seconds, cpu, max(_gigabytes("VmHWM") - before, 0), result)


def _gigabytes(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(field + ":")[2].split()[0]) * 1024 / 1e9


def add_json(parser: ArgumentParser) -> None:
    """The option that `docs/measured.py bench` gives, for `write_numbers`."""
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")


def write_numbers(path: Path | None, numbers: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(numbers))


def threads() -> str:
    counts = {info["prefix"]: info["num_threads"] for info in threadpool_info()}
    return ", ".join(f"{library} {count}" for library, count in counts.items())
