// What is shown of one question: the alert with its cutouts and numbers, and the buttons to answer it.

import { at } from "./api.js";
import { drawCurve, followZoom } from "./curve.js";
import { $, load, make, row, save } from "./dom.js";
import { showLinks } from "./links.js";
import { CANT_TELL } from "./night.js";
import { calendar, magnitude, sexagesimal, short } from "./numbers.js";
import { colourOf } from "./plots.js";
import { drawScores } from "./scores.js";
import { showSky } from "./sky.js";

const KINDS = ["science", "template", "difference"];
const STRETCHES = [["asinh", "asinh"], ["linear", "linear"], ["log", "log"]];
const LIMITS = [["zscale", "zscale"], ["percentile", "99 %"], ["minmax", "all"]];
export const RESERVED = "sucmxzt"; // letters that mean something else here

const view = { fluxes: load("fluxes", false), first: load("first", false), stretch: load("stretch", "asinh"), limits: load("limits", "zscale") };
let shown = null; // { alert, object, query, model }

export const nameOf = (one) => (one.object_id ?? one.alert_id).replace(/^[^:]*:/, "");

// A class's own letter, where no other class begins with it and no other key means it.
export function letterOf(name, classes) {
  const own = name[0]?.toLowerCase() ?? "";
  const alone = classes.filter((other) => other[0]?.toLowerCase() === own).length === 1;
  return alone && /[a-z]/.test(own) && !RESERVED.includes(own) ? own : "";
}

export const keysOf = (name, i, classes) => [i < 9 ? String(i + 1) : "", letterOf(name, classes).toUpperCase()].filter(Boolean);

// What one may say: the model's classes, or the raw labels of which it makes its own.
export const choicesOf = (model) => (model?.raw?.length ? model.raw : model?.classes ?? []);

// Classes: the buttons stay where they are from alert to alert, only their numbers change.

export function showClasses(model, query, choose) {
  const classes = choicesOf(model);
  const place = $("classes");
  if ([...place.children].map((one) => one.dataset.name).join("\n") !== classes.join("\n")) {
    place.replaceChildren(...classes.map((name, i) => classButton(name, i, classes, choose)));
  }
  [...place.children].forEach((button, i) => fillButton(button, query, i, classes));
  showMembers(query, model?.classes ?? []);
}

function classButton(name, i, classes, choose) {
  const button = make("button");
  const keys = make("span", "", "keys");
  for (const key of keysOf(name, i, classes)) keys.append(make("kbd", key), " ");
  button.dataset.name = name;
  button.setAttribute("aria-keyshortcuts", keysOf(name, i, classes).join(" "));
  const track = make("span", "", "track");
  track.style.setProperty("--own", colourOf(i));
  track.append(make("i"));
  button.append(keys, make("span", name, "class"), make("span", "", "score"), track);
  button.onclick = () => choose(name, button);
  return button;
}

function fillButton(button, query, i, classes) {
  const name = classes[i];
  const { mixture = {}, ...members } = query?.probabilities ?? {};
  button.classList.remove("pressed");
  button.querySelector(".score").textContent = mixture[name]?.toFixed(2) ?? "";
  const track = button.querySelector(".track");
  track.firstChild.style.width = `${100 * (mixture[name] ?? 0)}%`;
  track.replaceChildren(track.firstChild, ...Object.values(members).map((scores) => mark(scores[name] ?? 0)));
  button.setAttribute("aria-label", `${name}${mixture[name] === undefined ? "" : `, probability ${mixture[name].toFixed(2)}`}`);
}

function mark(score) {
  const found = make("u");
  found.style.left = `calc(${100 * score}% - 1px)`;
  return found;
}

function showMembers(query, classes) {
  const { mixture, ...members } = query?.probabilities ?? {};
  $("members-card").hidden = !mixture;
  if (!mixture) return;
  const head = row(make("th", ""), ...classes.map((name) => make("th", name)));
  const line = (name, scores) => row(make("th", name.replaceAll("_", " ")), ...classes.map((one) => make("td", scores[one]?.toFixed(2) ?? "–")));
  const all = line("together", mixture);
  all.className = "all";
  $("members").replaceChildren(head, ...Object.entries(members).map(([name, scores]) => line(name, scores)), all);
}

// Cutouts.

export const stamp = (alertId, kind) => `cutouts/${at(alertId)}/${kind}?format=png&stretch=${view.stretch}&limits=${view.limits}`;

export function prefetchStamps(alertId) {
  for (const kind of KINDS) new Image().src = stamp(alertId, kind);
}

function showStamps(alertId) {
  const place = $("stamps");
  if (!place.children.length) place.append(...KINDS.map(figure));
  [...place.children].forEach((one, i) => fillFigure(one, alertId, KINDS[i]));
}

function figure(kind) {
  const found = make("figure", "", "none");
  found.append(make("div"), make("figcaption", kind));
  return found;
}

// The picture changes when the new one is there: nothing flickers.
async function fillFigure(place, alertId, kind) {
  const image = new Image();
  image.alt = `${kind} cutout`;
  image.src = stamp(alertId, kind);
  place.dataset.source = image.src;
  const there = await image.decode().then(() => true, () => false);
  if (place.dataset.source !== image.src) return;
  place.className = there ? "" : "none";
  place.firstChild.replaceChildren(there ? image : make("p", "no cutout"));
}

function setView(name, value) {
  view[name] = value;
  save(name, value);
  if (shown) showStamps(shown.alert.alert_id);
  $(name).value = value;
}

const turn = (name, options) => () => {
  const i = options.findIndex(([value]) => value === view[name]);
  setView(name, options[(i + 1) % options.length][0]);
};
export const turnStretch = turn("stretch", STRETCHES);
export const turnLimits = turn("limits", LIMITS);

function flip(name) {
  view[name] = !view[name];
  save(name, view[name]);
  redraw();
}
export const flipUnit = () => flip("fluxes");
export const flipSince = () => flip("first");

export function prepareControls() {
  for (const [name, options] of [["stretch", STRETCHES], ["limits", LIMITS]]) {
    $(name).replaceChildren(...options.map(([value, text]) => new Option(text, value)));
    $(name).value = view[name];
    $(name).onchange = (event) => { setView(name, event.target.value); event.target.blur(); };
  }
  $("unit").onclick = flipUnit;
  $("since").onclick = flipSince;
}

// The alert.

export function showAlert(query, alert, object, model, others) {
  shown = { query, alert, object, model };
  $("object").textContent = nameOf(alert);
  $("reason").textContent = query.reason ?? "";
  showFacts(alert, object);
  showLinks($("links"), alert.object_id, alert.ra, alert.dec);
  showStamps(alert.alert_id);
  redraw();
  showSky(alert, others);
  showMatches(alert.catalogues);
  showLabels(object?.labels ?? alert.labels, query.model);
}

export function redraw() {
  if (!shown) return;
  const { query, alert, object, model } = shown;
  const points = object?.light_curve ?? alert.history ?? [];
  drawCurve({ points, zeroPoint: object?.zero_point ?? 31.4, mjd: alert.mjd }, view);
  followZoom();
  const { mixture } = query.probabilities ?? {};
  drawScores({
    alerts: object?.alerts ?? [alert], model: query.model, classes: model?.classes ?? [], mjd: alert.mjd,
    asked: mixture ? { mixture, snapshot: query.snapshot } : null,
  });
}

function showFacts(alert, object) {
  const zeroPoint = object?.zero_point ?? 31.4;
  const facts = [
    `${alert.survey} ${alert.alert_id.replace(/^[^:]*:/, "")}`, calendar(alert.mjd),
    alert.ra === null ? null : `${sexagesimal(alert.ra, alert.dec)}`,
    alert.ra === null ? null : `${alert.ra.toFixed(5)} ${alert.dec.toFixed(5)}`,
    alert.flux > 0 ? `${alert.band} ${magnitude(alert.flux, zeroPoint).toFixed(2)} mag` : `${alert.band} band, fainter than its template`,
    alert.ss_object_id ? `moving: ${alert.ss_object_id.replace(/^[^:]*:/, "")}` : null,
    alert.reliability === null ? null : `reliability ${alert.reliability.toFixed(2)}`,
    object ? `${object.alerts.length} alert${object.alerts.length > 1 ? "s" : ""}` : null,
  ].filter(Boolean);
  $("facts").replaceChildren(...facts.map((fact) => make("span", fact)));
}

function showMatches(catalogues) {
  const rows = Object.entries(catalogues).flatMap(([name, match]) => {
    if (!match) return [row(name, make("td", "no match", "none"))];
    const title = make("th", name);
    title.colSpan = 2;
    return [row(title), ...Object.entries(match).map(([key, value]) => row(key, valueOf(key, value)))];
  });
  $("matches").replaceChildren(...(rows.length ? rows : [row(make("td", "no catalogue is configured", "none"))]));
}

function valueOf(key, value) {
  if (value === null) return "–";
  return key === "distance" ? `${Number(value).toFixed(2)}″` : short(value);
}

function showLabels(labels, model) {
  const told = labels.filter((one) => !one.withdrawn);
  $("labels-title").hidden = !told.length;
  $("labels").replaceChildren(...told.map((one) => {
    const other = one.model && one.model !== model ? ` (${one.model})` : "";
    const when = String(one.when).slice(0, 16).replace("T", " ");
    return make("li", `${one.label ?? CANT_TELL}${other}, ${one.who ?? one.source}, ${when}${one.comment ? `: ${one.comment}` : ""}`, one.standing ? "" : "gone");
  }));
}
