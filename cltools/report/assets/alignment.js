// The alignment of two objectives over epochs, before that of all others with the first.
"use strict";

const numberSd = (series, i) => {
  const { mean, sd, seeds: counts } = series, decimals = 3;
  const spread = sd[i] === null ? "" : ` ± ${sd[i].toFixed(decimals)}`;
  return `${mean[i].toFixed(decimals)}${spread} (${seeds(counts[i])})`;
};

widget("alignment", ({ cells, one, other, measure, split }) => {
  choices(cells, unique(data.alignment.map((row) => row.cells)));
  const known = Object.keys(data.objectives).filter((o) => data.alignment.some((row) => row.pair.includes(o)));
  const names = Object.fromEntries(known.map((name) => [name, label(name)]));
  choices(one, known, names);
  choices(other, known, names);
  choose(one, data.reference);
  choose(other, "nscl");
  choices(measure, unique(data.alignment.map((row) => row.measure)));
  choices(split, unique(data.alignment.map((row) => row.split)), { test: "test", train: "training" });
  choose(split, "test");
}, ({ cells, one, other, measure, split, epoch }, { plot, say, value }) => {
  apart(one, other);
  const ofCells = data.alignment.filter((row) => row.cells === cells.value);
  const epochs = ascending(ofCells.flatMap((row) => row.epoch));
  steps(epoch, epochs);
  const now = epochs[epoch.value];
  value("epoch", number(now));
  const beside = ofCells.filter((row) => row.measure === measure.value && row.split === split.value && row.pair.includes(one.value));
  const partner = (row) => row.pair.find((name) => name !== one.value) ?? one.value;
  const traces = beside.filter((row) => ![one.value, other.value].includes(partner(row))).map((row) => ({
    x: row.epoch, y: row.mean, mode: "lines", name: label(partner(row)), opacity: 0.8,
    line: { color: colorOf(partner(row)), width: 1.2 }, hovertemplate: "%{y:.3f}",
  }));
  const chosen = beside.find((row) => partner(row) === other.value);
  if (chosen) traces.push(...withBand(chosen, other.value));
  traces.push({ x: [now, now], y: [0, 1], mode: "lines", line: { color: faint(), dash: "dot", width: 1 }, showlegend: false, hoverinfo: "skip" });
  const at = chosen ? chosen.epoch.indexOf(now) : -1;
  const names = `${label(one.value)} and ${label(other.value)}`;
  const text = !chosen ? `${measure.value} of ${names} was not measured in these cells.`
    : at < 0 ? `${measure.value} of ${names} was not measured at epoch ${number(now)}.`
      : `${measure.value} of ${names} at epoch ${number(now)}: ${numberSd(chosen, at)}.`;
  say(text);
  show(plot, text, traces, axis("epoch"), axis(plain(measure.value), { range: [Math.min(0, ...beside.flatMap((row) => row.mean)), 1.03] }), 420);
});

function withBand(row, name) {
  const color = colorOf(name), edge = { mode: "lines", line: { width: 0 }, showlegend: false, hoverinfo: "skip" };
  const moved = (sign) => row.mean.map((mean, i) => mean + sign * (row.sd[i] ?? 0));
  const band = row.sd.some((sd) => sd !== null)
    ? [{ x: row.epoch, y: moved(1), ...edge }, { x: row.epoch, y: moved(-1), ...edge, fill: "tonexty", fillcolor: `${color}33` }] : [];
  return [...band, { x: row.epoch, y: row.mean, mode: "lines+markers", name: label(name),
    line: { color, width: 3 }, marker: { size: 7 }, hovertemplate: "%{y:.3f}" }];
}
