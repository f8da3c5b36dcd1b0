"""prepare: every source from a small sample in its true format, the store, and class subsets."""

import io
import json
import logging
import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from scipy.io import savemat

from cltools.data import store as stores
from cltools.data.sources import parquet
from cltools.data.sources.source import held_out
from cltools.data.sources.torchvision import TORCHVISION_FILES
from cltools.data.store import ImageStore, channel_statistics, select, write_store
from cltools.runtime import progress
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import read_json, write_json
from cltools.stages import prepare

RNG = np.random.Generator(np.random.PCG64(0))


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def refused(definition, tmp_path, *words):
    """Preparing `definition` raises one InputError with all `words` and writes nothing."""
    with pytest.raises(InputError) as caught:
        prepare.run(name="sample", definition=definition, store=tmp_path / "refused")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message
    assert not (tmp_path / "refused").exists()


def prepared(definition, folder, name="sample"):
    prepare.run(name=name, definition=definition, store=folder)
    return ImageStore.open(folder)


# --- digits and the store --------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return prepared({"source": "digits"}, tmp_path_factory.mktemp("stores") / "digits", "digits")


def test_digits(digits):
    from sklearn.datasets import load_digits

    original = load_digits()
    assert {split: len(images) for split, images in digits.images.items()} == {
        "train": 1438,
        "test": 359,
    }
    assert digits.image_shape == (8, 8, 1)
    assert digits.class_names == list("0123456789")
    assert isinstance(digits.images["train"], np.memmap)
    everything = np.concatenate([digits.images["train"], digits.images["test"]])[..., 0]
    assert set(np.unique(everything)) <= {round(value * 255 / 16) for value in range(17)}
    labels = np.concatenate([digits.labels["train"], digits.labels["test"]])
    expected = {
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), label)
        for image, label in zip(original.images, original.target, strict=True)
    }
    assert {(i.tobytes(), n) for i, n in zip(everything, labels, strict=True)} == expected
    share = np.bincount(digits.labels["test"]) / np.bincount(labels)
    assert np.abs(share - 0.2).max() < 0.005
    train = digits.images["train"] / 255
    np.testing.assert_allclose(digits.mean, [train.mean()], rtol=1e-12)
    np.testing.assert_allclose(digits.std, [train.std()], rtol=1e-12)


def test_digits_are_the_same_bytes_twice(digits, tmp_path):
    prepare.run(name="digits", definition={"source": "digits"}, store=tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(digits.folder)
    assert not digits.images["train"].flags.writeable


def test_digits_upsampled_and_split_by_another_seed(digits, tmp_path):
    large = prepared({"source": "digits", "size": 16}, tmp_path / "large")
    assert large.image_shape == (16, 16, 1)
    assert large.content != digits.content
    np.testing.assert_array_equal(large.labels["test"], digits.labels["test"])
    other = prepared({"source": "digits", "seed": 1}, tmp_path / "other")
    assert not np.array_equal(other.images["test"], digits.images["test"])


def test_held_out_leaves_each_class_in_both_splits():
    labels = np.repeat([0, 1, 2], [2, 3, 100])
    test = held_out(labels, 0.2, seed=3)
    assert np.bincount(labels[test]).tolist() == [1, 1, 20]
    np.testing.assert_array_equal(test, held_out(labels, 0.2, seed=3))


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        ({"source": "mnist"}, ["'mnist'", "digits, folder, huggingface, parquet, torchvision"]),
        ({}, ["None", "digits"]),
        ({"source": "digits", "path": "x"}, ["path", "seed, size, test_fraction"]),
        ({"source": "parquet"}, ["needs", "path"]),
        ({"source": "digits", "size": "8"}, ["'8'"]),
        ({"source": "digits", "size": 0}, ["size is 0"]),
        ({"source": "digits", "test_fraction": 1.0}, ["test_fraction is 1.0"]),
        ({"source": "digits", "seed": -1}, ["seed is -1"]),
        ({"source": "torchvision", "dataset": "MNIST", "root": "x"}, ["'MNIST'", "SVHN"]),
        (
            {"source": "torchvision", "dataset": "CIFAR10", "root": "x", "extra": True},
            ["CIFAR10 has no extra"],
        ),
    ],
)
def test_wrong_definitions_are_refused(definition, words, tmp_path):
    refused(definition, tmp_path, *words)


def small_splits(count=6, shape=(4, 4, 3)):
    return {
        split: (pixels(count, *shape), np.arange(count, dtype=np.int64) % 2)
        for split in ("train", "test")
    }


def test_the_content_hash_covers_images_labels_and_names(tmp_path):
    splits = small_splits()

    def content(names=("a", "b"), **changed):
        write_store(tmp_path, "x", list(names), {**splits, **changed}, {})
        return ImageStore.open(tmp_path).content

    images, labels = splits["test"]
    changed = images.copy()
    changed[-1, -1, -1, -1] ^= 1
    contents = {
        content(),
        content(names=("a", "c")),
        content(test=(changed, labels)),
        content(test=(images, 1 - labels)),
        content(test=(images.transpose(0, 2, 1, 3), labels)),
    }
    assert len(contents) == 5
    before = content()
    write_store(tmp_path, "renamed", ["a", "b"], splits, {"other": "origin"})
    assert ImageStore.open(tmp_path).content == before


def test_statistics_of_many_blocks_equal_the_formula():
    images = pixels(2500, 3, 5, 3)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize(
    ("train", "word"),
    [
        ((np.zeros((2, 4, 4, 3), np.float32), np.array([0, 1])), "float32"),
        ((np.zeros((2, 4, 4), np.uint8), np.array([0, 1])), "(2, 4, 4)"),
        ((np.zeros((2, 4, 4, 3), np.uint8), np.array([0])), "one integer label"),
        ((np.zeros((2, 4, 4, 3), np.uint8), np.array([0.0, 1.0])), "one integer label"),
        ((np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 2])), "from 0 to 2"),
        ((np.zeros((0, 4, 4, 3), np.uint8), np.array([], int)), "empty"),
        ((np.zeros((2, 5, 4, 3), np.uint8), np.array([0, 1])), "differ in shape"),
    ],
)
def test_arrays_that_are_no_store_are_refused(train, word, tmp_path):
    with pytest.raises(InputError) as caught:
        write_store(tmp_path, "x", ["a", "b"], {**small_splits(), "train": train}, {})
    assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_store_is_complete_or_has_no_manifest(tmp_path, monkeypatch):
    write_store(tmp_path, "x", ["a", "b"], small_splits(), {})

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(stores.np, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_store(tmp_path, "x", ["a", "b"], small_splits(), {})
    assert not (tmp_path / "store.json").exists()
    with pytest.raises(InputError, match=r"store\.json does not exist: run `cltools prepare`"):
        ImageStore.open(tmp_path)


def remove_manifest(folder):
    (folder / "store.json").unlink()


def truncate_images(folder):
    file = folder / "train-images.npy"
    file.write_bytes(file.read_bytes()[:-1])


def remove_labels(folder):
    (folder / "test-labels.npy").unlink()


def empty_labels(folder):
    (folder / "test-labels.npy").write_bytes(b"")


def pickled_labels(folder):
    np.save(folder / "test-labels.npy", np.array([{}, {}]), allow_pickle=True)


def widen_images(folder):
    np.save(folder / "test-images.npy", pixels(6, 4, 5, 3))


def retype_labels(folder):
    np.save(folder / "train-labels.npy", np.zeros(6, np.int32))


def change_counts(folder):
    np.save(folder / "train-labels.npy", np.zeros(6, np.int64))


def huge_label(folder):
    np.save(folder / "train-labels.npy", np.array([0, 1, 0, 1, 0, 1 << 60]))


def edit_manifest(**changes):
    def edit(folder):
        manifest = read_json(folder / "store.json", made_by="cltools prepare")
        write_json(folder / "store.json", {**manifest, **changes})

    return edit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove_manifest, ["store.json does not exist"]),
        (truncate_images, ["train-images.npy is truncated"]),
        (remove_labels, ["test-labels.npy is missing"]),
        (empty_labels, ["test-labels.npy is truncated"]),
        (pickled_labels, ["test-labels.npy"]),
        (widen_images, ["test-images.npy", "(6, 4, 5, 3)", "(6, 4, 4, 3)"]),
        (retype_labels, ["train-labels.npy", "int32"]),
        (change_counts, ["train-labels.npy", "class counts"]),
        (huge_label, ["train-labels.npy", "class counts"]),
        (edit_manifest(format=2), ["store.json", "format 1"]),
        (edit_manifest(splits={}), ["store.json"]),
        (lambda folder: (folder / "store.json").write_text("{"), ["store.json is damaged"]),
    ],
)
def test_a_damaged_store_is_refused(damage, words, tmp_path):
    write_store(tmp_path, "x", ["a", "b"], small_splits(), {})
    damage(tmp_path)
    with pytest.raises(InputError) as caught:
        ImageStore.open(tmp_path)
    for word in ["cltools prepare", *words]:
        assert word in str(caught.value)


def test_opening_notices_other_pixels_of_the_same_shape(tmp_path):
    write_store(tmp_path, "x", ["a", "b"], small_splits(), {})
    np.save(tmp_path / "test-images.npy", pixels(6, 4, 4, 3))
    with pytest.raises(InputError, match="other images"):
        ImageStore.open(tmp_path)


# --- subsets ---------------------------------------------------------------------------------


def test_the_whole_split_keeps_its_labels(digits):
    subset = digits.subset("test")
    np.testing.assert_array_equal(subset.indices, np.arange(359))
    np.testing.assert_array_equal(subset.labels, digits.labels["test"])
    assert subset.class_ids == tuple(range(10))
    assert subset.indices.dtype == subset.labels.dtype == np.int64


def test_a_subset_maps_back_to_the_original_labels(digits):
    subset = digits.subset("train", classes=4, class_draw=2, per_class=20)
    assert np.all(np.diff(subset.indices) > 0)
    original = digits.labels["train"][subset.indices]
    np.testing.assert_array_equal(np.array(subset.class_ids)[subset.labels], original)
    assert np.bincount(subset.labels).tolist() == [20] * 4


@pytest.mark.parametrize("draw", range(3))
def test_subsets_of_one_draw_nest(digits, draw):
    small, large = (
        digits.subset("train", classes, draw, per_class)
        for classes, per_class in ((2, 10), (6, 30))
    )
    assert large.class_ids[:2] == small.class_ids
    assert set(small.indices) < set(large.indices)
    # An image keeps its new label in every larger set.
    at = np.searchsorted(large.indices, small.indices)
    np.testing.assert_array_equal(large.labels[at], small.labels)
    assert digits.subset("test", 6, draw).class_ids == large.class_ids


def test_draws_splits_and_classes_have_orders_of_their_own(digits):
    orders = {digits.subset("train", 10, draw).class_ids for draw in range(20)}
    assert len(orders) == 20
    labels = np.tile(np.arange(4), 50)
    chosen = [
        select(labels, list("abcd"), draw=draw, per_class=10, split=split)
        for draw in range(2)
        for split in ("train", "test")
    ]
    assert len({subset.indices.tobytes() for subset in chosen}) == 4
    places = {tuple(chosen[0].indices[chosen[0].labels == label] // 4) for label in range(4)}
    assert len(places) == 4


def test_a_subset_is_the_same_for_ever():
    # Pinned: results of finished cells depend on these draws.
    subset = select(np.arange(60) % 6, list("abcdef"), classes=3, draw=1, per_class=2)
    assert (subset.class_ids, subset.indices.tolist()) == ((1, 4, 3), [7, 19, 27, 28, 45, 58])


def test_a_long_tail_falls_from_the_first_class_to_the_last(digits):
    subset = digits.subset("train", classes=5, class_draw=3, per_class=100, imbalance=16)
    assert np.bincount(subset.labels).tolist() == [100, 50, 25, 12, 6]
    balanced = digits.subset("train", classes=5, class_draw=3, per_class=100)
    assert subset.class_ids == balanced.class_ids
    assert set(subset.indices) < set(balanced.indices)
    # Without a number of images, from as many as the smallest class has; never less than one.
    labels = np.repeat(np.arange(3), [9, 20, 30])
    counts = np.bincount(select(labels, list("abc"), imbalance=1000).labels)
    assert counts.tolist() == [9, 1, 1]


def test_imbalance_is_of_the_training_set_only(digits):
    from cltools.config.cells import resolve_cell
    from cltools.data.image_set import cell_subset

    cell = resolve_cell({"dataset": "digits", "recipe": "digits", "horizon": 1, "imbalance": 10})
    counts = np.bincount(cell_subset(digits, cell, "train").labels)
    assert counts[-1] == round(counts[0] / 10)
    assert len(cell_subset(digits, cell, "test").labels) == 359


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"classes": 12}, ["'digits' has 10 classes, but classes is 12", "at most 10"]),
        ({"classes": 1}, ["at least 2"]),
        ({"per_class": 500}, ["train images", "500", ": lower images_per_class or"]),
        ({"split": "test", "per_class": 60}, ["test images", ": lower test_images_per_class or"]),
        ({"per_class": 0}, ["images_per_class is 0"]),
        ({"class_draw": -1}, ["class_draw is -1"]),
        ({"imbalance": 0.5}, ["imbalance is 0.5"]),
    ],
)
def test_impossible_subsets_are_refused(digits, asked, words):
    with pytest.raises(InputError) as caught:
        digits.subset(**asked)
    for word in words:
        assert word in str(caught.value)


def test_a_class_without_images_is_refused():
    with pytest.raises(InputError, match=r"class 'c' .* has 0 test images"):
        select(np.array([0, 1]), ["a", "b", "c"], split="test")


def test_a_single_class_is_refused():
    with pytest.raises(InputError, match="'flat' has fewer than 2 classes"):
        select(np.array([0, 0]), ["a"], name="flat")


# --- parquet ---------------------------------------------------------------------------------

CELL = pl.Struct({"bytes": pl.Binary, "path": pl.String})


def write_parquet(file, images, labels, column="image", label="label", names=None, more=None):
    """A Hugging Face parquet file; `images` are encoded bytes (or None), `names` go to metadata."""
    cells = [{"bytes": image, "path": f"{row}.png"} for row, image in enumerate(images)]
    frame = pl.DataFrame({column: pl.Series(cells, dtype=CELL), label: labels, **(more or {})})
    metadata = None
    if names is not None:
        features = {column: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    file.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(file, metadata=metadata, row_group_size=2)
    return file


def test_parquet_as_cifar10_comes(tmp_path):
    train, test = pixels(5, 4, 6, 3), pixels(2, 4, 6, 3)
    data = tmp_path / "data"
    names = ["cat", "dog"]
    for start, part in ((0, "00000-of-00002"), (3, "00001-of-00002")):
        images = [encoded(image) for image in train[start : start + (3 if not start else 2)]]
        labels = [0, 1, 0, 1, 1][start : start + len(images)]
        file = data / "plain_text" / f"train-{part}.parquet"
        write_parquet(file, images, labels, "img", names=names)
    file = data / "plain_text" / "test-00000-of-00001.parquet"
    write_parquet(file, [encoded(image) for image in test], [1, 0], "img", names=names)

    store = prepared({"source": "parquet", "path": str(data)}, tmp_path / "store")
    np.testing.assert_array_equal(store.images["train"], train)
    np.testing.assert_array_equal(store.images["test"], test)
    assert store.labels["train"].tolist() == [0, 1, 0, 1, 1]
    assert store.labels["test"].tolist() == [1, 0]
    assert store.class_names == names
    assert store.provenance["columns"] == {"image": "img", "label": "label"}
    assert store.provenance["encodings"] == {"PNG": 7}
    assert set(store.provenance["files"]["plain_text/test-00000-of-00001.parquet"]) == {
        "bytes",
        "sha256",
    }
    before = files_of(store.folder)
    prepare.run(
        name="sample", definition={"source": "parquet", "path": str(data)}, store=tmp_path / "store"
    )
    assert files_of(store.folder) == before


@pytest.fixture
def two_files(tmp_path):
    """Write train and test.parquet with the same rows; returns the definition."""

    def write(images, labels, test="test.parquet", **options):
        for name in ("train.parquet", test):
            write_parquet(tmp_path / "data" / name, images, labels, **options)
        return {"source": "parquet", "path": str(tmp_path / "data")}

    return write


PNG = encoded(pixels(4, 4, 3))


def test_parquet_as_cifar100_comes(two_files, tmp_path):
    more = {"coarse_label": [1, 0, 1]}
    definition = two_files([PNG] * 3, [0, 1, 2], label="fine_label", more=more)
    store = prepared(definition, tmp_path / "fine")
    assert store.class_names == ["0", "1", "2"]  # no metadata
    definition["label_column"] = "coarse_label"
    store = prepared(definition, tmp_path / "coarse")
    assert store.labels["train"].tolist() == [1, 0, 1]


def test_the_metadata_decides_between_integer_columns(two_files, tmp_path):
    definition = two_files(
        [PNG] * 3, [0, 1, 1], label="kind", names=["a", "b"], more={"label": [7, 8, 9]}
    )
    assert prepared(definition, tmp_path / "store").labels["train"].tolist() == [0, 1, 1]


def test_the_metadata_decides_between_columns_of_bytes(two_files, tmp_path):
    definition = two_files([PNG] * 2, [0, 1], names=["a", "b"], more={"thumbnail": [b"x", b"y"]})
    assert prepared(definition, tmp_path / "store").provenance["columns"]["image"] == "image"


def test_plain_bytes_a_list_of_files_and_validation_for_test(tmp_path):
    files = [tmp_path / "train.parquet", tmp_path / "validation.parquet"]
    for file in files:
        pl.DataFrame({"png": [PNG, PNG], "labels": [1, 0]}).write_parquet(file)
    definition = {"source": "parquet", "path": [str(file) for file in files]}
    store = prepared(definition, tmp_path / "store")
    assert store.labels["test"].tolist() == [1, 0]
    assert store.provenance["test_split"] == "validation"


def test_a_test_split_without_labels_gives_way_to_validation(two_files, tmp_path):
    definition = two_files([PNG] * 3, [0, 1, 2], test="val.parquet")
    write_parquet(tmp_path / "data" / "test.parquet", [PNG], [-1])
    assert len(prepared(definition, tmp_path / "store").labels["test"]) == 3


def test_splits_named_by_their_folders(tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path / "data" / split / "0000.parquet", [PNG] * 2, [0, 1])
        write_parquet(tmp_path / "data" / ".cache" / split / "0000.parquet", [PNG], [0])
    store = prepared({"source": "parquet", "path": str(tmp_path / "data")}, tmp_path / "store")
    assert len(store.images["test"]) == 2


def test_grey_rows_join_a_color_set_and_a_grey_set_stays_grey(two_files, tmp_path):
    gray = pixels(4, 4)
    definition = two_files([encoded(gray), PNG, encoded(gray)], [0, 1, 1])
    store = prepared(definition, tmp_path / "mixed")
    np.testing.assert_array_equal(store.images["train"][0], np.repeat(gray[..., None], 3, axis=2))
    store = prepared(two_files([encoded(gray), encoded(gray)], [0, 1]), tmp_path / "gray")
    np.testing.assert_array_equal(store.images["train"][0], gray[..., None])


def test_size_brings_images_to_one_shape(two_files, tmp_path):
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    definition = two_files([encoded(wide), PNG], [0, 1])
    train = tmp_path / "data" / "train.parquet"
    refused(definition, tmp_path, train, "row 1", "4x4", "12x4", "`size`")
    store = prepared({**definition, "size": 4}, tmp_path / "store")
    assert (store.images["train"][0] == 200).all()  # the center
    np.testing.assert_array_equal(store.images["train"][1], np.asarray(Image.open(io.BytesIO(PNG))))
    manifest = json.loads((store.folder / "store.json").read_text())
    assert manifest["preprocessing"] == "shorter side resized to 4 (bilinear), centre crop"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (None, ["no image bytes"]),
        (b"", ["cannot be decoded"]),
        (b"not an image", ["cannot be decoded"]),
        (PNG[: len(PNG) // 2], ["cannot be decoded"]),
        (encoded(pixels(64, 64, 3), "JPEG")[:-900], ["cannot be decoded"]),
        (encoded(np.full((4, 4), 40000, np.uint16)), ["8 bits"]),
    ],
)
def test_bad_images_are_named_by_row(bad, words, two_files, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_AT_ONCE", 2)
    definition = two_files([PNG, PNG, PNG, bad], [0, 1, 0, 1])
    train = tmp_path / "data" / "train.parquet"
    refused({**definition, "size": 4}, tmp_path, f"{train}: row 3 of column 'image'", *words)


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        ([0, None, 1], {}, ["row 1 of column 'label' is empty"]),
        ([0, 1, 2], {"names": ["a", "b"]}, ["row 2", "label 2", "0..1"]),
        ([0, 1, -1], {}, ["row 2", "label -1"]),
        ([0, 0, 0], {}, ["only 1 class"]),
        ([[0], [1], [2]], {}, ["label column", "label: List(Int64)", "`label_column`"]),
        ([0.5, 1.0, 2.0], {}, ["row 0 of column 'label' is 0.5", "whole numbers or text"]),
        (["a", None, "b"], {}, ["row 1 of column 'label' is empty"]),
        ([0, 1, 2], {"label": "width"}, ["label column", "width: Int64", "`label_column`"]),
        ([0, 1, 2], {"column": "mask"}, ["image column", "mask: Struct", "`image_column`"]),
        ([0, 1, 2], {"label": "x", "more": {"y": [0, 1, 2]}}, ["x: Int64, y: Int64"]),
        ([0, 1, 2], {"more": {"second": [PNG] * 3}}, ["image column", "`image_column`"]),
    ],
)
def test_bad_columns_are_refused(labels, options, words, two_files, tmp_path):
    refused(two_files([PNG] * 3, labels, **options), tmp_path, tmp_path / "data", *words)


def test_columns_that_were_asked_for_must_fit(two_files, tmp_path):
    definition = two_files([PNG] * 2, [0, 1])
    refused({**definition, "label_column": "fine"}, tmp_path, "'fine'", "label: Int64")
    refused({**definition, "image_column": "label"}, tmp_path, "'label'", "image_column")


def test_parquet_files_that_do_not_make_two_splits_are_refused(two_files, tmp_path):
    data = tmp_path / "data"
    definition = two_files([PNG] * 2, [0, 1])
    (data / "test.parquet").unlink()
    refused(definition, tmp_path, data, "one image", "each split")
    (data / "train.parquet").rename(data / "other.parquet")
    refused(definition, tmp_path, data, "other.parquet", "train", "validation")
    (data / "other.parquet").rename(data / "test.parquet")
    refused(definition, tmp_path, data, "none for train", "train", "validation")
    (data / "test.parquet").rename(data / "train-test.parquet")
    refused(definition, tmp_path, data / "train-test.parquet", "test and train")
    (data / "train-test.parquet").rename(data / "train.parquet")
    refused({**definition, "path": str(data / "none.parquet")}, tmp_path, "none.parquet")
    (data / "test.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    refused(definition, tmp_path, data / "test.parquet", "cannot be read")
    (data / "test.parquet").unlink()
    write_parquet(data / "test-00001-of-00002.parquet", [PNG] * 2, [0, 1])
    refused(definition, tmp_path, data, "2 test files")
    write_parquet(data / "full" / "test-00000-of-00002.parquet", [PNG] * 2, [0, 1])
    refused(definition, tmp_path, "several folders", data / "full")


# --- labels and splits of parquet files as they are found ------------------------------------


def noise(count):
    return [encoded(pixels(4, 4, 3)) for _ in range(count)]


@pytest.mark.parametrize("more", ["width", "id", "__index_level_0__"])
@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Enum(["dog", "emu", "cat"])])
def test_text_is_the_label_and_a_lone_integer_column_is_not(more, dtype, two_files, tmp_path):
    labels = pl.Series(["dog", "cat", "emu"], dtype=dtype)
    store = prepared(two_files([PNG] * 3, labels, more={more: [7, 8, 9]}), tmp_path / "store")
    assert store.class_names == ["cat", "dog", "emu"]
    assert store.labels["train"].tolist() == [1, 0, 2]
    assert store.provenance["columns"]["label"] == "label"


def test_text_labels_follow_the_names_of_the_metadata(two_files, tmp_path):
    store = prepared(two_files([PNG] * 2, ["b", "a"], names=["b", "a", "unused"]), tmp_path / "s")
    assert (store.class_names, store.labels["test"].tolist()) == (["b", "a"], [0, 1])
    refused(two_files([PNG] * 2, ["b", "x"], names=["b", "a"]), tmp_path, "row 1", "'x'")


def test_a_label_that_the_metadata_call_something_else_is_not_clear(tmp_path):
    frame = pl.DataFrame({"image": [PNG] * 2, "label": ["a", "b"], "license": [0, 1]})
    features = {
        "label": {"_type": "Value"},
        "license": {"_type": "ClassLabel", "names": ["c", "d"]},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        frame.write_parquet(tmp_path / f"data/{name}.parquet", metadata=metadata)
    definition = {"source": "parquet", "path": str(tmp_path / "data")}
    refused(definition, tmp_path, "no clear label column", "license: Int64")


@pytest.mark.parametrize(
    ("ids", "classes"), [([1, 2, 3], "123"), ([10_000_000, 10_000_002], None), ([0.0, 2.0], "02")]
)
def test_classes_are_the_ids_that_occur(ids, classes, two_files, tmp_path):
    store = prepared(two_files([PNG] * len(ids), ids), tmp_path / "store")
    assert store.class_names == (list(classes) if classes else list(map(str, ids)))
    assert store.labels["test"].tolist() == list(range(len(ids)))
    assert len(store.subset("train").class_ids) == len(ids)


def test_names_of_classes_without_images_do_not_count(two_files, tmp_path):
    store = prepared(two_files([PNG] * 2, [0, 2], names=["a", "b", "c"]), tmp_path / "store")
    assert (store.class_names, store.labels["train"].tolist()) == (["a", "c"], [0, 1])


def test_class_names_in_another_order_are_matched_by_name(two_files, tmp_path):
    definition = two_files([PNG] * 3, [0, 1, 2], names=["a", "b", "c"])
    test = tmp_path / "data" / "test.parquet"
    write_parquet(test, [PNG] * 3, [2, 1, 0], names=["c", "b", "a"])
    assert prepared(definition, tmp_path / "store").labels["test"].tolist() == [0, 1, 2]
    write_parquet(test, [PNG] * 3, [2, 1, 0], names=["c", "b", "x"])
    refused(definition, tmp_path, test, "class names", "a, x")
    write_parquet(test, [PNG] * 3, ["c", "b", "a"])
    refused(definition, tmp_path, test, "of type String")
    write_parquet(test, [PNG] * 3, [0, 1, 1])
    refused(definition, tmp_path, "test images", "lack 1 of the 3 classes (c)")
    write_parquet(test, [PNG] * 3, [0, 1, 2], column="img")
    refused(definition, tmp_path, test, "no column 'image'")


@pytest.mark.parametrize("labels", [[-1, -1], [None, None], None])
def test_a_test_split_without_labels_is_said(labels, two_files, tmp_path, caplog):
    definition = two_files([PNG] * 2, [0, 1], test="validation.parquet")
    frame = pl.DataFrame({"image": [PNG] * 2, **({"label": labels} if labels else {})})
    frame.write_parquet(tmp_path / "data" / "test.parquet")
    with caplog.at_level(logging.INFO, "cltools"):
        store = prepared(definition, tmp_path / "store")
    assert store.provenance["test_split"] == "validation"
    assert "the test files have no labels: the validation files are used instead" in caplog.messages


@pytest.mark.parametrize("encoded", [False, True])
def test_a_lone_train_split_is_divided(encoded, tmp_path):
    file, images = tmp_path / "data" / "partial-train" / "0000.pq", noise(10)
    write_parquet(file, images, [0, 1] * 5)
    definition = {
        "source": "parquet",
        "path": str(tmp_path / "data"),
        "encoded": encoded,
        "size": 4,
    }
    store = prepared({**definition, "test_fraction": 0.4}, tmp_path / "store")
    held = held_out(np.array([0, 1] * 5), 0.4, seed=0)
    assert store.labels["train"].tolist() == np.array([0, 1] * 5)[~held].tolist()
    chosen = {"train": np.flatnonzero(~held), "test": np.flatnonzero(held)}
    for split, rows in chosen.items():
        for image, row in zip(store.images[split], rows, strict=True):
            original = np.asarray(Image.open(io.BytesIO(images[row])))
            assert image == images[row] if encoded else np.array_equal(image, original)
    assert store.provenance["split"]["test_fraction"] == 0.4


def test_words_anywhere_in_a_name_say_the_split(tmp_path):
    data = tmp_path / "a [b] * 'c' ?"
    for name in ("x-training.parquet", "x_test.PARQUET"):
        write_parquet(data / name, [PNG] * 2, [0, 1])
    store = prepared({"source": "parquet", "path": str(data)}, tmp_path / "store")
    assert len(store.labels["test"]) == 2
    write_parquet(data / "y-training.parquet", [PNG] * 2, [0, 1])
    refused({"source": "parquet", "path": str(data)}, tmp_path, "several data sets")


def test_a_file_given_twice_is_read_once_and_paths_must_be_utf8(tmp_path):
    file = tmp_path / "train.parquet"
    write_parquet(file, noise(4), [0, 1] * 2)
    definition = {"source": "parquet", "path": [str(file)] * 2}
    store = prepared(definition, tmp_path / "store")
    assert (len(store.labels["train"]), len(store.labels["test"])) == (2, 2)
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    file.rename(folder / file.name)
    refused({**definition, "path": str(folder)}, tmp_path, "caf\\xe9", "not UTF-8", "rename it")


def test_arrow_files_are_named(tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "data-00000-of-00001.arrow").write_bytes(b"x")
    definition = {"source": "parquet", "path": str(tmp_path / "data")}
    refused(definition, tmp_path, "save_to_disk", "data-00000-of-00001.arrow", "to_parquet")


# --- folders ---------------------------------------------------------------------------------


def image_folder(root, classes, count=5, shape=(4, 4, 3), kind="png"):
    images = {}
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = pixels(*shape)
            Image.fromarray(image).save(root / name / f"{number}.{kind}")
            images[name, number] = image
    return images


def test_a_folder_with_a_split_of_its_own(tmp_path):
    root = tmp_path / "images"
    train = image_folder(root / "train", ["dog", "cat"])
    test = image_folder(root / "val", ["cat", "dog"], count=2)
    (root / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (root / "train" / ".cache").mkdir()
    store = prepared({"source": "folder", "path": str(root)}, tmp_path / "store")
    assert store.class_names == ["cat", "dog"]
    assert store.labels["train"].tolist() == [0] * 5 + [1] * 5
    np.testing.assert_array_equal(store.images["train"], [train[key] for key in sorted(train)])
    np.testing.assert_array_equal(store.images["test"], [test[key] for key in sorted(test)])
    assert store.provenance["files"]["count"] == 14


def test_a_folder_without_a_split_gets_one(tmp_path):
    root = tmp_path / "images"
    images = image_folder(root, ["a", "b", "c"], count=10)
    definition = {"source": "folder", "path": str(root), "test_fraction": 0.3}
    store = prepared(definition, tmp_path / "store")
    assert np.bincount(store.labels["train"]).tolist() == [7] * 3
    assert np.bincount(store.labels["test"]).tolist() == [3] * 3
    everything = np.concatenate([store.images["train"], store.images["test"]])
    assert {i.tobytes() for i in everything} == {i.tobytes() for i in images.values()}
    again = prepared(definition, tmp_path / "again")
    assert files_of(again.folder) == files_of(store.folder)
    other = prepared({**definition, "seed": 1}, tmp_path / "other")
    assert other.content != store.content


def test_images_of_several_sizes_need_a_size(tmp_path):
    root = tmp_path / "images"
    image_folder(root, ["a"], shape=(8, 8, 3))
    image_folder(root, ["b"], shape=(9, 12, 3), kind="jpg")
    definition = {"source": "folder", "path": str(root)}
    refused(definition, tmp_path, root / "b", "`size`")
    store = prepared({**definition, "size": 6}, tmp_path / "store")
    assert store.image_shape == (6, 6, 3)
    assert store.provenance["encodings"] == {"JPEG": 5, "PNG": 5}


def test_folders_that_are_not_sets_of_images_are_refused(tmp_path):
    root = tmp_path / "images"
    definition = {"source": "folder", "path": str(root)}
    refused(definition, tmp_path, root, "not a folder")
    root.mkdir()
    refused(definition, tmp_path, root, "no class folders")
    image_folder(root, ["a"])
    refused(definition, tmp_path, root, "only 1 class")
    (root / "b").mkdir()
    refused(definition, tmp_path, root / "b", "no images")
    image_folder(root, ["b"], count=1)
    refused(definition, tmp_path, root / "b", "one image")
    image_folder(root, ["b"])
    (root / "b" / "boxes.txt").write_text("0 0 1 1")
    refused(definition, tmp_path, root / "b" / "boxes.txt", "cannot be decoded")
    (root / "b" / "boxes.txt").unlink()
    (root / "b" / "more").mkdir()
    refused(definition, tmp_path, root / "b" / "more", "folder among images")
    (root / "b" / "more").rmdir()
    (root / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    refused(definition, tmp_path, root / "b" / "gone.png", "cannot be read")


def test_folder_splits_must_agree(tmp_path):
    root = tmp_path / "images"
    image_folder(root / "train", ["a", "b"])
    definition = {"source": "folder", "path": str(root)}
    refused(definition, tmp_path, root, "none of test")
    image_folder(root / "test", ["a", "images"])
    refused(definition, tmp_path, root / "test", "b, images")


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "Test"), ("training", "testing"), ("TRAIN", "Val")]
)
def test_folders_of_splits_have_several_names(train, test, tmp_path):
    for split in (train, test, "__MACOSX", ".ipynb_checkpoints"):
        image_folder(tmp_path / "images" / split, ["a", "b"])
    image_folder(tmp_path / "images" / train / "__MACOSX", ["x"])
    store = prepared({"source": "folder", "path": str(tmp_path / "images")}, tmp_path / "store")
    assert (store.class_names, store.provenance["test_split"]) == (["a", "b"], test)


def test_splits_without_train_are_named(tmp_path):
    for split in ("val", "test"):
        image_folder(tmp_path / "images" / split, ["a", "b"])
    definition = {"source": "folder", "path": str(tmp_path / "images")}
    refused(definition, tmp_path, "the folders test, val but none called train")
    for split in ("Train", "training"):
        image_folder(tmp_path / "images" / split, ["a", "b"])
    refused(definition, tmp_path, "several folders for training (Train, training)")


@pytest.mark.parametrize("encoded", [False, True])
def test_names_that_are_not_utf8_have_escapes(encoded, tmp_path):
    root = tmp_path / "images"
    image_folder(root, ["a", os.fsdecode(b"caf\xe9"), "na\u00efve"])
    bad = root / "a" / os.fsdecode(b"Mu\xf1oz.png")
    (root / "a" / "0.png").rename(bad)
    definition = {"source": "folder", "path": str(root), "encoded": encoded, "size": 4}
    store = prepared(definition, tmp_path / "store")
    assert store.class_names == ["a", "caf\\xe9", "na\u00efve"]
    bad.write_bytes(b"broken")
    refused(definition, tmp_path, "Mu\\xf1oz.png cannot be decoded")


# --- images that are not read ----------------------------------------------------------------


def png_of_16_bits(kind, channels):
    """A PNG of 2x2 pixels with 16 bits per channel; Pillow itself writes only gray ones."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    rows = (b"\0" + bytes(4 * channels)) * 2
    header = struct.pack(">IIBBBBB", 2, 2, 16, kind, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))  # fmt: skip


NOT_READ = [
    (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", "is of the format AVIF, which is not read"),
    (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "is of the format HEIC, which is not read"),
    (b"\xff\x4f\xff\x51" + bytes(9), "is of the format JPEG 2000, which is not read"),
    (png_of_16_bits(0, 1), "has more than 8 bits per channel"),
    (png_of_16_bits(2, 3), "has more than 8 bits per channel"),
    (b"P6 2 2 65535\n" + bytes(24), "has more than 8 bits per channel"),
    (encoded(pixels(30, 30, 3)), "has more than the 800 pixels that are read"),
]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("image", "reason"), NOT_READ)
def test_images_that_are_not_read_are_told_with_the_reason(
    image, reason, kept, two_files, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    definition = two_files([PNG, PNG, image], [0, 1, 0])
    definition |= {"size": 4, "encoded": kept}
    refused(definition, tmp_path, "row 2", reason)
    with caplog.at_level(logging.INFO, "cltools"):
        store = prepared({**definition, "skip_damaged": True}, tmp_path / "store")
    assert store.provenance["skipped_because"] == {reason: 2}
    assert f"1 train images were skipped: 1 {reason}" in caplog.messages


def test_large_images_and_palettes_warn_in_our_words(tmp_path, caplog, monkeypatch, recwarn):
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as cltools sets it; pytest unsets it
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    image_folder(tmp_path / "images", ["a", "b"])
    image_folder(tmp_path / "images", ["b"], count=1, shape=(8, 8, 3))
    palette = Image.fromarray(pixels(4, 4, 3)).quantize(8)
    palette.save(tmp_path / "images" / "a" / "1.png", transparency=bytes(8))
    prepared({"source": "folder", "path": str(tmp_path / "images"), "size": 4}, tmp_path / "store")
    large = tmp_path / "images" / "b" / "0.png"
    assert caplog.messages == [f"{large} is very large: 8 x 8 pixels"]
    assert not recwarn.list


def test_exif_rotation_is_not_followed(tmp_path):
    image_folder(tmp_path / "images", ["a", "b"], count=2)
    rotated, exif = pixels(4, 4, 3), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rotated).save(tmp_path / "images" / "a" / "0.png", exif=exif)
    store = prepared({"source": "folder", "path": str(tmp_path / "images")}, tmp_path / "store")
    every = np.concatenate([store.images["train"], store.images["test"]])
    assert any(np.array_equal(image, rotated) for image in every)


# --- torchvision -----------------------------------------------------------------------------


@pytest.fixture
def no_md5(monkeypatch):
    """Small files stand in for the originals, whose MD5 torchvision knows."""
    from torchvision.datasets import cifar, svhn

    for module in (cifar, svhn):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5: Path(path).is_file())


def write_pickle(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(value))


def cifar_rows(images):
    """CIFAR's own layout: one row per image, channel by channel."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def test_cifar10(tmp_path, no_md5):
    folder = tmp_path / "cifar-10-batches-py"
    train, test = pixels(10, 32, 32, 3), pixels(3, 32, 32, 3)
    for batch in range(5):
        images = cifar_rows(train[2 * batch : 2 * batch + 2])
        write_pickle(folder / f"data_batch_{batch + 1}", {"data": images, "labels": [0, 1]})
    write_pickle(folder / "test_batch", {"data": cifar_rows(test), "labels": [1, 1, 0]})
    write_pickle(folder / "batches.meta", {"label_names": ["airplane", "automobile"]})
    definition = {"source": "torchvision", "dataset": "CIFAR10", "root": str(tmp_path)}
    store = prepared(definition, tmp_path / "store")
    np.testing.assert_array_equal(store.images["train"], train)
    np.testing.assert_array_equal(store.images["test"], test)
    assert store.labels["train"].tolist() == [0, 1] * 5
    assert store.class_names == ["airplane", "automobile"]
    assert len(store.provenance["files"]) == 7


def test_cifar100_takes_the_fine_labels(tmp_path, no_md5):
    images = pixels(2, 32, 32, 3)
    for split in ("train", "test"):
        value = {"data": cifar_rows(images), "fine_labels": [1, 0], "coarse_labels": [0, 0]}
        write_pickle(tmp_path / "cifar-100-python" / split, value)
    write_pickle(tmp_path / "cifar-100-python" / "meta", {"fine_label_names": ["apple", "bee"]})
    definition = {"source": "torchvision", "dataset": "CIFAR100", "root": str(tmp_path)}
    store = prepared(definition, tmp_path / "store")
    assert store.labels["test"].tolist() == [1, 0]
    assert store.class_names == ["apple", "bee"]


def test_svhn_and_its_extra_split(tmp_path, no_md5):
    images = {split: pixels(3, 32, 32, 3) for split in ("train", "test", "extra")}
    for split, stack in images.items():
        labels = np.array([[10], [1], [9]], dtype=np.uint8)
        savemat(tmp_path / f"{split}_32x32.mat", {"X": stack.transpose(1, 2, 3, 0), "y": labels})
    definition = {"source": "torchvision", "dataset": "SVHN", "root": str(tmp_path)}
    store = prepared(definition, tmp_path / "store")
    np.testing.assert_array_equal(store.images["train"], images["train"])
    assert store.labels["train"].tolist() == [0, 1, 9]  # 10 stands for the digit 0
    assert store.class_names == list("0123456789")
    more = prepared({**definition, "extra": True}, tmp_path / "more")
    expected = np.concatenate([images["train"], images["extra"]])
    np.testing.assert_array_equal(more.images["train"], expected)
    assert more.labels["train"].tolist() == [0, 1, 9] * 2
    assert set(more.provenance["files"]) == {f"{split}_32x32.mat" for split in images}


def write_idx(file, array):
    file.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    file.write_bytes(header + array.tobytes())


def test_fashion_mnist(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    images, labels = pixels(4, 28, 28), np.array([9, 0, 3, 3], dtype=np.uint8)
    for split in ("train", "t10k"):
        write_idx(raw / f"{split}-images-idx3-ubyte", images)
        write_idx(raw / f"{split}-labels-idx1-ubyte", labels)
    definition = {"source": "torchvision", "dataset": "FashionMNIST", "root": str(tmp_path)}
    store = prepared(definition, tmp_path / "store")
    np.testing.assert_array_equal(store.images["train"], images[..., None])
    assert store.labels["test"].tolist() == labels.tolist()
    assert store.class_names[9] == "Ankle boot"

    file = raw / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    refused({**definition, "download": False}, tmp_path, file, "download to true")


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("CIFAR10", "cifar-10-batches-py/data_batch_5"),
        ("CIFAR100", "cifar-100-python/meta"),
        ("FashionMNIST", "FashionMNIST/raw/t10k-labels-idx1-ubyte"),
        ("SVHN", "train_32x32.mat"),
    ],
)
def test_torchvision_files_that_are_not_there(dataset, file, tmp_path, monkeypatch):
    from torchvision import datasets

    asked = []

    def no_network(self):
        asked.append(dataset)
        raise OSError("no network")

    monkeypatch.setattr(getattr(datasets, dataset), "download", no_network)
    definition = {"source": "torchvision", "dataset": dataset, "root": str(tmp_path)}
    refused({**definition, "download": False}, tmp_path, tmp_path / file, "download to true")
    assert not asked
    refused(definition, tmp_path, tmp_path / file, "download failed")
    assert asked


def test_cifar_pickles_with_another_md5_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    for file in TORCHVISION_FILES["CIFAR10"]:
        write_pickle(tmp_path / file, Bomb())
    definition = {"source": "torchvision", "dataset": "CIFAR10", "root": str(tmp_path)}
    refused({**definition, "download": False}, tmp_path, tmp_path)
    assert not (tmp_path / "exploded").exists()


# --- progress --------------------------------------------------------------------------------


def test_progress_goes_to_the_log_when_there_is_no_terminal(monkeypatch, caplog):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO, "cltools"):
        assert list(progress.track("abc", 3, "Counting")) == ["a", "b", "c"]
    assert caplog.messages[-1].startswith("Counting: 2 of 3, ")


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress.track("abc", 3, "Counting")) == ["a", "b", "c"]
    assert "Counting" in capsys.readouterr().err
