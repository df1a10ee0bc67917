// The labelling page: shows the next question, and sends the answer. No framework, nothing from outside.

import { Outbox, ask, at, newId, understood } from "./api.js";
import { $, load, make, row, save } from "./dom.js";
import { CANT_TELL, Night } from "./night.js";
import {
  choicesOf, flipSince, flipUnit, keysOf, letterOf, nameOf, prefetchStamps, prepareControls, redraw, showAlert, showClasses, turnLimits, turnStretch,
} from "./question.js";

const POLL_MS = 2000;
const CLAIM_MS = 60000; // between two looks whether a claim must be renewed
const AHEAD = 2; // questions whose alert is read before it is shown
const REMEMBERED = 40;

const state = {
  models: [], model: null, queue: [], status: null, me: undefined, online: true,
  current: null, // the question that is shown, or on its way
  ready: false, // whether it is on the screen: only then an answer can be meant for it
  parked: null, // the question that was left to see an earlier label again
  skipped: new Set(), answered: new Set(), taken: new Map(), history: [], details: new Map(),
};

const outbox = new Outbox({
  sent: () => setTimeout(poll, 0),
  failed: (error) => setOnline(understood(error), error.message),
  refused: (event, error) => {
    state.answered.delete(event.query_id);
    showBanner(`an answer was refused: ${error.message}`);
  },
});
const night = new Night({ revisit });

// What is going on: polled.

async function poll() {
  try {
    const [models, status, me] = await Promise.all([ask("models"), ask("status"), ask("me")]);
    Object.assign(state, { models: models.models, status, me: me.name });
    chooseModel();
    await readQueue();
    setOnline(true);
    showFacts();
    if (!state.current) await begin();
    prefetch();
    outbox.send();
    if (model()) await night.look(model(), status);
  } catch (error) {
    setOnline(understood(error), error.message);
  }
}

async function readQueue() {
  const name = state.model;
  if (!name) return;
  const { queries } = await ask(`queries?limit=30&model=${name}`);
  if (state.model === name) state.queue = queries;
}

function setOnline(online, why = "") {
  state.online = online;
  showBanner(why);
}

function showBanner(why = "") {
  const unsent = outbox.events.length;
  const kept = unsent ? ` ${unsent} answer${unsent > 1 ? "s are" : " is"} kept here and will be sent.` : "";
  const texts = [];
  if (!state.online) texts.push(`raybroker does not answer; trying again.${kept}`);
  else if (why) texts.push(why);
  else if (state.me === null) texts.push("You may look, but not label: open the page by the link that raybroker printed.");
  const text = texts.join(" ");
  if ($("banner").textContent !== text) $("banner").textContent = text; // said once, not at every look
  $("banner").hidden = !text;
}

function chooseModel() {
  const names = state.models.map((one) => one.name);
  if (!names.includes(state.model)) state.model = names.includes(load("model")) ? load("model") : names[0] ?? null;
  const select = $("model");
  if ([...select.options].map((option) => option.value).join() !== names.join()) {
    select.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  select.value = state.model ?? "";
  $("model-choice").hidden = names.length < 2;
}

const model = () => state.models.find((one) => one.name === state.model);

function showFacts() {
  const own = model();
  $("snapshot").textContent = own?.snapshot ? `#${own.snapshot.number}` : "none yet";
  $("open").textContent = waiting().length + (state.current && !state.current.revisit ? 1 : 0);
  const { received, scored } = state.status.total;
  $("stream").textContent = `${received.toLocaleString("en")} alerts received, ${scored.toLocaleString("en")} scored`;
  $("person").textContent = state.me ?? "";
  for (const button of document.querySelectorAll("#classes button, #cant-tell")) button.disabled = state.me === null;
  $("undo").disabled = !state.history.length;
  if (!state.current) showNothing();
}

// The queue.

const waiting = () => state.queue.filter((query) => query.query_id !== state.current?.query_id && !state.answered.has(query.query_id) &&
  !state.skipped.has(query.query_id) && !((state.taken.get(query.query_id) ?? 0) > Date.now()));

function next() {
  const parked = state.parked && !state.answered.has(state.parked.query_id) ? state.parked : null;
  state.parked = null;
  if (parked) show(parked, true);
  else show(waiting()[0] ?? null);
}

// With what a link names, once: /?alert=ID, asked about or not.
async function begin() {
  const id = new URLSearchParams(location.search).get("alert");
  if (!id) return next();
  window.history.replaceState(null, "", location.pathname);
  const asked = state.queue.find((query) => query.alert_id === id);
  if (asked) return show(asked);
  try {
    const { object_id } = await ask(`alerts/${at(id)}`);
    const reason = "A link led here; nobody asks about this alert. An answer is a label all the same; S goes on.";
    show({ alert_id: id, object_id, revisit: true, model: state.model, told: model()?.raw?.length ? "" : state.model, probabilities: {}, reason });
  } catch (error) {
    next();
    showBanner(`the link's alert could not be read: ${error.message}`);
  }
}

function prefetch() {
  for (const query of waiting().slice(0, AHEAD)) {
    detail(query).catch(() => {});
    prefetchStamps(query.alert_id);
  }
}

// The alert and its object, read once.
function detail(query) {
  const known = state.details.get(query.alert_id);
  if (known) return known;
  const read = Promise.all([
    ask(`alerts/${at(query.alert_id)}`),
    query.object_id ? ask(`objects/${at(query.object_id)}`) : null,
  ]);
  read.catch(() => state.details.delete(query.alert_id));
  state.details.set(query.alert_id, read);
  if (state.details.size > REMEMBERED) state.details.delete(state.details.keys().next().value);
  return read;
}

// Nobody else is asked what is shown here. False: somebody else looks at it, or has answered.
async function claim(query) {
  if (!state.me || query.revisit) return true;
  try {
    await ask(`queries/${query.query_id}/claim`, { method: "POST" });
    return true;
  } catch (error) {
    return !(understood(error) && (error.status === 409 || error.status === 404));
  }
}

function giveBack(query) {
  if (state.me && !query.revisit) ask(`queries/${query.query_id}/claim`, { method: "DELETE" }).catch(() => {});
}

async function show(query, mine = false) {
  Object.assign(state, { current: query, ready: false });
  document.body.classList.toggle("idle", !query);
  if (!query) return state.status ? showFacts() : showNothing();
  document.body.classList.add("old");
  try {
    const [free, [alert, object]] = await Promise.all([mine || claim(query), detail(query)]);
    if (state.current !== query) return;
    if (!free) return leave(query);
    showClasses(model(), query, answer);
    showAlert(query, alert, object, model(), waiting().map((one) => one.alert ?? one));
    $("comment").value = "";
    openComment(false);
    state.ready = true;
    document.body.classList.remove("old");
    showFacts();
    prefetch();
  } catch (error) {
    if (state.current === query) showBanner(`this alert could not be read: ${error.message}`);
  }
}

// The list was older than what others did, or than what the model learned.
async function leave(query) {
  state.taken.set(query.query_id, Date.now() + CLAIM_MS);
  await readQueue().catch(() => {});
  if (state.current === query) next();
}

function showNothing() {
  const skipped = state.queue.filter((query) => state.skipped.has(query.query_id) && !state.answered.has(query.query_id));
  $("again").hidden = !skipped.length;
  $("take-back").hidden = !state.history.length;
  $("nothing-why").textContent = whyNothing(skipped.length);
}

function whyNothing(skipped) {
  const own = model();
  const { answered = 0, budget = null } = state.status?.progress[state.model] ?? {};
  if (!state.status) return "Looking …";
  if (!own) return "No model is configured: add a table [models.NAME] to raybroker.toml.";
  if (skipped) return `Every open question was skipped (${skipped}).`;
  if (budget && answered >= budget) return `That was it for tonight: all ${budget} answers are given.`;
  if (own.open_queries > state.queue.length) return `Others are looking at what is open (${own.open_queries - state.queue.length}).`;
  if (state.status.total.scored) return "New questions appear here by themselves.";
  return "No alert has been scored yet; questions follow the first ones.";
}

// Answers.

// The model that a label is for; none where it is a raw label, for all that understand it.
const toldTo = (query) => (query.revisit ? query.told || undefined : model()?.raw?.length ? undefined : query.model);

function answer(label, button) {
  const query = state.current;
  if (!query || !state.ready || !state.me || (state.answered.has(query.query_id) && !query.revisit)) return;
  button?.classList.add("pressed");
  const event = {
    event_id: newId(), alert_id: query.alert_id, model: toldTo(query), label, query_id: query.query_id, snapshot: query.snapshot, source: "page",
  };
  const comment = $("comment").value.trim();
  if (comment) event.comment = comment;
  const revised = state.history.findLast((one) => one.query.query_id === query.query_id && !one.query.revisit);
  const replaces = query.replaces ?? revised?.event_id;
  if (replaces) event.replaces = replaces;
  state.history = state.history.filter((one) => one !== revised).concat({ event_id: event.event_id, query, label });
  state.answered.add(query.query_id);
  state.details.delete(query.alert_id);
  outbox.post(event);
  state.ready = false;
  $("last").textContent = `${nameOf(query)}: ${label ?? CANT_TELL}`;
  setTimeout(next, button ? 120 : 0);
}

// Takes the last answer back. A revised label is revised once more, to what it was.
async function undo() {
  const last = state.history.pop();
  if (!last) return;
  const { query } = last;
  state.details.delete(query.alert_id);
  const event = { event_id: newId(), alert_id: query.alert_id, model: toldTo(query), replaces: last.event_id, query_id: query.query_id, source: "page" };
  Object.assign(event, query.replaces ? { label: query.before } : { label: null, withdrawn: true });
  if (!query.revisit) state.answered.delete(query.query_id);
  $("last").textContent = `“${last.label ?? CANT_TELL}” is taken back`;
  if (state.current && !state.current.revisit) state.parked = state.current;
  state.ready = false;
  await outbox.post(event);
  show(query.replaces ? { ...query, replaces: event.event_id } : query, true);
}

function skip() {
  const query = state.current;
  if (!query) return;
  if (!query.revisit) state.skipped.add(query.query_id);
  giveBack(query);
  next();
}

// A label of the list is seen again. One's own is revised by the next answer; beside another's, one's own is added.
function revisit(label) {
  if (state.current && !state.current.revisit) state.parked = state.current;
  const own = label.who === state.me && label.standing;
  const said = `${own ? "You" : label.who ?? label.source} said “${label.label ?? CANT_TELL}”${label.comment ? ` (${label.comment})` : ""}.`;
  show({
    ...label, revisit: true, model: label.model || state.model, told: label.model, query_id: label.query_id ?? undefined, snapshot: undefined, probabilities: {}, before: label.label,
    replaces: own ? label.event_id : undefined, reason: `${said} ${own ? "Another answer revises it" : "Your answer is added"}; S goes back.`,
  });
}

// Hands.

// On a small screen the field is there only while it is written in.
function openComment(open) {
  $("decide").classList.toggle("commenting", open);
  $("comment-button").setAttribute("aria-expanded", String(open));
  if (open) $("comment").focus();
}

const KEYS = [
  ["0", CANT_TELL, () => answer(null)],
  ["S", "skip: not now; others may be asked", skip],
  ["U", "undo the last answer, and the one before", undo],
  ["C", "write a comment; Enter or Esc leaves it", () => openComment(true)],
  ["M", "magnitudes or fluxes", flipUnit],
  ["T", "days from this alert or from the first detection", flipSince],
  ["X", "stretch of the cutouts: asinh, linear, log", turnStretch],
  ["Z", "range of the cutouts: zscale, 99 %, all", turnLimits],
  ["?", "these keys", () => toggleHelp()],
];

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.matches("input, textarea, select")) return;
  const key = event.key.toUpperCase();
  const found = KEYS.find(([own]) => own === key);
  if ($("help").open && key !== "?") return;
  const classes = choicesOf(model());
  const place = /^[1-9]$/.test(key) ? Number(key) - 1 : classes.findIndex((name) => letterOf(name, classes).toUpperCase() === key);
  if (found) found[2]();
  else if (place >= 0 && place < classes.length) answer(classes[place], $("classes").children[place]);
  else return;
  event.preventDefault(); // else the C that leads into the comment would be its first letter
}

function toggleHelp() {
  const help = $("help");
  if (help.open) return help.close();
  const classes = choicesOf(model());
  const lines = [...classes.map((name, i) => [keysOf(name, i, classes), name]), ...KEYS.map(([key, about]) => [[key], about])];
  $("keys").replaceChildren(...lines.map(([keys, about]) => {
    const cell = make("td");
    cell.append(...keys.flatMap((key) => [make("kbd", key), " "]));
    return row(cell, about);
  }));
  help.showModal();
}

function prepareButtons() {
  $("cant-tell").onclick = () => answer(null);
  $("skip").onclick = skip;
  $("undo").onclick = undo;
  $("take-back").onclick = undo;
  $("help-button").onclick = toggleHelp;
  $("help-close").onclick = toggleHelp;
  $("again").onclick = () => { state.skipped.clear(); next(); };
  $("comment-button").onclick = () => openComment(!$("decide").classList.contains("commenting"));
  $("comment").onkeydown = (event) => { if (["Enter", "Escape"].includes(event.key)) event.target.blur(); };
  $("model").onchange = (event) => {
    if (state.current) giveBack(state.current);
    Object.assign(state, { model: event.target.value, queue: [], current: null, parked: null, history: [] });
    save("model", state.model);
    event.target.blur();
    poll();
  };
}

function start() {
  prepareControls();
  prepareButtons();
  document.addEventListener("keydown", press);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { redraw(); night.draw(); });
  setInterval(() => { if (state.current && state.ready && !document.hidden) claim(state.current); }, CLAIM_MS);
  const again = () => poll().finally(() => setTimeout(again, POLL_MS));
  again();
}

start();
