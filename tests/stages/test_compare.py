"""Embeddings of other software: every format gives the same numbers, mismatches are refused."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.torch as torch_file
import torch
import xarray as xr
from commands import cltools
from safetensors.numpy import save_file

from cltools.maths.alignment import alignment
from cltools.runtime.errors import InputError
from cltools.stages import compare

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3
A = RNG.standard_normal((60, 5)) + 3 * np.eye(5)[LABELS]
B = A @ RNG.standard_normal((5, 8)) + RNG.standard_normal((60, 8))
IDS = np.arange(100, 160)


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "a.npy", A)
    np.save(tmp_path / "labels.npy", LABELS)
    np.savez(tmp_path / "b.npz", features=B, labels=LABELS, ids=IDS)
    save_file({"h": B, "labels": LABELS, "ids": IDS}, tmp_path / "c.safetensors")
    xr.Dataset(
        {"h": (("sample", "feature"), B)},
        {"label": ("sample", LABELS), "sample_id": ("sample", IDS)},
    ).to_netcdf(tmp_path / "d.nc", engine="h5netcdf")
    return tmp_path


def run(folder, *names, labels=None):
    path = None if labels is None else folder / labels
    compare.run(
        files=[folder / name for name in names], output=folder / "out.parquet", labels_file=path
    )
    return pl.read_parquet(folder / "out.parquet")


def value(table, objective, metric, variant, reference="a"):
    row = table.filter(objective=objective, reference=reference, metric=metric, variant=variant)
    return row["value"].item()


def test_every_format_gives_the_same_numbers(folder):
    table = run(folder, "a.npy", "b.npz", "c.safetensors", "d.nc")
    expected = alignment({"a": A, "b": B})["a", "b"]
    for name in ("b", "c", "d"):
        for (metric, variant), number in expected.items():
            assert value(table, name, metric, variant) == pytest.approx(number, abs=1e-12)
    assert value(table, "d", "rsa", "pearson_cosine", reference="c") == pytest.approx(1)
    interval = table.filter(objective="b", metric="rsa", variant="pearson_cosine", reference="a")
    low, number, high = interval.select("ci_low", "value", "ci_high").row(0)
    assert low < number < high
    assert set(table["n"]) == {60}
    assert table.filter(objective="a", metric="cdnv")["value"].is_finite().all()


def test_labels_may_come_by_themselves(folder):
    np.save(folder / "e.npy", B)
    np.savez(folder / "two.npz", features=B, h=LABELS)
    assert run(folder, "a.npy", "e.npy", labels="two.npz:h").equals(
        run(folder, "a.npy", "e.npy", labels="labels.npy")
    )
    apart = run(folder, "a.npy", "e.npy", labels="labels.npy")
    within = run(folder, "a.npy", "b.npz")
    for metric, variant in (("cka", "residual_biased"), ("rsa_null", "pearson_cosine")):
        assert value(apart, "e", metric, variant) == value(within, "b", metric, variant)
    with pytest.raises(InputError, match=r"has no array 'labels' .*it has features, h"):
        run(folder, "a.npy", "e.npy", labels="two.npz")


def test_mismatches_are_refused(folder):
    def refused(sentence, *names, **options):
        with pytest.raises(InputError, match=sentence):
            run(folder, *names, **options)

    np.savez(folder / "order.npz", features=B[::-1], labels=LABELS[::-1], ids=IDS[::-1])
    refused(r"b\.npz and .*order\.npz differ in their ids, first at image 0", "b.npz", "order.npz")
    np.savez(folder / "other.npz", features=B, labels=LABELS.copy()[::-1], ids=IDS)
    refused("differ in their labels", "b.npz", "other.npz")
    np.save(folder / "short.npy", A[:-1])
    refused("different numbers of images", "b.npz", "short.npy")
    np.savez(folder / "none.npz", x=A[0], y=LABELS[:, None])
    refused(r"none\.npz holds no array of floats .* x float64 \(5,\)", "b.npz", "none.npz")
    refused(r"b\.npz holds no array 'z' \(it has features, labels, ids\)", "b.npz:z", "a.npy")
    np.save(folder / "cube.npy", np.zeros((60, 2, 2)))
    refused(r"shape \(60, 2, 2\)", "b.npz", "cube.npy")
    broken = A.copy()
    broken[3, 1] = np.nan
    np.save(folder / "nan.npy", broken)
    refused("cannot be compared", "b.npz", "nan.npy")
    (folder / "cut.npz").write_bytes((folder / "b.npz").read_bytes()[:200])
    refused(r"cut\.npz cannot be read", "b.npz", "cut.npz")
    np.save(folder / "object.npy", np.array([{}, {}]), allow_pickle=True)
    refused(r"object\.npy cannot be read", "b.npz", "object.npy")
    refused("does not exist", "b.npz", "absent.npy")
    (folder / "x.tsv").write_text("1,2")
    refused("an unknown type", "b.npz", "x.tsv")
    (folder / "x.csv").write_text("1.5,2,file\n3,4,b.png")
    refused("column 'file' of .* is not of numbers", "b.npz", "x.csv")
    (folder / "x.csv").write_text("x,width\n1.5,2\n3.0,4")
    refused("column 'width' of .* is of whole numbers", "b.npz", "x.csv")
    torch.save({"features": A, "made": Path}, folder / "x.pt")
    refused(r"x\.pt holds more than tensors", "b.npz", "x.pt")
    refused("at least two files", "b.npz")
    refused("one label for each image", "a.npy", "b.npz", labels="short.npy")


def csv(array, head="", column=None):
    """A table as text, with numbers that read back as they were."""
    rows = [",".join(map(repr, row.tolist())) for row in array]
    if column is not None:
        rows = [f"{value},{row}" for value, row in zip(column, rows, strict=True)]
    return "\n".join([*([head] if head else []), *rows])


def test_tables_and_torch_files_give_the_same_numbers(folder):
    names = ",".join(f"x{i}" for i in range(B.shape[1]))
    (folder / "bare.csv").write_text(csv(B))
    (folder / "pandas.csv").write_text(csv(B, f",{names}", IDS))
    (folder / "labeled.csv").write_text(csv(B, f"Label,{names}", LABELS))
    columns = {f"x{i}": x for i, x in enumerate(B.T)}
    pl.DataFrame({"ids": IDS, **columns}).write_parquet(folder / "wide.parquet")
    nested = {"features": B.tolist(), "label": LABELS, "epoch": LABELS * 0.5}
    pl.DataFrame(nested).write_parquet(folder / "nested.parquet")
    tensor = torch.tensor(B, requires_grad=True)
    torch.save(tensor, folder / "tensor.pt")
    torch.save({"h": tensor, "label": LABELS.tolist(), "step": 7}, folder / "mapping.pth")
    files = ["bare.csv", "pandas.csv", "labeled.csv", "wide.parquet", "nested.parquet", "tensor.pt",
             "mapping.pth"]  # fmt: skip
    table = run(folder, "b.npz", *files)
    similar = table.filter(reference="b", metric="cka", variant="raw_debiased")["value"]
    assert similar.to_list() == pytest.approx([1] * len(files), abs=1e-12)
    (folder / "pandas.csv").write_text(csv(B, f",{names}", IDS[::-1]))
    with pytest.raises(InputError, match="differ in their ids"):
        run(folder, "b.npz", "pandas.csv")


def test_every_array_of_floats_is_a_representation(folder):
    np.savez(folder / "layers.npz", first=A, second=B, labels=LABELS, shape=np.arange(60)[:, None])
    table = run(folder, "layers.npz")
    expected = alignment({"a": A, "b": B})["a", "b"]["rsa", "pearson_cosine"]
    approx = pytest.approx(expected, abs=1e-14)
    assert value(table, "layers:second", "rsa", "pearson_cosine", "layers:first") == approx
    table = run(folder, "a.npy", "layers.npz:second")
    assert value(table, "layers:second", "rsa", "pearson_cosine") == approx
    np.savez(folder / "net.npz", **{"features:1": A, "features:2.a": B, "other": A})
    for files in (("net.npz",), ("net.npz:1", "net.npz:features:2.a")):
        found = compare.run(files=[folder / name for name in files])
        assert list(found.widths) == ["net:1", "net:2.a"] or files[1:]
        assert found.cells(("rsa", "pearson_cosine"))[tuple(found.widths)][0] == approx
    np.savez(folder / "odd.npz", first=A, second=B[1:])
    with pytest.raises(InputError, match="60 images but features of second of shape"):
        run(folder, "odd.npz")


def test_without_labels_all_that_needs_none_is_the_same(folder, caplog):
    caplog.set_level("INFO", "cltools")
    np.savez(folder / "bare.npz", features=B)
    bare = run(folder, "a.npy", "bare.npz")
    (told,) = caplog.messages
    assert told.startswith("no labels: without --labels, alignment within classes")
    of_labels = ("residual", "null", "cdnv", "nc1", "nc2", "etf", "class", "within")
    full = run(folder, "a.npy", "bare.npz", labels="labels.npy").filter(
        ~pl.concat_str("metric", "variant").str.contains_any(of_labels)
    )
    keys = ["objective", "reference", "metric", "variant"]
    assert bare.select(keys).rows() == full.select(keys).rows()
    for column in ("value", "ci_low", "ci_high"):
        np.testing.assert_allclose(bare[column], full[column], rtol=1e-12)
    assert {"effective_rank", "rsa_mantel_p", "cka_lower_bound"} <= set(bare["metric"])


def test_all_pairs_have_intervals_and_those_of_the_first_stay_the_same(folder):
    table = run(folder, "a.npy", "b.npz", "c.safetensors", labels="labels.npy")
    two = run(folder, "a.npy", "b.npz", labels="labels.npy")
    both = two.filter(pl.col("reference") == "a")
    keys = ["objective", "reference", "metric", "variant"]
    assert table.join(both, on=keys, how="semi").equals(both)
    pair = table.filter(objective="c", reference="b", variant="cosine_debiased", metric="cka")
    assert pair.select("ci_low", "ci_high").null_count().row(0) == (0, 0)


def test_people_are_told_what_to_cite(folder):
    np.save(folder / "noise.npy", RNG.standard_normal((60, 40)))
    told = cltools("compare", folder / "a.npy", folder / "noise.npy")
    table = run(folder, "a.npy", "noise.npy")
    row = table.filter(metric="cka", variant="cosine_debiased").row(0, named=True)
    low, number, high = (f"{row[key]:.3f}" for key in ("ci_low", "value", "ci_high"))
    assert f"Cite the debiased CKA with its interval, {number} ({low} to {high}); " in told
    biased = value(table, "noise", "cka", "cosine_biased")
    assert f"the biased one is {biased - row['value']:.3f} larger, because" in told
    assert "CKA within classes" not in told
    assert "CKA within classes" in cltools("compare", folder / "a.npy", folder / "b.npz")


def test_three_and_more_are_a_matrix_and_a_picture(folder):
    names = [f"{letter}.npy" for letter in "fghij"]
    for name in names:
        np.save(folder / name, A @ RNG.standard_normal((5, 7)) + RNG.standard_normal((60, 7)))
    files = [folder / name for name in names]
    found = compare.run(files=files, heatmap=folder / "pairs.svg")
    again = compare.run(files=files, heatmap=folder / "again.svg")
    drawn = (folder / "pairs.svg").read_bytes()
    assert drawn == (folder / "again.svg").read_bytes()
    first, cka, rsa, advice = compare.report(found)
    assert [len(table.rows) for table in (first, cka, rsa)] == [4, 5, 5]
    features = {name.removesuffix(".npy"): np.load(folder / name) for name in names}
    for table, measure in ((cka, ("cka", "cosine_debiased")), (rsa, ("rsa", "pearson_cosine"))):
        expected = alignment(features)["g", "j"][measure]
        assert table.rows[4][2] == table.rows[1][5] == f"{expected:.3f}"
        assert table.rows[1][2] == "–"
    assert advice == found.advice() == again.advice()
    assert "up to" in advice
    for ending, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        compare.run(files=files[:2], heatmap=folder / f"x{ending}")
        assert (folder / f"x{ending}").read_bytes().startswith(magic)
    with pytest.raises(InputError, match=r"--heatmap .*x\.gif must end in \.png or \.pdf"):
        compare.run(files=files, heatmap=folder / "x.gif")


def test_bfloat16_and_both_kinds_of_netcdf_are_read(folder):
    half = torch.tensor(B).bfloat16()
    tensors = {"features": half, "labels": torch.tensor(LABELS)}
    torch_file.save_file(tensors, folder / "half.safetensors")
    np.savez(folder / "as_float.npz", features=half.float().numpy(), labels=LABELS)
    text = np.array([f"image {i}" for i in IDS])
    dataset = xr.Dataset({"h": (("n", "d"), B), "labels": ("n", LABELS), "ids": ("n", text)})
    dataset.to_netcdf(folder / "three.nc", engine="scipy")
    dataset.to_netcdf(folder / "four.nc", engine="h5netcdf")
    np.savez(folder / "bytes.npz", features=B, labels=LABELS, ids=text.astype("S"))
    table = run(folder, "as_float.npz", "half.safetensors", "three.nc", "four.nc", "bytes.npz")
    for name, other in (("half", "as_float"), ("four", "three"), ("bytes", "three")):
        same = value(table, name, "rsa", "pearson_cosine", reference=other)
        assert same == pytest.approx(1, abs=1e-12)


def test_the_networks_of_a_cell_s_embeddings(folder):
    """Objective by objective, with other software's features of the same images."""
    stored = xr.Dataset(
        {
            "h": (("objective", "sample", "feature"), np.stack([B, A @ RNG.random((5, 8))])),
            "z": (("objective", "sample", "dimension"), RNG.random((2, 60, 3))),
        },
        {
            "objective": ["dcl", "nscl:shuffled"],
            "label": ("sample", LABELS),
            "sample_id": ("sample", IDS),
        },
    )
    stored.to_netcdf(folder / "step.nc", engine="h5netcdf")
    both = run(folder, "step.nc")
    assert set(both["objective"]) | set(both["reference"]) >= {"step:dcl", "step:nscl:shuffled"}
    one = run(folder, "b.npz", "step.nc:dcl")
    assert value(one, "step:dcl", "cka", "cosine_biased", "b") == pytest.approx(1)
    pair = run(folder, "step.nc:dcl", "step.nc:nscl:shuffled")
    names = {"objective": "step:nscl:shuffled", "reference": "step:dcl"}
    for table in (both, pair):
        rows = table.filter(**names, metric="cka", variant="cosine_biased")
        assert (
            rows["value"].item()
            == both.filter(**names, metric="cka", variant="cosine_biased")["value"].item()
        )
    with pytest.raises(InputError, match=r"holds no objective 'scl' \(it has dcl, nscl:shuffled\)"):
        run(folder, "b.npz", "step.nc:scl")


def test_files_of_one_name_in_two_folders_are_a_pair(folder):
    for name, features in (("run1", A), ("run2", B)):
        (folder / name).mkdir()
        np.savez(folder / name / "features.npz", features=features, labels=LABELS)
    table = run(folder, "run1/features.npz", "run2/features.npz")
    found = value(table, "run2/features", "cka", "cosine_biased", reference="run1/features")
    expected = alignment({"a": A, "b": B})["a", "b"]["cka", "cosine_biased"]
    assert found == pytest.approx(expected, abs=1e-14)
    with pytest.raises(InputError, match="give each file, or each array of a file, once"):
        run(folder, "b.npz", "b.npz")


def test_missing_labels_in_the_same_place_are_left_out(folder, caplog):
    labels = LABELS.astype(float)
    labels[[3, 7]] = np.nan
    for name, features in (("e", A), ("f", B)):
        np.savez(folder / f"{name}.npz", features=features, labels=labels)
    assert set(run(folder, "e.npz", "f.npz")["n"]) == {58}
    assert caplog.messages == ["2 images are left out, as their label is NaN"]
    np.savez(folder / "f.npz", features=B, labels=LABELS.astype(float))
    with pytest.raises(InputError, match="differ in their labels, first at image 3"):
        run(folder, "e.npz", "f.npz")


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_constant_features_give_nan_and_say_so(fill, folder, caplog, recwarn):
    np.save(folder / "flat.npy", np.full_like(A, fill))
    table = run(folder, "b.npz", "flat.npy")
    assert np.isnan(value(table, "flat", "rsa", "pearson_cosine", reference="b"))
    assert caplog.messages == ["flat: all images have the same features, so similarities are NaN"]
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_objects_and_outputs_that_cannot_be_are_refused(folder):
    objects = np.array([str(i) for i in IDS], dtype=object)
    np.savez(folder / "objects.npz", features=B, labels=LABELS, ids=objects)
    with pytest.raises(InputError, match=r"objects\.npz cannot be read .*dtype=str"):
        run(folder, "b.npz", "objects.npz")
    files = [folder / "b.npz", folder / "c.safetensors"]
    for output in ("/proc/none/t.parquet", folder, folder / "b.npz" / "t.parquet"):
        with pytest.raises(InputError, match=r"cannot be written|is a folder"):
            compare.run(files=files, output=Path(output))


def test_the_ending_of_the_output_says_how_it_is_written(folder):
    table = run(folder, "a.npy", "b.npz")
    files = [folder / "a.npy", folder / "b.npz"]
    compare.run(files=files, output=folder / "out.csv")
    written = pl.read_csv(folder / "out.csv", schema=table.schema)
    assert written["value"].equals(table["value"])
    names = ["objective", "reference", "metric", "variant"]
    assert written.select(names).fill_null("").equals(table.select(names))
    for name in ("out.txt", "out", "out.parquet.gz"):
        message = cltools("compare", *files, "--output", folder / "new" / name, code=2)
        assert f"{name} must end in .parquet or .csv" in message
        assert message.count("\n") == 1
        assert not (folder / "new").exists()
