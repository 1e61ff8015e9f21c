"use strict";
// Charts: what they have in common, and the forest plot.

const SERIES = ["var(--s1)", "var(--s2)", "var(--s3)", "var(--s4)", "var(--s5)", "var(--s6)"];
const BASE_COLOR = "var(--base)";

/** A colour for each name; what is called base is grey. */
function colorsOf(names) {
  const colors = new Map();
  let next = 0;
  for (const name of names) {
    const isBase = name === "base" || String(name).endsWith(": base");
    colors.set(name, isBase ? BASE_COLOR : SERIES[next++ % SERIES.length]);
  }
  return colors;
}

/** A figure whose chart is drawn anew when its width changes; `draw(width)` gives the chart. */
function figure(title, note, draw, legend = null) {
  const place = element("div", { class: "chart" });
  let last = 0;
  function redraw() {
    const width = Math.floor(place.clientWidth);
    if (width === 0 || Math.abs(width - last) < 4) return;
    last = width;
    const chart = draw(width);
    chart.setAttribute("role", "img");
    chart.setAttribute("aria-label", `${title}. ${note}`);
    place.replaceChildren(chart);
  }
  new ResizeObserver(redraw).observe(place);
  const head = element("figcaption", {}, element("strong", {}, title));
  if (note) head.append(" ", note);
  return element("figure", {}, head, legend === null ? [] : legendOf(legend), place);
}

function legendOf(colors) {
  const items = [...colors].map(([name, color]) => {
    const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.setProperty("background", color);
    return element("li", {}, swatch, label(name, 40));
  });
  return element("ul", { class: "legend" }, items);
}

/** Observable Plot with our class, which the policy of the file knows, and our letters. */
function plot(width, options) {
  return Plot.plot({
    width,
    className: "plot",
    ...options,
    style: { fontSize: "12px", fontFamily: "inherit", background: "none", overflow: "visible" },
  });
}

const ROW = { label: 20, point: 15, gap: 9, group: 26 };

/**
 * A forest plot. A row is `{group, task, n, tick, points}`; a point is
 * `{series, value, low, high, text}` with shares between 0 and 1, and `dots` has single draws.
 */
function forest(width, rows, colors, { zero = false, unit }) {
  const isWide = width >= 680;
  const placed = [];
  let y = 0;
  let group = null;
  const heads = [];
  for (const row of rows) {
    if (row.group !== group) {
      group = row.group;
      heads.push({ y: y + ROW.group / 2, text: groupName(group) });
      y += ROW.group;
    }
    const top = y;
    if (!isWide) y += ROW.label;
    const points = row.points.map((point, number) => ({
      ...point,
      y: y + (number + 0.5) * ROW.point,
      x: 100 * point.value,
      x1: 100 * (point.low ?? point.value),
      x2: 100 * (point.high ?? point.value),
    }));
    const bottom = y + ROW.point * Math.max(1, points.length);
    const at = isWide ? (y + bottom) / 2 : top + ROW.label / 2;
    placed.push({ ...row, points, top: y, bottom, at });
    y = bottom + ROW.gap;
  }
  const points = placed.flatMap((row) => row.points);
  const ticks = placed.filter((row) => row.tick !== null && row.tick !== undefined);
  const dots = points.flatMap((point) =>
    (point.dots ?? []).map((share) => ({ series: point.series, y: point.y, x: 100 * share })),
  );
  const values = [...points.flatMap((point) => [point.x1, point.x2]), ...dots.map((dot) => dot.x)];
  const spread = Math.max(2, ...values.map(Math.abs));
  const domain = zero
    ? [Math.min(-2, ...values), Math.max(2, ...values)]
    : [0, Math.min(100, Math.max(spread * 1.05, ...ticks.map((row) => 110 * row.tick)))];
  const [left, right] = isWide ? [176, 200] : [10, 14];
  const note = (row) => `${label(row.task, 24)}  n ${count(row.n)}`;
  return plot(width, {
    height: y + 46,
    marginLeft: left,
    marginRight: right,
    marginTop: 8,
    marginBottom: 38,
    x: { domain, label: unit, grid: true, nice: true, labelAnchor: "center", labelArrow: "none" },
    y: { domain: [y, 0], axis: null },
    marks: [
      zero ? Plot.ruleX([0], { stroke: "currentColor", strokeOpacity: 0.6 }) : null,
      Plot.text(heads, {
        y: "y", text: "text", frameAnchor: "left", dx: -left + (isWide ? 0 : 10),
        textAnchor: "start", fontWeight: 700, fill: "currentColor",
      }),
      Plot.text(placed, {
        y: "at", text: note, frameAnchor: "left", dx: -left + (isWide ? 0 : 10),
        textAnchor: "start", fill: "currentColor",
      }),
      Plot.ruleX(ticks, {
        x: (row) => 100 * row.tick, y1: "top", y2: "bottom",
        stroke: "currentColor", strokeWidth: 1.5, strokeDasharray: "2 2", strokeOpacity: 0.8,
      }),
      Plot.ruleY(points, {
        y: "y", x1: "x1", x2: "x2", stroke: (point) => colors.get(point.series), strokeWidth: 2.5,
        strokeOpacity: 0.55, strokeLinecap: "round",
      }),
      Plot.dot(points, {
        y: "y", x: "x", r: 4.5, fill: (point) => colors.get(point.series),
        stroke: "var(--page)", strokeWidth: 1,
      }),
      Plot.dot(dots, {
        y: "y", x: "x", r: 3, stroke: (dot) => colors.get(dot.series), strokeWidth: 1.5,
        fill: "var(--page)", fillOpacity: 0.6,
      }),
      isWide
        ? Plot.text(points.filter((point) => point.text), {
            y: "y", text: "text", frameAnchor: "right", dx: 12, textAnchor: "start",
            fill: "currentColor", fontVariant: "tabular-nums",
          })
        : null,
    ],
  });
}

/** A chart of lines over x, a line for each series. Points are `{x, y, series}`. */
function lines(width, points, colors, options = {}) {
  const { x = {}, y = {}, height = 220, dots = true } = options;
  return plot(width, {
    height,
    marginLeft: 52,
    marginRight: 16,
    marginBottom: 38,
    x: { labelAnchor: "center", labelArrow: "none", ...x },
    y: { grid: true, nice: true, labelArrow: "none", ...y },
    marks: [
      Plot.line(points, {
        x: "x", y: "y", z: "series", stroke: (point) => colors.get(point.series), strokeWidth: 2,
      }),
      dots
        ? Plot.dot(points, {
            x: "x", y: "y", r: 3.5, fill: (point) => colors.get(point.series),
            stroke: "var(--page)", strokeWidth: 1,
          })
        : null,
      Plot.tip(
        points,
        Plot.pointer({
          x: "x", y: "y", fill: "var(--card)", stroke: "var(--line)",
          title: (point) => `${label(point.series, 60)}\n${point.text ?? point.y}`,
        }),
      ),
    ],
  });
}

const GROUPS = { in_domain: "In domain", near_domain: "Near domain", out_of_domain: "Out of domain" };

function groupName(group) {
  return GROUPS[group] ?? (group ? label(group, 40) : "All tasks");
}

/** In domain first, then what is near, then what is far. */
function groupOrder(group) {
  const place = Object.keys(GROUPS).indexOf(group);
  return place < 0 ? 9 : place;
}

function nothing(text) {
  return element("p", { class: "nothing" }, text);
}
