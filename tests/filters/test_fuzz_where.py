"""Whatever is given as a filter: it is refused, or it reads the columns and nothing else."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from raybroker.checks import same_bits
from raybroker.errors import SettingsError
from raybroker.filters import where as module
from raybroker.filters.where import FUNCTIONS, check, where
from tests.fuzzing import fuzzed

COLUMNS = {
    "ra": pa.array([1.5, None, float("nan"), -1e308]),
    "band": pa.array(["g", None, "", "ä\0"]),
    "early": pa.array([{"age": 1.0, "n": 3}, None, {"age": None, "n": -(2**31)}, {"age": -0.0, "n": 0}]),
    "history": pa.array([[{"flux": 1.0}], None, [], [{"flux": None}, {"flux": float("inf")}]]),
    "sure": pa.array([True, None, False, True]),
}
TYPES = {name: column.type for name, column in COLUMNS.items()}
NAMES = ("ra", "band", "sure", "early.age", "early.n", "history", "history[1].flux", '"ra"', "early")
VALUES = ("0", "1", "-1", "1e400", "9223372036854775807", "99999999999999999999999999999", "null", "'g'", "''", "'%'", "true", "[]", "[1, 2]", "0.0", "1/0", "'\0'")  # fmt: skip
WORDS = (
    *("and", "or", "not", "is", "null", "in", "between", "like", "case", "when", "then", "else", "end", "as"),
    *("select", "from", "union", "where", "limit", "order by 1", "group by all", "over ()", "filter (where true)"),
    *("(", ")", ",", ";", "[", "]", "{", "}", ".", "*", "::", "->", "=>", ":=", "||", "%", "^", "!", "@", "~", "?"),
    *("$1", "--", "/*", "*/", "'", '"', "$$", "\\", "\n", "\0", "distinct", "exists", "unpack", "lambda x:", "try"),
    *("read_csv('{here}/secret.csv')", "read_text('{here}/secret.csv')", "from '{here}/secret.csv'"),
    *("glob('{here}/*')", "getenv('HOME')", "current_setting('threads')", "nextval('s')", "random()"),
    *("copy x to '{here}/out.csv'", "attach '{here}/x.db'", "install httpfs", "load '{here}/x'", "pragma version"),
    *("set threads = 2", "export database '{here}'", "'{here}/secret.csv'", "query('select 1')", "sniff_csv('{here}/secret.csv')"),
    *("integer", "json", "blob", "varchar", "interval 1 day", "date '2020-01-01'", "x'00'", "collate nocase"),
)  # fmt: skip
SOUP = st.lists(st.sampled_from([*NAMES, *VALUES, *WORDS, *(f"{name}(" for name in FUNCTIONS)]), max_size=12)
TEXT = st.text(st.characters(exclude_categories=[]), max_size=40)  # half surrogate pairs too


def compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    signs = st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "||", "=", "<", "is distinct from", "and", "or", "like", "~", "<<", "&", "in"])  # fmt: skip
    types = st.sampled_from(
        ["double", "integer", "tinyint", "varchar", "boolean", "double[]", "date", "blob", "hugeint"]
    )
    calls = st.tuples(st.sampled_from(sorted(FUNCTIONS)), st.lists(inner, min_size=1, max_size=3))
    return st.one_of(
        st.tuples(inner, signs, inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, types).map(lambda t: f"({t[0]})::{t[1]}"),
        calls.map(lambda t: f"{t[0]}({', '.join(t[1])})"),
        st.tuples(inner, inner, inner).map(lambda t: f"case when {t[0]} then {t[1]} else {t[2]} end"),
        st.tuples(inner, inner).map(lambda t: f"list_filter({t[0]}, lambda x: {t[1]})"),
        inner.map(lambda t: f"(not {t})"),
        inner.map(lambda t: f"({t}) is null"),
    )


GRAMMAR = st.recursive(st.sampled_from([*NAMES, *VALUES, "x"]), compound, max_leaves=8)
BOOLEAN = GRAMMAR.map(lambda text: f"({text}) is null or sure") | GRAMMAR.map(
    lambda text: f"({text})::boolean"
)
IN_OPEN, IN_CREATE = 0x20, 0x100


class Watched:
    """A folder with a secret, and whether anybody has opened anything in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "secret.csv").write_text("ra\n1\n")
        self._libc = ctypes.CDLL(None)
        self._events = self._libc.inotify_init1(os.O_NONBLOCK)
        watch = self._libc.inotify_add_watch(self._events, os.fsencode(path), IN_OPEN | IN_CREATE)
        assert watch >= 0

    def untouched(self) -> bool:
        try:
            os.read(self._events, 4096)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        os.close(self._events)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if not hasattr(ctypes.CDLL(None), "inotify_init1"):
        pytest.skip("who opens files is asked of Linux's inotify")
    watched = Watched(tmp_path_factory.mktemp("secret"))
    yield watched
    watched.close()


def state() -> list[Any]:
    """All that an expression could have changed in DuckDB."""
    queries = (
        "duckdb_tables()",
        "duckdb_views()",
        "duckdb_databases()",
        "duckdb_settings()",
        "duckdb_sequences()",
    )
    return [module._connection().sql(f"from {query}").fetchall() for query in queries]


def judged(expression: str, folder: Watched) -> str:
    """Refused, wrong for the columns, raised (the alert is then 'failed'), or answered; anything else is an error."""
    try:
        step = where("f", expression.replace("{here}", str(folder.path)))
        check(step, TYPES)
    except SettingsError as error:
        return "refused" if "filters.f.where" in str(error) else f"refused without saying what: {error}"
    given = {name: COLUMNS[name] for name in step.needs}
    try:
        made = step.run(given, 4)
    except (duckdb.Error, pa.ArrowException):
        return "raised"
    assert made.type == pa.bool_()
    assert same_bits(made, step.run(given, 4))
    try:
        alone = [step.run({name: column.slice(n, 1) for name, column in given.items()}, 1) for n in range(4)]
    except duckdb.Error:  # of constants alone, which DuckDB works out for each row or for none
        return "raised"
    assert same_bits(made, pa.concat_arrays(alone))
    return "answered"


@fuzzed(60)
@given(st.one_of(SOUP.map(" ".join), TEXT, TEXT.map(lambda text: f"ra > 1 {text}"), BOOLEAN, BOOLEAN))
@example("ra > '\ud800'")
@example("abs(" * 250 + "ra" + ")" * 250 + " > 1")
@example("list_apply([1], lambda x: " * 40 + "ra" + ")" * 40 + "[1]" * 40 + " > 1")
@example("sure and " * 20_000 + "sure")
@example("read_csv('{here}/secret.csv') = ra")
@example("sure) from read_csv('{here}/secret.csv') union select (true")
def test_a_filter_is_refused_or_reads_the_columns_and_nothing_else(folder: Watched, expression: str) -> None:
    before = state()
    answer = judged(expression, folder)
    event(answer)
    assert answer in ("refused", "raised", "answered")
    assert state() == before
    assert folder.untouched()


def test_what_is_opened_would_be_seen(folder: Watched) -> None:
    (folder.path / "secret.csv").read_text()
    assert not folder.untouched()
    assert folder.untouched()


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("abs(" * 250 + "ra" + ")" * 250 + " > 1", "nested too deeply"),
        ("list_apply([1], lambda x: " * 4 + "ra" + ")" * 4 + "[1]" * 4 + " > 1", "lambdas within each other"),
        ("sure and " * 20_000 + "sure", "letters"),
        ("ra > '\ud800'", "not an SQL expression"),
    ],
    ids=["deep", "lambdas", "long", "half a character"],
)
def test_what_is_too_much_says_what(expression: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        where("f", expression)
