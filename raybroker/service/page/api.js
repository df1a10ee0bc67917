// Talking to the server, and the answers that wait until it has them.

import { load, save } from "./dom.js";

export class Refused extends Error {
  constructor(status, message, content) { super(message); this.status = status; this.content = content; }
}

export async function ask(path, options) {
  const answer = await fetch(path, { ...options, signal: AbortSignal.timeout(15000) });
  const content = await answer.json().catch(() => ({ error: `${answer.status} ${answer.statusText}` }));
  if (!answer.ok) throw new Refused(answer.status, content.error, content);
  return content;
}

export const at = (alertId) => encodeURIComponent(alertId).replaceAll("%3A", ":");
export const understood = (error) => error instanceof Refused && error.status < 500;

export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is missing on plain http
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Answers. Each is kept in this browser until the server has it; sending it twice changes nothing.
export class Outbox {
  constructor({ sent, refused, failed }) {
    this.events = load("unsent", []);
    this.told = { sent, refused, failed };
    this.sending = null;
  }

  post(event) {
    this.events.push(event);
    save("unsent", this.events);
    return this.send();
  }

  // Resolves when nothing waits any more, or when the server cannot be reached.
  send() {
    this.sending ??= this.all().finally(() => { this.sending = null; });
    return this.sending;
  }

  async all() {
    if (!this.events.length) return;
    try {
      while (this.events.length) {
        await this.deliver(this.events[0]);
        this.events.shift();
        save("unsent", this.events);
      }
      this.told.sent();
    } catch (error) {
      this.told.failed(error);
    }
  }

  async deliver(event) {
    try {
      await ask("labels", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(event) });
    } catch (error) {
      // What the server understood and refused would be refused for ever; the rest is tried again.
      if (!understood(error) || error.status === 401) throw error;
      this.told.refused(event, error);
    }
  }
}
