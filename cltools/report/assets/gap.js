// The loss gap and its bound, at a number of classes and a temperature.
"use strict";

const bound = (C, tau) => Math.log1p(Math.exp(2 / tau) / (C - 1));
const trained = data.start, gapColors = ["#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const gapClasses = ascending([...Array.from({ length: 19 }, (_, i) => i + 2), 25, 30, 40, 50, 75, 100, 150, 200, 300,
  500, 1000, trained.classes, ...data.gap.map((row) => row.classes)]);
const gapTaus = ascending([0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, trained.tau, ...data.gap.map((row) => row.tau)]);
const gapDone = ascending(data.gap.map((row) => row.progress));

// The cells to draw at a temperature: the base cell, and sweeps over C if they have it, otherwise
// those over τ; of each the last checkpoint until `done`.
function gapsAt(tau, done) {
  const here = data.gap.filter((row) => row.tau === tau && row.progress <= done);
  const lines = here.some((row) => row.line || row.base);
  const drawnRows = lines ? here.filter((row) => row.line || row.base) : here;
  const last = new Map();
  for (const row of drawnRows) {
    const key = JSON.stringify([row.dataset, row.sweep, row.classes]);
    if (row.progress >= (last.get(key)?.progress ?? 0)) last.set(key, row);
  }
  return [...last.values()].sort((a, b) => a.base - b.base); // the base cell on top
}

widget("gap", ({ classes, tau, progress }) => {
  steps(classes, gapClasses, gapClasses.indexOf(trained.classes));
  steps(tau, gapTaus, gapTaus.indexOf(trained.tau));
  steps(progress, gapDone.length ? gapDone : [1]);
}, ({ classes, tau, progress }, { plot, say, value }) => {
  const C = gapClasses[classes.value], t = gapTaus[tau.value], done = gapDone[progress.value] ?? 1;
  value("classes", `${C}`);
  value("tau", number(t));
  value("progress", `${number(100 * done)} %`);
  const grid = Array.from({ length: 120 }, (_, i) => 2 * 500 ** (i / 119)), rows = gapsAt(t, done);
  const traces = [
    { x: grid, y: grid.map((c) => bound(c, t)), name: "bound", mode: "lines", line: { color: ink(), dash: "dash" } },
    { x: grid, y: grid.map((c) => Math.log(c / (c - 1))), name: "before training", mode: "lines", line: { color: faint(), dash: "dot" } },
    { x: [C], y: [bound(C, t)], name: "bound at chosen C", mode: "markers", marker: { color: ink(), size: 11, symbol: "diamond" }, showlegend: false },
  ];
  const sets = unique(rows.map((row) => row.dataset)).length > 1;
  const nameOf = (row) => (sets ? `${row.dataset}, ${row.sweep}` : row.sweep);
  unique(rows.map(nameOf)).forEach((name, i) => {
    const own = rows.filter((row) => nameOf(row) === name).sort((a, b) => a.classes - b.classes);
    const color = shade(gapColors[i % gapColors.length]);
    traces.push({
      x: own.map((row) => row.classes), y: own.map((row) => row.mean), name: `measured: ${name}`,
      mode: "lines+markers", line: { color }, marker: { color, size: own[0].base ? 13 : 8, symbol: own[0].base ? "star" : ["circle", "square", "triangle-up"][i % 3] },
      error_y: { array: own.map((row) => row.high - row.mean), arrayminus: own.map((row) => row.mean - row.low), color },
    });
  });
  const here = rows.filter((row) => row.classes === C);
  // The base cell says it all, where it is: sweeps over C have it, too.
  const text = gapInWords(C, t, done, here.some((row) => row.base) ? here.filter((row) => row.base) : here, nameOf);
  say(text);
  show(plot, text, traces, axis("number of classes C", { type: "log", tickvals: [2, 5, 10, 20, 50, 100, 200, 500, 1000] }),
    axis("loss gap in nats", { type: "log", tickvals: [0.001, 0.01, 0.1, 1, 10, 100] }), 440);
});

function gapInWords(C, t, done, here, nameOf) {
  const most = bound(C, t), limit = `With ${C} classes and τ = ${number(t)} the bound is ${number(most)} nats.`;
  if (!here.length) return `${limit} No gap was measured here with both.`;
  const when = done === 0 ? "before training" : done === 1 ? "at the end of training" : `after ${number(100 * done)} % of training`;
  const found = here.map((row) => {
    const range = row.seeds > 1 ? ` (${number(row.low)} to ${number(row.high)} over ${seeds(row.seeds)})` : "";
    return `${number(row.mean)} nats${range}, ${number(100 * row.mean / most, 2)} % of it${here.length > 1 ? ` (${nameOf(row)})` : ""}`;
  });
  return `${limit} Measured ${when}: ${unique(found).join("; ")}.`;
}
