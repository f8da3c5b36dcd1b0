// What all interactive figures share. Each `widget` reads its controls and is drawn again when one
// changes.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const number = (value, digits = 3) =>
  value === 0 ? "0" : Math.abs(value) >= 1e4 || Math.abs(value) < 1e-3
    ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
const unique = (values) => [...new Set(values)];
const ascending = (values) => unique(values).sort((a, b) => a - b);
const label = (objective) => data.objectives[objective].label;
const seeds = (count) => (count === 1 ? "one seed" : `${count} seeds`);
// Plotly takes tags in texts for markup, as in the names of axes.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

// ---- colors: those of the page, light or dark ---------------------------------------------------
const darkScreen = matchMedia("screen and (prefers-color-scheme: dark)");
let printing = false;
const isDark = () => darkScreen.matches && !printing;
const paint = (light, dark) => (isDark() ? dark : light);
const ink = () => paint("#1c1c1c", "#e8e8e6");
const faint = () => paint("#6b6b6b", "#a9a9a6");
const line = () => paint("#e2e2e2", "#3a3d43");

// A color of the palette; on a dark page it is mixed with white until it is bright enough.
function shade(color) {
  if (!isDark()) return color;
  let rgb = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  while (0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2] < 130) rgb = rgb.map((c) => c + 0.2 * (255 - c));
  return `#${rgb.map((c) => Math.round(c).toString(16).padStart(2, "0")).join("")}`;
}
const colorOf = (objective) => shade(data.objectives[objective].color);

// ---- widgets --------------------------------------------------------------------------------------
const drawn = []; // functions that draw a widget again

// draw(controls, tools) is called at every change. tools.say(text) sets the sentence above the plot,
// tools.value(name, text) the text next to a slider, and tools.plot is the box of the plot.
function widget(id, prepare, draw) {
  const box = document.getElementById(id);
  if (!box) return;
  const controls = Object.fromEntries([...box.querySelectorAll("[name]")].map((c) => [c.name, c]));
  const tools = {
    plot: box.querySelector(".plot"),
    say: (text) => { box.querySelector(".reading").textContent = text; },
    value: (name, text) => {
      controls[name].setAttribute("aria-valuetext", text);
      controls[name].parentElement.querySelector(".value").textContent = text;
    },
  };
  prepare(controls);
  const again = () => draw(controls, tools);
  for (const control of Object.values(controls)) control.addEventListener("input", again);
  drawn.push(again);
  again();
}

function choices(select, values, names = {}) {
  for (const one of values) select.add(new Option(names[one] ?? one, one));
}

// Choose `value` if the select has it.
function choose(select, value) {
  if ([...select.options].some((option) => option.value === value)) select.value = value;
}

// Two selects of the same things: what one shows cannot be chosen in the other.
function apart(one, other) {
  if (one.value === other.value) other.value = [...other.options].find((o) => o.value !== one.value).value;
  for (const [select, taken] of [[one, other.value], [other, one.value]]) {
    for (const option of select.options) option.disabled = option.value === taken;
  }
}

// A slider over `values`; it keeps its place if it has one for this number of values.
function steps(slider, values, at) {
  if (at === undefined && Number(slider.max) === values.length - 1 && slider.dataset.set) return;
  slider.max = values.length - 1;
  slider.value = at ?? values.length - 1;
  slider.dataset.set = "yes";
}

// ---- plots ----------------------------------------------------------------------------------------
const axis = (title, more = {}) => ({
  title: { text: title, standoff: 8 }, gridcolor: line(), zerolinecolor: line(), linecolor: faint(),
  tickcolor: faint(), automargin: true, fixedrange: true, ...more,
});

function show(plot, text, traces, xaxis, yaxis, height = 380) {
  const layout = {
    height, margin: { l: 10, r: 12, t: 12, b: 10 }, font: { size: 13, color: ink() }, xaxis, yaxis,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hoverlabel: { align: "left" },
    showlegend: false, dragmode: false, ...(printing ? { width: 660 } : {}),
  };
  let canvas = plot.querySelector(".canvas");
  if (!canvas) {
    canvas = document.createElement("div");
    canvas.className = "canvas";
    canvas.setAttribute("role", "img");
    plot.append(canvas);
  }
  canvas.setAttribute("aria-label", text);
  Plotly.react(canvas, traces, layout, { displayModeBar: false, responsive: true });
  keys(plot, traces.filter((trace) => trace.showlegend !== false)
    .map(({ name, line: look, opacity }) => [name, { borderTop: `3px ${{ dash: "dashed", dot: "dotted" }[look.dash] ?? "solid"} ${look.color}`,
      opacity: opacity ?? 1 }]));
}

// The legend below a plot, as text that wraps: name and style of each entry.
function keys(plot, entries) {
  const list = document.createElement("ul");
  list.className = "keys";
  for (const [name, style] of entries) {
    const item = document.createElement("li"), sample = document.createElement("i");
    Object.assign(sample.style, style);
    item.append(sample, name);
    list.append(item);
  }
  plot.querySelector(".keys")?.remove();
  plot.append(list);
}

// ---- light, dark and paper ------------------------------------------------------------------------
addEventListener("load", () => {
  const all = () => drawn.forEach((again) => again());
  darkScreen.addEventListener("change", all);
  const folded = [...document.querySelectorAll("details")];
  addEventListener("beforeprint", () => {
    printing = true;
    for (const one of folded) { one.dataset.was = one.open; one.open = true; }
    all();
  });
  addEventListener("afterprint", () => {
    printing = false;
    for (const one of folded) one.open = one.dataset.was === "true";
    all();
  });
});
