// Free points on a sphere, on their way down the gradient of two objectives.
"use strict";

widget("sphere", ({ step, turn, other }) => {
  steps(step, data.free.steps, 0);
  turn.max = 359;
  turn.value = 25;
  choices(other, Object.keys(data.free.runs).filter((name) => name !== "dcl"),
    { nscl: "NSCL", scl: "SCL", ce: "CE" });
}, ({ step, turn, other }, { plot, say, value }) => {
  const { labels, runs } = data.free, at = Number(step.value), shown = data.free.steps[at];
  value("step", String(shown));
  value("turn", `${turn.value}°`);
  const names = { dcl: "DCL", [other.value]: other.selectedOptions[0].text };
  const found = Object.entries(names).map(([name, title]) =>
    `${title}: views are ${number(runs[name].views[at], 2)} apart, and the spread within classes is `
    + `${number(runs[name].spread[at], 2)} of the whole`);
  say(`Step ${shown}. ${found.join(". ")}.`);
  const row = pair(plot);
  for (const [name, title] of Object.entries(names)) {
    drawSphere(picture(row, title, `Sphere with the points of ${title} at step ${shown}`),
      runs[name].points[at], labels, Number(turn.value) * Math.PI / 180);
  }
});

function drawSphere(made, xyz, labels, turn) {
  const tilt = 0.35;
  const placed = (i) => {
    const [x, y, z] = xyz.slice(3 * i, 3 * i + 3);
    const right = x * Math.cos(turn) + y * Math.sin(turn), deep = y * Math.cos(turn) - x * Math.sin(turn);
    return [right, -(z * Math.cos(tilt) + deep * Math.sin(tilt)), z * Math.sin(tilt) - deep * Math.cos(tilt)];
  };
  const thin = { fill: "none", stroke: line(), "stroke-width": 0.008 };
  svg("circle", { cx: 0, cy: 0, r: 1, ...thin, stroke: faint() }, made);
  for (const height of [-0.5, 0, 0.5]) {
    const r = Math.sqrt(1 - height * height);
    svg("ellipse", { cx: 0, cy: -height * Math.cos(tilt), rx: r, ry: r * Math.sin(tilt), ...thin }, made);
  }
  const all = Array.from({ length: xyz.length / 3 }, (_, i) => placed(i));
  const pale = (deep) => (deep < 0 ? 0.35 : 1);
  labels.forEach((c, i) => {
    const [a, b] = [all[i], all[i + labels.length]];
    svg("line", { x1: a[0], y1: a[1], x2: b[0], y2: b[1], stroke: classColor(c), "stroke-width": 0.01,
      opacity: 0.5 * pale(a[2] + b[2]) }, made);
  });
  const order = all.map((_, i) => i).sort((i, j) => all[i][2] - all[j][2]);
  for (const i of order) {
    const c = labels[i % labels.length], [x, y, deep] = all[i];
    mark(made, SHAPES[c % SHAPES.length], x, y, 0.036 + 0.008 * deep,
      { fill: classColor(c), opacity: pale(deep) });
  }
}
