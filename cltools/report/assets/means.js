// The cosines between class means, against those of the simplex.
"use strict";

widget("means", ({ cell, split }) => {
  const cells = unique(data.means.map((row) => row.cell));
  choices(cell, cells, Object.fromEntries(data.means.map((row) => [row.cell, row.name])));
  choices(split, unique(data.means.map((row) => row.split)), { test: "test", train: "training" });
  choose(split, "test");
}, ({ cell, split, epoch }, { plot, say, value }) => {
  const rows = data.means.filter((row) => row.cell === cell.value && row.split === split.value);
  const epochs = ascending(rows.map((row) => row.epoch));
  steps(epoch, epochs);
  const now = epochs[epoch.value], here = rows.filter((row) => row.epoch === now);
  value("epoch", number(now));
  const target = -1 / (here[0].classes - 1), last = here.length - 0.5;
  const traces = here.map((row, place) => ({
    // Dots of one network stand side by side, so that none hides another.
    x: row.cosines.map((_, i) => place + 0.5 * ((i + 0.5) / row.cosines.length - 0.5)), y: row.cosines,
    mode: "markers", marker: { color: colorOf(row.objective), size: 7, opacity: 0.75 },
    name: label(row.objective), showlegend: false, hovertemplate: "%{y:.2f}<extra>%{fullData.name}</extra>",
  }));
  traces.unshift({ x: [-0.5, last], y: [target, target], mode: "lines", name: `simplex, −1/${here[0].classes - 1}`,
    line: { color: ink(), dash: "dash", width: 1.5 }, hoverinfo: "skip" });
  const off = (row) => row.cosines.reduce((sum, c) => sum + Math.abs(c - target), 0) / row.cosines.length;
  const text = `Epoch ${number(now)}: the cosines are off the simplex by `
    + `${here.map((row) => `${number(off(row), 2)} (${label(row.objective)})`).join(", ")} on average.`;
  say(text);
  show(plot, text, traces,
    axis("", { tickvals: here.map((_, i) => i), ticktext: here.map((row) => plain(label(row.objective))),
      tickangle: plot.clientWidth < 600 ? -55 : 0, range: [-0.5, last], showgrid: false, zeroline: false }),
    axis("cosine of two class means", { range: [-1.05, 1.05] }));
});
