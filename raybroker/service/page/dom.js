// The few things that everything here does to the document.

export const $ = (id) => document.getElementById(id);

// An element with text, never with HTML: names and reasons come from outside.
export function make(tag, text = "", className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

export function draw(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return element;
}

export function row(...cells) {
  const found = make("tr");
  found.append(...cells.map((cell) => (cell instanceof Node ? cell : make("td", cell))));
  return found;
}

// What this browser remembers.

export function load(key, otherwise) {
  try { return JSON.parse(localStorage.getItem(`raybroker.${key}`)) ?? otherwise; } catch { return otherwise; }
}

export function save(key, value) {
  try { localStorage.setItem(`raybroker.${key}`, JSON.stringify(value)); } catch { /* private window */ }
}
