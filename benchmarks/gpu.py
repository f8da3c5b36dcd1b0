"""Check what only a GPU can show, and time the training step on it.

    python benchmarks/gpu.py                          # on one H200; meant to take 8 minutes at most
    python benchmarks/gpu.py --only "paper step"      # the checks whose name has this in it
    python benchmarks/gpu.py --device cpu --smoke     # tiny, on a CPU: does this file still run?

Prints a line for each check as it ends: PASS or FAIL, and numbers. The exit code is 1 if a check
failed. Checks compare bytes and numbers. Times are shown, but no check fails because of them:
compare them with what the GPU can do at most, which is measured first.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from coupled_step import broadcast_loss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from cltools.config.cells import resolve_cell
from cltools.data.image_set import image_set, open_store
from cltools.data.store import write_store
from cltools.maths.alignment import alignment
from cltools.maths.collapse import class_statistics
from cltools.maths.objectives import cross_entropy
from cltools.maths.randomness import initialize
from cltools.maths.whole_set import whole_set_losses
from cltools.runtime.devices import choose_device, to_device
from cltools.runtime.faults import memory_fault
from cltools.training.curvature import largest_curvature
from cltools.training.networks import build_network
from cltools.training.optimizers import build_optimizer, set_lr
from cltools.training.recalibration import recalibrate
from cltools.training.trainer import CoupledTrainer

CPU = torch.device("cpu")
OBJECTIVES = ["dcl", "nscl", "scl", "ce"]
CLASSES = 10
LOW = ("bfloat16", "tf32")

# Every kind of cell whose step runs different code on a GPU.
KINDS: dict[str, dict[str, Any]] = {
    "small ResNet, LARS": {},
    "ResNet-18, SGD, bfloat16": {
        "architecture": "resnet18", "optimizer": "sgd", "precision": "bfloat16",
    },
    "tf32": {"architecture": "resnet18", "precision": "tf32"},
    "the authors' recipe": {"optimizer": "authors_lars", "view_forward": "apart"},
    "ViT": {"architecture": "small_vit"},
    "ViT, bfloat16": {"architecture": "small_vit", "precision": "bfloat16"},
    "ImageNet's stem": {"architecture": "resnet18", "stem": "imagenet"},
    "MoCo": {"framework": "moco", "objectives": ["dcl", "nscl", "ce"], "queue_size": 256},
    "own batches and views": {"coupling": ["init"]},
    "all changes of views": {"recipe": "imagenet"},
}  # fmt: skip
SMOKE_KINDS = ("ViT, bfloat16", "the authors' recipe", "MoCo", "tf32")


class Finding(NamedTuple):
    ok: bool
    numbers: dict[str, Any]


@dataclass
class Setup:
    """Where checks run, how large they are, and what the device can do at most."""

    device: torch.device
    smoke: bool
    folder: Path
    rates: dict[str, float] = field(default_factory=dict)  # bytes or operations per second
    least_ms: float | None = None  # of the paper step, from its roofline

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @cached_property
    def paper_cell(self) -> dict[str, Any]:
        """A cell of the papers' size: CIFAR, ResNet-50, B = 1024, four objectives."""
        if self.smoke:
            return {"architecture": "small_resnet", "batch_size": 32, "precision": "bfloat16"}
        return {
            "architecture": "resnet50", "batch_size": 1024, "projector_hidden": 2048,
            "projector_dim": 64, "precision": "bfloat16",
        }  # fmt: skip

    def trainer(self, device: torch.device | None = None, **settings: Any) -> CoupledTrainer:
        """A trainer of random images whose classes differ, so that losses move."""
        given = {
            "dataset": "made", "recipe": "cifar", "objectives": OBJECTIVES, "horizon": "1000 steps",
            "warmup": 0, "lr": 0.1, "architecture": "small_resnet", "projector_hidden": 64,
            "projector_dim": 32, "batch_size": 16 if self.smoke else 64, **settings,
        }  # fmt: skip
        if self.smoke and given["architecture"] == "resnet18":
            given["architecture"] = "small_resnet"
        cell = resolve_cell(given)
        device = device or self.device
        store = open_store(self.store(4 * cell["batch_size"]), cell)
        return CoupledTrainer(cell, image_set(store, cell, "train", device), device)

    def store(self, images: int) -> Path:
        folder, size = self.folder / str(images), 8 if self.smoke else 32
        if not folder.exists():
            random, labels = np.random.default_rng(0), np.arange(images) % CLASSES
            means = random.integers(0, 128, (CLASSES, size, size, 3), np.uint8)
            pixels = means[labels] + random.integers(0, 128, (images, size, size, 3), np.uint8)
            splits = dict.fromkeys(("train", "test"), (pixels, labels))
            write_store(folder, "made", [str(c) for c in range(CLASSES)], splits, {})
        return folder

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], repeats: int, warm_up: int = 3) -> float:
        """Mean seconds of a call, after some that are not timed."""
        for _ in range(warm_up):
            call()
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        self.wait()
        return (time.perf_counter() - began) / repeats

    def step_costs(self, trainer: CoupledTrainer) -> dict[str, Any]:
        """Milliseconds of a step and, on a GPU, GB at the peak and kernels that a step starts."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        found = {"ms": 1e3 * self.seconds(trainer.train_step, 2 if self.smoke else 10)}
        if self.cuda:
            found["GB"] = torch.cuda.max_memory_allocated() / 1e9
            found |= kernels(trainer, self.wait, found["ms"])
        return found


def kernels(trainer: CoupledTrainer, wait: Callable[[], None], ms: float) -> dict[str, float]:
    """Kernels that a step starts, and the share of its time in which the GPU is busy."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        trainer.train_step()
        wait()
    events = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return {"kernels": len(events), "busy": sum(e.device_time for e in events) / 1e3 / ms}


@contextmanager
def usual_torch(device: torch.device) -> Iterator[None]:
    """torch as it is without `choose_device`: results need not repeat, convolutions use TF32."""
    torch.set_deterministic_debug_mode("default")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        choose_device(str(device))


def steps(trainer: CoupledTrainer, count: int, may_wait: bool = True) -> CoupledTrainer:
    """Take steps. Unless it `may_wait`, an operation that waits for the GPU raises RuntimeError."""
    strict = trainer.device.type == "cuda" and not may_wait
    try:
        if strict:
            torch.cuda.set_sync_debug_mode("error")
        for _ in range(count):
            trainer.train_step()
    finally:
        if strict:
            torch.cuda.set_sync_debug_mode("default")
    return trainer


def weights(trainer: CoupledTrainer) -> list[Tensor]:
    return [t.cpu() for n in trainer.networks.values() for t in n.state_dict().values()]


def difference(one: float, other: float) -> float:
    return abs(one - other) / max(abs(other), 1e-12)


# The checks


def ceilings(setup: Setup) -> Finding:
    """TB/s of a copy, and TFLOP/s of products of square matrices."""
    device, side = setup.device, 256 if setup.smoke else 8192
    a = torch.ones((1 << 16) if setup.smoke else 1 << 30, device=device)
    b = torch.empty_like(a)
    repeats = 2 if setup.smoke else 10
    setup.rates["copy"] = 2 * a.nbytes / setup.seconds(lambda: b.copy_(a), repeats)
    for name, dtype in (("bfloat16", torch.bfloat16), ("tf32", torch.float32),
                        ("float32", torch.float32), ("float64", torch.float64)):  # fmt: skip
        x = torch.ones(side, side, device=device, dtype=dtype)
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        seconds = setup.seconds(lambda x=x: x @ x, repeats)
        torch.backends.cuda.matmul.allow_tf32 = False
        setup.rates[name] = 2 * side**3 / seconds
    units = {"copy": "TB_per_s"}
    found = {f"{n}_{units.get(n, 'TFLOP_per_s')}": r / 1e12 for n, r in setup.rates.items()}
    return Finding(True, {**found, "torch": torch.__version__})


def kind(settings: dict[str, Any], setup: Setup) -> Finding:
    """Steps that do not wait, the same bytes after stop and resume, and the numbers of a CPU."""
    straight = steps(steps(setup.trainer(**settings), 1), 5, may_wait=False)
    stopped = steps(setup.trainer(**settings), 3)
    tensors, about = stopped.state()
    resumed = setup.trainer(**settings)
    resumed.restore(tensors, about)
    steps(resumed, 3)
    same = all(map(torch.equal, weights(straight), weights(resumed)))

    there, here = setup.trainer(**settings), setup.trainer(CPU, **settings)
    views = [next(iter(t.batches.values())).at(0)[0].cpu() for t in (there, here)]
    apart = float((views[0] - views[1]).abs().max())
    logs = [steps(t, 1).log(1) for t in (there, here)]
    losses = [np.concatenate([log[c] for c in there.columns[1:]]) for log in logs]
    loss = float(np.nanmax(np.abs(losses[0] / losses[1] - 1)))
    # bfloat16 rounds to 8 bits and TF32 to 11, so a similarity may be off by 2⁻⁸ of its size.
    allowed = 2**-7 if settings.get("precision") in LOW else 1e-3
    return Finding(
        same and apart < 1e-3 and loss < allowed,
        {"resumed_same": same, "views_apart": apart, "losses_apart": loss},
    )


def after_training(setup: Setup) -> Finding:
    """Recalibrated statistics, curvature and whole-set losses, against those of the CPU."""
    state = steps(setup.trainer(objectives=["dcl"]), 2).networks["dcl"].state_dict()
    found = [_after_training(setup, device, state) for device in (setup.device, CPU)]
    apart = {name: difference(found[0][name], found[1][name]) for name in found[0]}
    return Finding(max(apart.values()) < 1e-2, {f"{name}_apart": v for name, v in apart.items()})


def _after_training(
    setup: Setup, device: torch.device, state: dict[str, Tensor]
) -> dict[str, float]:
    trainer = setup.trainer(device, objectives=["dcl"])
    network = trainer.networks["dcl"]
    network.load_state_dict(state)
    recalibrate(network, trainer.data)
    names = [name for name in network.state_dict() if name.endswith("running_var")]
    variances = torch.cat([network.state_dict()[name].cpu() for name in names])
    views, _ = trainer.batches["dcl"].at(0)
    network.train()
    weights = [p for p in network.parameters() if p.requires_grad]
    curvature = largest_curvature(lambda: network(views)[1][:, 0].square().sum(), weights, 5)
    random = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(2, 500, 32, generator=random), dim=2)
    losses = whole_set_losses(z, torch.arange(500) % CLASSES, [0.5], device=device)[0.5]
    return {
        "variances": float(variances.double().norm()), "curvature": float(curvature),
        "dcl": losses.dcl, "nscl": losses.nscl,
    }  # fmt: skip


class Traffic(TorchDispatchMode):
    """Adds up the least seconds of each operation: its arithmetic, or what it reads and writes.

    `of_products` is the part of matrix products and convolutions. This is what would be left if a
    compiler could fuse all other operations into these.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup, self.flops, self.bytes = setup, 0.0, 0.0
        self.seconds, self.of_products = 0.0, 0.0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        flops = count(*args, **(kwargs or {}), out_val=out) if count else 0
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        moved = 0 if function.is_view else sum(t.numel() * t.itemsize for t in tensors)
        self.flops, self.bytes = self.flops + flops, self.bytes + moved
        least = max(flops / self.setup.rates["bfloat16"], moved / self.setup.rates["copy"])
        self.seconds += least
        self.of_products += least if flops else 0.0
        return out

    def numbers(self) -> dict[str, float]:
        return {
            "TFLOP": self.flops / 1e12, "TB": self.bytes / 1e12,
            "least_ms": self.seconds * 1e3, "of_products_ms": self.of_products * 1e3,
        }  # fmt: skip


def paper_step(setup: Setup, **more: Any) -> Finding:
    """Time a step of the papers' size. Raises InputError if a loss is not finite."""
    trainer = setup.trainer(**{**setup.paper_cell, **more})
    costs = setup.step_costs(trainer)
    trainer.flush()
    if setup.least_ms and more.keys() <= {"compile"}:
        costs["share_of_roofline"] = setup.least_ms / costs["ms"]
    return Finding(True, costs)


def roofline(setup: Setup) -> Finding:
    """The least time of the operations of that step, run one by one in bfloat16."""
    trainer = steps(setup.trainer(**setup.paper_cell), 1)
    with Traffic(setup) as traffic:
        trainer.train_step()
    setup.least_ms = traffic.seconds * 1e3
    return Finding(True, traffic.numbers())


def authors_step(setup: Setup) -> Finding:
    """The networks as in the authors' code, on views that are there already.

    One pass for each view, NCHW layout, float16 with loss scaling on a GPU, and losses from a
    2B × 2B × d product.
    """
    trainer = setup.trainer(**setup.paper_cell)
    cell, shape = trainer.cell, trainer.data.image_shape
    views, positions = next(iter(trainer.batches.values())).at(0)
    pair = [view.contiguous() for view in views.chunk(2)]
    labels = to_device(trainer.data.labels[positions], setup.device)
    networks = {o: build_network(cell, shape, CLASSES, o).to(setup.device) for o in OBJECTIVES}
    optimizers = {}
    for objective, network in networks.items():
        initialize(network, 0)
        optimizers[objective] = build_optimizer(cell, network)
        set_lr(optimizers[objective], 1e-3)
    scaler = torch.amp.GradScaler(setup.device.type, enabled=setup.cuda)

    def step() -> None:
        for objective, network in networks.items():
            optimizers[objective].zero_grad()
            with torch.autocast(setup.device.type, dtype=torch.float16, enabled=setup.cuda):
                z = [network(view)[1] for view in pair]
            if objective == "ce":
                loss = cross_entropy(network.class_logits(torch.stack(z)), labels)
            else:
                loss = broadcast_loss(objective, torch.cat(z), labels, cell["tau"])
            scaler.scale(loss).backward()
            scaler.step(optimizers[objective])
            scaler.update()

    with usual_torch(setup.device):
        return Finding(True, {"ms": 1e3 * setup.seconds(step, 2 if setup.smoke else 5)})


def views_alone(setup: Setup) -> Finding:
    """The views of a batch of the papers' size: copies and arithmetic of one step."""
    trainer = setup.trainer(**setup.paper_cell)
    batches, count = next(iter(trainer.batches.values())), iter(range(1000))
    seconds = setup.seconds(lambda: batches.at(next(count)), 2 if setup.smoke else 10)
    return Finding(True, {"ms": 1e3 * seconds})


def determinism(setup: Setup) -> Finding:
    """The papers' step in torch's usual mode, where results need not repeat."""
    with usual_torch(setup.device):
        return Finding(True, setup.step_costs(setup.trainer(**setup.paper_cell)))


def small_step(setup: Setup, **more: Any) -> Finding:
    """A cell so small that starting kernels takes longer than they run."""
    batch = 32 if setup.smoke else 128
    costs = setup.step_costs(setup.trainer(batch_size=batch, **more))
    return Finding(True, {**costs, "images_per_s": batch / costs["ms"] * 1e3})


def measuring(setup: Setup) -> Finding:
    """Measures of a checkpoint of CIFAR's size; on few images, the same numbers as on the CPU."""
    images, features = (400, 16) if setup.smoke else (50_000, 2048)
    labels = np.arange(images) % CLASSES
    random = np.random.default_rng(0)
    base = random.standard_normal((images, features), np.float32)
    made = {o: base + random.standard_normal((images, features), np.float32) for o in OBJECTIVES}
    z = np.stack([random.standard_normal((images, 64), np.float32) for _ in range(2)])
    z /= np.linalg.norm(z, axis=2, keepdims=True)

    def align(device: torch.device, n: int) -> Any:
        return alignment({o: x[:n] for o, x in made.items()}, device=device)

    def collapse(device: torch.device, n: int) -> Any:
        return class_statistics(made["dcl"][:n], labels[:n], device).means

    def losses(device: torch.device, n: int) -> Any:
        own = torch.from_numpy(labels[:n])
        return whole_set_losses(z[:, :n], own, [0.5, 1.0], device=device)

    numbers: dict[str, Any] = {}
    ok = True
    for call, allowed in ((align, 1e-9), (collapse, 1e-9), (losses, 1e-5)):
        name = call.__name__
        there, here = (_numbers(call(d, min(images, 2000))) for d in (setup.device, CPU))
        apart = float(np.abs(there - here).max() / np.abs(here).max())
        ok &= apart < allowed
        seconds = setup.seconds(partial(call, setup.device, images), 1, warm_up=0)
        numbers |= {f"{name}_s": seconds, f"{name}_apart": apart}
    return Finding(ok, numbers)


def _numbers(result: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in tree_leaves(result)])


def out_of_memory(setup: Setup) -> Finding:
    """A batch that does not fit the GPU ends in one sentence, not in a traceback."""
    if not setup.cuda or setup.smoke:
        return Finding(True, {"said": "left out: only for a GPU"})
    try:
        steps(setup.trainer(**{**setup.paper_cell, "batch_size": 1 << 15}), 1)
    except RuntimeError as error:
        said = memory_fault(error, "lower batch_size")
        return Finding(said is not None, {"said": str(said or error).splitlines()[0]})
    return Finding(False, {"said": "it fits"})


def checks(smoke: bool) -> dict[str, Callable[[Setup], Finding]]:
    """The checks by name, in their order: the ceilings come first, since others use them."""
    chosen = SMOKE_KINDS if smoke else tuple(KINDS)
    one = {"objectives": ["dcl"]}
    found: dict[str, Callable[[Setup], Finding]] = {"ceilings": ceilings}
    found |= {f"cell: {name}": partial(kind, KINDS[name]) for name in chosen}
    found |= {
        "after training": after_training,
        "views alone": views_alone,
        "paper step, roofline": roofline,
        "paper step, eager": paper_step,
        "paper step, compiled": partial(paper_step, compile=True),
        "paper step, authors' way": authors_step,
        "paper step, not repeatable": determinism,
        "one objective": partial(paper_step, **one),
        "one objective, tf32": partial(paper_step, **one, precision="tf32"),
        "one objective, float32": partial(paper_step, **one, precision="float32"),
        "small step": small_step,
        "small step, CUDA graphs": partial(small_step, compile="cuda_graphs"),
        "measuring": measuring,
        "out of memory": out_of_memory,
    }
    if smoke:  # they take as long as all others
        del found["paper step, compiled"], found["small step, CUDA graphs"]
    return found


def shown(numbers: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in numbers.items()
    )


def run(setup: Setup, only: str) -> bool:
    """Run the checks whose name has `only` in it, print a line for each; whether all passed."""
    began, passed = time.perf_counter(), True
    for name, check in checks(setup.smoke).items():
        if only not in name and name != "ceilings":
            continue
        start = time.perf_counter()
        try:
            found = check(setup)
        except Exception as error:  # the other checks are still worth running
            traceback.print_exc(limit=-3)
            found = Finding(False, {"error": f"{type(error).__name__}: {error}".splitlines()[0]})
        gc.collect()  # what a check held on the GPU
        seconds = time.perf_counter() - start
        passed &= found.ok
        word = "PASS" if found.ok else "FAIL"
        print(f"{word}  {name:28}{seconds:7.1f} s   {shown(found.numbers)}", flush=True)
    minutes = (time.perf_counter() - began) / 60
    print(f"{'ALL PASS' if passed else 'SOME FAIL'} after {minutes:.1f} minutes")
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, and not all checks")
    parser.add_argument("--only", default="", help="run the checks whose name has this in it")
    args = parser.parse_args()
    device = choose_device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(device, args.smoke, Path(folder))
        sys.exit(0 if run(setup, args.only) else 1)


if __name__ == "__main__":
    main()
