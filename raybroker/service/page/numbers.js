// Numbers of the sky and how they are written. Nothing here touches the document.

const DAY_MS = 86400000;
const EPOCH_MJD = 40587; // 1970-01-01
const RADIANS = Math.PI / 180;

export const magnitude = (flux, zeroPoint) => zeroPoint - 2.5 * Math.log10(Math.abs(flux));
export const instant = (mjd) => new Date((mjd - EPOCH_MJD) * DAY_MS).toISOString();
export const calendar = (mjd) => `${instant(mjd).replace("T", " ").slice(0, 16)} UT`;

export function sexagesimal(ra, dec) {
  const parts = (value, digits) => {
    const total = Math.round(Math.abs(value) * 3600 * 10 ** digits) / 10 ** digits;
    const seconds = (total % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
    return [Math.floor(total / 3600), Math.floor(total / 60) % 60].map((n) => String(n).padStart(2, "0")).concat(seconds).join(":");
  };
  return ra === null || dec === null ? "" : `${parts(ra / 15, 2)} ${dec < 0 ? "−" : "+"}${parts(dec, 1)}`;
}

const unit = ([longitude, latitude]) => {
  const [a, b] = [longitude * RADIANS, latitude * RADIANS];
  return [Math.cos(b) * Math.cos(a), Math.cos(b) * Math.sin(a), Math.sin(b)];
};
const angles = ([x, y, z]) => [((Math.atan2(y, x) / RADIANS) + 360) % 360, Math.asin(Math.max(-1, Math.min(1, z))) / RADIANS];
const turned = (matrix, v) => matrix.map((line) => line[0] * v[0] + line[1] * v[1] + line[2] * v[2]);
const transposed = (matrix) => [0, 1, 2].map((i) => matrix.map((line) => line[i]));

// ICRS to galactic: the matrix of the Hipparcos catalogue (ESA SP-1200, volume 1, section 1.5.3).
const TO_GALACTIC = [
  [-0.0548755604, -0.8734370902, -0.4838350155],
  [0.4941094279, -0.4448296300, 0.7469822445],
  [-0.8676661490, -0.1980763734, 0.4559837762],
];
const TILT = 23.4392911 * RADIANS; // of the ecliptic, J2000
const TO_ECLIPTIC = [[1, 0, 0], [0, Math.cos(TILT), Math.sin(TILT)], [0, -Math.sin(TILT), Math.cos(TILT)]];

export const galactic = (ra, dec) => angles(turned(TO_GALACTIC, unit([ra, dec])));
export const ecliptic = (ra, dec) => angles(turned(TO_ECLIPTIC, unit([ra, dec])));
export const fromGalactic = (l, b) => angles(turned(transposed(TO_GALACTIC), unit([l, b])));
export const fromEcliptic = (l, b) => angles(turned(transposed(TO_ECLIPTIC), unit([l, b])));

// Mollweide: all of the sky in an ellipse of 360 by 180, east to the left, 0 h in the middle, north up (y negative).
export function mollweide(ra, dec) {
  const latitude = dec * RADIANS;
  let theta = latitude;
  for (let i = 0; i < 50 && Math.abs(dec) < 89.999; i += 1) {
    const step = (2 * theta + Math.sin(2 * theta) - Math.PI * Math.sin(latitude)) / (2 + 2 * Math.cos(2 * theta));
    theta -= step;
    if (Math.abs(step) < 1e-9) break;
  }
  const longitude = ((ra + 180) % 360 + 360) % 360 - 180;
  return [-longitude * Math.cos(theta), -90 * Math.sin(theta)];
}

// A few evenly chosen texts of a number: no more digits than tell values apart.
export const short = (value) => (typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(5))) : String(value));
