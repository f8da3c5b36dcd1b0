"""Sources of images: built-in digits, Hugging Face parquet, image folders, torchvision archives.

`read_source` is the one entry. A source is described by a flat dict, {"source": KIND, **options};
the options of a kind are the keyword arguments of its reader below. What a reader does not know
for sure (a column, a split, a size) it refuses with an InputError that names the file, rather than
guess: a wrong guess here would pass silently through every later stage.

All decoded images are held in memory at once (CIFAR-10: 180 MB, SVHN with its extra images 1.9 GB).
Large photographs stay encoded (`encoded: true`), and are read when they are written to the store.
"""

import hashlib
import inspect
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cltools.engine.decoding import GREY_MODES, DamagedImageError, centre, open_image
from cltools.engine.encoded import EncodedSource, Named
from cltools.engine.store import Arrays
from cltools.errors import InputError
from cltools.files import canonical_json, sha256_file, sha256_text
from cltools.progress import track

log = logging.getLogger("cltools")

TEST_FOLDERS = ("test", "val", "valid", "validation")
ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's: file, class and a box on each line
HASHED_BYTES = 4 << 30  # source files are hashed up to this size in all, a few seconds' work
ROWS_AT_ONCE = 1000  # of a parquet file: 100 MB of photographs, 1 MB of CIFAR

TORCHVISION_FILES = {
    "CIFAR10": tuple(
        f"cifar-10-batches-py/{name}"
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    ),
    "CIFAR100": tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta")),
    "FashionMNIST": tuple(
        f"FashionMNIST/raw/{split}-{kind}-ubyte"
        for split in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ),
    "SVHN": ("train_32x32.mat", "test_32x32.mat"),
}


@dataclass(frozen=True, eq=False)
class Source:
    """What was read: everything `write_store` needs but the data set's name.

    splits: "train" and "test", each (images uint8 (N, H, W, C), labels int64 (N,)).
    provenance: the definition as given, and what the files turned out to be. JSON values only.
    preprocessing: what was done to the pixels, in words.
    """

    class_names: list[str]
    splits: dict[str, Arrays]
    provenance: dict[str, Any]
    preprocessing: str = "none"


def read_source(definition: dict[str, Any]) -> Source | EncodedSource:
    """Read the images that `definition` describes, e.g. {"source": "parquet", "path": "…"}.

    With "encoded": true they are only listed. Raises InputError for an unknown source or option and
    for whatever is wrong with the files.
    """
    options = dict(definition)
    kind = options.pop("source", None)
    if kind not in READERS:
        raise InputError(f"source is {kind!r}: use one of {_listed(READERS)}")
    reader = READERS[kind]
    parameters = inspect.signature(reader).parameters
    if unknown := options.keys() - parameters.keys():
        raise InputError(
            f"source '{kind}' has no option {_listed(unknown)}: its options are "
            f"{_listed(parameters)}"
        )
    required = {key for key, value in parameters.items() if value.default is value.empty}
    if missing := required - options.keys():
        raise InputError(f"source '{kind}' needs the option {_listed(missing)}: add it")
    _check_sizes(options)
    source = reader(**options)
    if len(source.class_names) < 2:
        raise InputError(
            f"the {kind} source {_described(options)} has only {len(source.class_names)} class: "
            "at least 2 are needed"
        )
    return replace(source, provenance={**definition, **source.provenance})


def _check_sizes(options: dict[str, Any]) -> None:
    """Refuse what `size`, `resize` and `encoded` cannot mean together."""
    size, resize, encoded = (options.get(key) for key in ("size", "resize", "encoded"))
    for key, value in (("size", size), ("resize", resize)):
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(f"{key} is {value!r}: give the side of the images in whole pixels")
    if encoded and size is None:
        raise InputError("encoded is true, but there is no size: add what views are resized to")
    if resize is not None and (size is None or resize < size):
        raise InputError(
            f"resize is {resize}, but size is {size}: `resize` is what the shorter side is brought "
            "to before the centre, `size`, is cropped; raise it or leave it out"
        )


# --- the readers -----------------------------------------------------------------------------


def read_digits(size: int | None = None, test_fraction: float = 0.2, seed: int = 0) -> Source:
    """The 1,797 grey 8x8 digits inside scikit-learn, split by class with `seed`.

    `size` upsamples them (bilinear) to size x size.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 16 grey levels above black become 0..255.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    preprocessing = "values 0..16 scaled to 0..255"
    if size not in (None, 8):
        images = np.stack([np.asarray(centre(Image.fromarray(image), size)) for image in images])
        preprocessing += f", 8x8 resized to {size}x{size} (bilinear)"
    images, labels = images[..., None], digits.target.astype(np.int64)
    test = held_out(labels, test_fraction, seed)
    return Source(
        class_names=[str(digit) for digit in digits.target_names],
        splits={"train": (images[~test], labels[~test]), "test": (images[test], labels[test])},
        provenance={
            "files": "inside scikit-learn (load_digits)",
            "split": _drawn_split(test_fraction, seed),
        },
        preprocessing=preprocessing,
    )


def read_parquet(
    path: str | list[str],
    size: int | None = None,
    resize: int | None = None,
    encoded: bool = False,
    skip_damaged: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source | EncodedSource:
    """Hugging Face parquet: a folder of {train,test,validation}* files, or a list of such files.

    `test` falls back to `validation` when there is none, or when its labels are withheld (all -1,
    as in ImageNet). The image column is the one of bytes, the label column the one that the file's
    metadata call a class label, else an integer column called label, labels or fine_label;
    `image_column` and `label_column` overrule this. For the rest see `_taken`.
    """
    root, found = _parquet_files(path)
    first = found["train"][0]
    schema, features = _parquet_schema(first)
    image = _image_column(first, schema, features, image_column)
    label = _label_column(first, schema, features, label_column)

    labels = {
        split: [_label_series(file, label) for file in files] for split, files in found.items()
    }
    test = "test" if "test" in found else "validation"
    if "validation" in found and all((series == -1).all() for series in labels[test]):
        test = "validation"
    chosen = {"train": "train", "test": test}

    names = features.get(label, {}).get("names")
    if not isinstance(names, list):
        every = (series for split in chosen.values() for series in labels[split])
        names = range(max((series.max() for series in every if len(series)), default=-1) + 1)
    files = [file for source in chosen.values() for file in found[source]]
    listed = EncodedSource(
        class_names=[str(name) for name in names],
        labels={
            split: _checked_labels(found[source], labels[source], label, len(names))
            for split, source in chosen.items()
        },
        images=lambda split, first: _parquet_images(found[chosen[split]], image, first),
        provenance={
            "files": _file_hashes(root, files),
            "columns": {"image": image, "label": label},
            "test_split": test,
        },
    )
    return _taken(listed, size, resize, encoded, skip_damaged)


def read_folder(
    path: str,
    size: int | None = None,
    resize: int | None = None,
    encoded: bool = False,
    skip_damaged: bool = False,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Source | EncodedSource:
    """A folder of images: {train,test}/CLASS/FILE, or CLASS/FILE; or Tiny-ImageNet's folder.

    A folder without a split of its own gets one, class by class, from `test_fraction` and `seed`;
    val, valid and validation do for test. The images of a class may lie in a folder `images` of
    its own, and a val folder with a file val_annotations.txt needs no class folders. Classes and
    files go in the order of their names, and names that begin with a dot are skipped. For the rest
    see `_taken`.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give the folder that holds the class folders")
    if (root / "train").is_dir():
        class_names, files, test = _split_folders(root)
        provenance: dict[str, Any] = {"test_split": test}
    else:
        class_names, every = _class_files(root)
        files = _drawn_files(root, class_names, every, test_fraction, seed)
        provenance = {"split": _drawn_split(test_fraction, seed)}

    digest = hashlib.sha256()

    def name(file: str) -> str:
        return Path(file).relative_to(root).as_posix()

    def read(file: str) -> bytes:
        content = _file_bytes(file)
        if not encoded:  # else threads read them, in no order, and the store has their hash
            digest.update(f"{name(file)}\0{len(content)}\0".encode())
            digest.update(content)
        return content

    listed = EncodedSource(
        class_names,
        {s: np.array([label for _, label in files[s]], dtype=np.int64) for s in files},
        lambda split, first: ((file, partial(read, file)) for file, _ in files[split][first:]),
        provenance,
    )
    about = provenance["files"] = {"count": sum(map(len, files.values()))}
    if encoded:
        names = sha256_text(canonical_json([name(file) for s in files for file, _ in files[s]]))
        about["names_sha256"] = names
    taken = _taken(listed, size, resize, encoded, skip_damaged)
    if not encoded:
        about["sha256"] = digest.hexdigest()
    return taken


def read_torchvision(dataset: str, root: str, download: bool = True, extra: bool = False) -> Source:
    """CIFAR10, CIFAR100, FashionMNIST or SVHN as torchvision keeps them under `root`.

    Files that are missing or damaged are downloaded if `download`. `extra` adds SVHN's extra
    split to its train split. CIFAR comes as pickles, which run code when loaded; torchvision
    checks their MD5 first.
    """
    if dataset not in TORCHVISION_FILES:
        raise InputError(f"dataset is {dataset!r}: use one of {_listed(TORCHVISION_FILES)}")
    if extra and dataset != "SVHN":
        raise InputError(f"extra is true, but {dataset} has no extra split: only SVHN has one")
    files = (*TORCHVISION_FILES[dataset], *(["extra_32x32.mat"] if extra else []))

    train = _torchvision_split(dataset, root, "train", download, files)
    splits = {
        "train": _torchvision_arrays(train),
        "test": _torchvision_arrays(_torchvision_split(dataset, root, "test", download, files)),
    }
    if extra:
        more = _torchvision_arrays(_torchvision_split(dataset, root, "extra", download, files))
        splits["train"] = tuple(map(_joined, splits["train"], more))
    # SVHN alone names no classes: it is the ten digits, with torchvision's label 0 for the digit 0.
    class_names = list(getattr(train, "classes", [str(digit) for digit in range(10)]))
    present = [Path(root, file) for file in files if Path(root, file).is_file()]
    return Source(class_names, splits, {"files": _file_hashes(Path(root), present)})


READERS = {
    "digits": read_digits,
    "parquet": read_parquet,
    "folder": read_folder,
    "torchvision": read_torchvision,
}


# --- pixels ----------------------------------------------------------------------------------


def _taken(
    listed: EncodedSource,
    size: int | None,
    resize: int | None,
    encoded: bool,
    skip_damaged: bool,
) -> Source | EncodedSource:
    """The listed images as they are if they are to stay `encoded`, else decoded to one shape.

    With `size`, the shorter side is resized to it, or to `resize` (bilinear, antialiased), and the
    centre cropped to size x size; without, all images must have one size. An image that cannot be
    decoded is an error or, with `skip_damaged`, left out.
    """
    listed = replace(listed, size=size, resize=resize, skip_damaged=skip_damaged)
    if encoded:
        return listed
    decoder = Decoder(size, resize, skip_damaged)
    splits, skipped = {}, {}
    for split, labels in listed.labels.items():
        images = listed.images(split, 0)
        pixels, kept = decoder.decode(images, len(labels), f"Decoding {split} images")
        splits[split] = (pixels, labels[kept])
        skipped[split] = int((~kept).sum())
    listed.provenance["encodings"] = decoder.encodings()
    if skip_damaged:
        listed.provenance["skipped"] = skipped
    finished = decoder.finished(splits)
    return Source(listed.class_names, finished, listed.provenance, listed.preprocessing)


@dataclass(eq=False)
class Decoder:
    """Decodes encoded images, of one or more splits, to arrays of one shape, as `_taken` says.

    Images are held as RGB until all have been seen: only a set in which every one is grey stays
    grey.
    """

    size: int | None = None
    resize: int | None = None
    skip_damaged: bool = False
    shape: tuple[int, ...] | None = None
    all_grey: bool = True
    seen: Counter[str] = field(default_factory=Counter)

    def encodings(self) -> dict[str, int]:
        """How many images came in which format, e.g. {"JPEG": 60000}."""
        return dict(self.seen)

    def decode(
        self, images: Iterable[Named], total: int, description: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (n, H, W, 3) of `total` images, and which of them these n are, bool (total,).

        Raises InputError, naming the image, when one cannot be decoded or differs in size.
        """
        pixels = np.empty((0, 0, 0, 3), dtype=np.uint8)
        kept = np.zeros(total, dtype=bool)
        count = 0
        for row, (where, read) in enumerate(track(images, total, description)):
            try:
                image = self._decode_one(read(), where)
            except DamagedImageError as error:
                if not self.skip_damaged:
                    raise
                log.warning("skipped: %s", str(error).partition(": replace")[0])
                continue
            if self.shape is None:
                self.shape = image.shape
            if image.shape != self.shape:
                raise InputError(
                    f"{where} has {image.shape[1]}x{image.shape[0]} pixels, but those before it "
                    f"{self.shape[1]}x{self.shape[0]}: give `size` to bring all to one size"
                )
            if not count:
                pixels = np.empty((total, *self.shape), dtype=np.uint8)
            pixels[count] = image
            kept[row] = True
            count += 1
        return pixels[:count], kept

    def finished(self, splits: dict[str, Arrays]) -> dict[str, Arrays]:
        """`splits` with one channel instead of three if every image ever decoded was grey."""
        if not self.all_grey:
            return splits
        return {
            split: (np.ascontiguousarray(images[..., :1]), labels)
            for split, (images, labels) in splits.items()
        }

    def _decode_one(self, encoded: bytes, where: str) -> np.ndarray:
        image = open_image(encoded, where)
        self.all_grey &= image.mode in GREY_MODES
        self.seen[image.format] += 1
        colour = image.convert("RGB")
        return np.asarray(colour if self.size is None else centre(colour, self.size, self.resize))


# --- splits ----------------------------------------------------------------------------------


def held_out(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Bool (N,): which samples form the test split, drawn class by class from `seed`.

    Of each class of labels (N,), `fraction` is held out, but at least one sample and not all.
    """
    if not 0 < fraction < 1:
        raise InputError(f"test_fraction is {fraction}: give a number between 0 and 1")
    if seed < 0:
        raise InputError(f"seed is {seed}: give a whole number from 0 up")
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        key = np.random.SeedSequence((seed, int(label)))
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held[np.random.Generator(np.random.PCG64(key)).permutation(members)[:count]] = True
    return held


def _drawn_split(fraction: float, seed: int) -> dict[str, Any]:
    return {"drawn": "per class", "test_fraction": fraction, "seed": seed}


# --- parquet ---------------------------------------------------------------------------------


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what polars raises on a bad file into an InputError."""
    from polars.exceptions import PolarsError

    try:
        yield
    except (PolarsError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{file} cannot be read ({reason}): download or write it again") from error


def _parquet_files(path: str | list[str]) -> tuple[Path | None, dict[str, list[Path]]]:
    """The folder, if one was given, and the files of train, test and validation, sorted."""
    root = None
    if isinstance(path, str | Path) and Path(path).is_dir():
        root = Path(path)
        every = [
            (file, file.relative_to(root).parts)
            for file in sorted(root.rglob("*.parquet"))
            if not any(part.startswith(".") for part in file.relative_to(root).parts)
        ]
    else:
        given = sorted(map(Path, [path] if isinstance(path, str | Path) else path))
        every = [(file, (file.name,)) for file in given]
        for file in given:
            if not file.is_file():
                raise InputError(f"{file} does not exist: give parquet files or their folder")
    found: dict[str, list[Path]] = {}
    for file, parts in every:
        # Both train-00000-of-00001.parquet and train/0000.parquet are in use; the name goes first.
        for part in reversed(parts):
            if match := re.match("train|test|val", part.lower()):
                split = "validation" if match[0] == "val" else match[0]
                found.setdefault(split, []).append(file)
                break
    if "train" not in found or len(found) < 2:
        raise InputError(
            f"{path} has parquet files for {_listed(found) if found else 'no split'}: names must "
            "begin with train and with test or validation"
        )
    for split, files in found.items():
        _check_shards(split, files)
    return root, found


def _check_shards(split: str, files: list[Path]) -> None:
    """Refuse a split that mixes two data sets or lacks some of its numbered files."""
    if len(folders := {file.parent for file in files}) > 1:
        raise InputError(
            f"the {split} files lie in several folders ({_listed(folders)}): give the one to use"
        )
    numbers = [re.search(r"-(\d+)-of-(\d+)\b", file.name) for file in files]
    if not all(numbers):
        return
    shards = Counter(int(number[1]) for number in numbers)
    if shards != Counter(range(int(numbers[0][2]))):
        raise InputError(
            f"{files[0].parent} does not hold each of the {int(numbers[0][2])} {split} files "
            "exactly once: download the missing ones and remove the others"
        )


def _parquet_schema(file: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A file's column types, and the features that Hugging Face describes in its metadata."""
    import polars as pl

    with _reading(file):
        schema = dict(pl.read_parquet_schema(file))
        metadata = pl.read_parquet_metadata(file)
    try:
        features = json.loads(metadata["huggingface"])["info"]["features"]
        return schema, {name: value for name, value in features.items() if isinstance(value, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return schema, {}  # they are a courtesy: columns and class names have fallbacks


def _image_column(
    file: Path, schema: dict[str, Any], features: dict[str, dict[str, Any]], asked: str | None
) -> str:
    import polars as pl

    def holds_bytes(dtype: Any) -> bool:
        fields = {field.name: field.dtype for field in getattr(dtype, "fields", ())}
        return fields.get("bytes", dtype) == pl.Binary

    candidates = [name for name, dtype in schema.items() if holds_bytes(dtype)]
    described = [name for name in candidates if features.get(name, {}).get("_type") == "Image"]
    return _one_column(file, schema, "image", described or candidates, candidates, asked)


def _label_column(
    file: Path, schema: dict[str, Any], features: dict[str, dict[str, Any]], asked: str | None
) -> str:
    candidates = [name for name, dtype in schema.items() if dtype.is_integer()]
    described = [name for name in candidates if features.get(name, {}).get("_type") == "ClassLabel"]
    likely = described or candidates
    if len(likely) > 1:
        usual = [name for name in ("label", "labels", "fine_label") if name in likely]
        likely = usual[:1] or likely
    return _one_column(file, schema, "label", likely, candidates, asked)


def _one_column(
    file: Path,
    schema: dict[str, Any],
    role: str,
    likely: list[str],
    candidates: list[str],
    asked: str | None,
) -> str:
    """The column that was asked for, if it is a candidate, else the only likely one."""
    if asked in candidates:
        return asked
    if asked is None and len(likely) == 1:
        return likely[0]
    columns = ", ".join(f"{name}: {dtype}" for name, dtype in schema.items())
    problem = "no clear" if asked is None else f"no suitable {asked!r} as"
    raise InputError(f"{file} has {problem} {role} column ({columns}): set `{role}_column`")


def _label_series(file: Path, column: str) -> Any:
    """One file's labels, a polars integer series without nulls."""
    import polars as pl

    with _reading(file):
        series = pl.read_parquet(file, columns=[column], glob=False)[column]
    if series.null_count():
        row = series.is_null().arg_max()
        raise InputError(f"{file}: row {row} of column '{column}' is empty: give it a label")
    return series


def _checked_labels(files: list[Path], labels: list[Any], column: str, classes: int) -> np.ndarray:
    """One split's labels, int64 (N,), all in 0..classes-1."""
    for file, series in zip(files, labels, strict=True):
        wrong = ~series.is_between(0, classes - 1)
        if wrong.any():
            row = wrong.arg_max()
            raise InputError(
                f"{file}: row {row} of column '{column}' has label {series[row]}, but there are "
                f"{classes} classes: labels must lie in 0..{classes - 1}"
            )
    return np.concatenate([series.to_numpy() for series in labels]).astype(np.int64)


def _parquet_images(files: list[Path], column: str, first: int) -> Iterator[Named]:
    """The images of all rows from `first` on; holds a thousand rows at a time."""
    import polars as pl

    for file in files:
        with _reading(file):
            frame = pl.scan_parquet(file, glob=False).select(column)
            nested = frame.collect_schema()[column] != pl.Binary
            encoded = pl.col(column).struct.field("bytes") if nested else pl.col(column)
            rows = frame.select(pl.len()).collect().item()
        for start in range(first, rows, ROWS_AT_ONCE):
            with _reading(file):
                block = frame.slice(start, ROWS_AT_ONCE).select(encoded).collect().to_series()
            for row, image in enumerate(block.to_list(), start):
                where = f"{file}: row {row} of column '{column}'"
                yield where, partial(_present, image, where)
        first = max(first - rows, 0)


def _present(image: bytes | None, where: str) -> bytes:
    if image is None:
        raise DamagedImageError(
            f"{where} has no image bytes (at most a path): export the data set again with its "
            "images inside"
        )
    return image


# --- folders ---------------------------------------------------------------------------------


Files = list[tuple[str, int]]  # path and label of each image


def _split_folders(root: Path) -> tuple[list[str], dict[str, Files], str]:
    """Class names, files by split, and the name of the test folder, of a folder with `train`."""
    class_names, train = _class_files(root / "train")
    names = [name for name in TEST_FOLDERS if (root / name).is_dir()]
    if not names:
        raise InputError(
            f"{root} has a folder train but none of {_listed(TEST_FOLDERS)}: add one, or give "
            f"{root / 'train'} as the path to have a test split drawn from it"
        )
    for name in names:
        if (root / name / ANNOTATIONS).is_file():
            files = _annotated_files(root / name, class_names)
            return class_names, {"train": train, "test": files}, name
    # Of several, the first that has the classes of train: Tiny-ImageNet's test has no labels.
    classes = {name: {entry.name for entry in _folders(root / name)} for name in names}
    test = next((name for name in names if classes[name] == set(class_names)), names[0])
    test_names, files = _class_files(root / test)
    if differing := set(class_names) ^ set(test_names):
        raise InputError(
            f"{root / 'train'} and {root / test} differ in their class folders "
            f"({_listed(differing)}): give both the same ones, or {root / test} a file "
            f"{ANNOTATIONS} with the name and the class of an image on each line"
        )
    return class_names, {"train": train, "test": files}, test


def _class_files(folder: Path) -> tuple[list[str], Files]:
    """Class names, and the files in all class folders; both in sorted order."""
    classes = _folders(folder)
    if not classes:
        raise InputError(f"{folder} holds no class folders: give it one folder per class")
    files = []
    for label, entry in enumerate(classes):
        members = _visible(entry.path)
        # Tiny-ImageNet: CLASS/images/FILE, and CLASS/CLASS_boxes.txt beside.
        if inner := [member for member in members if member.is_dir() and member.name == "images"]:
            members = _visible(inner[0].path)
        if not members:
            raise InputError(f"{entry.path} holds no images: fill the class folder or remove it")
        if stray := next((member for member in members if member.is_dir()), None):
            raise InputError(
                f"{stray.path} is a folder among images: remove it or move its images up"
            )
        files += [(member.path, label) for member in members]
    return [entry.name for entry in classes], files


def _annotated_files(folder: Path, class_names: list[str]) -> Files:
    """The files of a folder without class folders, by the list that lies in it."""
    path = folder / ANNOTATIONS
    label_of = {name: label for label, name in enumerate(class_names)}
    inside = folder / "images" if (folder / "images").is_dir() else folder
    files = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        name, class_name, *_ = [*line.split("\t"), "", ""]
        if class_name not in label_of:
            raise InputError(
                f"{path}: line {number} names the class {class_name!r}, which is no folder of "
                f"{folder.parent / 'train'}: each line is a file, a tab and a class"
            )
        files.append((str(inside / name), label_of[class_name]))
    return sorted(files)


def _drawn_files(
    root: Path, class_names: list[str], every: Files, fraction: float, seed: int
) -> dict[str, Files]:
    """The files of both splits, drawn class by class."""
    labels = np.array([label for _, label in every])
    lonely = np.flatnonzero(np.bincount(labels) < 2)
    if lonely.size:
        raise InputError(
            f"{root / class_names[lonely[0]]} holds one image: a class needs at least 2 to "
            "have one in each split"
        )
    held = held_out(labels, fraction, seed)
    return {
        split: [item for item, out in zip(every, held, strict=True) if out == (split == "test")]
        for split in ("train", "test")
    }


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    """A folder's entries by name. Unlike paths they know, unasked, whether they are folders."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: entry.name)


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in _visible(folder) if entry.is_dir()]


def _file_bytes(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise DamagedImageError(
            f"{file} cannot be read ({error.strerror}): replace it, remove it or set `skip_damaged`"
        ) from error


# --- torchvision -----------------------------------------------------------------------------


def _torchvision_split(
    dataset: str, root: str, split: str, download: bool, files: Iterable[str]
) -> Any:
    """One split as a torchvision data set, from disk if it is there, else downloaded if allowed."""
    from torchvision import datasets

    which = {"split": split} if dataset == "SVHN" else {"train": split == "train"}
    for fetch in (False, True) if download else (False,):
        try:
            return getattr(datasets, dataset)(root, download=fetch, **which)
        except Exception as error:  # missing, wrong MD5, wrong content, no network: one remedy
            failure = error
    looked_for = ", ".join(str(Path(root, file)) for file in files)
    raise InputError(
        f"{dataset} is not complete under {root}"
        f"{' and its download failed' if download else ''}: put the original, unpacked files in "
        f"place ({looked_for}){'' if download else ' or set download to true'}"
    ) from failure


def _torchvision_arrays(loaded: Any) -> Arrays:
    """Images (N, H, W, C) and labels from torchvision's three habits of keeping them."""
    images = np.asarray(loaded.data)
    if hasattr(loaded, "labels"):  # SVHN: channels first, `labels` for `targets`
        return images.transpose(0, 2, 3, 1), np.asarray(loaded.labels)
    if images.ndim == 3:  # FashionMNIST: grey, no channel
        images = images[..., None]
    return images, np.asarray(loaded.targets, dtype=np.int64)


def _joined(first: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Both arrays, one after the other and contiguous, in one copy: SVHN's take 2 GB."""
    both = np.empty((len(first) + len(more), *first.shape[1:]), dtype=first.dtype)
    both[: len(first)], both[len(first) :] = first, more
    return both


# --- provenance and messages -----------------------------------------------------------------


def _file_hashes(root: Path | None, files: list[Path]) -> dict[str, dict[str, Any]]:
    """Size and, when they are small enough in all, SHA-256 of each file, by its name under root."""
    sizes = {file: file.stat().st_size for file in files}
    cheap = sum(sizes.values()) <= HASHED_BYTES
    return {
        (file.relative_to(root).as_posix() if root else str(file)): {
            "bytes": size,
            **({"sha256": sha256_file(file)} if cheap else {}),
        }
        for file, size in sizes.items()
    }


def _listed(words: Iterable[Any]) -> str:
    return ", ".join(sorted(map(str, words)))


def _described(options: dict[str, Any]) -> str:
    return str(options.get("path", options.get("root", "")))
