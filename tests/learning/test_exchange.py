"""Files of labels: what is read, what is broken and where, and that what was written is read again."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybroker.errors import RaybrokerError
from raybroker.learning import exchange
from raybroker.learning.exchange import Broken, Row
from raybroker.learning.labels import Label

FINKVRA = """candid,objectId,label,timestamp
2481121706115015011,ZTF18abcdefg,extragal,2025-06-02T10:11:12.345678
2481121706115015012,ZTF18abcdefh,bogus,2025-06-02T10:11:20
2481121706115015013,ZTF18abcdefi,can't tell,2025-06-02T10:12:00.500000
"""


def written(folder: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def bodies(path: Path, **given: str) -> list[dict[str, Any]]:
    rows = list(exchange.read(path, **given))
    assert all(isinstance(row, Row) for row in rows), rows
    return [dict(row.body) for row in rows if isinstance(row, Row)]


def labels_of(path: Path) -> list[Label]:
    return [
        Label(
            event_id=body["event_id"],
            survey="ztf",
            alert_id=body["alert_id"],
            object_id=body["object_id"],
            model=body["model"] or "",
            label=body["label"],
            who="ann",
            when=datetime.datetime.fromisoformat(body["when"]).timestamp(),
        )
        for body in bodies(path)
    ]


def test_finkvras_form_is_read_and_written_byte_for_byte(tmp_path: Path) -> None:
    path = written(tmp_path, FINKVRA)
    first = bodies(path)[0]
    assert first["alert_id"] == "ztf:2481121706115015011"
    assert first["object_id"] == "ztf:ZTF18abcdefg"
    assert first["label"] == "extragal"
    assert first["when"] == "2025-06-02T10:11:12.345678+00:00"
    assert bodies(path)[2]["label"] is None
    exchange.write(tmp_path / "again.csv", labels_of(path))
    assert (tmp_path / "again.csv").read_text() == FINKVRA


def test_a_row_is_known_by_its_content(tmp_path: Path) -> None:
    ids = [body["event_id"] for body in bodies(written(tmp_path, FINKVRA))]
    assert len(set(ids)) == 3
    assert ids == [body["event_id"] for body in bodies(written(tmp_path, FINKVRA, "copy.csv"))]
    changed = FINKVRA.replace("bogus", "agn")
    assert [
        one != other
        for one, other in zip(ids, (b["event_id"] for b in bodies(written(tmp_path, changed))), strict=True)
    ] == [False, True, False]
    assert ids[0] not in {body["event_id"] for body in bodies(written(tmp_path, FINKVRA), model="real")}


def test_the_same_labels_in_parquet_are_the_same_labels(tmp_path: Path) -> None:
    rows = bodies(written(tmp_path, FINKVRA))
    table = {
        "candid": pa.array([int(row["alert_id"][4:]) for row in rows]),
        "objectId": [row["object_id"][4:] for row in rows],
        "label": [row["label"] or "can't tell" for row in rows],
        "timestamp": pa.array([datetime.datetime.fromisoformat(row["when"]) for row in rows]),
    }
    pq.write_table(pa.table(table), tmp_path / "labels.parquet")
    assert bodies(tmp_path / "labels.parquet") == rows


def test_parquet_holds_who_said_it_and_keeps_the_event_ids(tmp_path: Path) -> None:
    labels = labels_of(written(tmp_path, FINKVRA))
    exchange.write(tmp_path / "out.parquet", labels)
    assert pq.read_table(tmp_path / "out.parquet")["who"].to_pylist() == ["ann"] * 3
    assert [body["event_id"] for body in bodies(tmp_path / "out.parquet")] == [one.event_id for one in labels]


def test_labels_of_several_models_and_surveys_keep_both(tmp_path: Path) -> None:
    one = Label("event-01", "ztf", "ztf:1", "ztf:a", "real", "bogus", when=1.5)
    other = Label("event-02", "rubin", "rubin:2", None, "", "agn", when=2.5)
    exchange.write(tmp_path / "out.csv", [one, other])
    text = (tmp_path / "out.csv").read_text().splitlines()
    assert text[0] == "alert_id,object_id,label,timestamp,model"
    assert text[1] == "ztf:1,ztf:a,bogus,1970-01-01T00:00:01.500000,real"
    read = bodies(tmp_path / "out.csv")
    assert [(row["alert_id"], row["object_id"], row["model"]) for row in read] == [
        ("ztf:1", "ztf:a", "real"),
        ("rubin:2", None, None),
    ]


@pytest.mark.parametrize(
    ("line", "column", "why"),
    [
        ("2481121706115015011,ZTF1,,2025-06-02T10:11:12", "label", "is empty"),
        (",ZTF1,agn,2025-06-02T10:11:12", "candid", "is empty"),
        ("2.481121706115015e+18,ZTF1,agn,2025-06-02T10:11:12", "candid", "rounded number"),
        ("24811 21,ZTF1,agn,2025-06-02T10:11:12", "candid", "is no id"),
        ("1,ZTF<1,agn,2025-06-02T10:11:12", "objectId", "is no id"),
        ("1,ZTF1,agn,yesterday", "timestamp", "'yesterday' is no time"),
        ("1,ZTF1,agn,2025-06-02T10:11:12,more", "", "5 values where the header has 4"),
        ("1,ZTF1", "", "2 values"),
        ('1,"ZTF1,agn,2025-06-02T10:11:12', "", "no line of a CSV"),
        (f"1,ZTF1,{'a' * 65},2025-06-02T10:11:12", "label", "longer than 64"),
    ],
)
def test_a_broken_row_is_named_and_the_others_are_read(
    tmp_path: Path, line: str, column: str, why: str
) -> None:
    head, *rest = FINKVRA.splitlines()
    rows = list(exchange.read(written(tmp_path, "\n".join([head, rest[0], line, *rest[1:]]))))
    assert [type(row) for row in rows] == [Row, Broken, Row, Row]
    broken = rows[1]
    assert isinstance(broken, Broken)
    assert (broken.number, broken.column) == (2, column)
    assert why in str(broken)
    assert str(broken).startswith("row 2")


def test_what_is_not_utf_8_breaks_its_own_row(tmp_path: Path) -> None:
    rows = list(exchange.read(written(tmp_path, FINKVRA.encode() + b"4,ZTF\xff,agn,\n5,ZTF5,agn,\n")))
    assert str(rows[3]) == "row 4, column 'objectId': is not UTF-8"
    assert isinstance(rows[4], Row)


def test_a_mark_of_byte_order_blank_lines_and_other_columns_do_no_harm(tmp_path: Path) -> None:
    text = "\ufeff,label,note,candid\r\n0,agn,x,17\r\n\r\n1,agn,y,18\r\n"
    assert [body["alert_id"] for body in bodies(written(tmp_path, text))] == ["ztf:17", "ztf:18"]
    assert bodies(written(tmp_path, text))[0]["when"] is None


def test_ids_in_a_parquet_that_were_rounded_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"candid": [2.4e18], "label": ["agn"]}), tmp_path / "l.parquet")
    assert "column 'candid': 2.4e+18 is a rounded number" in str(next(exchange.read(tmp_path / "l.parquet")))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "labels.csv",
            "candid,lable\n1,agn\n",
            r"no column 'label' \(did you mean 'lable'\?\); it has: candid, lable",
        ),
        ("labels.csv", "label\nagn\n", "no column 'candid' or 'alert_id'"),
        ("labels.csv", "", "it has: none"),
        ("labels.txt", "", r"read from .csv or .parquet"),
        ("labels.parquet", "candid,label\n", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_holds_no_labels_says_why(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(RaybrokerError, match=message):
        list(exchange.read(written(tmp_path, text, name)))


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(RaybrokerError, match="does not exist"):
        exchange.read(tmp_path / "labels.csv")
    with pytest.raises(RaybrokerError, match=r"written to .csv or .parquet"):
        exchange.write(tmp_path / "labels.xls", [])
