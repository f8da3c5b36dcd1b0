// Features of the same images in two networks, in the plane.
"use strict";

if (data.images) {
  const { labels, points, method } = data.images;
  const objectives = Object.keys(data.objectives).filter((name) => points.some((panel) => panel.objective === name));
  const names = Object.fromEntries(objectives.map((name) => [name, label(name)]));
  const epochs = ascending(points.map((panel) => panel.epoch));
  const reach = Math.max(...points.map((panel) => Math.max(...panel.xy.map(Math.abs))));

  // Root mean square distance of points from the mean of their class, as a share of that from the
  // mean of all.
  const spreadOf = (xy) => {
    const sums = new Map();
    labels.forEach((c, i) => {
      const [x, y, n] = sums.get(c) ?? [0, 0, 0];
      sums.set(c, [x + xy[2 * i], y + xy[2 * i + 1], n + 1]);
    });
    const all = [...sums.values()].reduce(([x, y, n], s) => [x + s[0], y + s[1], n + s[2]], [0, 0, 0]);
    const squared = (center) => labels.reduce((sum, c, i) => {
      const [x, y, n] = center(c);
      return sum + (xy[2 * i] - x / n) ** 2 + (xy[2 * i + 1] - y / n) ** 2;
    }, 0);
    return Math.sqrt(squared((c) => sums.get(c)) / squared(() => all));
  };

  widget("images", ({ one, other, epoch }) => {
    choices(one, objectives, names);
    choices(other, objectives, names);
    choose(one, data.reference);
    choose(other, "nscl");
    steps(epoch, epochs, 0);
  }, ({ one, other, epoch }, { plot, say, value }) => {
    if (objectives.length > 1) apart(one, other);
    const now = epochs[epoch.value], row = pair(plot), found = [];
    value("epoch", number(now));
    for (const name of unique([one.value, other.value])) {
      const panel = points.find((p) => p.objective === name && p.epoch === now);
      if (!panel) continue;
      const made = picture(row, names[name], `${names[name]} at epoch ${number(now)}: one point for each image`);
      svg("rect", { x: -1.08, y: -1.08, width: 2.16, height: 2.16, fill: "none", stroke: line(), "stroke-width": 0.008 }, made);
      labels.forEach((c, i) => svg("circle", { cx: panel.xy[2 * i] / reach, cy: -panel.xy[2 * i + 1] / reach,
        r: 0.02, fill: classColor(c), opacity: 0.8 }, made));
      const held = panel.share === null ? "" : `, and the plane holds ${Math.round(100 * panel.share)} % of the variance`;
      found.push(`${names[name]}: the images of a class lie ${number(spreadOf(panel.xy), 2)} times as far apart as `
        + `all images${held}`);
    }
    say(`Epoch ${number(now)}${method === "umap" ? " (UMAP)" : ""}. ${found.join(". ")}.`);
  });
}
