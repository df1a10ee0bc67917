"""Labels from catalogues, as late as the settings say: TNS types from a file, or what a step found (SIMBAD's types).

A catalogue names an alert's class only `delay_days` after the alert, as a spectrum would. The event ids are made from
catalogue, alert, class and what it had said before: to look again gives the same labels, and a class that has changed
gives one more, which revises the earlier, also where it changes back. Who says so is the catalogue; people's labels go before it (see `raybroker.learning.labels`).
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
import json
import logging
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from raybroker import alerts
from raybroker.crossmatch import local
from raybroker.errors import RaybrokerError, SettingsError, did_you_mean
from raybroker.learning.labels import PEOPLE, Label
from raybroker.settings import CatalogueLabelsSettings, Settings

log = logging.getLogger("raybroker")

UNIX_EPOCH_MJD = 40587.0
DAY = 86_400.0
HEAD = ("survey", "alert_id", "object_id", "mjd")
TNS = {
    "name": pa.string(),
    "ra": pa.float64(),
    "declination": pa.float64(),
    "type": pa.string(),
    "internal_names": pa.string(),
}
KEPT = ("scored", "failed")


@dataclass(frozen=True)
class Given:
    """What a catalogue says now of some rows."""

    labels: list[Label]
    waiting: list[int]  # rows that it knows, but whose delay is not over
    unmapped: Counter[str] = field(
        default_factory=Counter
    )  # types that `classes` does not name: how many rows


def labels_for(name: str, own: CatalogueLabelsSettings, rows: pa.Table, now: float) -> list[Label]:
    """The labels that a catalogue gives to these rows of the archive by `now` (seconds since 1970): see `given`."""
    return given(name, own, rows, now).labels


def given(name: str, own: CatalogueLabelsSettings, rows: pa.Table, now: float) -> Given:
    """The labels that a catalogue gives by `now` (seconds since 1970), in the order of the rows.

    `rows` has the columns of `columns_for`. SettingsError where the file, or the column, is not what it must be.
    """
    types, comments = _from_file(own, rows) if own.file else _from_column(name, own, rows)
    due = UNIX_EPOCH_MJD + now / DAY - own.delay_days
    found = Given([], [])
    seen: set[str] = set()
    head = zip(*(rows[column].to_pylist() for column in HEAD), types, comments, strict=True)
    for at, (survey, alert_id, object_id, mjd, kind, comment) in enumerate(head):
        if kind is None or mjd is None or alert_id in seen:
            continue
        if kind not in own.classes:
            found.unmapped[kind] += 1
        elif mjd > due:
            found.waiting.append(at)
        else:
            seen.add(alert_id)
            found.labels.append(_label(name, own, (survey, alert_id, object_id), kind, comment, now))
    return found


def _label(
    name: str,
    own: CatalogueLabelsSettings,
    which: tuple[str, str, str | None],
    kind: str,
    comment: str,
    now: float,
) -> Label:
    survey, alert_id, object_id = which
    said = own.classes[kind]
    label = Label(
        event_id="",
        survey=survey,
        alert_id=alert_id,
        object_id=object_id,
        model=own.model,
        label=said,
        who=name,
        when=now,
        source=name,
        comment=comment,
    )
    return dataclasses.replace(label, event_id=_event_id(label))


def _event_id(label: Label, *before: str) -> str:
    content = json.dumps([label.source, label.alert_id, label.model, label.label, *before]).encode()
    return f"{label.source[:24]}-{hashlib.sha256(content).hexdigest()[:32]}"


def columns_for(own: CatalogueLabelsSettings) -> tuple[str, ...]:
    """The columns of the archive that a catalogue's labels need."""
    return (*HEAD, "outcome", *(("ra", "dec") if own.file else (own.column,)))


def check(settings: Settings) -> None:
    """SettingsError where a catalogue names a model or a class that there is not, or is called like a source of people."""
    for name, own in settings.labels.catalogues.items():
        key = f"labels.catalogues.{name}"
        if name in PEOPLE:
            raise SettingsError(f"{key}: '{name}' is how people's labels come; call the catalogue otherwise")
        if bool(own.file) == bool(own.column):
            raise SettingsError(f"{key}: either `file` or `column` says where its types are")
        if own.model and own.model not in settings.models:
            near = did_you_mean(own.model, settings.models)
            raise SettingsError(
                f"{key}.model: no model '{own.model}'{near}: there are {sorted(settings.models)}"
            )
        known = settings.models[own.model].classes if own.model else settings.labels.classes
        if wrong := [said for said in own.classes.values() if said not in known]:
            whose = f"model '{own.model}' knows" if own.model else "[labels] classes are"
            raise SettingsError(
                f"{key}.classes: no class '{wrong[0]}'{did_you_mean(wrong[0], known)}: {whose} {known}"
            )


# Types, one per row: None where the catalogue has nothing there.


def _from_column(
    name: str, own: CatalogueLabelsSettings, rows: pa.Table
) -> tuple[list[str | None], list[str]]:
    head, *path = own.column.split(".")
    column, known, where = None, rows.column_names, head
    if head in rows.column_names:
        column = rows[head].combine_chunks()
        for where in path:
            known = [field.name for field in column.type] if pa.types.is_struct(column.type) else []
            if where not in known:
                column = None
                break
            column = pc.struct_field(column, where)
    if column is None:
        near = did_you_mean(where, known) or f"; there are {', '.join(known) or 'no fields'}"
        raise SettingsError(
            f"labels.catalogues.{name}.column = '{own.column}': no step gives '{where}'{near}"
        )
    types = [None if value is None else str(value) for value in column.to_pylist()]
    return types, [f"{own.column}: {kind}" for kind in types]


class Tns(NamedTuple):
    """The classified objects of a TNS file: those of unknown type are left out."""

    names: Sequence[str]
    types: Sequence[str]
    by_internal_name: Mapping[str, int]
    sky: pa.RecordBatch  # as `crossmatch.local.match` takes it, sorted by HEALPix cell
    order: Any  # of the rows of `sky`: which object it is


def _from_file(own: CatalogueLabelsSettings, rows: pa.Table) -> tuple[list[str | None], list[str]]:
    """By internal name (the object id without its survey), else the nearest within the radius."""
    assert own.file is not None
    tns = read_tns(own.file, *_stamp(own.file))
    near, _ = local.match(tns.sky, alerts.values(rows["ra"]), alerts.values(rows["dec"]), own.radius_arcsec)
    ids = [(object_id or "").partition(":")[2] for object_id in rows["object_id"].to_pylist()]
    found = [
        tns.by_internal_name.get(name, int(tns.order[row]) if row >= 0 else -1)
        for name, row in zip(ids, near.tolist(), strict=True)
    ]
    types = [tns.types[at] if at >= 0 else None for at in found]
    return types, [f"{tns.names[at]}: {tns.types[at]}" if at >= 0 else "" for at in found]


def _stamp(path: Path) -> tuple[int, int]:
    """What tells a file from the one that was there before."""
    try:
        state = path.stat()
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist: TNS gives it as tns_public_objects.csv.zip") from None
    return state.st_mtime_ns, state.st_size


@functools.lru_cache(maxsize=4)
def read_tns(path: Path, modified: int, size: int) -> Tns:
    """TNS's public objects, from its CSV or the zip around it. Read once for a time of change and a size."""
    table = _tns_table(path)
    kinds = pc.utf8_trim_whitespace(table["type"].fill_null(""))
    table = table.set_column(table.column_names.index("type"), "type", kinds)
    table = table.filter(pc.not_equal(kinds, "")).combine_chunks()
    internal: dict[str, int] = {}
    for at, names in enumerate(table["internal_names"].to_pylist()):
        for name in (names or "").split(","):
            internal.setdefault(name.strip(), at)
    internal.pop("", None)
    ra, dec = (alerts.values(table[name]) for name in ("ra", "declination"))
    placed = np.flatnonzero(np.isfinite(ra) & (np.abs(dec) <= 90))
    cells = alerts.healpix(ra[placed] % 360.0, dec[placed])
    order = placed[np.argsort(cells, kind="stable")]
    columns = [np.sort(cells, kind="stable"), ra[order] % 360.0, dec[order]]
    sky = pa.record_batch([pa.array(one) for one in columns], names=[local.CELL, local.RA, local.DEC])
    return Tns(table["name"].to_pylist(), table["type"].to_pylist(), internal, sky, order)


def _tns_table(path: Path) -> pa.Table:
    content = _content(path)
    first, _, rest = content.partition(b"\n")
    if b"," not in first or b"name" not in first:  # TNS's own files begin with a line that says when
        content = rest
    header = next(csv.reader([content.partition(b"\n")[0].decode("utf-8", "replace").rstrip("\r")]), [])
    if lost := [name for name in TNS if name not in header]:
        near = did_you_mean(lost[0], header)
        raise SettingsError(f"{path} has no column '{lost[0]}'{near}; it has: {', '.join(header) or 'none'}")
    broken: list[int] = []

    def skip(row: Any) -> str:
        broken.append(row.number or 0)
        return "skip"

    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(content),
            parse_options=pyarrow.csv.ParseOptions(invalid_row_handler=skip),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(TNS), column_types=TNS, strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    if broken:
        log.warning("%s: %d broken rows are left out", path, len(broken))
    return table


def _content(path: Path) -> bytes:
    if path.suffix.lower() != ".zip":
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(next(name for name in archive.namelist() if name.endswith(".csv")))
    except (zipfile.BadZipFile, StopIteration) as error:
        raise SettingsError(f"{path} holds no CSV: {error}") from error


# Again and again.


class Tailed(Protocol):
    """A table of the archive: see `raybroker.archive.table.AlertsTable`."""

    def tail(self, since: int, names: Sequence[str]) -> tuple[pa.Table, int]: ...


class Watch:
    """Follows the archive's tables and says what the catalogues have to say by now, each label once.

    New rows are looked at once; those that wait for their delay again; all of them when the catalogue's file changes.
    """

    def __init__(self, catalogues: Mapping[str, CatalogueLabelsSettings]) -> None:
        self.catalogues = catalogues
        self.unmapped: dict[str, Counter[str]] = {name: Counter() for name in catalogues}
        self._since: dict[tuple[str, str], int] = {}
        self._waiting: dict[tuple[str, str], pa.Table] = {}
        self._stamps: dict[tuple[str, str], tuple[int, int]] = {}
        self._last: dict[tuple[str, str, str], Label] = {}  # by catalogue, alert and model: what it said last
        self._trouble: dict[str, str] = {}  # what was said last

    def recall(self, labels: Iterable[Label]) -> None:
        """What the catalogues have said so far, as the log has it."""
        told = (label for label in labels if label.source in self.catalogues and label.label is not None)
        for label in sorted(told, key=lambda label: label.when):
            self._last[_about(label)] = label

    def labels(self, tables: Mapping[str, Tailed], now: float) -> list[Label]:
        """New labels; of one that cannot be read it is said why, once, and tried again."""
        found: list[Label] = []
        for name, own in self.catalogues.items():
            try:
                for survey, table in tables.items():
                    found += self._look(name, own, survey, table, now)
            except (RaybrokerError, OSError) as error:
                if self._trouble.get(name) != str(error):
                    log.warning("no labels from %s: %s", name, error)
                self._trouble[name] = str(error)
        return found

    def _look(
        self, name: str, own: CatalogueLabelsSettings, survey: str, table: Tailed, now: float
    ) -> list[Label]:
        key = (name, survey)
        stamp = _stamp(own.file) if own.file else (0, 0)
        if self._stamps.get(key, stamp) != stamp:
            del self._since[key], self._waiting[key]
            self.unmapped[name].clear()
        rows, since = table.tail(self._since.get(key, -1), columns_for(own))
        rows = rows.filter(pc.is_in(rows["outcome"], pa.array(KEPT)))
        if key in self._waiting:
            rows = pa.concat_tables([self._waiting[key], rows])
        told = given(name, own, rows, now)
        self._stamps[key], self._since[key] = stamp, since
        self._waiting[key] = rows.take(pa.array(told.waiting, pa.int64()))
        self.unmapped[name] += told.unmapped
        return [new for label in told.labels if (new := self._new(label)) is not None]

    def _new(self, label: Label) -> Label | None:
        """None where the catalogue's last word is the same; a word after others has them in its event id.

        So a type that changes and changes back is three labels, and to look again is none.
        """
        last = self._last.get(_about(label))
        if last is not None and last.label == label.label:
            return None
        if last is not None:
            label = dataclasses.replace(label, event_id=_event_id(label, last.event_id))
        self._last[_about(label)] = label
        return label


def _about(label: Label) -> tuple[str, str, str]:
    return label.source, label.alert_id, label.model
