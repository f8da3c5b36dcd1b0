"""The report: what stands in it, and what a real browser makes of it."""

import base64
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import combinations, cycle, product

import polars as pl
import pytest
import tables
from matplotlib.figure import Figure
from waiting import HANGS

from cltools.claims import load_claims
from cltools.claims.evaluate import evaluate
from cltools.config.cells import resolve_cell
from cltools.figures.style import save
from cltools.report.explore import exploration
from cltools.report.page import summary
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
    assert re.search(r'<td class="verdict undecided">undecided\s+in 2 of 2 sweeps</td>', text)
    assert "3 of 3 seeds agree; at least 6 are needed" in text
    assert text.count("(primary claim)") == sum(claim.primary for claim in load_claims().claims)
    assert text.split("<script>")[0].count("data:image/png;base64,") == 2
    assert base64.b64encode(b"epoch,value\n0,1\n").decode() in text
    # What the config says is shown, never run.
    assert "&lt;/script&gt;&lt;b&gt;τ &amp; &lt;i&gt;" in text
    assert "<b>τ" not in text
    assert len(page.read_bytes()) < 15e6
    # Minutes, CPU minutes and memory of this experiment's one job.
    row = re.search(r"<td>train</td>(.+)</tr>", text)[1]
    assert re.findall(r">([\d.]+)<", row) == ["1", "2.0", "1.5", "2.00"]


def test_the_summary_is_of_the_end_of_training(page, measures):
    rows = measures.filter(
        pl.col("sweeps").list.contains("base"), split="test", objective="nscl", metric="cka",
        variant="cosine_biased", features="h", reference="dcl", step=measures["step"].max(),
    )["value"]  # fmt: skip
    assert len(rows) == 3
    assert f'<td class="number">{rows.mean():.3g} ± {rows.std():.2g}</td>' in page.read_text()


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
    assert gap["mean"] == pytest.approx(last.mean(), rel=1e-5)
    assert gap["low"] == pytest.approx(last.min(), rel=1e-5)
    assert gap["classes"] == 10
    first, one = found["geometry"][0], found["geometry"][2 * len(tables.EPOCHS)]
    assert (first["objective"], first["epoch"], first["split"]) == ("dcl", 0, "test")
    assert (one["objective"], one["epoch"], one["split"]) == ("scl", 0, "test")
    assert len(one["cosines"]) == 10
    assert one["cosines"][2][5] == one["cosines"][5][2] == pytest.approx(0.02 - 1 / 9, abs=1e-3)
    assert one["cosines"][3][3] == 1


def test_what_a_sweep_varies_is_not_averaged(measures):
    """Means are over seeds: every temperature, and every batch size and rule, stands for itself."""
    sweeps = [sweep for sweep in SWEEPS if sweep["name"] in ("temperature", "batch")]
    found = exploration(measures, sweeps)
    at = {"measure": "CKA", "pair": ["dcl", "nscl"], "split": "test", "epoch": tables.EPOCHS[-1]}
    ends = {
        row["cells"]: row["mean"]
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
    assert ends == pytest.approx(
        {name: tables.alignment(tables.cell(**cell), "nscl", last) for name, cell in wanted.items()}
    )
    assert all(row["seeds"] == 3 for row in found["alignment"])
    assert len({row["sweep"] for row in found["gap"]}) == 1 + 6
    found = summary(measures, {"sweeps": sweeps, "reference": "dcl"})
    assert found["columns"][:3] == ["cells", "objective", "seeds"]
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
    assert {row["seeds"] for row in found["alignment"]} == {2}
    assert found["geometry"][0]["cosines"][0][1] is None


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
    report.run(**{**material, "plan": plan, "measures": tmp_path / "few.parquet",
                  "benchmarks": None, "figures": tmp_path, "output": output})  # fmt: skip
    text = output.read_text()
    assert 'id="gap"' in text
    assert 'id="geometry"' not in text
    assert 'id="alignment"' not in text


def test_what_is_missing_is_named(material, tmp_path):
    with pytest.raises(InputError, match=r"alignment_training.png is missing: run `cltools plot`"):
        report.run(**{**material, "figures": tmp_path})
    with pytest.raises(InputError, match=r"has no manifest here: run `cltools train`"):
        report.run(**{**material, "manifests": material["manifests"][1:]})
    with pytest.raises(InputError, match=r"none\.parquet does not exist: run `cltools claims`"):
        report.run(**{**material, "claims": tmp_path / "none.parquet"})
    (tmp_path / "cut.parquet").write_bytes(material["measures"].read_bytes()[:1000])
    with pytest.raises(InputError, match=r"cut\.parquet is damaged"):
        report.run(**{**material, "measures": tmp_path / "cut.parquet"})


# ---- in a browser -------------------------------------------------------------------------------

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
# Moves every control and notes whether its plot and its words changed.
MOVES = """
<script>
window.addEventListener("load", () => {
  const moved = {};
  for (const box of document.querySelectorAll(".widget")) {
    const seen = () => JSON.stringify([box.querySelector(".plot").data,
      box.querySelector(".plot").layout.annotations, box.querySelector(".reading").textContent]);
    for (const control of box.querySelectorAll("[name]")) {
      const before = seen(), value = control.value;
      if (control.tagName === "SELECT") control.selectedIndex = control.options.length - 1;
      else control.value = control.value === control.min ? control.max : control.min;
      if (control.value === value) control.selectedIndex = 0;
      control.dispatchEvent(new Event("input"));
      const plots = box.querySelectorAll("svg.main-svg").length;
      moved[box.id + "." + control.name] = [before !== seen(), plots];
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
    assert names == {"denominator", "gap", "geometry", "alignment"}
    still = {name for name, (changed, plots) in moved.items() if not changed or plots == 0}
    assert not still
    assert int(re.search(r'data-width="(\d+)"', shown)[1]) <= 1280


LEGEND = """
<script>
window.addEventListener("load", () => {
  const shown = [...document.querySelectorAll("#gap .legendtext")].map((text) => text.textContent);
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
