// The progress of the night: how many answers, whose, the last of them, and the learning curve.

import { $, load, make, save } from "./dom.js";
import { ask } from "./api.js";
import { drawLearning, metricsOf } from "./scores.js";

export const CANT_TELL = "can’t tell";
const RECENT = 12;

function showCounts(place, counts) {
  const texts = Object.entries(counts).map(([name, count]) => `${name} ${count}`);
  if (place.textContent === texts.join(" · ")) return;
  place.replaceChildren(...texts.flatMap((text, i) => [i ? " · " : "", make("span", text)]));
}

export class Night {
  constructor({ revisit }) {
    this.revisit = revisit;
    this.drawn = "";
    this.snapshots = [];
    this.metric = load("metric", null);
    $("metric").onchange = (event) => {
      this.metric = event.target.value;
      save("metric", this.metric);
      event.target.blur();
      this.draw();
    };
  }

  // Reads what changed since the last look.
  async look(model, status) {
    this.showProgress(status.tonight[model.name], status.progress[model.name]);
    const { labels } = await ask(`labels?model=${model.name}&limit=${RECENT}`);
    this.showRecent(labels);
    const now = `${model.name} ${model.snapshot?.number}`;
    if (now !== this.drawn) {
      this.snapshots = (await ask(`models/${model.name}/curve`)).snapshots;
      this.drawn = now;
      this.draw();
    }
  }

  showProgress(tonight = { labels: 0, classes: {}, people: {} }, { answered, budget }) {
    $("tonight").textContent = budget ? `${answered} / ${budget}` : answered;
    $("answered").textContent = budget ? `${answered} of ${budget} answers` : `${answered} answer${answered === 1 ? "" : "s"}`;
    $("budget").hidden = !budget;
    if (budget) Object.assign($("budget"), { max: budget, value: Math.min(answered, budget) });
    showCounts($("by-class"), tonight.classes);
    showCounts($("by-person"), tonight.people);
  }

  showRecent(labels) {
    const key = JSON.stringify(labels.map((one) => [one.event_id, one.standing]));
    if (key === this.recent) return;
    this.recent = key;
    $("recent").replaceChildren(...labels.filter((one) => !one.withdrawn).map((one) => this.line(one)));
  }

  line(label) {
    const item = make("li", "", label.standing ? "" : "gone");
    const button = make("button");
    const said = label.label ?? CANT_TELL;
    const name = (label.object_id ?? label.alert_id).replace(/^[^:]*:/, "");
    const time = new Date(label.when).toTimeString().slice(0, 5);
    button.append(make("span", name, "name"), make("b", said), make("span", `${label.who ?? label.source} ${time}`, "who"));
    if (label.comment) button.title = label.comment;
    button.setAttribute("aria-label", `${name}: ${said}, by ${label.who ?? label.source} at ${time}${label.comment ? `, ${label.comment}` : ""}${label.standing ? "" : ", replaced"}; see it again`);
    button.onclick = () => this.revisit(label);
    item.append(button);
    return item;
  }

  draw() {
    const names = metricsOf(this.snapshots);
    const chosen = names.includes(this.metric) ? this.metric : names[0];
    $("metric").replaceChildren(...names.map((name) => new Option(name.replaceAll("_", " "), name)));
    if (chosen) $("metric").value = chosen;
    $("metric-choice").hidden = names.length < 2;
    drawLearning(this.snapshots, chosen ?? "");
  }
}
