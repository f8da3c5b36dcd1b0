"""The report: what stands in it, and what a real browser makes of it."""

import base64
import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import combinations, cycle, product
from pathlib import Path

import polars as pl
import pytest
import tables
from matplotlib.figure import Figure
from waiting import HANGS

from cltools.claims import load_claims
from cltools.claims.evaluate import evaluate
from cltools.config.cells import resolve_cell
from cltools.figures.sheet import save
from cltools.report.answer import NONE, ends, sentences, spread, summary
from cltools.report.explore import exploration
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import write_json
from cltools.stages import report
from cltools.tidy import with_setting

SWEEPS = [{"name": name, **sweep} for name, sweep in tables.SWEEPS.items()]
CONFIG = {"experiment": "made up", "note": "</script><b>τ & <i>"}


def cosines(measures):
    """Rows as `measure` writes them for up to ten classes: -1/(C - 1) + 0.01 i, and more."""
    rows = []
    for row in measures.unique(["cell", "step"], keep="first", maintain_order=True).to_dicts():
        count = row["classes"]
        about = {"metric": "class_mean_cosine", "reference": "", "features": "h"}
        for split, objective in product(("train", "test"), tables.OBJECTIVES):
            start = -1 / (count - 1) + 0.0001 * row["step"] + 0.02 * (split == "train")
            rows += [
                {**row, **about, "split": split, "objective": objective,
                 "variant": f"classes_{i}_{j}", "value": start + 0.01 * i}
                for i, j in combinations(range(count), 2)
            ]  # fmt: skip
    return pl.DataFrame(rows, schema=measures.schema)


@pytest.fixture(scope="module")
def measures():
    plain = tables.measures(tables.cells(3))
    off = 0.01 * (pl.col("split") == "train") * pl.col("metric").is_in(["cka", "rsa"])
    plain = plain.with_columns(value=pl.col("value") - off)
    return pl.concat([plain, cosines(plain.filter(pl.col("sweeps").list.contains("base")))])


def bounds(measures):
    """The rows of `theory.parquet` that the answer reads: a bound of 2 nats."""
    gap = {"metric": "gap", "variant": "training_tau", "objective": "dcl", "split": "test"}
    return measures.filter(**gap).with_columns(
        source=pl.lit("P1 Theorem 1"), quantity=pl.lit("gap"), side=pl.lit("upper"), bound=2.0
    )


@pytest.fixture(scope="module")
def material(measures, tmp_path_factory):
    """Options of the stage, of files as the stages before it write them."""
    folder = tmp_path_factory.mktemp("made")
    measures.write_parquet(folder / "measures.parquet")
    table = evaluate(load_claims(), {"measures": measures}, tables.SWEEPS)
    table.write_parquet(folder / "claims.parquet")
    (folder / "figures").mkdir()
    for name in ("alignment_training", "downstream"):
        save(Figure((1, 1)), pl.DataFrame({"epoch": [0], "value": [1]}), folder / "figures" / name)
    plain = resolve_cell({"dataset": "digits", "recipe": "digits", "horizon": 2})
    manifests, cells = [], {}
    for row in measures.unique("cell", maintain_order=True).iter_rows(named=True):
        cells[row["cell"]] = {"cell": plain, "sweeps": row["sweeps"], "dataset": "digits"}
        manifests.append(folder / f"{len(cells)}.json")
        manifest = {
            "id": row["cell"], "cell": {**plain, "seed": row["seed"]}, "class_ids": [0, 1],
            "train_images": 1440, "steps": 66, "store": "0123", "until": "11 epochs",
            "made_by": {"cltools": "0.1.0", "torch": "2"},
        }  # fmt: skip
        write_json(manifests[-1], manifest)
    plan = {"experiment": "made", "reference": "dcl", "cells": cells, "sweeps": SWEEPS,
            "figures": ["alignment_training", "downstream"]}  # fmt: skip
    tables.project([measures.row(0, named=True)]).write_parquet(folder / "project.parquet")
    bounds(measures).write_parquet(folder / "theory.parquet")
    # An earlier config of this experiment had it drawn.
    earlier = pl.DataFrame({"tau": [0], "value": [1]})
    save(Figure((1, 1)), earlier, folder / "figures/alignment_temperature")
    write_json(folder / "plan.json", plan)
    (folder / "benchmarks/train").mkdir(parents=True)
    job = f"{next(iter(cells))}-12epochs.tsv"
    columns = "s\th:m:s\tmax_rss\tmax_vms\tcpu_time"
    (folder / "benchmarks/train" / job).write_text(f"{columns}\n120\t0:02:00\t2048\tNA\t90\n")
    (folder / "benchmarks/train/other.tsv").write_text(f"{columns}\n999\t0\t1\t1\t999\n")
    return {
        "plan": folder / "plan.json",
        "measures": folder / "measures.parquet",
        "claims": folder / "claims.parquet",
        "figures": folder / "figures",
        "manifests": manifests,
        "config": CONFIG,
        "output": folder / "report.html",
        "theory": folder / "theory.parquet",
        "project": folder / "project.parquet",
        "benchmarks": folder / "benchmarks",
    }


@pytest.fixture(scope="module")
def page(material):
    report.run(**material)
    return material["output"]


def test_what_stands_in_it(page):
    text = page.read_text()
    for claim in load_claims().claims:
        assert claim.statement.split("(")[0].strip().replace("'", "&#39;") in text
    # Claims about the number of classes have two sweeps; three seeds decide none of them.
    assert '<span class="verdict undecided">Undecided in 2 of 2 sweeps' in text
    assert "3 of 3 seeds agree; at least 6 are needed" in text
    assert re.search(r"<h3 class=\"undecided\">\d+ claims are undecided</h3>", text)
    # Figures have titles, and their names stand nowhere as headings.
    assert "<h3>CKA and RSA of every objective with the reference against the epoch</h3>" in text
    assert not re.search(r"<h\d[^>]*>\w+_\w+</h", text)
    assert text.count("(primary claim)") == sum(claim.primary for claim in load_claims().claims)
    assert text.split("<script>")[0].count("data:image/png;base64,") == 2
    assert base64.b64encode(b"epoch,value\n0,1\n").decode() in text
    # What the config says is shown, never run.
    assert "&lt;/script&gt;&lt;b&gt;τ &amp; &lt;i&gt;" in text
    assert "<b>τ" not in text
    assert len(page.read_bytes()) < 15e6
    # Minutes, CPU minutes and memory of this experiment's one job.
    row = re.search(r'<th scope="row">train</th>(.+)</tr>', text)[1]
    assert re.findall(r">([\d.]+)<", row) == ["1", "2.0", "1.5", "2.00"]


def test_the_summary_is_of_the_end_of_training(page, measures):
    rows = measures.filter(
        pl.col("sweeps").list.contains("base"), split="test", objective="nscl", metric="cka",
        variant="cosine_biased", features="h", reference="dcl", step=measures["step"].max(),
    )["value"]  # fmt: skip
    assert len(rows) == 3
    assert f'<td class="number">{spread(rows)}</td>' in page.read_text()


def ended(measures, **changed):
    """The end of training, of made-up rows that are changed before."""
    plan = {"sweeps": SWEEPS, "reference": "dcl"}
    return ends(measures, changed.pop("plan", plan), **changed)


def test_no_column_of_the_numbers_is_empty(measures):
    """Weights have no split, CE has no loss gap, and a metric that nobody measured is left out."""
    found = summary(ended(measures), "base")
    for place, column in enumerate(found["columns"]):
        values = [row[place] for row in found["rows"]]
        assert set(values) - {NONE, "itself"}, column
    by_name = dict(zip(found["columns"], found["rows"][1], strict=True))
    weights = measures.filter(
        pl.col("sweeps").list.contains("base"), metric="weight_gap", objective="nscl",
        step=measures["step"].max(),
    )["value"]  # fmt: skip
    assert by_name["Network"] == "NSCL"
    assert by_name["Weight gap to DCL"] == spread(weights)
    fewer = summary(ended(measures.filter(pl.col("metric") != "weight_gap")), "base")
    assert set(found["columns"]) - set(fewer["columns"]) == {"Weight gap to DCL"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.871, 0.829, 0.91], "0.87 ± 0.04"),
        ([0.5], "0.50"),
        ([0.9, 0.902], "0.901 ± 0.001"),
        ([0.5, 0.5], "0.50 ± 0.00"),
    ],
)
def test_a_mean_and_its_spread(values, words):
    assert spread(pl.Series(values)).replace("\u00a0", " ") == words


@pytest.fixture(scope="module")
def with_controls(measures):
    return pl.concat([measures, tables.controls(tables.cells(3))], how="diagonal_relaxed")


def said(measures, **changed):
    return [one.replace("\u00a0", " ") for one in sentences(ended(measures, **changed)[0])]


def test_the_answer(with_controls):
    rows = with_controls
    close, control, gap = said(rows, theory=bounds(rows))
    assert close.startswith("After 200 epochs on digits, the features of contrastive")
    assert re.search(r"counterpart NSCL have a CKA of 0\.\d+ ± 0\.\d+ on test images", close)
    assert "over 3 seeds" in close
    assert re.search(r"; SCL is at 0\.\d+ ± 0\.\d+ and CE is at 0\.\d+ ± 0\.\d+\.$", close)
    assert control.startswith(
        "As a control, a second DCL network with batches and views of its own"
    )
    assert re.search(r"second network in \d of 3 seeds and .* in \d of 3 seeds\.$", control)
    assert re.search(r"nats above the NSCL loss; the theory allows at most 2 nats, of which", gap)


@pytest.mark.parametrize(
    ("without", "there"),
    [
        ("dcl_twin", "NSCL with shuffled labels is at"),
        ("nscl:shuffled", "a second DCL network with batches and views of its own is at"),
    ],
)
def test_the_answer_with_one_control(with_controls, without, there):
    _, control, _ = said(with_controls.filter(pl.col("objective") != without))
    assert control.startswith(f"As a control, {there}")
    assert control.count(" of 3 seeds") == 1


def test_the_answer_with_parts_missing(with_controls, measures):
    """One seed has no ±, and nothing is said of what is not there."""
    close, control, gap = said(with_controls.filter(seed=0))
    assert "±" not in close + control + gap
    assert "one seed" in close
    assert re.search(r"NSCL is (no )?closer to DCL than .* network and (no )?closer", control)
    assert gap.endswith("nats above the NSCL loss.")
    close, control, _ = said(measures.filter(pl.col("objective").is_in(["dcl", "nscl"])))
    assert "SCL is at" not in close
    assert control.startswith("There is no control here")
    close, control, gap = said(measures.filter(objective="dcl", metric="nccc"))
    assert control == "So there is nothing that a control could be compared with."
    assert "Nothing compares it with its supervised counterpart NSCL" in close
    assert gap == "The gap between the DCL and the NSCL loss was not measured."
    # Without a base sweep, the first setting is described, and the sentence says which.
    plan = {"sweeps": [s for s in SWEEPS if s["name"] == "temperature"], "reference": "dcl"}
    assert re.search(r"on digits \(τ = 0\.\d\), the features", said(measures, plan=plan)[0])


def test_what_can_be_explored(measures):
    found = exploration(measures, SWEEPS)
    assert list(found["objectives"]) == list(tables.OBJECTIVES)
    rows = measures.filter(
        pl.col("sweeps").list.contains("temperature"), metric="gap", variant="training_tau",
        objective="dcl", split="test", tau=0.1,
    )  # fmt: skip
    last = rows.filter(pl.col("epoch") == rows["epoch"].max())["value"]
    (gap,) = (
        row
        for row in found["gap"]
        if row["sweep"] == "temperature" and row["tau"] == 0.1 and row["epoch"] == tables.EPOCHS[-1]
    )
    assert (gap["progress"], gap["seeds"]) == (1, 3)
    assert (gap["line"], gap["base"]) == (False, False)
    assert {row["sweep"] for row in found["gap"] if row["line"]} == {
        sweep["label"] for sweep in SWEEPS if "classes" in sweep["factors"]
    }
    assert found["start"] == {"classes": 10, "tau": 0.5}
    assert gap["mean"] == pytest.approx(last.mean(), rel=1e-5)
    assert gap["low"] == pytest.approx(last.min(), rel=1e-5)
    assert gap["classes"] == 10
    first, one = found["means"][0], found["means"][2 * len(tables.EPOCHS)]
    assert (first["objective"], first["epoch"], first["split"]) == ("dcl", 0, "test")
    assert (one["objective"], one["epoch"], one["split"]) == ("scl", 0, "test")
    assert (one["classes"], len(one["cosines"])) == (10, 45)
    assert min(one["cosines"]) == pytest.approx(-1 / 9, abs=0.02)
    assert found["images"] is None
    project = tables.project()
    images = exploration(measures, SWEEPS, project)["images"]
    assert images["labels"] == [0, 1, 0, 1, 0, 1]
    panel = project.filter(objective="nscl", epoch=tables.EPOCHS[1]).sort("sample")
    (points,) = (p["xy"] for p in images["points"]
                 if (p["objective"], p["epoch"]) == ("nscl", tables.EPOCHS[1]))  # fmt: skip
    assert points[::2] == pytest.approx(panel["x"].to_list(), abs=0.005)
    assert points[1::2] == pytest.approx(panel["y"].to_list(), abs=0.005)


def test_what_a_sweep_varies_is_not_averaged(measures):
    """Means are over seeds: every temperature, and every batch size and rule, stands for itself."""
    sweeps = [sweep for sweep in SWEEPS if sweep["name"] in ("temperature", "batch")]
    found = exploration(measures, sweeps)
    at = {"measure": "CKA", "pair": ["dcl", "nscl"], "split": "test"}
    found_ends = {
        row["cells"]: row["mean"][-1]
        for row in found["alignment"]
        if all(row[key] == value for key, value in at.items())
    }
    wanted = {f"temperature: τ = {tau:g}": {"tau": tau} for tau in (0.1, 0.5, 1.0)}
    wanted |= {
        f"batch size: B = {size}, learning rate ∝ {words}": {"batch_size": size, "lr_rule": rule}
        for size in (64, 128, 256)
        for rule, words in (("linear", "B"), ("sqrt", "√B"))
    }
    last = tables.EPOCHS[-1]
    assert found_ends == pytest.approx(
        {
            name: tables.alignment(tables.cell(**cell), "nscl", last)
            for name, cell in wanted.items()
        },
        abs=1e-4,
    )
    assert all(set(row["seeds"]) == {3} for row in found["alignment"])
    # Only sweeps over C and τ have a gap to show.
    assert {row["sweep"] for row in found["gap"]} == {"temperature"}
    found = summary(ended(measures, plan={"sweeps": sweeps, "reference": "dcl"}), "temperature")
    assert found["columns"][:3] == ["Cells", "Network", "Seeds"]
    assert {line[0] for line in found["rows"]} == {"τ = 0.1", "τ = 0.5", "τ = 1"}


def test_settings_that_no_column_names(measures):
    """Cells that differ in something else are told apart by their names."""
    cells = [tables.cell(seed=0), {**tables.cell(seed=0), "cell": "another"}]
    named = with_setting(tables.measures(cells, [0]))
    assert set(named["setting"]) == {cells[0]["cell"], "another"}
    assert set(with_setting(measures.filter(tau=0.1))["setting"]) == {""}


def test_values_that_are_not_finite_are_left_out(measures):
    broken = measures.with_columns(
        value=pl.when(pl.col("seed") == 0).then(float("nan")).otherwise("value")
    )
    found = exploration(broken, SWEEPS)
    json.dumps(found, allow_nan=False)
    assert {seeds for row in found["alignment"] for seeds in row["seeds"]} == {2}
    assert found["means"][0]["cosines"] == []
    one = exploration(measures.filter(seed=1), SWEEPS)["alignment"]
    assert {sd for row in one for sd in row["sd"]} == {None}


def test_the_same_input_gives_the_same_page(material, page, tmp_path):
    again = tmp_path / "again.html"
    report.run(**{**material, "output": again})
    assert again.read_bytes() == page.read_bytes()


LABELS = ("<!--<script>", "</script><b>bold</b>", "line\u2028 & \u2029paragraph <i>")


@pytest.fixture(scope="module")
def labelled(material, tmp_path_factory):
    """The page of sweeps with labels that HTML or JavaScript could take for their own."""
    folder = tmp_path_factory.mktemp("labelled")
    plan = json.loads(material["plan"].read_text())
    for sweep, label in zip(plan["sweeps"], cycle(LABELS), strict=False):
        sweep["label"] = label
    write_json(folder / "plan.json", plan)
    output = folder / "report.html"
    report.run(**{**material, "plan": folder / "plan.json", "output": output})
    return output


class Parsed(HTMLParser):
    """The content of the data script, the visible text and the tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.data, self.text, self.tags, self.within = "", "", [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag in ("script", "style"):
            self.within = dict(attributes).get("id", tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.within = None

    def handle_data(self, data):
        if self.within == "data":
            self.data += data
        elif self.within is None:
            self.text += data


def test_labels_are_text(page, labelled):
    """No label ends the script that holds it, or becomes a tag."""
    usual, found = Parsed(page.read_text()), Parsed(labelled.read_text())
    assert found.tags == usual.tags
    # Python's parser does not know that "<!--<script>" hides the end of a script, as browsers do.
    assert not set("<>&\u2028\u2029") & set(found.data)
    sweeps = {row["sweep"] for row in json.loads(found.data)["gap"]}
    assert all(any(sweep.startswith(label) for sweep in sweeps) for label in LABELS)
    first = next(label for label in LABELS if label in found.text)
    assert f"sweep “{first}”" in found.text


def test_without_what_is_optional(material, measures, tmp_path):
    """No figures, no benchmarks, nothing measured of class means or of a second objective."""
    few = measures.filter(
        (pl.col("objective") == "dcl") & (pl.col("metric") != "class_mean_cosine")
    )
    few.write_parquet(tmp_path / "few.parquet")
    output = tmp_path / "few.html"
    plan = tmp_path / "plan.json"
    write_json(plan, {**json.loads(material["plan"].read_text()), "figures": []})
    fewer = {"theory": None, "project": None, "benchmarks": None, "figures": tmp_path}
    changed = {"plan": plan, "measures": tmp_path / "few.parquet", "output": output}
    report.run(**{**material, **fewer, **changed})
    text = output.read_text()
    assert 'id="gap"' in text
    assert 'id="means"' not in text
    assert 'id="images"' not in text
    assert 'id="alignment"' not in text


def test_what_is_missing_is_named(material, tmp_path):
    with pytest.raises(InputError, match=r"alignment_training.png is missing: run `cltools plot`"):
        report.run(**{**material, "figures": tmp_path})
    with pytest.raises(InputError, match=r"has no manifest here: run `cltools train`"):
        report.run(**{**material, "manifests": material["manifests"][1:]})
    with pytest.raises(InputError, match=r"none\.parquet does not exist: run `cltools claims`"):
        report.run(**{**material, "claims": tmp_path / "none.parquet"})
    with pytest.raises(InputError, match=r"no figure is called 'alignment': choose from"):
        report.run(**{**material, "shown": ["alignment"]})
    old = pl.read_parquet(material["claims"]).drop("reading")
    old.write_parquet(tmp_path / "old.parquet")
    with pytest.raises(InputError, match=r"earlier version: run `cltools claims` again"):
        report.run(**{**material, "claims": tmp_path / "old.parquet"})
    (tmp_path / "cut.parquet").write_bytes(material["measures"].read_bytes()[:1000])
    with pytest.raises(InputError, match=r"cut\.parquet is damaged"):
        report.run(**{**material, "measures": tmp_path / "cut.parquet"})


# ---- in a browser -------------------------------------------------------------------------------

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
# Moves every control and back. Notes whether its plot or its words changed, whether a screen reader
# would say something of them, and whether the keyboard reaches it.
MOVES = """
<script>
window.addEventListener("load", () => {
  const moved = {};
  for (const box of document.querySelectorAll(".widget")) {
    const plot = box.querySelector(".plot"), reading = box.querySelector(".reading");
    const seen = () => plot.innerHTML + reading.textContent;
    for (const control of box.querySelectorAll("[name]")) {
      const before = seen(), value = control.value;
      if (control.tagName === "SELECT") control.selectedIndex = control.options.length - 1;
      else control.value = control.value === control.min ? control.max : control.min;
      if (control.value === value) control.selectedIndex = 0;
      control.dispatchEvent(new Event("input"));
      const named = box.querySelectorAll("[role=img][aria-label]:not([aria-label=''])").length;
      const spoken = control.tagName === "SELECT" || control.getAttribute("aria-valuetext");
      const reached = control.tabIndex === 0 && control.labels.length === 1;
      const live = reading.ariaLive === "polite" && reading.textContent !== "";
      const noted = [before !== seen(), named > 0, Boolean(spoken), reached, live];
      moved[box.id + "." + control.name] = noted;
      control.value = value;
      control.dispatchEvent(new Event("input"));
    }
  }
  document.body.dataset.moved = JSON.stringify(moved);
  document.body.dataset.width = document.documentElement.scrollWidth;
});
</script>
</body>"""


def browse(folder, text, *options):
    """What headless chromium prints of a page, and the lines of its console."""
    path = folder / "browsed.html"
    path.write_text(text)
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900",
         f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0",
         "--virtual-time-budget=20000", *options, path.as_uri()],
        capture_output=True, text=True, timeout=HANGS, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@needs_browser
def test_every_control_moves_its_plot(page, tmp_path):
    """On a screen of 1,280 pixels, without an error and without asking the network for anything."""
    text = page.read_text().replace("</body>", MOVES)
    shown, console = browse(tmp_path, text, "--dump-dom")
    assert console == []
    moved = json.loads(re.search(r'data-moved="([^"]+)"', shown)[1].replace("&quot;", '"'))
    names = {name.split(".")[0] for name in moved}
    assert names == {"negatives", "sphere", "images", "means", "gap", "alignment"}
    assert not {name: noted for name, noted in moved.items() if not all(noted)}
    assert int(re.search(r'data-width="(\d+)"', shown)[1]) <= 1280


# What a page in a frame as narrow as a phone tells the page around it.
PHONE = """
<script>
window.addEventListener("load", () => {
  const one = document.querySelector("#alignment [name=one]").value;
  const taken = document.querySelector(`#alignment [name=other] option[value="${one}"]`).disabled;
  const body = getComputedStyle(document.body);
  const shown = (id) => document.querySelector(`#${id} .reading`).textContent;
  parent.postMessage({ width: document.documentElement.scrollWidth, taken, gap: shown("gap"),
    alignment: shown("alignment"), ground: body.backgroundColor, ink: body.color }, "*");
});
</script>
</body>"""
FRAME = """<body><iframe src="phone.html" width="390" height="800" style="border: 0"></iframe>
<script>
addEventListener("message", ({ data }) => { document.body.dataset.told = JSON.stringify(data); });
</script></body>"""


@needs_browser
def test_on_a_dark_phone(page, tmp_path):
    """390 pixels wide, no part sticks out; gap and alignment start at the trained settings."""
    (tmp_path / "phone.html").write_text(page.read_text().replace("</body>", PHONE))
    dark = "--blink-settings=preferredColorScheme=0"
    shown, console = browse(tmp_path, FRAME, "--dump-dom", dark)
    assert console == []
    told = json.loads(html.unescape(re.search(r'data-told="([^"]+)"', shown)[1]))
    assert told["width"] <= 390
    assert told["taken"]
    ground, ink = (sum(map(int, re.findall(r"\d+", told[key])[:3])) for key in ("ground", "ink"))
    assert ground < 150
    assert ink > 600
    assert re.search(
        r"With 10 classes and τ = 0.5 the bound is [\d.]+ nats\. Measured", told["gap"]
    )
    assert re.search(r"DCL and NSCL at epoch 200: [\d.]+ ± [\d.]+ \(3 seeds\)", told["alignment"])


AXE = os.environ.get("AXE_CORE")  # the path of axe.min.js, of the package axe-core
CHECKED = """
<script>
window.addEventListener("load", async () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  const { violations } = await axe.run();
  const found = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  document.body.dataset.found = JSON.stringify(found.map((v) => [v.id, v.nodes[0].html]));
});
</script>
</body>"""


@needs_browser
@pytest.mark.skipif(AXE is None, reason="AXE_CORE names no axe.min.js")
def test_no_serious_fault_for_screen_readers(page, tmp_path):
    checker = f"<script>{Path(AXE).read_text()}</script>"
    text = page.read_text().replace("</body>", checker + CHECKED)
    shown, _ = browse(tmp_path, text, "--dump-dom")
    assert re.search(r'data-found="([^"]+)"', shown)[1] == "[]"


LEGEND = """
<script>
window.addEventListener("load", () => {
  const shown = [...document.querySelectorAll("#gap .keys li")].map((text) => text.textContent);
  document.body.dataset.legend = JSON.stringify(shown);
});
</script>
</body>"""


@needs_browser
def test_labels_in_a_browser(labelled, tmp_path):
    """They stand in the legend as they were written."""
    text = labelled.read_text().replace("</body>", LEGEND)
    shown, console = browse(tmp_path, text, "--dump-dom")
    assert console == []
    legend = html.unescape(re.search(r'data-legend="([^"]+)"', shown)[1])
    texts = json.loads(legend)
    assert all(any(label in text for text in texts) for label in LABELS[:2])


@needs_browser
def test_the_browser_would_tell(page, tmp_path):
    """Errors and requests are noticed: one of each is planted."""
    planted = '<script>undefined_name.x</script><img src="https://example.invalid/x.png"></body>'
    _, console = browse(tmp_path, page.read_text().replace("</body>", planted), "--dump-dom")
    assert any("undefined_name is not defined" in line for line in console)
    assert any("Content Security Policy" in line for line in console)


@needs_browser
def test_it_prints(page, tmp_path):
    browse(tmp_path, page.read_text(), f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().count(b"/Type /Page\n") > 3
