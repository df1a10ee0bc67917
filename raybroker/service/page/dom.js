// The two things that everything here does to the document.

export const $ = (id) => document.getElementById(id);

// An element with text, never with HTML: names and reasons come from outside.
export function make(tag, text = "", className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}
