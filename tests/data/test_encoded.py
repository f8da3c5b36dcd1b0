"""Images that stay encoded: their store, its interruption, and the same pixels as without."""

import io
import json
import logging
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import polars as pl
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
import xarray as xr
from commands import cltools
from PIL import Image
from small import small_cell
from waiting import HANGS

from cltools.config.recipes import RECIPES
from cltools.data import encoded as writing
from cltools.data import image_set as image_sets
from cltools.data import store as stores
from cltools.data.decoding import center, in_order
from cltools.data.image_set import image_set
from cltools.data.store import ImageStore
from cltools.data.views import Recipe, epoch_views
from cltools.layout import Embeddings
from cltools.runtime.errors import InputError
from cltools.stages import embed, prepare, train
from cltools.training.batches import Batches
from cltools.training.recalibration import recalibrate

CPU = torch.device("cpu")
COUNT = {"train": 12, "val": 5}


def photograph(rng, height, width):
    """Smooth, as photographs are: JPEG and resizing treat noise otherwise."""
    small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of two classes, images of many sizes: most JPEG, some PNG, gray and CMYK ones."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.Generator(np.random.PCG64(0))
    for split, count in COUNT.items():
        for name in ("n01", "n02"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(18, 60, 2)
                image = photograph(rng, height, width)
                path = root / split / name / f"{name}_{number:02d}.JPEG"
                kind = {1: "L", 2: "CMYK"}.get(number, "RGB")
                image.convert(kind).save(path, "PNG" if number == 3 else "JPEG", quality=90)
    return root


def definition(root, **options):
    chosen = {"encoded": True, "size": 16, "resize": 20, **options}
    kept = {key: value for key, value in chosen.items() if value is not None}
    return {"source": "folder", "path": str(root), **kept}


def prepared(folder, about, **options):
    prepare.run(name="photographs", definition=about, store=folder, **options)
    return ImageStore.open(folder)


@pytest.fixture(scope="module")
def both(photographs, tmp_path_factory):
    """The encoded store and the decoded one of the same images and sizes."""
    folder = tmp_path_factory.mktemp("stores")
    return (
        prepared(folder / "encoded", definition(photographs)),
        prepared(folder / "decoded", definition(photographs, encoded=None)),
    )


cell = partial(
    small_cell,
    images_per_class=None,
    dataset="photographs",
    recipe="imagenet",
    horizon="5 steps",
    checkpoints=[0],
    batch_size=8,
    objectives=["dcl", "nscl"],
    projector_hidden=8,
    projector_dim=4,
    optimizer="sgd",
)


def original(store, split, index):
    return Image.open(io.BytesIO(store.images[split][index])).convert("RGB")


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- the store -------------------------------------------------------------------------------


def test_a_store_keeps_the_files_as_they_are(photographs, both):
    store, decoded = both
    for split, folder in (("train", "train"), ("test", "val")):
        files = sorted((photographs / folder).rglob("*.JPEG"))
        assert [path.read_bytes() for path in files] == list(store.images[split])
        for size, path in zip(store.images[split].sizes, files, strict=True):
            assert tuple(size) == Image.open(path).size[::-1]
        np.testing.assert_array_equal(store.labels[split], decoded.labels[split])
    assert (store.image_shape, store.resize) == ((16, 16, 3), 20)
    assert store.class_names == ["n01", "n02"]
    assert store.provenance["encodings"] == {"JPEG": 30, "PNG": 4}
    assert (store.mean, store.std) == (decoded.mean, decoded.std)


def test_evaluation_pixels_are_those_of_the_decoded_store(both):
    store, decoded = both
    for split in ("train", "test"):
        ours = image_set(store, cell(), split, CPU)
        theirs = image_set(decoded, cell(), split, CPU)
        everything = torch.arange(len(ours.labels))
        assert torch.equal(ours.pixels(everything), theirs.pixels(everything))
        some = torch.tensor([3, 1])
        assert torch.equal(ours.chosen(some).pixels(torch.tensor([1])), ours.pixels(some[1:]))


@pytest.mark.parametrize(("height", "width"), [(40, 40), (40, 60), (70, 50), (20, 24)])
def test_the_centre_is_torchvisions_resize_and_centre_crop(height, width):
    """To rounding, where torchvision need not round the longer side or the corner of the crop."""
    image = photograph(np.random.Generator(np.random.PCG64(3)), height, width)
    expected = tvf.center_crop(tvf.resize(image, [20]), [16])
    ours = center(image, 16, 20)
    assert np.abs(np.asarray(ours, int) - np.asarray(expected, int)).max() <= 1


def test_views_are_torchvisions_resized_crops_of_the_whole_image(both):
    store, _ = both
    data = image_set(store, cell(), "train", CPU)
    no_colors = {"jitter_probability": 0.0, "grayscale_probability": 0.0, "blur_probability": 0.0}
    recipe = Recipe.from_settings({**RECIPES["imagenet"], **no_colors})
    drawn = epoch_views(0, 3, 2, data.split_size, data.samples, recipe, *data.extent)
    positions = torch.tensor([7, 0, 20, 3])
    p = drawn.rows(slice(None), positions)
    views = data.views(positions, p, recipe)()
    assert views.shape == (8, 3, 16, 16)
    for row, position in enumerate(positions.repeat(2).tolist()):
        image = original(store, "train", position)
        box = [int(values[row]) for values in (p.top, p.left, p.height, p.width)]
        assert box[0] + box[2] <= image.height
        assert box[1] + box[3] <= image.width
        expected = tvf.resized_crop(image, *box, [16, 16])
        expected = tvf.horizontal_flip(expected) if p.flip[row] else expected
        assert torch.equal(views[row], tvf.to_image(expected).float() / 255)
        # And within rounding the floats that images in memory get.
        exact = tvf.resized_crop(tvf.to_image(image).float(), *box, [16, 16], antialias=True)
        exact = exact.flip(2) if p.flip[row] else exact
        assert (views[row] * 255 - exact).abs().max() < 1.5


def test_a_view_does_not_depend_on_the_subset_or_the_batch(both):
    store, _ = both
    whole = image_set(store, cell(), "train", CPU)
    few = image_set(store, cell(images_per_class=3), "train", CPU)
    recipe = Recipe.from_settings(RECIPES["imagenet"])
    made = {}
    for name, data in (("whole", whole), ("few", few)):
        drawn = epoch_views(0, 3, 2, data.split_size, data.samples, recipe, *data.extent)
        blocks = list(data.plain_and_views(drawn, recipe, 4))
        made[name] = [torch.cat([pixels for pixels, _ in blocks])]
        made[name] += [torch.cat([views[view] for _, views in blocks]) for view in (0, 1)]
    for among, alone in zip(made["whole"], made["few"], strict=True):
        assert torch.allclose(among[few.samples], alone, atol=1e-6)


def test_a_set_of_grey_images_has_one_channel(tmp_path):
    rng = np.random.Generator(np.random.PCG64(1))
    for name in ("a", "b"):
        (tmp_path / "gray" / name).mkdir(parents=True)
        for number in range(3):
            photograph(rng, 20, 30).convert("L").save(tmp_path / "gray" / name / f"{number}.png")
    store = prepared(tmp_path / "store", definition(tmp_path / "gray"))
    assert store.image_shape == (16, 16, 1)
    assert len(store.mean) == 1
    assert image_set(store, cell(), "test", CPU).pixels(torch.arange(2)).shape == (2, 1, 16, 16)


# --- workers and batches ahead ---------------------------------------------------------------


def test_any_number_of_workers_gives_the_same_bytes(photographs, both, tmp_path):
    store, _ = both
    batches = {}
    for workers in (1, 2, 5):
        prepared(tmp_path / f"{workers}", definition(photographs), workers=workers)
        assert files_of(tmp_path / f"{workers}") == files_of(store.folder)
        drawn = Batches(cell(), image_set(store, cell(), "train", CPU, workers), CPU)
        batches[workers] = [drawn.at(step) for step in range(7)]
    for workers in (2, 5):
        for (views, labels), (others, same) in zip(batches[1], batches[workers], strict=True):
            assert torch.equal(views, others)
            assert torch.equal(labels, same)


def test_a_batch_is_the_same_begun_ahead_or_asked_for_alone(both):
    """Three steps an epoch, two begun ahead: they cross epochs; digests are of the right one."""
    store, _ = both
    data = image_set(store, cell(), "train", CPU)
    in_turn, digests = Batches(cell(), data, CPU), []
    for step in range(7):
        views, _ = in_turn.at(step)
        assert torch.equal(views, Batches(cell(), data, CPU).at(step)[0])
        if step % in_turn.steps_per_epoch == 0:
            digests.append(in_turn.chain_digests(step, {}))
    assert digests == [Batches(cell(), data, CPU).chain_digests(step, {}) for step in (0, 3, 6)]
    in_turn.close()
    assert torch.equal(in_turn.at(1)[0], Batches(cell(), data, CPU).at(1)[0])


def test_results_come_in_order_and_what_has_not_begun_is_called_off():
    threads, begun = ThreadPoolExecutor(2), []

    def slow(number):
        begun.append(number)
        time.sleep(0.01 * (number % 3))  # so that later ones end before earlier ones
        if number == 7:
            raise InputError("seven")
        return number

    assert list(in_order(threads, slow, range(7), ahead=4)) == list(range(7))
    begun.clear()
    with pytest.raises(InputError, match="seven"):
        list(in_order(threads, slow, range(100), ahead=4))
    assert max(begun) <= 11
    begun.clear()
    blocked = threading.Event()
    results = in_order(threads, lambda n: (begun.append(n), n and blocked.wait(HANGS)), range(9), 9)
    next(results)
    results.close()
    blocked.set()
    threads.shutdown()
    assert len(begun) <= 4


# --- interruption and damage -----------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("images", [1, 7, 15, 27])
def test_an_interrupted_preparation_goes_on(photographs, both, tmp_path, monkeypatch, images):
    """Killed after some images, at any place of a part: the same bytes, and no image twice."""
    monkeypatch.setattr(writing, "PART", 5)
    whole = prepared(tmp_path / "whole", definition(photographs))
    check, checked = writing._check, []

    def until_killed(image, **options):
        checked.append(image[0])
        if len(checked) == images:
            raise Killed
        return check(image, **options)

    monkeypatch.setattr(writing, "_check", until_killed)
    with pytest.raises(Killed):
        prepare.run(
            name="photographs",
            definition=definition(photographs),
            store=tmp_path / "store",
            workers=1,
        )
    with pytest.raises(InputError, match="run `cltools prepare` first"):
        ImageStore.open(tmp_path / "store")
    with open(tmp_path / "store/train-images.bin", "ab") as file:
        file.write(b"half an image")
    before, checked[:] = checked[:], []
    monkeypatch.setattr(writing, "_check", lambda i, **o: checked.append(i[0]) or check(i, **o))
    prepare.run(
        name="photographs", definition=definition(photographs), store=tmp_path / "store", workers=1
    )
    assert files_of(tmp_path / "store") == files_of(whole.folder)
    # Parts end with their split, which has 24 images.
    parts = (images - 1) // 5 * 5 if images < 25 else 24
    assert len(checked) == 34 - parts
    assert set(before[:parts]).isdisjoint(checked)


def test_another_source_starts_anew(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "PART", 5)
    store = prepared(tmp_path / "store", definition(photographs))
    expected = files_of(store.folder)
    (store.folder / "store.json").unlink()
    (store.folder / "preparing").mkdir()
    (store.folder / "preparing/source.json").write_text('{"source": "another"}')
    (store.folder / "preparing/train-00000.json").write_text("{}")
    prepared(tmp_path / "store", definition(photographs))
    assert files_of(store.folder) == expected


@pytest.fixture
def damaged(photographs, tmp_path):
    """The photographs with two broken files; the second lies in another part than the first."""
    root = tmp_path / "damaged"
    shutil.copytree(photographs, root)
    broken = [root / "train/n01/n01_04.JPEG", root / "train/n02/n02_01.JPEG"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:-60])
    return root, broken


@pytest.mark.parametrize("encoded", [True, None])
def test_a_damaged_image_is_named(damaged, tmp_path, encoded):
    root, (first, _) = damaged
    with pytest.raises(InputError) as caught:
        prepare.run(
            name="x", definition=definition(root, encoded=encoded), store=tmp_path / "store"
        )
    for words in (str(first), "cannot be decoded", "skip_damaged"):
        assert words in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a_repaired_image_is_enough_to_go_on(photographs, damaged, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "PART", 4)
    root, broken = damaged
    with pytest.raises(InputError, match=broken[0].name):
        prepare.run(name="x", definition=definition(root), store=tmp_path / "store")
    for path in broken:
        shutil.copy(photographs / path.relative_to(root), path)
    prepared(tmp_path / "store", definition(root))
    assert not (tmp_path / "store/preparing").exists()


@pytest.mark.parametrize("encoded", [True, None])
def test_damaged_images_are_skipped_on_demand(damaged, both, tmp_path, encoded, caplog):
    root, broken = damaged
    about = definition(root, encoded=encoded, skip_damaged=True)
    with caplog.at_level(logging.WARNING, "cltools"):
        store = prepared(tmp_path / "store", about)
    assert [str(path) in text for path, text in zip(broken, caplog.messages, strict=True)]
    manifest = json.loads((tmp_path / "store/store.json").read_text())
    assert manifest["provenance"]["skipped"] == {"train": 2, "test": 0}
    whole = both[0 if encoded else 1]
    kept = np.delete(np.arange(24), [4, 13])
    np.testing.assert_array_equal(store.labels["train"], whole.labels["train"][kept])
    for image, index in zip(store.images["train"], kept, strict=True):
        assert np.array_equal(image, whole.images["train"][index])


def test_damaged_rows_of_parquet_are_named_and_skipped(photographs, tmp_path):
    bytes_of = [path.read_bytes() for path in sorted((photographs / "train").rglob("*.JPEG"))]
    rows = [*bytes_of[:3], None, bytes_of[4][:-60], *bytes_of[5:8]]
    cells = pl.Series([{"bytes": row, "path": "x"} for row in rows],
                      dtype=pl.Struct({"bytes": pl.Binary, "path": pl.String}))  # fmt: skip
    (tmp_path / "data").mkdir()
    for split in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        frame = pl.DataFrame({"image": cells, "label": [0, 1] * 4})
        frame.write_parquet(tmp_path / "data" / f"{split}.parquet")
    about = {"source": "parquet", "path": str(tmp_path / "data"), "encoded": True, "size": 16}
    with pytest.raises(InputError, match=r"train-00000-of-00002\.parquet: row 3 .* no image bytes"):
        prepare.run(name="x", definition=about, store=tmp_path / "refused")
    store = prepared(tmp_path / "store", {**about, "skip_damaged": True})
    assert store.provenance["skipped"] == {"train": 4, "test": 2}
    assert list(store.images["train"]) == [*bytes_of[:3], *bytes_of[5:8]] * 2
    assert store.labels["train"].tolist() == [0, 1, 0, 1, 0, 1] * 2


def shorten(folder):
    file = folder / "train-images.bin"
    file.write_bytes(file.read_bytes()[:-1])


def shift(folder):
    offsets = np.load(folder / "test-offsets.npy")
    np.save(folder / "test-offsets.npy", offsets[::-1])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shorten, "train-images.bin holds"),
        (shift, "test-offsets.npy has other offsets"),
        (lambda folder: (folder / "test-images.bin").unlink(), "test-images.bin is missing"),
        (lambda folder: (folder / "test-sizes.npy").unlink(), "test-sizes.npy is missing"),
    ],
)
def test_a_damaged_store_is_refused(both, tmp_path, damage, words):
    shutil.copytree(both[0].folder, tmp_path / "store")
    damage(tmp_path / "store")
    with pytest.raises(InputError, match=f"{words}.*run `cltools prepare` again"):
        ImageStore.open(tmp_path / "store")


def test_bytes_that_changed_on_disk_are_noticed(both, tmp_path):
    shutil.copytree(both[0].folder, tmp_path / "store")
    file = tmp_path / "store/train-images.bin"
    end = int(np.load(tmp_path / "store/train-offsets.npy")[1])
    file.write_bytes(bytes(end) + file.read_bytes()[end:])
    with pytest.raises(InputError, match="other images"):
        ImageStore.open(tmp_path / "store")


def test_bytes_that_change_after_they_were_checked_are_noticed(both, tmp_path):
    shutil.copytree(both[0].folder, tmp_path / "store")
    file = tmp_path / "store/train-images.bin"
    data = image_set(ImageStore.open(tmp_path / "store"), cell(), "train", CPU)
    end = int(np.load(tmp_path / "store/train-offsets.npy")[1])
    with open(file, "r+b") as opened:
        opened.write(bytes(end))
    with pytest.raises(InputError, match=r"image 0 of .*train-images\.bin is damaged"):
        data.pixels(torch.arange(3))


def test_a_large_store_is_checked_while_it_is_in_use(both, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "LARGE", 0)
    shutil.copytree(both[0].folder, tmp_path / "store")
    ImageStore.open(tmp_path / "store").check()
    sizes = np.load(tmp_path / "store/test-sizes.npy")
    sizes[0] += 1
    np.save(tmp_path / "store/test-sizes.npy", sizes)
    with pytest.raises(InputError, match="other images or labels"):
        ImageStore.open(
            tmp_path / "store"
        ).check()  # whichever of the two is later than the reading
    with pytest.raises(InputError, match="other images or labels"):
        train.run(cell=cell(), store=tmp_path / "store", run=tmp_path / "run",
                  manifest=tmp_path / "trained.json")  # fmt: skip
    assert not (tmp_path / "trained.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": None, "resize": None}, "encoded is true, but there is no size"),
        ({"resize": 12}, "resize is 12, but size is 16"),
        ({"resize": "20"}, "resize is '20'"),
        ({"source": "torchvision", "dataset": "CIFAR10", "root": "x"}, "no option"),
    ],
)
def test_wrong_definitions_are_refused(photographs, tmp_path, options, words):
    about = {**definition(photographs), **options}
    about = {key: value for key, value in about.items() if value is not None}
    with pytest.raises(InputError, match=words):
        prepare.run(name="x", definition=about, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


# --- Tiny-ImageNet ---------------------------------------------------------------------------


@pytest.fixture
def tiny_imagenet(tmp_path):
    """As its archive is unpacked: boxes beside images, an annotated val, a test without labels."""
    root = tmp_path / "tiny-imagenet-200"
    rng = np.random.Generator(np.random.PCG64(2))
    for name in ("n02", "n01"):
        (root / "train" / name / "images").mkdir(parents=True)
        for number in range(4):
            photograph(rng, 64, 64).save(root / f"train/{name}/images/{name}_{number}.JPEG")
        (root / f"train/{name}/{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t62\t62\n")
    lines = []
    for split in ("val", "test"):
        (root / split / "images").mkdir(parents=True)
        for number in range(3):
            photograph(rng, 64, 64).save(root / f"{split}/images/{split}_{number}.JPEG")
            lines.append(f"val_{number}.JPEG\tn0{1 + number % 2}\t0\t32\t44\t62")
    (root / "val/val_annotations.txt").write_text("\n".join(lines[:3]) + "\n")
    (root / "wnids.txt").write_text("n02\nn01\n")
    return root


def test_tiny_imagenet_as_it_comes(tiny_imagenet, tmp_path):
    store = prepared(tmp_path / "store", {"source": "folder", "path": str(tiny_imagenet)})
    assert store.class_names == ["n01", "n02"]
    assert store.image_shape == (64, 64, 3)
    assert store.labels["train"].tolist() == [0] * 4 + [1] * 4
    assert store.labels["test"].tolist() == [0, 1, 0]
    first = np.asarray(Image.open(tiny_imagenet / "val/images/val_0.JPEG"))
    np.testing.assert_array_equal(store.images["test"][0], first)


def test_tiny_imagenet_with_class_folders_made_for_val(tiny_imagenet, tmp_path):
    val = tiny_imagenet / "val"
    for number, name in enumerate(("n01", "n02")):
        (val / name).mkdir()
        (val / f"images/val_{number}.JPEG").rename(val / name / f"val_{number}.JPEG")
    (val / "val_annotations.txt").unlink()
    shutil.rmtree(val / "images")
    store = prepared(tmp_path / "store", {"source": "folder", "path": str(tiny_imagenet)})
    assert store.labels["test"].tolist() == [0, 1]
    assert store.provenance["test_split"] == "val"


def test_wrong_annotations_are_refused(tiny_imagenet, tmp_path):
    about = {"source": "folder", "path": str(tiny_imagenet)}
    annotations = tiny_imagenet / "val/val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn01\nval_1.JPEG n02\n")
    with pytest.raises(InputError, match=r"val_annotations\.txt: line 2 names the class ''"):
        prepare.run(name="x", definition=about, store=tmp_path / "store")
    annotations.write_text("val_0.JPEG\tn01\nval_9.JPEG\tn02\n")
    with pytest.raises(InputError, match=r"val_9\.JPEG cannot be read"):
        prepare.run(name="x", definition=about, store=tmp_path / "store")


# --- end to end ------------------------------------------------------------------------------


def test_from_a_folder_to_embeddings(photographs, tmp_path):
    """By the commands; the stages with other numbers of workers write the same bytes."""
    store, made = tmp_path / "store", tmp_path / "cell"
    settings = cell(horizon="4 steps", checkpoints=[0, 2])

    cltools("prepare", "--name", "photographs", "--store", store, "--workers", 2,
            "--definition", json.dumps(definition(photographs)))  # fmt: skip
    cltools("train", "--cell", json.dumps(settings), "--store", store, "--run", made / "run",
            "--manifest", made / "trained.json", "--workers", 2, "--device", "cpu")  # fmt: skip
    cltools("embed", made / "trained.json", "--store", store, "--done", tmp_path / "embedded.json",
            "--workers", 2, "--device", "cpu", "--recalibrate")  # fmt: skip

    again = tmp_path / "again"
    train.run(
        cell=settings,
        store=store,
        run=again / "run",
        manifest=again / "trained.json",
        device="cpu",
        workers=1,
    )
    embed.run(
        manifests=[again / "trained.json"],
        stores=[store],
        done=again / "done.json",
        device="cpu",
        embeddings=Embeddings(recalibrated=True),
    )
    for folder in ("run/weights", "embeddings-recalibrated"):
        assert files_of(again / folder) == files_of(made / folder)
    with xr.open_dataset(made / "embeddings-recalibrated/step-0000004.nc") as embedded:
        assert embedded.sizes["sample"] == 34
        assert np.isfinite(embedded["z_views"]).all()


def test_images_are_decoded_once_for_all_checkpoints(photographs, tmp_path, monkeypatch):
    """However many networks fit into memory, to the same bytes; missing files only are made."""
    store = tmp_path / "store"
    prepare.run(name="photographs", definition=definition(photographs), store=store)
    settings = cell(horizon="4 steps", checkpoints=[0, 1, 2, 3])
    made = tmp_path / "cell"
    train.run(
        cell=settings, store=store, run=made / "run", manifest=made / "trained.json", device="cpu"
    )
    decoded, decode = [], image_sets._decode

    def counted(*arguments):
        decoded.extend(arguments[-1])
        return decode(*arguments)

    monkeypatch.setattr(image_sets, "_decode", counted)

    def embedded(**changes):
        decoded.clear()
        embed.run(
            manifests=[made / "trained.json"], stores=[store], done=tmp_path / "e.json",
            device="cpu", **changes,
        )  # fmt: skip
        return files_of(made / "embeddings")

    together = embedded()
    assert len(together) == 5
    images = len(decoded)
    assert images == sum(len(labels) for labels in ImageStore.open(store).labels.values())
    assert embedded() == together
    assert decoded == []
    for step in (1, 3):
        (made / f"embeddings/step-000000{step}.nc").unlink()
    assert embedded() == together
    assert len(decoded) == images
    shutil.rmtree(made / "embeddings")
    monkeypatch.setattr(embed, "NETWORK_BYTES", 0)
    assert embedded() == together
    assert len(decoded) == 5 * images
    monkeypatch.undo()
    monkeypatch.setattr(image_sets, "_decode", counted)
    embedded(embeddings=Embeddings(recalibrated=True))
    assert len(decoded) == images + len(ImageStore.open(store).labels["train"])


def test_a_killed_embed_leaves_whole_groups(photographs, tmp_path, monkeypatch):
    store, made = tmp_path / "store", tmp_path / "cell"
    prepare.run(name="photographs", definition=definition(photographs), store=store)
    train.run(
        cell=cell(horizon="3 steps", checkpoints=[0, 1, 2]), store=store, run=made / "run",
        manifest=made / "trained.json", device="cpu",
    )  # fmt: skip
    given = {"manifests": [made / "trained.json"], "stores": [store], "done": tmp_path / "e.json",
             "device": "cpu"}  # fmt: skip
    embed.run(**given)
    whole = files_of(made / "embeddings")
    shutil.rmtree(made / "embeddings")
    monkeypatch.setattr(embed, "MOST_FILES", 2)
    groups, embed_group = [], embed._embed_group

    def killed(*arguments):
        groups.append(arguments)
        if len(groups) == 2:
            raise KeyboardInterrupt
        embed_group(*arguments)

    monkeypatch.setattr(embed, "_embed_group", killed)
    with pytest.raises(KeyboardInterrupt):
        embed.run(**given)
    assert len(files_of(made / "embeddings")) == 2
    embed.run(**given)
    assert len(groups) == 3
    assert files_of(made / "embeddings") == whole


def test_an_error_while_batches_are_made_ends_training(both, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "LARGE", 0)  # or it would be noticed before the first batch
    shutil.copytree(both[0].folder, tmp_path / "store")
    file = tmp_path / "store/train-images.bin"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(InputError, match="run `cltools prepare` again"):
        train.run(
            cell=cell(),
            store=tmp_path / "store",
            run=tmp_path / "run",
            manifest=tmp_path / "trained.json",
            workers=1,
        )


def test_statistics_worked_out_anew_take_the_centres(both):
    networks, sets = [], [image_set(store, cell(), "train", CPU) for store in both]
    for data in sets:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        recalibrate(network, data, block=7)
        networks.append(network)
    assert torch.equal(networks[0][1].running_var, networks[1][1].running_var)
