// The same object elsewhere. Plain links: this page itself never asks anybody but its own server.

import { make } from "./dom.js";

const ZTF = /^ZTF\d{2}[a-z]{7}$/;
const RUBIN = /^\d{9,20}$/;

// [name, address] by what the id looks like, and by the position.
export function linksOf(objectId, ra, dec) {
  const name = (objectId ?? "").replace(/^[^:]*:/, "");
  return [...brokers(objectId ?? "", name), ...(ra === null || dec === null ? [] : places(ra, dec))];
}

function brokers(objectId, name) {
  if (ZTF.test(name)) {
    return [
      ["ALeRCE", `https://alerce.online/object/${name}`],
      ["Lasair", `https://lasair-ztf.lsst.ac.uk/objects/${name}/`],
      ["Fink", `https://ztf.fink-portal.org/${name}`],
    ];
  }
  if (RUBIN.test(name) && !objectId.startsWith("ztf:")) {
    return [
      ["ALeRCE", `https://lsst.alerce.online/object/${name}?survey=lsst`],
      ["Lasair", `https://lasair-lsst.lsst.ac.uk/objects/${name}/`],
      ["Fink", `https://lsst.fink-portal.org/${name}`],
    ];
  }
  return [];
}

function places(ra, dec) {
  const [a, d] = [ra.toFixed(6), dec.toFixed(6)];
  const signed = encodeURIComponent(`${a} ${dec < 0 ? "" : "+"}${d}`);
  return [
    ["TNS", `https://www.wis-tns.org/search?ra=${a}&decl=${d}&radius=5&coords_unit=arcsec`],
    ["SIMBAD", `https://simbad.cds.unistra.fr/simbad/sim-coo?Coord=${signed}&CooFrame=ICRS&Radius=10&Radius.unit=arcsec`],
    ["Legacy Survey", `https://www.legacysurvey.org/viewer?ra=${a}&dec=${d}&layer=ls-dr10&zoom=15&mark=${a},${d}`],
  ];
}

export function showLinks(place, objectId, ra, dec) {
  place.replaceChildren(...linksOf(objectId, ra, dec).map(([name, address]) => {
    const link = make("a", name);
    link.href = address;
    link.target = "_blank";
    link.rel = "noopener noreferrer";
    return link;
  }));
}
