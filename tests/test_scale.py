"""docs/scale.md and the headers of config/paper/ say what docs/scale.json predicts."""

import json

import pytest
import scale

from cltools.config.experiment import load_experiment, read_config
from cltools.runtime.errors import InputError

CONTENT = json.loads(scale.FILE.read_text())
AGAIN = "run: python docs/scale.py predict, then: python docs/scale.py write"


def experiment(name):
    return load_experiment(read_config(scale.CONFIGS / f"{name}.yaml"))


def test_every_config_has_its_prediction():
    found = {path.stem for path in scale.CONFIGS.glob("*.yaml")}
    assert found == CONTENT["experiments"].keys(), AGAIN


@pytest.mark.parametrize("name", CONTENT["experiments"])
def test_the_header_is_current(name):
    """The cells are those that were predicted, and the header says what was predicted of them."""
    kept = CONTENT["experiments"][name]
    assert kept["cells"] == scale.cells_of(experiment(name)), AGAIN
    text = (scale.CONFIGS / f"{name}.yaml").read_text()
    assert text == scale.with_header(text, kept), AGAIN


def test_the_page_is_current():
    assert scale.PAGE.read_text() == scale.page(CONTENT), AGAIN


def test_a_prediction_is_repeated():
    """Of one config; the test below takes others, `docs/scale.py predict` all of them."""
    found = scale.summary(experiment("p1_moco_cifar10"))
    assert found == CONTENT["experiments"]["p1_moco_cifar10"], AGAIN


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CONTENT["experiments"])[::3])
def test_other_predictions_are_repeated(name):
    assert scale.summary(experiment(name)) == CONTENT["experiments"][name], AGAIN


def test_a_header_needs_its_place():
    with pytest.raises(InputError, match="no paragraph"):
        scale.with_header("# Nothing\n#\n", CONTENT["experiments"]["p1_moco_cifar10"])


@pytest.mark.parametrize(
    ("gb", "saved", "gpus"), [(70, 60, 1), (95, 90, 2), (162, 158, 4), (300, 295, 4)]
)
def test_gpus_for_the_memory(gb, saved, gpus):
    assert scale.gpus_needed([{"gb": gb, "saved_gb": saved}]) == gpus


def test_the_authors_pace_is_that_of_their_log():
    cell = {**scale.AUTHORS, "dataset": "cifar100-01234567", "objectives": ["dcl", "nscl"]}
    assert scale.authors_hours(cell, hours=1.0, step=45 / 48) == pytest.approx(1.0)
    assert scale.authors_hours({**cell, "objectives": ["dcl"]}, 1.0, 45 / 48) == pytest.approx(0.5)
    assert scale.authors_hours({**cell, "width": 2}, 1.0, 1.0) is None
    assert scale.authors_hours({**cell, "dataset": "svhn"}, 1.0, 1.0) is None
