// What models said of an object over time, and how a model learned.

import { $, make } from "./dom.js";
import { calendar } from "./numbers.js";
import { axis, clear, colourOf, layout, plot } from "./plots.js";

// Scores of the object's alerts; `asked` is what the members' mixture says now, with its snapshot.
export function drawScores({ alerts, model, classes, mjd, asked }) {
  const scored = alerts.filter((one) => one.scores[model]).sort((a, b) => a.mjd - b.mjd);
  showClasses(classes);
  const about = `Scores over time: ${scored.length} scored alert${scored.length === 1 ? "" : "s"}`;
  if (!scored.length && !asked) return clear($("history"), "No score of this object yet");
  const traces = classes.flatMap((name, i) => [line(scored, model, name, i, mjd), asked ? now(asked, name, i) : null].filter(Boolean));
  const days = scored.map((one) => one.mjd - mjd);
  const [from, to] = [Math.min(0, ...days), Math.max(0, ...days)];
  const margin = Math.max(0.5, 0.04 * (to - from));
  const frame = layout(axis("days since this alert", { range: [from - margin, to + margin], zeroline: false }), axis("", { range: [-0.03, 1.03], tickvals: [0, 0.5, 1], zeroline: false }));
  plot($("history"), traces, frame, about);
}

function line(scored, model, name, i, mjd) {
  const value = (one) => one.scores[model].classes[name];
  return {
    type: "scatter", mode: "lines+markers", x: scored.map((one) => one.mjd - mjd), y: scored.map(value), name,
    line: { color: colourOf(i), width: 1.5 }, marker: { size: 6, color: colourOf(i) }, hoverinfo: "text",
    text: scored.map((one) => `<b>${name} ${value(one)?.toFixed(3) ?? "–"}</b><br>snapshot ${one.scores[model].snapshot}<br>${calendar(one.mjd)}`),
  };
}

function now({ mixture, snapshot }, name, i) {
  return {
    type: "scatter", mode: "markers", x: [0], y: [mixture[name] ?? null], name, hoverinfo: "text",
    marker: { size: 11, symbol: "circle-open", color: colourOf(i), line: { width: 2 } },
    text: [`<b>${name} ${mixture[name]?.toFixed(3) ?? "–"}</b><br>when asked, snapshot ${snapshot}`],
  };
}

function showClasses(classes) {
  $("history-legend").replaceChildren(...classes.map((name, i) => {
    const found = make("span", `● ${name}`);
    found.style.color = colourOf(i);
    return found;
  }), make("span", "○ when asked"));
}

// The learning curve.

const FIRST = ["auc", "balanced_accuracy", "accuracy", "log_loss", "calibration_error"];

// The measures that any snapshot has, those first that say most.
export function metricsOf(snapshots) {
  const names = [...new Set(snapshots.flatMap((one) => Object.keys(one.metrics)))].filter((name) => !/^weight|unseen$/.test(name)); // shares and counts are no measures
  const place = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);
  return names.sort((a, b) => place(a) - place(b) || a.localeCompare(b));
}

export function drawLearning(snapshots, metric) {
  const known = snapshots.filter((one) => typeof one.metrics[metric] === "number");
  const last = known[known.length - 1];
  if (!last) {
    const labels = snapshots[snapshots.length - 1]?.labels;
    $("learning-note").textContent = labels ? `${labels} labels learned; how well is measured with the next.` : "It begins when the first labels are learned.";
    $("learning").hidden = true;
    return clear($("learning"), "No learning curve yet");
  }
  $("learning").hidden = false;
  const words = metric.replaceAll("_", " ");
  const trace = {
    type: "scatter", mode: "lines+markers", x: known.map((one) => one.labels), y: known.map((one) => one.metrics[metric]),
    line: { color: colourOf(0), width: 1.5 }, marker: { size: 4, color: colourOf(0) }, hoverinfo: "text",
    text: known.map((one) => `<b>${words} ${one.metrics[metric].toFixed(3)}</b><br>snapshot ${one.number}, ${one.labels} labels<br>${String(one.when).slice(0, 16).replace("T", " ")}`),
  };
  const frame = layout(axis("labels", { rangemode: "tozero" }), axis("", { nticks: 4 }));
  plot($("learning"), [trace], frame, `Learning curve: ${words} ${last.metrics[metric].toFixed(3)} after ${last.labels} labels`);
  $("learning-note").textContent = `${words} ${last.metrics[metric].toFixed(3)} after ${last.labels} labels (snapshot ${last.number})`;
}
