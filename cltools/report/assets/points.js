// Pictures made of points, as SVG. They scale with the page and need no plotting library.
"use strict";

const SHAPES = ["circle", "square", "triangle", "diamond"];

function svg(tag, attributes, parent) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent?.append(made);
  return made;
}

// One picture with a title below it; returns the SVG, whose coordinates go from -1.1 to 1.1.
function picture(parent, title, text) {
  const figure = document.createElement("figure");
  const made = svg("svg", { viewBox: "-1.1 -1.1 2.2 2.2", role: "img", "aria-label": text }, figure);
  const caption = document.createElement("figcaption");
  caption.textContent = title;
  figure.append(caption);
  parent.append(figure);
  return made;
}

// Empties a plot and returns a row in it for pictures side by side.
function pair(plot) {
  const row = document.createElement("div");
  row.className = "pair";
  plot.replaceChildren(row);
  return row;
}

function mark(parent, shape, x, y, size, look) {
  const r = size;
  const paths = {
    square: `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    triangle: `M${x} ${y - 1.3 * r}l${1.2 * r} ${2.1 * r}h${-2.4 * r}z`,
    diamond: `M${x} ${y - 1.4 * r}l${1.4 * r} ${1.4 * r}l${-1.4 * r} ${1.4 * r}l${-1.4 * r} ${-1.4 * r}z`,
  };
  if (shape === "circle") svg("circle", { cx: x, cy: y, r, ...look }, parent);
  else svg("path", { d: paths[shape], ...look }, parent);
}

const classColor = (c) => shade(data.colors[c % data.colors.length]);
