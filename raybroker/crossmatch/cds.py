"""SIMBAD through the CDS X-match service: one request per batch, off unless the settings ask for it.

The service is far away and shared by all astronomers, so it must never hold the stream up: there is a time-out, a
request that fails gives nulls, and after a failure no request is made for a while.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from astropy import units
from astropy.table import Table

from raybroker import alerts
from raybroker.step import Step

log = logging.getLogger(__name__)

URL = "http://cdsxmatch.u-strasbg.fr/xmatch/api/v1/sync"
REST_SECONDS = 30.0  # without requests after one has failed
LOG_SECONDS = 60.0
GIVES = pa.struct([("main_id", pa.string()), ("main_type", pa.string()), ("distance", pa.float32())])


def step(*, radius_arcsec: float = 1.5, timeout_seconds: float = 5.0, url: str = URL) -> Step:
    """The step `simbad`: name, object type and distance (arcsec) of the nearest SIMBAD object; null where there is
    none within the radius, and where the service gave no answer."""
    settings = {"url": url, "radius_arcsec": radius_arcsec, "timeout_seconds": timeout_seconds}
    return Step("simbad", "enrich", simbad, ("ra", "dec"), GIVES, settings=settings, about=step.__doc__ or "")


def simbad(
    ra: pa.Array, dec: pa.Array, *, url: str, radius_arcsec: float, timeout_seconds: float
) -> dict[str, pa.Array]:
    """The call of the step: see `step`."""
    positions = np.stack([alerts.values(ra), alerts.values(dec)])
    rows = np.flatnonzero(np.isfinite(positions).all(axis=0))
    found: Mapping[int, Any] = {}
    if len(rows):
        ask = functools.partial(_ask, positions, rows, url, radius_arcsec, timeout_seconds)
        found = fuse(url).call(ask, instead={})
    matches = [found.get(row, {}) for row in range(len(ra))]
    return {field.name: pa.array([match.get(field.name) for match in matches], field.type) for field in GIVES}


def _ask(
    positions: alerts.Floats, rows: alerts.Integers, url: str, radius_arcsec: float, timeout_seconds: float
) -> dict[int, dict[str, Any]]:
    """The nearest SIMBAD object of each row that has one."""
    if len(rows) == 1:  # the service refuses a table of one position (astroquery issue 1376)
        rows = np.repeat(rows, 2)
    service = _client()()
    service.URL, service.TIMEOUT = url, timeout_seconds
    upload = Table({"alert": rows, "alert_ra": positions[0, rows], "alert_dec": positions[1, rows]})
    radius = radius_arcsec * units.arcsec
    matches = service.query(upload, "simbad", radius, colRA1="alert_ra", colDec1="alert_dec", cache=False)
    found: dict[int, dict[str, Any]] = {}
    for match in sorted(matches, key=lambda match: (match["angDist"], str(match["main_id"]))):
        found.setdefault(int(match["alert"]), _fields(match))
    return found


def _fields(match: Any) -> dict[str, Any]:
    return {
        "main_id": str(match["main_id"]),
        "main_type": str(match["main_type"]),
        "distance": float(match["angDist"]),
    }


@functools.cache
def _client() -> Any:
    """astroquery's client, made only where SIMBAD is asked for: importing it takes a while."""
    with contextlib.redirect_stdout(
        io.StringIO()
    ):  # it prints that the package regions, not needed here, is missing
        from astroquery.xmatch import XMatchClass

    class Simbad(XMatchClass):  # type: ignore[misc]
        """Takes 'simbad' as it is; the original fetches a list of all of VizieR, without a time-out, to find it in."""

        def _prepare_sending_table(self, index: int, payload: Any, *others: Any) -> None:
            if isinstance(others[1], str) and others[1] == "simbad":
                payload[f"cat{index}"] = "simbad"
            else:
                super()._prepare_sending_table(index, payload, *others)

    return Simbad


@dataclass
class Fuse:
    """Calls a service that may fail; after a failure it is left alone for `rest` seconds.

    `failures` counts calls that raised and `skipped` those not made; both are logged at most once a minute.
    """

    name: str
    rest: float = REST_SECONDS
    clock: Callable[[], float] = time.monotonic
    failures: int = 0
    skipped: int = 0
    closed_until: float = float("-inf")
    silent_until: float = float("-inf")

    def call(self, ask: Callable[[], Any], instead: Any) -> Any:
        """What `ask` returns, or `instead` where it raises or is not asked."""
        if self.clock() < self.closed_until:
            self.skipped += 1
            return instead
        try:
            return ask()
        except Exception as error:  # whatever a distant service may answer
            self.failures += 1
            self.closed_until = self.clock() + self.rest
            self._log(error)
            return instead

    def _log(self, error: Exception) -> None:
        if self.clock() >= self.silent_until:
            self.silent_until = self.clock() + LOG_SECONDS
            log.warning(
                "%s gives no answer (%s: %s); so far %d requests failed and %d were not made. Alerts go on "
                "without it.",
                *(self.name, type(error).__name__, error, self.failures, self.skipped),
            )


@functools.cache
def fuse(url: str) -> Fuse:
    """This process's fuse for a service."""
    return Fuse(url)
