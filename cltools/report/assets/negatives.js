// Which negatives the two losses use. Blocks are drawn whole, and lines between single images only
// where there is room for them, so that no size of the page makes patterns of its own.
"use strict";

widget("negatives", ({ classes, images }) => {
  Object.assign(classes, { min: 2, max: 20, value: 4 });
  Object.assign(images, { min: 1, max: 8, value: 4 });
}, ({ classes, images }, { plot, say, value }) => {
  const C = Number(classes.value), n = Number(images.value), all = C * n;
  value("classes", `${C}`);
  value("images", `${n}`);
  const row = pair(plot);
  const both = shade("#0072B2"), own = shade("#D55E00");
  grid(picture(row, "DCL", `Grid of ${all} by ${all} images: all but the image itself are negatives`), C, n, both, own, true);
  grid(picture(row, "NSCL", `Grid of ${all} by ${all} images: the ${C} blocks of a class are left out`), C, n, both, own, false);
  const field = (background) => ({ background, height: "12px", border: `1px solid ${faint()}` });
  keys(plot, [["negative for both losses", field(both)], ["same class: negative for DCL only", field(own)],
    ["no negative", field(paint("#ffffff", "#16181c"))]]);
  const gap = all > n ? number(Math.log((all - 1) / (all - n))) : "undefined";
  say(`Of the ${all - 1} other images, DCL uses all as negatives and NSCL uses ${all - n}. It leaves out ${n - 1} of the same class, `
    + `${number(100 * (n - 1) / Math.max(1, all - 1))} %. Before training the loss gap is ${gap} nats.`);
});

function grid(made, C, n, both, own, withClass) {
  const all = C * n, size = 2 / all, none = paint("#ffffff", "#16181c");
  const box = (at, count, fill) => svg("rect", { x: at * size - 1, y: at * size - 1, width: count * size, height: count * size, fill }, made);
  svg("rect", { x: -1, y: -1, width: 2, height: 2, fill: both, stroke: faint(), "stroke-width": 0.01 }, made);
  for (let c = 0; c < C; c += 1) box(c * n, n, withClass ? own : none);
  if (withClass) for (let i = 0; i < all; i += 1) box(i, 1, none);
  const lines = (count, width, opacity) => {
    for (let i = 1; i < count; i += 1) {
      const at = 2 * i / count - 1, look = { stroke: none, "stroke-width": width, opacity };
      svg("line", { x1: at, x2: at, y1: -1, y2: 1, ...look }, made);
      svg("line", { y1: at, y2: at, x1: -1, x2: 1, ...look }, made);
    }
  };
  if (all <= 24) lines(all, 0.006, 0.6);
  lines(C, 0.008, 1);
}
