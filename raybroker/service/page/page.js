// The labelling page: shows the next question, and sends the answer. No framework, nothing from outside.
import { calendar, drawCurve, magnitude, sexagesimal } from "./curve.js";
import { $, make } from "./dom.js";

const KINDS = ["science", "template", "difference"];
const RESERVED = "sum";
const POLL_MS = 2000;
const CANT_TELL = "can’t tell";

const state = {
  models: [], model: null, queue: [], current: null, skipped: new Set(), answered: new Set(),
  history: [], unsent: load("unsent", []), sending: false, me: null, fluxes: load("fluxes", false), online: true,
  details: new Map(), status: null,
};

function draw() {
  if (state.drawn) drawCurve(state.drawn, state.fluxes);
}

function load(key, otherwise) {
  try { return JSON.parse(localStorage.getItem(`raybroker.${key}`)) ?? otherwise; } catch { return otherwise; }
}

function save(key, value) {
  try { localStorage.setItem(`raybroker.${key}`, JSON.stringify(value)); } catch { /* private window */ }
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is missing on plain http
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function ask(path, options) {
  const answer = await fetch(path, { ...options, signal: AbortSignal.timeout(15000) });
  const content = await answer.json().catch(() => ({ error: `${answer.status} ${answer.statusText}` }));
  if (!answer.ok) throw new Refused(answer.status, content.error);
  return content;
}

const at = (alertId) => encodeURIComponent(alertId).replaceAll("%3A", ":");

// What is going on: polled.

async function poll() {
  try {
    const [models, status] = await Promise.all([ask("models"), ask("status")]);
    state.models = models.models;
    state.status = status;
    chooseModel();
    if (state.model) state.queue = (await ask(`queries?limit=30&model=${state.model}`)).queries;
    state.me = (await ask("me")).name;
    setOnline(true);
    showFacts();
    if (!state.current) next();
    prefetch();
    send();
  } catch (error) {
    setOnline(error instanceof Refused && error.status < 500, error.message);
  }
}

function setOnline(online, why = "") {
  state.online = online;
  showBanner(why);
}

function showBanner(why = "") {
  const unsent = state.unsent.length;
  const kept = unsent ? ` ${unsent} answer${unsent > 1 ? "s are" : " is"} kept here and will be sent.` : "";
  const texts = [];
  if (!state.online) texts.push(`raybroker does not answer; trying again.${kept}`);
  else if (why) texts.push(why);
  else if (state.me === null) texts.push("You may look, but not label: open the page by the link that raybroker printed.");
  $("banner").textContent = texts.join(" ");
  $("banner").hidden = !texts.length;
}

function chooseModel() {
  const names = state.models.map((model) => model.name);
  if (!names.includes(state.model)) state.model = names.includes(load("model")) ? load("model") : names[0] ?? null;
  const select = $("model");
  if ([...select.options].map((option) => option.value).join() !== names.join()) {
    select.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  select.value = state.model;
  $("model-choice").hidden = names.length < 2;
}

const model = () => state.models.find((one) => one.name === state.model);

function showFacts() {
  const own = model();
  const tonight = state.status.tonight[state.model] ?? { labels: 0, classes: {} };
  $("snapshot").textContent = own?.snapshot ? `#${own.snapshot.number}` : "none yet";
  $("open").textContent = waiting().length + (state.current ? 1 : 0);
  $("tonight").textContent = tonight.labels;
  $("by-class").textContent = Object.entries(tonight.classes).map(([name, count]) => `${name} ${count}`).join(" · ");
  const total = state.status.total;
  $("stream").textContent = `${total.received.toLocaleString("en")} alerts received, ${total.scored.toLocaleString("en")} scored`;
  $("person").textContent = state.me ?? "";
  const answers = document.querySelectorAll("#classes button, #cant-tell");
  for (const button of answers) button.disabled = state.me === null;
  $("undo").disabled = !state.history.length;
  if (!state.current) showNothing();
}

// The queue.

const waiting = () => state.queue.filter((query) =>
  query.query_id !== state.current?.query_id && !state.answered.has(query.query_id) && !state.skipped.has(query.query_id));

function next() {
  show(waiting()[0] ?? null);
}

function prefetch() {
  for (const query of waiting().slice(0, 1)) {
    detail(query).catch(() => {});
    for (const kind of KINDS) new Image().src = stamp(query.alert_id, kind);
  }
}

function detail(query) {
  const known = state.details.get(query.alert_id);
  if (known) return known;
  const read = Promise.all([
    ask(`alerts/${at(query.alert_id)}`),
    query.object_id ? ask(`objects/${at(query.object_id)}`) : null,
  ]);
  read.catch(() => state.details.delete(query.alert_id));
  state.details.set(query.alert_id, read);
  if (state.details.size > 40) state.details.delete(state.details.keys().next().value);
  return read;
}

const stamp = (alertId, kind) => `cutouts/${at(alertId)}/${kind}?format=png`;

async function show(query) {
  state.current = query;
  $("alert").hidden = !query;
  $("nothing").hidden = Boolean(query);
  if (!query) return showNothing();
  $("alert").classList.add("old");
  showQuestion(query);
  try {
    const [alert, object] = await detail(query);
    if (state.current !== query) return;
    showAlert(alert, object);
    $("alert").classList.remove("old");
    prefetch();
  } catch (error) {
    if (state.current === query) showBanner(`this alert could not be read: ${error.message}`);
  }
}

function showNothing() {
  const skipped = state.queue.filter((query) => state.skipped.has(query.query_id) && !state.answered.has(query.query_id));
  $("again").hidden = !skipped.length;
  $("take-back").hidden = !state.history.length;
  const scored = state.status?.total.scored ?? 0;
  $("nothing-why").textContent = !state.models.length ? "No model is configured: add a table [models.NAME] to raybroker.toml."
    : skipped.length ? `Every open question was skipped (${skipped.length}).`
      : scored ? "New questions appear here by themselves." : "No alert has been scored yet; questions follow the first ones.";
}

function showQuestion(query) {
  $("object").textContent = (query.object_id ?? query.alert_id).replace(/^[^:]*:/, "");
  $("reason").textContent = query.reason ?? "";
  const classes = model()?.classes ?? [];
  $("classes").replaceChildren(...classes.map((name, i) => classButton(name, i, query, classes)));
  $("stamps").replaceChildren(...KINDS.map((kind) => figure(query.alert_id, kind)));
  showFacts();
}

function letter(name, classes) {
  const own = name[0]?.toLowerCase() ?? "";
  const alone = classes.filter((other) => other[0]?.toLowerCase() === own).length === 1;
  return alone && /[a-z]/.test(own) && !RESERVED.includes(own) ? own : "";
}

function classButton(name, i, query, classes) {
  const button = make("button");
  const keys = make("span");
  for (const key of [i < 9 ? String(i + 1) : "", letter(name, classes).toUpperCase()].filter(Boolean)) {
    keys.append(make("kbd", key), " ");
  }
  const { mixture = {}, ...members } = query.probabilities;
  const track = make("span", "", "track");
  const fill = make("i");
  fill.style.width = `${100 * (mixture[name] ?? 0)}%`;
  track.append(fill, ...Object.values(members).map((scores) => mark(scores[name] ?? 0)));
  button.append(keys, make("span", name), make("span", mixture[name]?.toFixed(2) ?? "", "score"), track);
  button.title = ["mixture", ...Object.keys(members)].map((who) => `${who} ${query.probabilities[who]?.[name]?.toFixed(3) ?? "–"}`).join("\n");
  button.onclick = () => answer(name, button);
  return button;
}

function mark(score) {
  const found = make("u");
  found.style.left = `calc(${100 * score}% - 1px)`;
  return found;
}

function figure(alertId, kind) {
  const found = make("figure");
  const frame = make("div");
  const image = new Image();
  image.alt = `${kind} cutout`;
  image.src = stamp(alertId, kind);
  image.onerror = () => { found.className = "none"; frame.replaceChildren(make("p", "no cutout")); };
  frame.append(image);
  found.append(frame, make("figcaption", kind));
  return found;
}

// The alert.

function showAlert(alert, object) {
  const points = object?.light_curve ?? alert.history ?? [];
  const zeroPoint = object?.zero_point ?? 31.4;
  const facts = [
    `${alert.survey} ${alert.alert_id.replace(/^[^:]*:/, "")}`, calendar(alert.mjd), sexagesimal(alert.ra, alert.dec),
    `${alert.ra?.toFixed(5)} ${alert.dec?.toFixed(5)}`,
    alert.flux > 0 ? `${alert.band} ${magnitude(alert.flux, zeroPoint).toFixed(2)} mag` : `${alert.band} band, fainter than its template`,
    alert.ss_object_id ? `moving: ${alert.ss_object_id.replace(/^[^:]*:/, "")}` : null,
    alert.reliability === null ? null : `reliability ${alert.reliability.toFixed(2)}`,
    object && object.alerts.length > 1 ? `${object.alerts.length} alerts` : null,
  ].filter(Boolean);
  $("facts").replaceChildren(...facts.flatMap((fact, i) => [i ? " · " : "", make("span", fact)]));
  state.drawn = { points, zeroPoint, mjd: alert.mjd };
  draw();
  showMatches(alert.catalogues);
  showLabels(object?.labels ?? alert.labels);
}

function showMatches(catalogues) {
  const rows = [];
  for (const [name, match] of Object.entries(catalogues)) {
    if (!match) rows.push(row(name, "no match", "none"));
    else {
      const head = make("tr");
      const title = make("th", name);
      title.colSpan = 2;
      head.append(title);
      rows.push(head, ...Object.entries(match).map(([key, value]) => row(key, shown(key, value))));
    }
  }
  $("matches").replaceChildren(...(rows.length ? rows : [row("no catalogue is configured", "", "none")]));
}

function row(name, value, className = "") {
  const found = make("tr");
  found.append(make("td", name, className), make("td", value, className));
  return found;
}

function shown(key, value) {
  if (value === null) return "–";
  const text = typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(5))) : String(value);
  return key === "distance" ? `${Number(value).toFixed(2)}″` : text;
}

function showLabels(labels) {
  $("labels-title").hidden = !labels.length;
  $("labels").replaceChildren(...labels.filter((one) => !one.withdrawn).map((one) =>
    make("li", `${one.label ?? CANT_TELL}, ${one.who}, ${String(one.when).slice(0, 16).replace("T", " ")}`, one.standing ? "" : "gone")));
}

// Answers. Each is kept until the server has it; sending it twice changes nothing.

function answer(label, button) {
  const query = state.current;
  if (!query || state.me === null || state.answered.has(query.query_id)) return;
  button?.classList.add("pressed");
  const event = {
    event_id: newId(), alert_id: query.alert_id, model: query.model, label, query_id: query.query_id,
    snapshot: query.snapshot, source: "page",
  };
  const revised = state.history.findLast((one) => one.query.query_id === query.query_id);
  if (revised) event.replaces = revised.event_id;
  state.history = state.history.filter((one) => one !== revised).concat({ event_id: event.event_id, query, label });
  state.answered.add(query.query_id);
  post(event);
  $("last").textContent = `${query.object_id?.replace(/^[^:]*:/, "") ?? "the last one"}: ${label ?? CANT_TELL}`;
  setTimeout(next, button ? 120 : 0);
}

function undo() {
  const last = state.history.pop();
  if (!last) return;
  state.answered.delete(last.query.query_id);
  state.details.delete(last.query.alert_id);
  post({
    event_id: newId(), alert_id: last.query.alert_id, model: last.query.model, label: null, withdrawn: true,
    replaces: last.event_id, query_id: last.query.query_id, source: "page",
  });
  $("last").textContent = `“${last.label ?? CANT_TELL}” is taken back`;
  show(last.query);
}

function skip() {
  if (!state.current) return;
  state.skipped.add(state.current.query_id);
  next();
}

function post(event) {
  state.unsent.push(event);
  save("unsent", state.unsent);
  send();
}

async function send() {
  if (state.sending || !state.unsent.length) return;
  state.sending = true;
  try {
    while (state.unsent.length) {
      await deliver(state.unsent[0]);
      state.unsent.shift();
      save("unsent", state.unsent);
    }
    setTimeout(poll, 0);
  } catch (error) {
    setOnline(error instanceof Refused && error.status < 500, error.message);
  } finally {
    state.sending = false;
  }
}

async function deliver(event) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(event) };
  try {
    await ask("labels", options);
  } catch (error) {
    // What the server understood and refused would be refused for ever; the rest is tried again.
    if (!(error instanceof Refused) || error.status >= 500 || error.status === 401) throw error;
    state.answered.delete(event.query_id);
    showBanner(`an answer was refused: ${error.message}`);
  }
}

// Hands.

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select")) return;
  const key = event.key.toLowerCase();
  const buttons = [...document.querySelectorAll("#classes button")];
  const classes = model()?.classes ?? [];
  const place = /^[1-9]$/.test(key) ? Number(key) - 1 : classes.findIndex((name) => letter(name, classes) === key);
  if (event.repeat) return;
  if (key === "0" || key === "?") answer(null);
  else if (key === "s") skip();
  else if (key === "u") undo();
  else if (key === "m") toggle();
  else if (state.current && buttons[place]) answer(classes[place], buttons[place]);
}

function toggle() {
  state.fluxes = !state.fluxes;
  save("fluxes", state.fluxes);
  draw();
}

function start() {
  document.addEventListener("keydown", press);
  $("cant-tell").onclick = () => answer(null);
  $("skip").onclick = skip;
  $("undo").onclick = undo;
  $("take-back").onclick = undo;
  $("unit").onclick = toggle;
  $("again").onclick = () => { state.skipped.clear(); next(); };
  $("model").onchange = (event) => {
    state.model = event.target.value;
    save("model", state.model);
    state.queue = [];
    state.current = null;
    poll();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const again = () => poll().finally(() => setTimeout(again, POLL_MS));
  again();
}

start();
