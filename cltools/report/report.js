// The interactive parts. Each `widget` reads its controls and is drawn again when one changes.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const layout = (more) => ({
  margin: { l: 60, r: 20, t: 20, b: 50 }, height: 380, font: { size: 12 },
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
  legend: { orientation: "h", y: 1.12 }, ...more,
});
const options = { displayModeBar: false, responsive: true };
const title = (text) => ({ text });
const number = (value, digits = 3) =>
  value === 0 ? "0" : Math.abs(value) >= 1e4 || Math.abs(value) < 1e-3
    ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
const unique = (values) => [...new Set(values)];
const ascending = (values) => unique(values).sort((a, b) => a - b);

// draw(controls, show, say, value): show(traces, layout) plots, say(text) sets the sentence above
// the plot, value(name, text) sets the text next to a control.
function widget(id, prepare, draw) {
  const box = document.getElementById(id);
  if (!box) return;
  const controls = Object.fromEntries([...box.querySelectorAll("[name]")].map((c) => [c.name, c]));
  const show = (traces, shape) => Plotly.react(box.querySelector(".plot"), traces, shape, options);
  const say = (text) => { box.querySelector(".reading").textContent = text; };
  const value = (name, text) => { controls[name].parentElement.querySelector("output").textContent = text; };
  prepare(controls);
  const again = () => draw(controls, show, say, value);
  for (const control of Object.values(controls)) control.addEventListener("input", again);
  again();
}

// Plotly takes tags in texts for markup.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

function choices(select, values, labels = {}) {
  for (const one of values) select.add(new Option(labels[one] ?? one, one));
}

function steps(slider, values, at) {
  slider.max = values.length - 1;
  slider.value = at ?? values.length - 1;
}

// Which negatives the two losses use.
widget("denominator", () => {}, ({ classes, images }, show, say, value) => {
  const C = Number(classes.value), n = Number(images.value), all = C * n;
  value("classes", C);
  value("images", n);
  const label = (i) => Math.floor(i / n);
  const kind = (i, j) => (i === j ? 0 : label(i) === label(j) ? 1 : 2);
  const z = Array.from({ length: all }, (_, i) => Array.from({ length: all }, (_, j) => kind(i, j)));
  const names = ["own image: positive", "same class: DCL only", "other class: both"];
  show([{
    type: "heatmap", z, zmin: 0, zmax: 2, xgap: 1, ygap: 1, hoverinfo: "text",
    text: z.map((row) => row.map((k) => names[k])),
    colorscale: [[0, "#222222"], [0.33, "#222222"], [0.34, "#D55E00"], [0.66, "#D55E00"], [0.67, "#cfe3f1"], [1, "#cfe3f1"]],
    colorbar: { tickvals: [0.33, 1, 1.67], ticktext: names },
  }], layout({
    xaxis: { title: title("image"), constrain: "domain", showgrid: false }, yaxis: { title: title("anchor"), autorange: "reversed", scaleanchor: "x", showgrid: false },
  }));
  say(`Of the ${all - 1} other images, DCL uses all as negatives and NSCL uses ${all - n}. The other ${n - 1} `
    + `(${number(100 * (n - 1) / Math.max(1, all - 1))} %) are in the anchor's class. Before training the gap is `
    + `${all - n ? number(Math.log((all - 1) / (all - n))) : "undefined"} nats.`);
});

// The loss gap and its bound. The sliders are logarithmic in C and τ.
const bound = (C, tau) => Math.log1p(Math.exp(2 / tau) / (C - 1));
const classesAt = (slider) => Math.round(2 * 500 ** (slider.value / 100));
const tauAt = (slider) => 0.05 * 40 ** (slider.value / 100);
const gapEpochs = ascending(data.gap.map((row) => row.epoch));
widget("gap", ({ epoch }) => steps(epoch, gapEpochs), ({ classes, tau, epoch }, show, say, value) => {
  const C = classesAt(classes), t = tauAt(tau), until = gapEpochs[epoch.value] ?? 0;
  value("classes", C);
  value("tau", t.toFixed(2));
  value("epoch", number(until));
  const grid = Array.from({ length: 120 }, (_, i) => 2 * 500 ** (i / 119));
  const trained = unique(data.gap.map((row) => row.tau));
  const nearest = trained.sort((a, b) => Math.abs(Math.log(a / t)) - Math.abs(Math.log(b / t)))[0];
  const last = new Map();
  for (const row of data.gap) {
    const key = JSON.stringify([row.dataset, row.sweep, row.classes]);
    if (row.tau === nearest && row.epoch <= until && row.epoch >= (last.get(key)?.epoch ?? 0)) last.set(key, row);
  }
  const traces = [
    { x: grid, y: grid.map((c) => bound(c, t)), name: `bound at τ = ${t.toFixed(2)}`, mode: "lines", line: { color: "#222222", dash: "dash" } },
    { x: grid, y: grid.map((c) => Math.log(c / (c - 1))), name: "before training", mode: "lines", line: { color: "#7A7A7A", dash: "dot" } },
    { x: [C], y: [bound(C, t)], name: "chosen C", mode: "markers", marker: { color: "#222222", size: 11, symbol: "diamond" } },
  ];
  const rows = [...last.values()];
  unique(rows.map((row) => `${row.dataset}, ${row.sweep}`)).forEach((name, i) => {
    const own = rows.filter((row) => `${row.dataset}, ${row.sweep}` === name).sort((a, b) => a.classes - b.classes);
    traces.push({
      x: own.map((row) => row.classes), y: own.map((row) => row.mean), name: `${plain(name)} (τ = ${nearest})`, mode: "lines+markers",
      line: { color: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"][i % 6] },
      error_y: { array: own.map((row) => row.high - row.mean), arrayminus: own.map((row) => row.mean - row.low) },
    });
  });
  show(traces, layout({
    height: 440, legend: { x: 1.02, y: 1, font: { size: 10 } }, margin: { l: 60, r: 20, t: 10, b: 50 },
    xaxis: { title: title("number of classes C"), type: "log" }, yaxis: { title: title("gap in nats"), type: "log", exponentformat: "power" },
  }));
  const most = Math.log(C / (C - 1));
  say(`At C = ${C} and τ = ${t.toFixed(2)} the gap is at most ${number(bound(C, t))} nats, `
    + `${number(bound(C, t) / most)} times what it is before training (${number(most)}).`);
});

// How class means approach the simplex.
widget("geometry", ({ cell, split }) => {
  choices(cell, unique(data.geometry.map((row) => row.cell)));
  choices(split, unique(data.geometry.map((row) => row.split)));
  split.value = "test";
}, ({ cell, split, epoch }, show, say, value) => {
  const rows = data.geometry.filter((row) => row.cell === cell.value && row.split === split.value);
  const epochs = ascending(rows.map((row) => row.epoch));
  if (Number(epoch.max) !== epochs.length - 1) steps(epoch, epochs);
  const now = epochs[epoch.value], here = rows.filter((row) => row.epoch === now);
  value("epoch", number(now));
  const C = here[0].cosines.length, target = -1 / (C - 1), traces = [];
  const shape = layout({ height: 330, margin: { l: 20, r: 20, t: 50, b: 20 }, annotations: [] });
  here.forEach((row, i) => {
    const axis = i ? i + 1 : "", width = 1 / here.length;
    traces.push({
      type: "heatmap", z: row.cosines, zmin: -1, zmax: 1, xaxis: `x${axis}`, yaxis: `y${axis}`, coloraxis: "coloraxis",
    });
    shape[`xaxis${axis}`] = { domain: [i * width, (i + 0.9) * width], anchor: `y${axis}`, visible: false, constrain: "domain" };
    shape[`yaxis${axis}`] = { anchor: `x${axis}`, autorange: "reversed", scaleanchor: `x${axis}`, visible: false };
    shape.annotations.push({ text: data.objectives[row.objective].label, x: (i + 0.45) * width, y: 1.12, xref: "paper", yref: "paper", showarrow: false });
  });
  const white = Math.max(1e-6, (target + 1) / 2);
  shape.coloraxis = { cmin: -1, cmax: 1, colorscale: [[0, "#0072B2"], [white, "#ffffff"], [1, "#D55E00"]] };
  show(traces, shape);
  const off = (m) => m.flatMap((r, i) => r.filter((c, j) => j !== i && c !== null));
  const apart = here.map((row) => {
    const cosines = off(row.cosines);
    const rms = Math.sqrt(cosines.reduce((s, c) => s + (c - target) ** 2, 0) / cosines.length);
    return `${data.objectives[row.objective].label} ${number(rms, 2)}`;
  });
  say(`Root mean square distance of the cosines from −1/(C − 1) = ${number(target)}: ${apart.join(", ")}.`);
});

// Alignment of any two objectives.
widget("alignment", ({ cells, one, other, measure, split }) => {
  choices(cells, unique(data.alignment.map((row) => row.cells)));
  const names = Object.fromEntries(Object.entries(data.objectives).map(([k, v]) => [k, v.label]));
  const known = Object.keys(data.objectives).filter((o) => data.alignment.some((row) => row.pair.includes(o)));
  choices(one, known, names);
  choices(other, known, names);
  other.value = known[1];
  choices(measure, unique(data.alignment.map((row) => row.measure)));
  choices(split, unique(data.alignment.map((row) => row.split)));
  split.value = "test";
}, ({ cells, one, other, measure, split, epoch }, show, say, value) => {
  const ofCells = data.alignment.filter((row) => row.cells === cells.value);
  const epochs = ascending(ofCells.map((row) => row.epoch));
  if (Number(epoch.max) !== epochs.length - 1) steps(epoch, epochs);
  const now = epochs[epoch.value];
  value("epoch", number(now));
  const rows = ofCells.filter((row) => row.measure === measure.value && row.split === split.value);
  const known = [...one.options].map((option) => option.value);
  const label = (o) => data.objectives[o].label;
  const between = (a, b, rest = rows) => rest.filter((row) => row.pair.includes(a) && row.pair.includes(b) && a !== b);
  const at = rows.filter((row) => row.epoch === now);
  const z = known.map((a) => known.map((b) => (a === b ? 1 : between(a, b, at)[0]?.mean ?? null)));
  const own = between(one.value, other.value).sort((a, b) => a.epoch - b.epoch);
  const x = own.map((row) => row.epoch), color = data.objectives[other.value].color;
  show([
    { type: "heatmap", z, x: known.map(label), y: known.map(label), zmin: 0, zmax: 1, colorscale: "Viridis",
      texttemplate: "%{z:.2f}", colorbar: { x: 0.4, thickness: 12 } },
    { x, y: own.map((row) => row.mean + row.sd), xaxis: "x2", yaxis: "y2", mode: "lines", line: { width: 0 }, showlegend: false, hoverinfo: "skip" },
    { x, y: own.map((row) => row.mean - row.sd), xaxis: "x2", yaxis: "y2", mode: "lines", line: { width: 0 }, fill: "tonexty",
      fillcolor: `${color}33`, showlegend: false, hoverinfo: "skip" },
    { x, y: own.map((row) => row.mean), xaxis: "x2", yaxis: "y2", mode: "lines+markers", line: { color: color }, showlegend: false },
    { x: [now, now], y: [0, 1], xaxis: "x2", yaxis: "y2", mode: "lines", line: { color: "#7A7A7A", dash: "dot" }, showlegend: false, hoverinfo: "skip" },
  ], layout({
    xaxis: { domain: [0, 0.36] }, yaxis: { autorange: "reversed" },
    xaxis2: { domain: [0.54, 1], anchor: "y2", title: title("epoch") }, yaxis2: { anchor: "x2", range: [0, 1.02], title: title(measure.value) },
  }));
  const found = own.find((row) => row.epoch === now);
  say(one.value === other.value ? "Choose two different objectives."
    : found ? `${measure.value} of ${label(one.value)} and ${label(other.value)} at epoch ${number(now)}: `
      + `${number(found.mean)} ± ${number(found.sd, 2)} (${found.seeds} seed${found.seeds > 1 ? "s" : ""}).` : "");
});
