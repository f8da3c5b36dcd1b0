"""Folders of images."""

import hashlib
import os
from codecs import BOM_UTF8
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
    require_two_each,
    shown,
)
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, sha256_text

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
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

    A folder without a split of its own gets one, class by class, from `test_fraction` and `seed`.
    The split's folders may also be called training, and testing, val, valid or validation, in
    upper or lower case. The images of a class may lie in a folder `images` of its own, and a val
    folder with a file val_annotations.txt needs no class folders. Classes and files go in the order
    of their names; names that begin with a dot, and __MACOSX, are skipped. Names that are not UTF-8
    are shown, and kept as class names, with backslash escapes. For the rest see `source.finish`.

    Raises InputError when a folder is not laid out so, or an image cannot be had.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(
            f"{shown(root)} is not a folder: give the folder that holds the class folders"
        )
    if train := _train_folder(root):
        class_names, files, test = _split_folders(root, train)
        provenance: dict[str, Any] = {"test_split": shown(test)}
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
            digest.update(os.fsencode(name(file)) + f"\0{len(content)}\0".encode())
            digest.update(content)
        return content

    listed = EncodedSource(
        [shown(class_name) for class_name in class_names],
        {s: np.array([label for _, label in files[s]], dtype=np.int64) for s in files},
        lambda split, first: (
            (shown(file), partial(read, file)) for file, _ in files[split][first:]
        ),
        provenance,
    )
    about = provenance["files"] = {"count": sum(map(len, files.values()))}
    if encoded:
        names = [shown(name(file)) for s in files for file, _ in files[s]]
        about["names_sha256"] = sha256_text(canonical_json(names))
    taken = finish(listed, size, resize, encoded, skip_damaged)
    if not encoded:
        about["sha256"] = digest.hexdigest()
    return taken


Files = list[tuple[str, int]]  # path and label of each image


def _train_folder(root: Path) -> Path | None:
    """The folder of training images; None where root holds the class folders."""
    folders = _folders(root)
    found = [Path(entry.path) for entry in folders if entry.name.lower() in TRAIN_FOLDERS]
    if len(found) > 1:
        raise InputError(
            f"{shown(root)} has several folders for training ({in_words(f.name for f in found)}): "
            "keep one of them"
        )
    names = [entry.name for entry in folders]
    if not found and names and all(name.lower() in TEST_FOLDERS for name in names):
        raise InputError(
            f"{shown(root)} has the folders {in_words(names)} but none called train: rename the "
            "one to train on, or give one of them as the path to have a split drawn from it"
        )
    return found[0] if found else None


def _test_folders(root: Path) -> list[Path]:
    """The folders that can be the test split, the most usual name first."""
    found = [Path(entry.path) for entry in _folders(root) if entry.name.lower() in TEST_FOLDERS]
    return sorted(found, key=lambda folder: TEST_FOLDERS.index(folder.name.lower()))


def _split_folders(root: Path, train: Path) -> tuple[list[str], dict[str, Files], str]:
    """Class names, files by split, and the name of the test folder, of a folder with `train`."""
    class_names, train_files = _class_files(train)
    folders = _test_folders(root)
    if not folders:
        raise InputError(
            f"{shown(root)} has a folder {train.name} but none of {in_words(TEST_FOLDERS)}: add "
            f"one, or give {shown(train)} as the path to have a test split drawn from it"
        )
    for folder in folders:
        if (folder / ANNOTATIONS).is_file():
            files = _annotated_files(folder, train, class_names)
            return class_names, {"train": train_files, "test": files}, folder.name
    # Of several, the first that has the classes of train: Tiny-ImageNet's test has no labels.
    classes = {folder: {entry.name for entry in _folders(folder)} for folder in folders}
    test = next((folder for folder in folders if classes[folder] == set(class_names)), folders[0])
    test_names, files = _class_files(test)
    if differing := set(class_names) ^ set(test_names):
        raise InputError(
            f"{shown(train)} and {shown(test)} differ in their class folders "
            f"({in_words(map(shown, differing))}): give both the same ones, or {shown(test)} a "
            f"file {ANNOTATIONS} with the name and the class of an image on each line"
        )
    return class_names, {"train": train_files, "test": files}, test.name


def _class_files(folder: Path) -> tuple[list[str], Files]:
    """Class names, and the files in all class folders; both in sorted order."""
    classes = _folders(folder)
    if not classes:
        raise InputError(f"{shown(folder)} holds no class folders: give it one folder per class")
    files = []
    for label, entry in enumerate(classes):
        members = _visible(entry.path)
        # Tiny-ImageNet: CLASS/images/FILE, and CLASS/CLASS_boxes.txt beside.
        if inner := [member for member in members if member.is_dir() and member.name == "images"]:
            members = _visible(inner[0].path)
        if not members:
            raise InputError(
                f"{shown(entry.path)} holds no images: fill the class folder or remove it"
            )
        if stray := next((member for member in members if member.is_dir()), None):
            raise InputError(
                f"{shown(stray.path)} is a folder among images: remove it or move its images up, "
                "or give the folder that holds the class folders (or train and test) as the path"
            )
        files += [(member.path, label) for member in members]
    return [entry.name for entry in classes], files


def _annotated_files(folder: Path, train: Path, class_names: list[str]) -> Files:
    """The files of a folder without class folders, by the list that lies in it."""
    path = folder / ANNOTATIONS
    label_of = {name: label for label, name in enumerate(class_names)}
    inside = folder / "images" if (folder / "images").is_dir() else folder
    files = []
    # Names as the disk has them, UTF-8 or not.
    lines = os.fsdecode(path.read_bytes().removeprefix(BOM_UTF8)).splitlines()
    for number, line in enumerate(lines, 1):
        name, class_name, *_ = [*line.split("\t"), "", ""]
        if class_name not in label_of:
            raise InputError(
                f"{shown(path)}: line {number} names the class {shown(class_name)!r}, which is no "
                f"folder of {shown(train)}: each line is a file, a tab and a class"
            )
        files.append((str(inside / name), label_of[class_name]))
    return sorted(files)


def _drawn_files(
    root: Path, class_names: list[str], every: Files, fraction: float, seed: int
) -> dict[str, Files]:
    """The files of both splits, drawn class by class."""
    labels = np.array([label for _, label in every])
    require_two_each(labels, [shown(root / name) for name in class_names])
    held = held_out(labels, fraction, seed)
    return {
        split: [item for item, out in zip(every, held, strict=True) if out == (split == "test")]
        for split in ("train", "test")
    }


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    """A folder's entries by name. Unlike paths they know, unasked, whether they are folders.

    Without hidden ones and what macOS adds to archives. The order of bytes is the same in any
    locale.
    """
    with os.scandir(folder) as entries:
        visible = [e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"]
    return sorted(visible, key=lambda entry: os.fsencode(entry.name))


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in _visible(folder) if entry.is_dir()]


def _file_bytes(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise DamagedImageError(
            shown(file),
            f"cannot be read ({error.strerror})",
            "replace it, remove it or set `skip_damaged`",
        ) from error
