// Where on the sky: the alert, the other open questions, the galactic plane and the ecliptic.

import { $, draw } from "./dom.js";
import { ecliptic, fromEcliptic, fromGalactic, galactic, mollweide } from "./numbers.js";

const STEPS = Array.from({ length: 181 }, (_, i) => 2 * i);

// A line of (ra, dec), cut where it leaves the map on one side and enters on the other.
export function pathOf(places) {
  let before = null;
  return places.map(([ra, dec]) => {
    const [x, y] = mollweide(ra, dec);
    const move = before === null || Math.abs(x - before) > 90;
    before = x;
    return `${move ? "M" : "L"}${x.toFixed(2)} ${y.toFixed(2)}`;
  }).join("");
}

function frame() {
  const latitudes = STEPS.filter((step) => step <= 180).map((step) => step - 90);
  const parallels = [-60, -30, 0, 30, 60].map((dec) => pathOf([[180.01, dec], ...STEPS.slice(0, 180).map((step) => [180.01 + step, dec])]));
  const meridians = [60, 120, 240, 300, 0].map((ra) => pathOf(latitudes.map((dec) => [ra, dec])));
  return [
    draw("ellipse", { rx: 180, ry: 90, class: "rim" }),
    draw("path", { d: [...parallels, ...meridians].join(""), class: "grid" }),
    draw("path", { d: pathOf(STEPS.map((step) => fromEcliptic(step, 0))), class: "ecliptic" }),
    draw("path", { d: pathOf(STEPS.map((step) => fromGalactic(step, 0))), class: "galaxy" }),
    draw("text", { x: 0, y: 3, class: "hour" }, "0h"),
    draw("text", { x: 90, y: 3, class: "hour" }, "18h"),
    draw("text", { x: -90, y: 3, class: "hour" }, "6h"),
    draw("g", { id: "others" }), draw("g", { id: "here" }),
  ];
}

function dot([ra, dec], radius, className, title) {
  const [x, y] = mollweide(ra, dec);
  const found = draw("circle", { cx: x.toFixed(2), cy: y.toFixed(2), r: radius, class: className });
  if (title) found.append(draw("title", {}, title));
  return found;
}

// `here` is an alert or null, `others` alerts; those without a position are left out.
export function showSky(here, others) {
  const map = $("sky");
  if (!map.firstChild) map.append(...frame());
  const placed = (one) => one && one.ra !== null && one.ra !== undefined;
  const name = (one) => (one.object_id ?? one.alert_id).replace(/^[^:]*:/, "");
  map.querySelector("#others").replaceChildren(...others.filter(placed).map((one) => dot([one.ra, one.dec], 3, "other", name(one))));
  const own = placed(here) ? [dot([here.ra, here.dec], 9, "halo"), dot([here.ra, here.dec], 4.5, "here", name(here))] : [];
  map.querySelector("#here").replaceChildren(...own);
  const words = placed(here) ? spoken(here) : "";
  $("sky-note").textContent = words;
  map.setAttribute("aria-label", `Map of the sky with the galactic plane${words ? `; this alert at ${words}` : ""}; ${others.length} other open questions`);
}

function spoken({ ra, dec }) {
  const degrees = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}°`;
  return `b ${degrees(galactic(ra, dec)[1])}, β ${degrees(ecliptic(ra, dec)[1])}`;
}
