// The light curve of an alert, and how numbers of the sky are written. Plotly is loaded before.

import { $, make } from "./dom.js";

const BANDS = { u: "#6b63e0", g: "#2a9d4a", r: "#d8352f", i: "#cc8411", z: "#a24bd6", y: "#4d8fa6" };
const SYMBOLS = { detection: "circle", forced: "diamond-open", limit: "triangle-down" };
const NAMES = { detection: "● detection", forced: "◇ forced", limit: "▾ 5σ limit" };

export const magnitude = (flux, zeroPoint) => zeroPoint - 2.5 * Math.log10(Math.abs(flux));
export const calendar = (mjd) => new Date((mjd - 40587) * 86400000).toISOString().replace("T", " ").slice(0, 16) + " UT";

export function sexagesimal(ra, dec) {
  const parts = (value, digits) => {
    const total = Math.round(Math.abs(value) * 3600 * 10 ** digits) / 10 ** digits;
    const seconds = (total % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
    return [Math.floor(total / 3600), Math.floor(total / 60) % 60].map((n) => String(n).padStart(2, "0")).concat(seconds).join(":");
  };
  return ra === null || dec === null ? "" : `${parts(ra / 15, 2)} ${dec < 0 ? "−" : "+"}${parts(dec, 1)}`;
}

// Draws into #curve, with #legend, #curve-note and the label of #unit. `fluxes`: microjansky, not magnitudes.
export function drawCurve({ points, zeroPoint, mjd }, fluxes) {
  if (!window.Plotly) return;
  const bands = [...new Set(points.map((point) => point.band))];
  const order = "ugrizy";
  bands.sort((a, b) => order.indexOf(a) - order.indexOf(b));
  const kinds = Object.keys(SYMBOLS).filter((kind) => points.some((point) => point.kind === kind));
  let hidden = 0;
  const traces = bands.flatMap((band) => kinds.map((kind) => {
    const own = points.filter((point) => point.band === band && point.kind === kind);
    const drawn = own.filter((point) => drawable(point, fluxes));
    hidden += own.length - drawn.length;
    return trace(drawn, band, kind, { zeroPoint, mjd, fluxes });
  })).filter((one) => one.x.length);
  const days = points.map((point) => point.mjd - mjd);
  const frame = layout([Math.min(0, ...days), Math.max(0, ...days)], fluxes, fluxes ? fluxRange(points) : null);
  Plotly.react("curve", traces, frame, { displayModeBar: false, responsive: true });
  showLegend(bands, kinds);
  const more = hidden ? `; ${hidden} point${hidden > 1 ? "s" : ""} below 3σ only in flux` : "";
  $("curve-note").textContent = points.length ? `Difference ${fluxes ? "flux" : "magnitude (AB); × where it faded below its template"}${more}.`
    : "This alert came without a light curve.";
  $("unit").textContent = fluxes ? "Show magnitudes" : "Show fluxes";
}

function drawable(point, fluxes) {
  if (point.kind === "limit") return point.limit !== null;
  return point.flux !== null && (fluxes || (point.flux !== 0 && !(Math.abs(point.flux) < 3 * point.error)));
}

function trace(points, band, kind, { zeroPoint, mjd, fluxes }) {
  const flux = (point) => (kind === "limit" ? point.limit : point.flux);
  const value = (point) => (fluxes ? flux(point) / 1000 : magnitude(flux(point), zeroPoint));
  const error = (point) => (fluxes ? point.error / 1000 : 1.0857 * point.error / Math.abs(point.flux));
  const colour = BANDS[band] ?? "#888";
  const negative = (point) => !fluxes && kind !== "limit" && point.flux < 0;
  return {
    type: "scatter", mode: "markers", showlegend: false,
    x: points.map((point) => point.mjd - mjd), y: points.map(value),
    error_y: kind === "limit" ? undefined : { array: points.map(error), color: colour, thickness: 1, width: 0 },
    marker: {
      color: colour, opacity: kind === "detection" ? 1 : kind === "forced" ? 0.8 : 0.45, size: kind === "detection" ? 8 : 7,
      symbol: points.map((point) => (negative(point) ? "x-thin-open" : SYMBOLS[kind])),
    },
    text: points.map((point) => `${band} ${kind}<br>${calendar(point.mjd)}<br>MJD ${point.mjd.toFixed(4)}<br>` +
      (kind === "limit" ? `${fluxes ? "<" : ">"} ${value(point).toFixed(2)}` : `${value(point).toFixed(2)} ± ${error(point).toFixed(2)}`)),
    hoverinfo: "text",
  };
}

// The measured fluxes decide: one shallow limit would press them onto the axis.
function fluxRange(points) {
  const measured = points.filter((point) => point.kind !== "limit" && point.flux !== null);
  if (!measured.length) return null;
  const low = Math.min(0, ...measured.map((point) => (point.flux - point.error) / 1000));
  const high = Math.max(0, ...measured.map((point) => (point.flux + point.error) / 1000));
  return [low - 0.08 * (high - low), high + 0.08 * (high - low)];
}

function layout([first, last], fluxes, range) {
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, line, card] = ["ink", "soft", "line", "card"].map((name) => style.getPropertyValue(`--${name}`).trim());
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, tickfont: { color: soft }, title: { font: { color: soft, size: 12 } } };
  const margin = Math.max(0.5, 0.04 * (last - first));
  return {
    margin: { l: 52, r: 10, t: 10, b: 40 }, paper_bgcolor: card, plot_bgcolor: card, font: { color: ink, size: 12 }, hovermode: "closest",
    xaxis: { ...axis, title: { ...axis.title, text: "days from this alert" }, range: [first - margin, last + margin], zeroline: false },
    yaxis: {
      ...axis, title: { ...axis.title, text: fluxes ? "flux (µJy)" : "magnitude" },
      ...(range ? { range } : { autorange: fluxes ? true : "reversed" }), zeroline: fluxes,
    },
    shapes: [{ type: "line", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line: { color: soft, width: 1, dash: "dot" }, layer: "below" }],
  };
}

function showLegend(bands, kinds) {
  const colours = bands.map((band) => {
    const found = make("b", ` ${band} `);
    found.style.color = BANDS[band] ?? "#888";
    return found;
  });
  $("legend").replaceChildren(...colours, make("span", ` ${kinds.map((kind) => NAMES[kind]).join("  ")}`));
}
