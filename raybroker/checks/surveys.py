"""The rules for surveys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybroker import alerts
from raybroker.checks.bits import SEED, raising, same_bits


def check_survey(survey: Any, packets: Sequence[alerts.Packet]) -> None:
    """Every rule for surveys, on real packets that it can read."""
    for rule, keeps in SURVEY_RULES.items():
        with raising(f"survey '{survey.name}'", rule):
            assert keeps(survey, packets), f"survey '{survey.name}' breaks a rule: {rule}"


def _has_schema(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    batch = survey.decode(packets).batch
    batch.validate(full=True)
    return bool(batch.schema.equals(survey.schema) and survey.decode([]).batch.schema.equals(survey.schema))


def _accounts_for_all(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    decoded = survey.decode([*packets, *_garbage(packets[0])])
    rows = [*map(int, decoded.rows), *(bad.row for bad in decoded.bad)]
    reasons = all(bad.reason for bad in decoded.bad)
    return (
        sorted(rows) == list(range(len(packets) + 4))
        and reasons
        and len(decoded.rows) == decoded.batch.num_rows
    )


def _goes_on(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    decoded = survey.decode([*_garbage(packets[0]), *packets])
    alone = survey.decode(packets).batch
    return [bad.row for bad in decoded.bad] == [0, 1, 2, 3] and _same(decoded.batch, alone)


def _garbage(packet: alerts.Packet) -> list[alerts.Packet]:
    value = packet.value or b""
    noise = np.random.default_rng(SEED).bytes(200)
    return [alerts.Packet(bad, key=packet.key) for bad in (None, b"", noise, value[: len(value) // 2])]


def _decodes_one_by_one(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    singles = [survey.decode([packet]).batch for packet in packets]
    together = pa.Table.from_batches(singles).combine_chunks().to_batches()[0]
    return _same(survey.decode(packets).batch, together)


def _same(one: pa.RecordBatch, other: pa.RecordBatch) -> bool:
    columns = zip(one.columns, other.columns, strict=True)
    return one.schema.equals(other.schema) and all(same_bits(a, b) for a, b in columns)


def _has_ids(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    batch = survey.decode(packets).batch
    ids = batch.column("alert_id")
    known = pc.or_(batch.column("object_id").is_valid(), batch.column("ss_object_id").is_valid())
    return ids.null_count == 0 and bool(pc.all(pc.match_substring(ids, ":")).as_py()) and known.true_count > 0


def _histories_ascend(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    batch = survey.decode(packets).batch
    curves = alerts.LightCurves.of(batch.column("history"))
    mjd, owner = curves.numbers("mjd"), curves.alert_of_point()
    own = np.isin(alerts.values(batch.column("mjd")), mjd)
    return bool((np.diff(mjd)[np.diff(owner) == 0] >= 0).all() and own.all())


def _history_is_distinct(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    curves = alerts.LightCurves.of(survey.decode(packets).batch.column("history"))
    points = {name: pc.struct_field(curves.history, name) for name in ("mjd", "band", "kind")}
    table = pa.table({"alert": curves.alert_of_point(), **points})
    return table.group_by(table.column_names).aggregate([]).num_rows == table.num_rows


def _places_agree(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    batch = survey.decode(packets).batch
    cells = alerts.healpix(batch.column("ra").to_numpy(), batch.column("dec").to_numpy())
    return bool((cells == batch.column("healpix").to_numpy()).all())


def _shares_within(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    for packet in [*packets, *_garbage(packets[0])]:
        value, key = survey.shared(packet)
        if not (0 <= value <= len(packet.value or b"") and 0 <= key <= len(packet.key or b"")):
            return False
    return True


def _encodes_what_it_decodes(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    batch = survey.decode(packets).batch
    again = survey.decode(survey.encode(batch)).batch
    names = ("alert_id", "object_id", "ra", "dec", "band", "night")
    same = all(same_bits(batch.column(name), again.column(name)) for name in names)
    late = np.abs(alerts.values(batch.column("mjd")) - alerts.values(again.column("mjd")))
    return same and bool((late < 1e-6).all())


SURVEY_RULES: dict[str, Callable[[Any, Sequence[alerts.Packet]], bool]] = {
    "its batches have its schema, the empty one too": _has_schema,
    "each packet is a row or is bad, with a reason": _accounts_for_all,
    "bad packets do not disturb the others": _goes_on,
    "a packet gives the same bits alone as among others": _decodes_one_by_one,
    "alerts have ids": _has_ids,
    "a history ascends and holds the alert itself": _histories_ascend,
    "a history has each time, band and kind once": _history_is_distinct,
    "the HEALPix cell is that of the position": _places_agree,
    "the shared part lies within the packet": _shares_within,
    "what it encodes it can decode": _encodes_what_it_decodes,
}
