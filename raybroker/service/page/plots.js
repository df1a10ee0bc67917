// How every plot here looks. Plotly is loaded before.

const coarse = matchMedia("(pointer: coarse)");
const CLASSES = ["#3b6fd4", "#c4622d", "#2f8f6b", "#8a5cc2", "#b0892a", "#b8457a", "#5c7d8a", "#7a7f3a"];

export const colourOf = (i) => CLASSES[i % CLASSES.length];

export function inks() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(["ink", "soft", "line", "card", "accent"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

export function axis(title = "", more = {}) {
  const { soft, line } = inks();
  return {
    gridcolor: line, zerolinecolor: line, linecolor: line, tickfont: { color: soft, size: 11 }, fixedrange: coarse.matches,
    title: { text: title, font: { color: soft, size: 11 }, standoff: 4 }, ...more,
  };
}

export function layout(xaxis, yaxis, more = {}) {
  const { ink, soft, card, line } = inks();
  return {
    margin: { l: 46, r: 12, t: 8, b: 34 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, size: 12, family: "system-ui, sans-serif" }, showlegend: false, hovermode: "closest",
    hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink, size: 12 }, align: "left" },
    dragmode: coarse.matches ? false : "zoom", xaxis: { ...xaxis, tickcolor: soft }, yaxis, ...more,
  };
}

export function plot(element, traces, frame, about) {
  element.setAttribute("aria-label", about);
  if (!window.Plotly) return;
  Plotly.react(element, traces, frame, { displayModeBar: false, responsive: true, doubleClick: "reset" });
}

export function clear(element, about) {
  element.setAttribute("aria-label", about);
  if (window.Plotly) Plotly.purge(element);
  element.replaceChildren();
}
