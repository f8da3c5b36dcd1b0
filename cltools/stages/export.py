"""Stage `export`: a trained encoder as other software loads it.

A folder holds the weights (safetensors), `config.json`, and a model card `README.md`, which is
written last: a folder that has it is complete. `models.exported` says what the files hold.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import cltools
from cltools.config.cells import canonical_cell
from cltools.data.store import ImageStore
from cltools.layout import CellFolder
from cltools.models.exported import CARD, CONFIG, WEIGHTS, Exported, exported, images_about
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, whole_file
from cltools.runtime.tensors import save_tensors
from cltools.training.labels import class_count
from cltools.training.manifests import read_manifest, saved_weights
from cltools.training.trained import load_weights

log = logging.getLogger("cltools")


def run(
    *,
    manifest: Path,
    objective: str,
    to: str,
    output: Path,
    store: Path | None = None,
    step: int | None = None,
) -> None:
    """Write the network of one objective of a trained cell to the folder `output`.

    to: "timm" or "torchvision" (the encoder alone, under the names of that library), or
    "safetensors" (the whole network, under the names of this one).
    store: the store of its images, which says how they are prepared; by default it is looked for in
    the results that the manifest lies in.
    step: the checkpoint; by default the last.

    Raises InputError for an objective, a checkpoint or a store that the cell does not have, for
    weights that do not fit the manifest, and for an encoder that the library has no counterpart of.
    """
    made = read_manifest(manifest)
    cell, home = made["cell"], CellFolder.of(manifest)
    step, sha256 = _checkpoint(made, manifest, objective, step)
    images = _store(made, home, store)
    weights = load_weights(home.run.weights(objective, step), sha256)
    if to == "safetensors":
        found = _whole_network(made, weights, objective, images)
    else:
        found = exported(to, cell, weights, images)
    of = {
        "cell": made["id"],
        "objective": objective,
        "step": step,
        "store": made["store"],
        "weights": sha256,
    }
    (output / CARD).unlink(missing_ok=True)
    written = save_tensors(output / WEIGHTS, found.weights, of)
    _write(output / CONFIG, _json(found.config))
    _write(output / CARD, _card(to, made, of, found, images, written))
    log.info("%s: %s of %s for %s", output, objective, made["id"], to)


def _checkpoint(
    made: dict[str, Any], manifest: Path, objective: str, step: int | None
) -> tuple[int, str]:
    """The step of a checkpoint, and the hash of the objective's weights there."""
    saved = dict(saved_weights(made))
    if objective not in made["cell"]["objectives"]:
        raise InputError(
            f"--objective {objective} is not among those of {manifest}: choose one of "
            f"{', '.join(made['cell']['objectives'])}"
        )
    chosen = max(saved) if step is None else step
    if chosen not in saved:
        raise InputError(
            f"--step {step} is no checkpoint of {manifest}: choose one of "
            f"{', '.join(map(str, saved))}"
        )
    return chosen, saved[chosen][objective]


def _store(made: dict[str, Any], home: CellFolder, given: Path | None) -> ImageStore:
    folder = given or home.results.store(made["cell"]["dataset"]).path
    if given is None and not folder.exists():
        raise InputError(
            f"the images of {made['id']} are not in {folder}: give their store with --store"
        )
    store = ImageStore.open(folder)
    if store.content != made["store"]:
        raise InputError(
            f"the store {folder} holds other images than {made['id']} was trained on: give the "
            "one that it was trained on with --store"
        )
    return store


def _whole_network(
    made: dict[str, Any], weights: Mapping[str, Tensor], objective: str, images: ImageStore
) -> Exported:
    """Encoder, projector and head under our own names, for whoever has this package."""
    config = {
        "library": "cltools",
        "cell": made["cell"],
        "objective": objective,
        "classes": class_count(objective, len(made["class_ids"])),
        **images_about(images),
    }
    code = f"""import json
from pathlib import Path

from safetensors.torch import load_file

from cltools.training.networks import build_network

config = json.loads(Path("{CONFIG}").read_text())
channels, height, width = config["input_size"]
network = build_network(
    config["cell"], (height, width, channels), config["classes"], config["objective"]
)
network.load_state_dict(load_file("{WEIGHTS}"))
model = network.eval().encoder  # network(images) gives h and z"""
    return Exported(dict(weights), config, code)


def _card(
    to: str,
    made: dict[str, Any],
    of: Mapping[str, Any],
    found: Exported,
    store: ImageStore,
    sha256: str,
) -> str:
    cell, about = made["cell"], images_about(store)
    channels, height, width = about["input_size"]
    source = canonical_json(store.provenance)
    resized = f"their shorter side resized to {about['resize']} pixels, " * bool(about["resize"])
    rows = {
        "data set": f"{store.name}, {made['train_images']} training images of "
        f"{len(made['class_ids'])} classes; source `{source}`, SHA-256 `{of['store']}`",
        "objective": f"`{of['objective']}`",
        "trained": f"{of['step']} steps; an epoch has {made['steps_per_epoch']}",
        "encoder": f"`{cell['architecture']}`",
        "config": f"`{canonical_cell(cell)}`",
        "cell": f"`{of['cell']}`",
        f"`{WEIGHTS}`": f"SHA-256 `{sha256}`, from the trained weights `{of['weights']}`",
        "software": f"cltools {cltools.__version__}, torch {made['made_by']['torch']} "
        f"({made['made_by']['processor']})",
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    library = "cltools" if to == "safetensors" else to
    return f"""---
library_name: {library}
tags: [image-feature-extraction]
---
# {of["objective"]} on {store.name}: encoder for {library}

An encoder without a classifier: it maps images to vectors. `cltools export` made this folder.

| | |
|---|---|
{table}

## Load it

With this folder as the working directory:

```python
{found.code}
```

Images are floats (n, {channels}, {height}, {width}): {resized}values between 0 and 1,
minus the mean `{about["mean"]}`, divided by the standard deviation `{about["std"]}`.
`model(images)` is h, the features before the projector.
"""


def _json(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    with whole_file(path) as scratch:
        scratch.write_text(text)
