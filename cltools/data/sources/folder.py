"""Folders of images."""

import hashlib
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cltools.data.decoding import DamagedImageError
from cltools.data.encoded import EncodedSource
from cltools.data.sources.source import (
    Source,
    drawn_split,
    finish,
    held_out,
    in_words,
)
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, sha256_text

TEST_FOLDERS = ("test", "val", "valid", "validation")
ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's: file, class and a box on each line


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
    see `source.finish`.
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
        provenance = {"split": drawn_split(test_fraction, seed)}

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
    taken = finish(listed, size, resize, encoded, skip_damaged)
    if not encoded:
        about["sha256"] = digest.hexdigest()
    return taken


Files = list[tuple[str, int]]  # path and label of each image


def _split_folders(root: Path) -> tuple[list[str], dict[str, Files], str]:
    """Class names, files by split, and the name of the test folder, of a folder with `train`."""
    class_names, train = _class_files(root / "train")
    names = [name for name in TEST_FOLDERS if (root / name).is_dir()]
    if not names:
        raise InputError(
            f"{root} has a folder train but none of {in_words(TEST_FOLDERS)}: add one, or give "
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
            f"({in_words(differing)}): give both the same ones, or {root / test} a file "
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
