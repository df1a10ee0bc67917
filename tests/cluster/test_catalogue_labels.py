"""Labels from catalogues: by name or by position, as late as they must be, and the same when asked again."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raybroker.cluster import catalogue_labels
from raybroker.cluster.catalogue_labels import Watch, given, labels_for
from raybroker.errors import SettingsError
from raybroker.learning.labels import Ledger
from raybroker.settings import CatalogueLabelsSettings, parse

MJD = 60000.0
NOW = (MJD - 40587) * 86400
TNS = """"2026-07-26 00:00:00"
"objid","name_prefix","name","ra","declination","redshift","typeid","type","reporters","discoverydate","internal_names"
"1","SN","2026abc","203.1000","10.2000","0.03","3","SN Ia","A. One, B. Two","2026-07-01 03:22:11.000","ATLAS26x, ZTF26aaa"
"2","SN","2026abd","10.5","-45.25","","10","SN II","C","2026-07-01 03:22:11.000","GOTO26y"
"3","AT","2026abe","20.0","5.0","","","","C","2026-07-01 03:22:11.000","ZTF26ccc"
"4","AT","2026abf","30.0","5.0","","29","AGN","C","2026-07-01 03:22:11.000","ZTF26ddd"
"""


@pytest.fixture
def tns(tmp_path: Path) -> Path:
    path = tmp_path / "tns_public_objects.csv"
    path.write_text(TNS)
    return path


def settings(**own: Any) -> CatalogueLabelsSettings:
    return CatalogueLabelsSettings(**{"classes": {"SN Ia": "extragal", "SN II": "extragal"}, **own})


def rows(*given: tuple[str, float, float, float], **columns: Any) -> pa.Table:
    """(object, ra, dec, mjd) each."""
    names, ra, dec, mjd = zip(*given, strict=True)
    return pa.table(
        {
            "survey": ["ztf"] * len(given),
            "alert_id": [f"ztf:{i}" for i in range(len(given))],
            "object_id": [name and f"ztf:{name}" for name in names],
            "mjd": pa.array(mjd, pa.float64()),
            "ra": pa.array(ra, pa.float64()),
            "dec": pa.array(dec, pa.float64()),
            "outcome": ["scored"] * len(given),
            **columns,
        }
    )


FAR = ("ZTF26zzz", 100.0, 0.0, MJD)


def test_tns_is_matched_by_internal_name_and_else_by_position(tns: Path) -> None:
    found = labels_for(
        "tns",
        settings(file=tns),
        rows(
            ("ZTF26aaa", 0.0, 0.0, MJD),
            ("ZTF26new", 10.5, -45.25 + 1.5 / 3600, MJD),
            ("", 10.5, -45.2495, MJD - 1),
            FAR,
        ),
        NOW,
    )
    assert [(one.alert_id, one.label, one.who, one.source) for one in found] == [
        (alert, "extragal", "tns", "tns") for alert in ("ztf:0", "ztf:1", "ztf:2")
    ]
    assert found[0].comment == "2026abc: SN Ia"
    assert found[0].from_catalogue
    assert found[0].model == ""
    beyond = rows(("ZTF26new", 10.5, -45.25 + 2.5 / 3600, MJD))
    assert labels_for("tns", settings(file=tns), beyond, NOW) == []


def test_what_has_no_type_says_nothing_and_what_is_not_mapped_is_counted(tns: Path) -> None:
    table = rows(("ZTF26ccc", 20.0, 5.0, MJD), ("ZTF26ddd", 30.0, 5.0, MJD), ("ZTF26ddd", 30.0, 5.0, MJD - 1))
    found = given("tns", settings(file=tns), table, NOW)
    assert found.labels == []
    assert found.unmapped == {"AGN": 2}


def test_a_label_is_given_when_its_delay_is_over_and_not_before(tns: Path) -> None:
    table = rows(("ZTF26aaa", 0.0, 0.0, MJD), ("ZTF26aaa", 0.0, 0.0, MJD + 1))
    own = settings(file=tns, delay_days=14.0)
    day = 86400
    assert labels_for("tns", own, table, NOW + 13.99 * day) == []
    assert given("tns", own, table, NOW + 13.99 * day).waiting == [0, 1]
    assert [one.alert_id for one in labels_for("tns", own, table, NOW + 14.01 * day)] == ["ztf:0"]
    assert [one.alert_id for one in labels_for("tns", own, table, NOW + 15.01 * day)] == ["ztf:0", "ztf:1"]


def test_asked_again_it_says_the_same(tns: Path) -> None:
    table = rows(("ZTF26aaa", 0.0, 0.0, MJD), ("ZTF26aaa", 0.0, 0.0, MJD))
    first, second = (labels_for("tns", settings(file=tns), table, NOW + late) for late in (1, 999))
    assert [one.event_id for one in first] == [one.event_id for one in second]
    ledger = Ledger(first)
    assert not any(ledger.add(one) for one in second)


def test_a_type_that_changes_revises_the_catalogues_own_label(tns: Path) -> None:
    own = settings(file=tns, classes={"SN Ia": "extragal", "CV": "gal"})
    table = rows(("ZTF26aaa", 0.0, 0.0, MJD))
    first = labels_for("tns", own, table, NOW + 1)
    tns.write_text(TNS.replace("SN Ia", "CV"))
    second = labels_for("tns", own, table, NOW + 2)
    ledger = Ledger([*first, *second], rule="first")
    assert [one.label for one in ledger.to_learn("m", {"a": ["extragal"], "b": ["gal"]})] == ["b"]


def test_a_column_of_the_alerts_is_a_catalogue_too() -> None:
    simbad = pa.array([{"main_type": "QSO"}, {"main_type": None}, None, {"main_type": "Star"}])
    table = rows(*[("ZTF1", 1.0, 1.0, MJD)] * 4, simbad=simbad)
    own = settings(column="simbad.main_type", classes={"QSO": "AGN"}, model="agn")
    found = given("simbad", own, table, NOW)
    assert [(one.label, one.model, one.source) for one in found.labels] == [("AGN", "agn", "simbad")]
    assert found.unmapped == {"Star": 1}
    with pytest.raises(
        SettingsError, match=r"simbad.column = 'simbad.main_tipe': .*did you mean 'main_type'"
    ):
        labels_for("simbad", settings(column="simbad.main_tipe"), table, NOW)
    with pytest.raises(SettingsError, match="no step gives 'gaia'"):
        labels_for("gaia", settings(column="gaia.class"), table, NOW)


def test_the_zip_that_tns_gives_is_read_and_a_broken_row_left_out(
    tns: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tns.with_suffix(".csv.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tns_public_objects.csv", TNS + '"5","SN"\n')
    table = rows(("ZTF26aaa", 0.0, 0.0, MJD))
    assert len(labels_for("tns", settings(file=path), table, NOW)) == 1
    assert "1 broken rows" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'name'"),
        (TNS.replace('"type"', '"typ"'), r"no column 'type' \(did you mean 'typ'\?\)"),
        (TNS.replace("203.1000", "13h"), "cannot be read"),
    ],
)
def test_a_file_that_is_not_tnss_says_why(tns: Path, text: str, message: str) -> None:
    tns.write_text(text)
    with pytest.raises(SettingsError, match=message):
        labels_for("tns", settings(file=tns), rows(FAR), NOW)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"does not exist.*zip"):
        labels_for("tns", settings(file=tmp_path / "no.csv"), rows(FAR), NOW)


def test_no_rows_are_no_labels(tns: Path) -> None:
    assert labels_for("tns", settings(file=tns), rows(FAR).slice(0, 0), NOW) == []


class Table:
    """An archive's table that grows."""

    def __init__(self, *versions: pa.Table) -> None:
        self.versions = list(versions)

    def tail(self, since: int, names: Any) -> tuple[pa.Table, int]:
        new = self.versions[since + 1 :] or [self.versions[0].slice(0, 0)]
        return pa.concat_tables(new).select(list(names)), len(self.versions) - 1


def alert(number: int, mjd: float, outcome: str = "scored") -> pa.Table:
    table = rows(("ZTF26aaa", 0.0, 0.0, mjd)).set_column(1, "alert_id", [[f"ztf:{number}"]])
    return table.set_column(table.column_names.index("outcome"), "outcome", [[outcome]])


def test_a_watch_says_each_label_once_and_looks_again_when_the_file_changes(tns: Path) -> None:
    table = Table(alert(1, MJD), alert(2, MJD + 5), alert(3, MJD, "rejected"))
    watch = Watch({"tns": settings(file=tns, delay_days=1.0, classes={"SN Ia": "extragal", "AGN": "agn"})})
    day = 86400

    def told(days: float) -> list[str]:
        return [f"{one.alert_id} {one.label}" for one in watch.labels({"ztf": table}, NOW + days * day)]

    assert told(2) == ["ztf:1 extragal"]
    assert told(2) == []
    assert told(6.5) == ["ztf:2 extragal"]
    table.versions.append(alert(4, MJD))
    assert told(6.5) == ["ztf:4 extragal"]
    tns.write_text(TNS.replace("SN Ia", "AGN"))
    os.utime(tns, ns=(1, 1))
    assert told(7) == ["ztf:1 agn", "ztf:2 agn", "ztf:4 agn"]


def test_a_watch_outlives_a_file_that_is_away(tns: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch({"tns": settings(file=tns)})
    table = Table(alert(1, MJD))
    tns.rename(tns.with_suffix(".away"))
    assert watch.labels({"ztf": table}, NOW) == []
    assert watch.labels({"ztf": table}, NOW) == []
    assert caplog.text.count("does not exist") == 1
    tns.with_suffix(".away").rename(tns)
    assert len(watch.labels({"ztf": table}, NOW)) == 1


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"column": "simbad.main_type", "classes": {"QSO": "ang"}},
            r"no class 'ang' \(did you mean 'agn'\?\)",
        ),
        (
            {"column": "a.b", "classes": {"QSO": "agn"}, "model": "rael"},
            r"no model 'rael' \(did you mean 'real'",
        ),
        ({"column": "a.b", "classes": {"QSO": "agn"}, "model": "real"}, "model 'real' knows"),
        ({"classes": {"QSO": "agn"}}, "either `file` or `column`"),
    ],
)
def test_settings_that_cannot_be_say_what_is_wrong(own: dict[str, Any], message: str) -> None:
    tree = {
        "labels": {"classes": ["agn"], "catalogues": {"simbad": own}},
        "models": {"real": {"classes": ["a", "b"]}},
    }
    with pytest.raises(SettingsError, match=message):
        catalogue_labels.check(parse(tree))


def test_a_catalogue_is_not_called_like_people() -> None:
    own = {"column": "a.b", "classes": {"QSO": "agn"}}
    with pytest.raises(SettingsError, match="call the catalogue otherwise"):
        catalogue_labels.check(parse({"labels": {"classes": ["agn"], "catalogues": {"page": own}}}))


class Once:
    """A table of the archive: all of its rows at the first look."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows

    def tail(self, since: int, names: Any) -> tuple[pa.Table, int]:
        return (self.rows if since < 0 else self.rows.slice(0, 0)).select(names), 1


def test_a_type_that_changes_and_changes_back_is_three_labels(tns: Path) -> None:
    own = settings(file=tns, classes={"SN Ia": "extragal", "CV": "gal"})
    tables = {"ztf": Once(rows(("ZTF26aaa", 0.0, 0.0, MJD)))}
    watch, said = Watch({"tns": own}), []
    for day, kind in enumerate(("SN Ia", "CV", "CV", "SN Ia", "SN Ia"), 1):
        tns.write_text(TNS.replace("SN Ia", kind))
        os.utime(tns, (day, day))
        if day == 4:  # whoever comes back knows from the log what was said
            watch = Watch({"tns": own})
            watch.recall(said)
        said += watch.labels(tables, NOW + day)
    assert [one.label for one in said] == ["extragal", "gal", "extragal"]
    assert len({one.event_id for one in said}) == 3
    raw = {"a": ["extragal"], "b": ["gal"]}
    for rule in ("newest", "first"):
        ledger = Ledger(said, rule=rule)
        assert [one.label for one in ledger.to_learn("m", raw)] == ["a"]


def test_two_who_look_at_the_same_log_give_a_changed_type_the_same_event_id(tns: Path) -> None:
    own = settings(file=tns, classes={"SN Ia": "extragal", "CV": "gal"})
    tables = {"ztf": Once(rows(("ZTF26aaa", 0.0, 0.0, MJD)))}
    said = Watch({"tns": own}).labels(tables, NOW)
    tns.write_text(TNS.replace("SN Ia", "CV"))
    found = []
    for late in (1, 2):
        watch = Watch({"tns": own})
        watch.recall(said)
        found.append([one.event_id for one in watch.labels(tables, NOW + late)])
    assert found[0] == found[1]
    assert found[0] != [said[0].event_id]
