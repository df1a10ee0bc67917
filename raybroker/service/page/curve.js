// The light curve of an alert.

import { $, make } from "./dom.js";
import { calendar, instant, magnitude } from "./numbers.js";
import { axis, inks, layout, plot } from "./plots.js";

const BANDS = { u: "#6b63e0", g: "#2a9d4a", r: "#d8352f", i: "#cc8411", z: "#a24bd6", y: "#4d8fa6" };
const SYMBOLS = { detection: "circle", forced: "diamond-open", limit: "triangle-down" };
const NAMES = { detection: "● detection", forced: "◇ forced", limit: "▾ 5σ limit" };
const ORDER = "ugrizy";

// Draws into #curve. `fluxes`: microjansky, not magnitudes; `first`: days since the first detection, not this alert.
export function drawCurve({ points, zeroPoint, mjd }, { fluxes, first }) {
  const detections = points.filter((point) => point.kind === "detection").map((point) => point.mjd);
  const start = first && detections.length ? Math.min(...detections) : mjd;
  const bands = [...new Set(points.map((point) => point.band))].sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b));
  const kinds = Object.keys(SYMBOLS).filter((kind) => points.some((point) => point.kind === kind));
  const drawn = points.filter((point) => drawable(point, fluxes));
  const traces = bands.flatMap((band) => kinds.map((kind) => {
    const own = drawn.filter((point) => point.band === band && point.kind === kind);
    return trace(own, band, kind, { zeroPoint, start, fluxes });
  })).filter((one) => one.x.length);
  const days = points.map((point) => point.mjd - start);
  const frame = frameOf([Math.min(mjd - start, ...days), Math.max(mjd - start, ...days)], { start, fluxes, first, mjd }, fluxes ? fluxRange(points) : magnitudeRange(drawn, zeroPoint));
  plot($("curve"), [...traces, calendarTrace(frame)], frame, spoken(points, bands, { zeroPoint, mjd, fluxes }));
  showLegend(bands, kinds);
  showNote(points, points.length - drawn.length, fluxes);
  $("unit").replaceChildren(make("kbd", "M"), ` ${fluxes ? "Magnitudes" : "Fluxes"}`);
  $("since").replaceChildren(make("kbd", "T"), ` Days from ${first ? "this alert" : "first detection"}`);
}

function showNote(points, hidden, fluxes) {
  const more = hidden ? `; ${hidden} point${hidden > 1 ? "s" : ""} below 3σ only in flux` : "";
  $("curve-note").textContent = points.length ? `Difference ${fluxes ? "flux" : "magnitude (AB); × where it faded below its template"}${more}.`
    : "This alert came without a light curve.";
}

function spoken(points, bands, { zeroPoint, mjd }) {
  const detections = points.filter((point) => point.kind === "detection");
  if (!detections.length) return "Light curve without detections";
  const last = detections[detections.length - 1];
  const days = Math.round(mjd - detections[0].mjd);
  return `Light curve: ${detections.length} detections in ${bands.join(", ")} since ${days} days, ` +
    `the last ${magnitude(last.flux, zeroPoint).toFixed(1)} magnitudes in ${last.band}`;
}

function drawable(point, fluxes) {
  if (point.kind === "limit") return point.limit !== null;
  return point.flux !== null && (fluxes || (point.flux !== 0 && !(Math.abs(point.flux) < 3 * point.error)));
}

function trace(points, band, kind, { zeroPoint, start, fluxes }) {
  const flux = (point) => (kind === "limit" ? point.limit : point.flux);
  const value = (point) => (fluxes ? flux(point) / 1000 : magnitude(flux(point), zeroPoint));
  const error = (point) => (fluxes ? point.error / 1000 : 1.0857 * point.error / Math.abs(point.flux));
  const colour = BANDS[band] ?? "#888";
  const negative = (point) => !fluxes && kind !== "limit" && point.flux < 0;
  return {
    type: "scatter", mode: "markers", x: points.map((point) => point.mjd - start), y: points.map(value), name: `${band} ${kind}`,
    error_y: kind === "limit" ? undefined : { array: points.map(error), color: colour, thickness: 1, width: 0 },
    marker: {
      color: colour, opacity: kind === "detection" ? 1 : kind === "forced" ? 0.8 : 0.45, size: kind === "detection" ? 8 : 7,
      symbol: points.map((point) => (negative(point) ? "x-thin-open" : SYMBOLS[kind])),
    },
    text: points.map((point) => `<b>${band} ${kind}</b><br>${calendar(point.mjd)}<br>MJD ${point.mjd.toFixed(4)}, day ${(point.mjd - start).toFixed(2)}<br>` +
      (kind === "limit" ? `${fluxes ? "<" : ">"} ${value(point).toFixed(2)}` : `${value(point).toFixed(2)} ± ${error(point).toFixed(2)}`) +
      (fluxes ? " µJy" : " mag")),
    hoverinfo: "text",
  };
}

// Plotly draws the calendar's axis only if something lies on it.
function calendarTrace(frame) {
  return { type: "scatter", x: frame.xaxis2.range, y: [null, null], xaxis: "x2", hoverinfo: "skip" };
}

// The measured fluxes decide: one shallow limit would press them onto the axis.
function fluxRange(points) {
  const measured = points.filter((point) => point.kind !== "limit" && point.flux !== null);
  if (!measured.length) return null;
  const low = Math.min(0, ...measured.map((point) => (point.flux - point.error) / 1000));
  const high = Math.max(0, ...measured.map((point) => (point.flux + point.error) / 1000));
  return [low - 0.08 * (high - low), high + 0.08 * (high - low)];
}

// Bright is up. A faint end that error bars do not stretch.
function magnitudeRange(points, zeroPoint) {
  const values = points.map((point) => magnitude(point.kind === "limit" ? point.limit : point.flux, zeroPoint));
  if (!values.length) return null;
  const [bright, faint] = [Math.min(...values), Math.max(...values)];
  const margin = Math.max(0.25, 0.1 * (faint - bright));
  return [faint + margin, bright - margin];
}

function frameOf([from, to], { start, fluxes, first, mjd }, range) {
  const margin = Math.max(0.5, 0.04 * (to - from));
  const days = [from - margin, to + margin];
  const { soft } = inks();
  const line = { type: "line", x0: mjd - start, x1: mjd - start, yref: "paper", y0: 0, y1: 1, line: { color: soft, width: 1, dash: "dot" }, layer: "below" };
  const down = axis(first ? "days since the first detection" : "days since this alert", { range: days, zeroline: false });
  const up = axis(fluxes ? "flux (µJy)" : "magnitude", { ...(range ? { range } : { autorange: fluxes ? true : "reversed" }), zeroline: fluxes });
  return layout(down, up, {
    margin: { l: 52, r: 14, t: 22, b: 38 }, shapes: [line],
    xaxis2: axis("", { type: "date", overlaying: "x", side: "top", range: dates(days, start), fixedrange: true, showgrid: false, ...calendarTicks(days) }),
    meta: { start },
  });
}

function calendarTicks([from, to]) {
  const wide = innerWidth >= 900;
  return { nticks: wide ? 6 : 5, tickformat: to - from < 4 ? "%-d %b %H:%M" : wide ? "%-d %b %Y" : "%-d %b" };
}
const dates = (days, start) => days.map((day) => instant(start + day));

// The calendar above follows whoever zooms in the days below.
export function followZoom() {
  const element = $("curve");
  if (!element.on || element.dataset.follows) return;
  element.dataset.follows = "true";
  element.on("plotly_relayout", (change) => {
    if (!Object.keys(change).some((key) => key.startsWith("xaxis.") || key === "autosize")) return;
    Plotly.relayout(element, { "xaxis2.range": dates(element.layout.xaxis.range, element.layout.meta.start) });
  });
}

function showLegend(bands, kinds) {
  const colours = bands.map((band) => {
    const found = make("b", ` ${band} `);
    found.style.color = BANDS[band] ?? "#888";
    return found;
  });
  $("legend").replaceChildren(...colours, make("span", ` ${kinds.map((kind) => NAMES[kind]).join("  ")}`));
}
