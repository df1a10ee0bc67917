"""A filter without code: an SQL expression over the columns, such as `early.age < 2 and gaia.distance is null`.

DuckDB evaluates it, shut off from files, network and settings. Only an expression may stand there: its parse tree is
searched, and anything but columns, constants, operators and the functions listed here is refused.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from raybroker import alerts
from raybroker.errors import SettingsError, did_you_mean
from raybroker.step import Step

TABLE = "alerts_of_this_batch"
MAX_LETTERS = 100_000
MAX_DEPTH = 400  # of the parse tree, which has about four levels for each bracket or sign
MAX_LAMBDAS = 3  # within each other: DuckDB's memory doubles with each
EXPRESSIONS = (
    *("COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "BETWEEN"),
    *("CASE", "CAST", "TYPE", "FUNCTION", "LAMBDA"),
)
# Functions of one alert alone that give the same answer every time; operators need no listing.
NUMBERS = (
    "abs acos asin atan atan2 cbrt ceil ceiling cos degrees exp floor greatest if isfinite isinf isnan "
    "least ln log log10 log2 mod nullif pi pow power radians round sign sin sqrt tan trunc"
)
TEXT = (
    "concat contains ends_with length lower prefix regexp_full_match regexp_matches starts_with substr "
    "substring suffix trim upper"
)
LISTS = (
    "array_length len list_any_value list_apply list_avg list_contains list_count list_distinct "
    "list_element list_extract list_filter list_first list_has list_has_all list_has_any list_last "
    "list_max list_median list_min list_position list_slice list_sort list_stddev_pop list_stddev_samp "
    "list_sum list_transform list_unique list_value struct_extract array_extract"
)
FUNCTIONS = frozenset(f"{NUMBERS} {TEXT} {LISTS}".split())


@dataclass(frozen=True)
class Parsed:
    """An expression and the dotted paths of the columns in it."""

    expression: str
    paths: tuple[tuple[str, ...], ...]

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the columns, each once."""
        return tuple(dict.fromkeys(path[0] for path in self.paths))


def where(name: str, expression: str) -> Step:
    """A filter step from an SQL expression; null means: not sent. A wrong expression raises `SettingsError`."""
    try:
        parsed = parse(expression)
    except SettingsError as error:
        raise SettingsError(f"filters.{name}.where: {error}") from None
    return Step(
        name, "filter", evaluate, parsed.needs, pa.bool_(), settings={"where": expression}, about=expression
    )


def check(step: Step, types: Mapping[str, pa.DataType]) -> None:
    """`SettingsError` if the filter asks for a field that the columns do not have, or is not true or false."""
    parsed, key = parse(step.settings["where"]), f"filters.{step.name}.where"
    for path in parsed.paths:
        _check_path(path, types, key)
    unknown = [pa.nulls(1, types[name]) for name in parsed.needs]
    try:
        kind = _run(parsed, unknown).type
    except duckdb.Error as error:
        raise SettingsError(f"{key} = {parsed.expression!r}: {_first_line(error)}") from None
    if not pa.types.is_boolean(kind):
        raise SettingsError(f"{key} = {parsed.expression!r} gives {kind}, not true or false")


def _check_path(path: tuple[str, ...], types: Mapping[str, pa.DataType], key: str) -> None:
    known: Mapping[str, pa.DataType] = types
    for depth, name in enumerate(path):
        if name not in known:
            owner = f"'{'.'.join(path[:depth])}' has no field" if depth else "there is no column"
            raise SettingsError(f"{key}: {owner} '{name}'{did_you_mean(name, known)}")
        kind = known[name]
        known = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}


@functools.lru_cache(maxsize=256)
def parse(expression: str) -> Parsed:
    """The expression with the columns it needs; `SettingsError` says what may not stand in it."""
    if len(expression) > MAX_LETTERS:
        raise SettingsError(f"{expression[:50]!r} ... has more than {MAX_LETTERS:,} letters")
    select = _select(expression)
    if len(select) != 1 or select[0].get("alias"):
        raise SettingsError(f"{expression!r} must be one expression, without commas or AS")
    paths = tuple(dict.fromkeys(_paths(select[0], frozenset())))
    if not paths:
        raise SettingsError(f"{expression!r} names no column")
    return Parsed(expression, paths)


def _select(expression: str) -> list[Any]:
    query = f"SELECT (\n{expression}\n) FROM {TABLE}"
    # the same text without the brackets parses too, unless a bracket of its own closes ours
    tree: Any = {}
    for text in (query, f"SELECT {expression}\nFROM {TABLE}"):
        tree = _tree(text, expression)
        if tree["error"] or len(tree["statements"]) != 1:
            raise SettingsError(f"{expression!r} is not an SQL expression: {tree.get('error_message', '')}")
    return list(tree["statements"][0]["node"]["select_list"])


def _tree(text: str, expression: str) -> Any:
    try:
        found = _connection().execute("SELECT json_serialize_sql(?)", [text]).fetchall()[0][0]
    except duckdb.Error as error:
        raise SettingsError(f"{expression!r} is not an SQL expression: {_first_line(error)}") from None
    steps = ((char in "{[") - (char in "}]") for char in re.sub(r'"(?:[^"\\]|\\.)*"', "", found))
    if max(itertools.accumulate(steps)) > MAX_DEPTH:
        raise SettingsError(f"{expression[:50]!r} ... is nested too deeply")
    return json.loads(found)


def _paths(node: Any, bound: frozenset[str], lambdas: int = 0) -> Iterator[tuple[str, ...]]:
    """Column paths below a node of the parse tree; `bound` are the parameters of the `lambdas` around it."""
    if lambdas > MAX_LAMBDAS:
        raise SettingsError(f"more than {MAX_LAMBDAS} lambdas within each other may not stand in a filter")
    if isinstance(node, list):
        for child in node:
            yield from _paths(child, bound, lambdas)
    elif isinstance(node, dict):
        _check_node(node)
        if node.get("class") == "COLUMN_REF" and node["column_names"][0] not in bound:
            yield tuple(node["column_names"])
        if node.get("class") == "LAMBDA":
            bound |= {name for path in _paths(node.pop("lhs"), frozenset()) for name in path}
            lambdas += 1
        yield from _paths(list(node.values()), bound, lambdas)


def _check_node(node: Mapping[str, Any]) -> None:
    kind = node.get("class")
    if kind is not None and kind not in EXPRESSIONS:
        raise SettingsError(f"{kind.lower().replace('_', ' ')} may not stand in a filter")
    function = node.get("function_name", "")
    if kind == "FUNCTION" and not node.get("is_operator") and function.lower() not in FUNCTIONS:
        raise SettingsError(
            f"the function '{function}' is not for filters{did_you_mean(function, FUNCTIONS)}"
        )


def evaluate(*columns: pa.Array, where: str) -> pa.Array:
    """The call of the step: true, false or null per alert."""
    return _run(parse(where), columns)


def _run(parsed: Parsed, columns: Any) -> pa.Array:
    pruned = [_pruned(column, name, parsed) for name, column in zip(parsed.needs, columns, strict=True)]
    connection = _connection()
    connection.register(TABLE, pa.table(pruned, names=list(parsed.needs)))
    try:
        query = f"SELECT (\n{parsed.expression}\n) AS sent FROM {TABLE}"
        return connection.sql(query).to_arrow_table().column("sent").combine_chunks()
    finally:
        connection.unregister(TABLE)


def _pruned(column: pa.Array, name: str, parsed: Parsed) -> pa.Array:
    """The column with only the fields that are asked for: a survey's own struct has a hundred more."""
    return _fields(column, [path[1:] for path in parsed.paths if path[0] == name])


def _fields(column: pa.Array, paths: list[tuple[str, ...]]) -> pa.Array:
    if not pa.types.is_struct(column.type) or () in paths:
        return _nan_to_null(column)
    names = list(dict.fromkeys(path[0] for path in paths))
    inner = [alerts.field(column, name) for name in names]
    if any(array is None for array in inner):
        return column  # DuckDB says which field is missing, and what is near
    children = [_fields(a, [p[1:] for p in paths if p[0] == n]) for n, a in zip(names, inner, strict=True)]
    return pa.StructArray.from_arrays(children, names=names, mask=column.is_null())


def _nan_to_null(column: pa.Array) -> pa.Array:
    """DuckDB sorts NaN above all numbers, so that `x > 1` would be true of what is not known."""
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.fill_null(pc.is_nan(column), True), pa.scalar(None, column.type), column)


_here = threading.local()


def _connection() -> Any:
    """This thread's DuckDB: one thread, no files, no extensions, and nothing that an expression could change."""
    if not hasattr(_here, "connection"):
        _here.connection = duckdb.connect(
            ":memory:",
            config={
                "threads": 1,
                "enable_external_access": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "python_enable_replacements": False,
                "lock_configuration": True,
            },
        )
    return _here.connection


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
