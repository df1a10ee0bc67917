"""A synthetic sky with known truth: what there is, where, how bright, and when a survey sees it.

Four classes, of which no single feature tells any two apart (AUC at most 0.8), but about eight together do: so a
hundred labels are worth something, and a model that has learned them can be told from one that has not. Everything
is a pure function of the seed, the object and the time, by hashing, so that nights agree with one another about the
past and nothing has to be remembered.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtri

from raybroker.alerts import HEALPIX_ORDER, Floats, Integers, healpix, magnitude_to_flux

CLASSES = ("supernova", "agn", "variable_star", "bogus")
SUPERNOVA, AGN, VARIABLE_STAR, BOGUS = range(4)
SHARES = (0.38, 0.18, 0.17, 0.27)  # of the places in the sky, so that the alerts are about as many of each

# What varies from object to object: its mean for each class, and its spread. Each row parts the classes by about
# one spread, and each in another way: no row decides, all together do.
TRAITS: Mapping[str, tuple[tuple[float, ...], float]] = {
    "latitude": ((1.2, 1.22, 0.4, 0.36), 0.8),  # latent: see positions
    "peak": ((18.7, 19.08, 18.4, 18.75), 0.6),  # magnitude of the difference flux, at its brightest
    "colour": ((0.34, 0.01, 0.4, 0.03), 0.36),  # g - r
    "offset": ((0.15, -0.31, -0.26, 0.15), 0.45),  # log10 arcsec to the template's nearest source
    "contrast": ((0.75, -1.0, 0.5, -0.75), 1.4),  # that source's magnitude below the peak
    "template_colour": ((0.58, 0.28, 0.62, 0.43), 0.31),  # g - r of that source
    "reddening": ((0.028, 0.0, 0.0, 0.0), 0.012),  # of g - r, magnitudes per day
    "timescale": ((1.35, 1.6, 1.03, 1.2), 0.35),  # log10 days
    "wander": ((-0.57, -0.555, -0.505, -0.46), 0.3),  # log10 of the restless part of the flux
    "level": ((1.0, 0.76, 0.65, 0.38), 0.2),  # of the steady part, where there is one
    "positive": ((1.23, 0.6, -0.05, 0.02), 1.0),  # latent: brighter than the template where above zero
    "quality": ((2.25, 2.05, 1.85, 1.45), 0.7),  # logit of the reliability
}
STREAMS = {name: number for number, name in enumerate(TRAITS, start=100)}
CYCLE = 120.0  # days from one supernova at a place to the next

DAYS_BACK = 30  # of history in a packet
VISITS = 2  # of a field in a night, in two bands
FIELD_ORDER = 3  # HEALPix: 768 fields of 7 degrees, about ZTF's


# magnitudes by which a source is fainter in a band for each magnitude of its g - r
REDDER = {"u": 1.1, "g": 0.35, "r": -0.65, "i": -0.9, "z": -1.2, "y": -1.4}


@dataclass(frozen=True)
class Look:
    """How a survey looks at the sky."""

    bands: tuple[str, ...]
    declination: tuple[float, float]
    hours: tuple[float, float]  # UTC fraction of the day that follows the night's date by `late`
    late: int
    limit: float  # 5-sigma magnitude
    unseen: str  # the kind of point its packets have where nothing was detected
    fainter: float  # magnitudes by which its objects are fainter than TRAITS says

    @property
    def redder(self) -> Floats:
        return np.array([REDDER[band] for band in self.bands])


LOOKS = {
    "ztf": Look(("g", "r"), (-28, 90), (0.12, 0.5), 0, 20.6, "limit", 0.0),
    "rubin": Look(("u", "g", "r", "i", "z", "y"), (-85, 12), (0.02, 0.4), 1, 24.0, "forced", 3.4),
}


def _hash(*keys: Any) -> npt.NDArray[np.uint64]:
    """64 random bits for each combination of integer keys (splitmix64)."""
    state: Any = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for key in keys:
            state = (state ^ np.asarray(key).astype(np.int64).view(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state, dtype=np.uint64)


def uniform(*keys: Any) -> Floats:
    """In (0, 1), the same for the same keys."""
    return (np.asarray(_hash(*keys) >> np.uint64(11), dtype=np.float64) + 0.5) / 2.0**53


def normal(*keys: Any) -> Floats:
    return np.asarray(ndtri(uniform(*keys)))


@dataclass(frozen=True)
class Sky:
    """`places` in the sky; each holds one object after another (supernovae) or one for ever (the others).

    A place keeps its class, so that the truth of any alert or object follows from its id alone.
    """

    seed: int = 0
    places: int = 30_000

    @classmethod
    def for_night(cls, seed: int, alerts: int) -> Sky:
        """A sky large enough for `alerts` alerts in one night."""
        return cls(seed, max(500, 4 * alerts))

    @cached_property
    def kind(self) -> Integers:
        """The class of each place, as its number in CLASSES."""
        edges = np.cumsum(SHARES) / sum(SHARES)
        return np.searchsorted(edges, uniform(self.seed, 1, np.arange(self.places))).astype(np.int64)

    @cached_property
    def positions(self) -> tuple[Floats, Floats]:
        """ra and dec, degrees; stars crowd to the galactic plane, the rest hides behind it."""
        place = np.arange(self.places)
        latitude = self.trait("latitude", place)
        sign = np.where(uniform(self.seed, 2, place) < 0.5, -1, 1)
        b = np.radians(90 * expit(latitude - 0.9)) * sign
        return _equatorial(2 * np.pi * uniform(self.seed, 3, place), b)

    @cached_property
    def field(self) -> Integers:
        return healpix(*self.positions) >> np.int64(2 * (HEALPIX_ORDER - FIELD_ORDER))

    def trait(self, name: str, place: Integers, turn: Any = 0) -> Floats:
        """One of TRAITS, of the object at a place."""
        means, spread = TRAITS[name]
        own = normal(self.seed, STREAMS[name], place, turn)
        return np.array(means)[self.kind[place]] + spread * own


def _equatorial(l: Floats, b: Floats) -> tuple[Floats, Floats]:  # noqa: E741
    """Galactic to equatorial, radians to degrees."""
    pole_dec, pole_ra, node = np.radians([27.12825, 192.85948, 122.93192])
    sine = np.sin(pole_dec) * np.sin(b) + np.cos(pole_dec) * np.cos(b) * np.cos(node - l)
    y = np.cos(b) * np.sin(node - l)
    x = np.cos(pole_dec) * np.sin(b) - np.sin(pole_dec) * np.cos(b) * np.cos(node - l)
    return np.degrees(pole_ra + np.arctan2(y, x)) % 360, np.degrees(np.arcsin(np.clip(sine, -1, 1)))


# --- when a field is seen -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epochs:
    """Looks at the sky, one row each: where (place), when, in which band, how deep."""

    place: Integers
    night: Integers  # whole MJD
    visit: Integers
    turn: Integers  # which of the place's objects is looked at: 0 where there is only one
    mjd: Floats
    band: Integers  # number in the survey's bands
    sigma: Floats  # nJy

    @property
    def keys(self) -> tuple[Integers, Integers, Integers]:
        """What the noise of a look depends on."""
        return self.place, self.night, self.visit

    def take(self, rows: Any) -> Epochs:
        return Epochs(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Measured:
    """Difference flux and its error at each epoch, nJy; detected or not."""

    epochs: Epochs
    flux: Floats
    error: Floats

    @property
    def seen(self) -> npt.NDArray[np.bool_]:
        return np.abs(self.flux) > 5 * self.error

    def take(self, rows: Any) -> Measured:
        return Measured(self.epochs.take(rows), self.flux[rows], self.error[rows])


def _observed(sky: Sky, field: Any, night: Any) -> npt.NDArray[np.bool_]:
    """Whether a field is seen in a night: every second one, weather and the Moon permitting."""
    return ((night + field) % 2 == 0) & (uniform(sky.seed, 4, field, night) < 0.8)


def _look_at(
    sky: Sky, look: Look, place: Integers, night: Integers, visit: Integers, turn: Integers
) -> Epochs:
    field = sky.field[place]
    begin, end = look.hours
    start = begin + (end - begin - 0.04) * uniform(sky.seed, 5, field, night)
    mjd = night + look.late + start + visit * (0.025 + 0.01 * uniform(sky.seed, 6, field, night))
    first = (_hash(sky.seed, 7, field, night) % np.uint64(len(look.bands))).astype(np.int64)
    depth = look.limit + 0.3 * normal(sky.seed, 8, field, night, visit)
    sigma = magnitude_to_flux(depth) / 5
    return Epochs(place, night, visit, turn, mjd, (first + visit) % len(look.bands), sigma)


# --- how bright it is then ------------------------------------------------------------------------------------


def _turn(sky: Sky, place: Integers, night: Integers) -> Integers:
    """Which of its objects a place shows: only a supernova gives way to another."""
    turn = (night - 50000 + CYCLE * uniform(sky.seed, 11, place)) // CYCLE
    return np.where(sky.kind[place] == SUPERNOVA, turn, 0).astype(np.int64)


def _days(sky: Sky, epochs: Epochs) -> Floats:
    """Since the supernova was brightest."""
    begin = 50000 + CYCLE * (epochs.turn - uniform(sky.seed, 11, epochs.place))
    return epochs.mjd - begin - 0.2 * CYCLE


def _outburst(days: Floats, scale: Floats, quick: Floats) -> Floats:
    """A rise and a fall, at most about 1 (Bazin et al. 2009)."""
    rise = scale * quick
    return 1.3 * np.exp(-np.abs(days) / scale * (days > 0)) / (1 + np.exp(np.clip(-days / rise, -50, 50)))


def _restless(sky: Sky, epochs: Epochs, scale: Floats) -> Floats:
    """Unit variance: waves of many lengths for most, one with its overtone for variable stars, none for bogus."""
    place, kind = epochs.place, sky.kind[epochs.place]
    waves = np.zeros(len(place))
    for k in range(5):
        length = scale * 10 ** (1.4 * uniform(sky.seed, 20 + k, place) - 0.4)
        waves += np.sin(2 * np.pi * (epochs.mjd / length + uniform(sky.seed, 30 + k, place)))
    turn = epochs.mjd / scale + uniform(sky.seed, 40, place)
    periodic = np.sin(2 * np.pi * turn) + 0.5 * np.sin(4 * np.pi * turn + 1)
    white = normal(sky.seed, 41, place, epochs.night)
    smooth = uniform(sky.seed, 42, place)
    waves = np.sqrt(smooth) * 0.63 * waves + np.sqrt(1 - smooth) * white
    return np.where(kind == VARIABLE_STAR, 1.26 * periodic, waves)


def _drift(sky: Sky, epochs: Epochs, days: Floats) -> Floats:
    """Days by which a colour has changed: on and on for a supernova, to and fro for all others."""
    wave = 10 * np.sin(epochs.mjd / 10 + 2 * np.pi * uniform(sky.seed, 43, epochs.place))
    return np.where(sky.kind[epochs.place] == SUPERNOVA, np.clip(days, -20, 50) - 15, wave)


def _measure(sky: Sky, look: Look, epochs: Epochs) -> Measured:
    place, bursts = epochs.place, sky.kind[epochs.place] == SUPERNOVA
    days = _days(sky, epochs)
    trait = {name: sky.trait(name, place, epochs.turn) for name in TRAITS}
    scale = 10 ** trait["timescale"]
    quick = 0.18 * 10 ** (0.3 * normal(sky.seed, 12, place, epochs.turn))
    level = np.where(bursts, _outburst(days, scale, quick), np.clip(trait["level"], 0, 1))
    restless = np.where(bursts, level, 1.0) * 10 ** trait["wander"] * _restless(sky, epochs, scale)
    colour = trait["colour"] + trait["reddening"] * _drift(sky, epochs, days)
    brightest = magnitude_to_flux(trait["peak"] + look.fainter + look.redder[epochs.band] * colour)
    flux = np.where(trait["positive"] > 0, 1, -1) * (level + restless) * brightest
    error = np.hypot(epochs.sigma, 0.03 * flux)
    return Measured(epochs, flux + error * normal(sky.seed, 13, *epochs.keys), error)


# --- what a survey says of it ---------------------------------------------------------------------------------


def tonight(sky: Sky, look: Look, night: int) -> Measured:
    """Every detection of a night (whole MJD of its date), in order of time."""
    low, high = look.declination
    dec = sky.positions[1]
    place = np.flatnonzero((dec > low) & (dec < high) & _observed(sky, sky.field, night)).astype(np.int64)
    place, visit = np.repeat(place, VISITS), np.tile(np.arange(VISITS), len(place))
    nights = np.full(len(place), night)
    found = _measure(sky, look, _look_at(sky, look, place, nights, visit, _turn(sky, place, nights)))
    seen = np.flatnonzero(found.seen)
    return found.take(seen[np.argsort(found.epochs.mjd[seen], kind="stable")])


def past(sky: Sky, look: Look, alerts: Epochs) -> tuple[Measured, Integers]:
    """All looks of the last 30 days at the alerts' places, up to and with the alert; and the alert of each."""
    night = alerts.night[:, None] + np.arange(-DAYS_BACK, 1)
    alert, column = np.nonzero(_observed(sky, sky.field[alerts.place][:, None], night))
    alert, column = np.repeat(alert, VISITS), np.repeat(column, VISITS)
    visit = np.arange(len(alert)) % VISITS
    epochs = _look_at(sky, look, alerts.place[alert], night[alert, column], visit, alerts.turn[alert])
    use = epochs.mjd <= alerts.mjd[alert]
    return _measure(sky, look, epochs.take(use)), alert[use]


def reliability(sky: Sky, epochs: Epochs) -> tuple[Floats, Floats]:
    """Of detections, by the survey's newer and older classifier (ZTF's `drb` and `rb`)."""
    own = sky.trait("quality", epochs.place, epochs.turn)
    newer = own + 0.5 * normal(sky.seed, 15, *epochs.keys)
    older = own - 0.8 + 0.5 * normal(sky.seed, 14, *epochs.keys)
    return expit(newer), expit(older)


def template(sky: Sky, look: Look, epochs: Epochs) -> tuple[Floats, Floats]:
    """The template's nearest source: its magnitude, and its distance in arcsec as each look measures it."""
    trait = {name: sky.trait(name, epochs.place, epochs.turn) for name in TRAITS}
    jitter = [0.15 * normal(sky.seed, stream, *epochs.keys) for stream in (16, 17)]
    magnitude = trait["peak"] + look.fainter + trait["contrast"]
    redder = look.redder[epochs.band] * trait["template_colour"]
    return magnitude + redder, np.hypot(10 ** trait["offset"] + jitter[0], jitter[1])


# --- what it looks like ---------------------------------------------------------------------------------------

STAMP = 63  # pixels of an arcsecond
STAMPS_OF_A_KIND = 4
BRIGHTNESS_STEPS = 6


def stamp_keys(sky: Sky, found: Measured) -> list[tuple[int, int, int, int]]:
    """Which images show each detection: class, brightness, sign and one of a few alike."""
    signal = np.log2(np.abs(found.flux) / found.error / 5)
    brightness = np.clip(signal * 2, 0, BRIGHTNESS_STEPS - 1).astype(np.int64)
    one = (_hash(sky.seed, 70, found.epochs.place) % np.uint64(STAMPS_OF_A_KIND)).astype(np.int64)
    keys = (sky.kind[found.epochs.place], brightness, np.sign(found.flux).astype(np.int64), one)
    return list(zip(*(key.tolist() for key in keys), strict=True))


@functools.cache
def stamps(key: tuple[int, int, int, int]) -> dict[str, bytes]:
    """Science, template and difference images as FITS files."""
    kind, brightness, sign, one = key
    dice = np.random.default_rng([kind, brightness, sign + 1, one])
    change = sign * 4 * 2 ** (brightness / 2) * _change(kind, dice)
    template = 5 * dice.standard_normal((STAMP, STAMP)) * 0.05 + _template(kind, dice)
    science = template + change + dice.standard_normal((STAMP, STAMP))
    images = {"science": science + 150, "template": template + 150, "difference": science - template}
    return {name: _fits(image) for name, image in images.items()}


def _change(kind: int, dice: np.random.Generator) -> Floats:
    """A star's image; for bogus a dipole, a bad column or a cosmic ray as often."""
    x, y = np.meshgrid(*[np.arange(STAMP) - STAMP // 2] * 2)
    star = _blob(x, y, 1.2)
    if kind != BOGUS or dice.random() < 0.25:
        return star
    angle = dice.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    shapes = [
        _blob(along - 1, across, 1) - _blob(along + 1, across, 1),
        np.exp(-(x**2) / 0.5),
        _blob(along / 8, across, 0.6),
    ]
    return shapes[int(dice.integers(len(shapes)))]


def _template(kind: int, dice: np.random.Generator) -> Floats:
    """A host off the centre for a supernova, with a bright centre for an AGN; a star; anything for bogus."""
    x, y = np.meshgrid(*[np.arange(STAMP) - STAMP // 2] * 2)
    away = dice.normal(0, 3 if kind == SUPERNOVA else 0.3, 2)
    galaxy = np.exp(-np.hypot((x - away[0]) * dice.uniform(1, 1.8), y - away[1]) / dice.uniform(2, 5))
    neighbours = sum(
        dice.uniform(5, 60) * _blob(x - dx, y - dy, 1.2) for dx, dy in dice.uniform(-31, 31, (4, 2))
    )
    own = {
        SUPERNOVA: 25 * galaxy,
        AGN: 20 * galaxy + 50 * _blob(x, y, 1.2),
        VARIABLE_STAR: 80 * _blob(x, y, 1.2),
    }
    return neighbours + own.get(kind, dice.uniform(0, 90) * _blob(x - away[0], y, 1.4))


def _blob(x: Any, y: Any, sigma: float) -> Floats:
    return np.asarray(np.exp(-(x**2 + y**2) / (2 * sigma**2)))


def _fits(image: Floats) -> bytes:
    cards = {"SIMPLE": "T", "BITPIX": "-32", "NAXIS": "2", "NAXIS1": str(STAMP), "NAXIS2": str(STAMP)}
    header = "".join(f"{name:8}= {value:>20}".ljust(80) for name, value in cards.items()) + "END".ljust(80)
    data = image.astype(">f4").tobytes()
    return header.ljust(2880).encode() + data.ljust(-(-len(data) // 2880) * 2880, b"\0")
