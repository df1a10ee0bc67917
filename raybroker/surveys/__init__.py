"""Packet bytes to the canonical batch, and back: one file per survey."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from raybroker.alerts import Decoded, Packet
from raybroker.errors import PacketError, SettingsError, did_you_mean
from raybroker.surveys import containers, fink
from raybroker.surveys.fink import Fink
from raybroker.surveys.rubin import Rubin
from raybroker.surveys.schema import parse, top_fields
from raybroker.surveys.ztf import Ztf


class Survey(Protocol):
    """What a survey is to the rest of the broker."""

    name: str
    topics: tuple[str, ...]  # subscribed to where the settings name none; '^' starts a regular expression

    @property
    def schema(self) -> pa.Schema:
        """`alerts.SCHEMA` and the survey's own struct."""

    def decode(self, packets: Sequence[Packet]) -> Decoded:
        """The batch; a packet that cannot be read is in `bad`, with a reason for a person, and never raises."""

    def encode(
        self, batch: pa.RecordBatch, cutouts: Mapping[str, Sequence[bytes]] | None = None
    ) -> list[Packet]:
        """Valid packets of the survey, a row each; `cutouts` has the bytes of every row by kind."""

    def shared(self, packet: Packet) -> tuple[int, int]:
        """How many leading bytes of value and key are the schema that repeats in every packet."""


SURVEYS: Mapping[str, Callable[..., Survey]] = {"ztf": Ztf, "rubin": Rubin, "fink": Fink}


def load(name: str, **options: Any) -> Survey:
    """A survey by name; its options are its settings (`schemas`, `registry` and `version` for rubin)."""
    if name not in SURVEYS:
        raise SettingsError(
            f"survey '{name}' is not known{did_you_mean(name, SURVEYS)}: {', '.join(SURVEYS)} are"
        )
    try:
        return SURVEYS[name](**options)
    except TypeError as error:
        raise SettingsError(f"survey '{name}' has no such option: {error}") from error


def detect(packet: Packet) -> str | None:
    """The survey that a packet looks like; None where it looks like none."""
    value = packet.value or b""
    if fink.looks_like(packet) and not value.startswith(containers.MAGIC):
        return "fink"
    if len(value) > 5 and value[0] == 0 and 700 <= int.from_bytes(value[1:5], "big") < 10_000:
        return "rubin"
    try:
        top = top_fields(parse(containers.read_header(value).schema))
    except PacketError:
        return None
    return "rubin" if "diaSource" in top else "ztf" if "candidate" in top else None
