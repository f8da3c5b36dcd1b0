"""Tests run on one thread: two jobs with a thread per core each are many times slower."""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
# The same examples everywhere, and none that a slow machine fails.
hypothesis.settings.register_profile(
    "steady",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", help="where tests that take a device compute: cpu, cuda, cuda:1"
    )


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of --device, on which objectives, views, networks and sums are tested."""
    from cltools.runtime.devices import choose_device

    name = request.config.getoption("--device")
    return torch.device("cpu") if name == "cpu" else choose_device(name)


def pytest_xdist_auto_num_workers() -> int:
    """One for each core that this process may use."""
    return len(os.sched_getaffinity(0))


# The files that take longest, which are begun first.
LONGEST = (
    "test_slurm", "test_workflow", "test_incremental", "test_faults", "test_figures", "test_stages",
    "test_distributed", "test_report", "test_extending",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The store of the real digits, as the default experiment makes it."""
    from cltools.stages import prepare

    folder = tmp_path_factory.mktemp("stores") / "digits"
    prepare.run(name="digits", definition={"source": "digits"}, store=folder)
    return folder
