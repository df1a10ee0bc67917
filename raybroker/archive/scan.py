"""Live files of a table as something that DuckDB selects from.

In a folder DuckDB opens the files that it was given, and nothing else. It has no reader for object stores without an
extension that it would have to download, so there pyarrow reads: DuckDB says which columns and rows, and by ranges
only these columns, of the row groups whose statistics allow these rows, are fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
from deltalake import DeltaTable
from deltalake.fs import DeltaStorageHandler

from raybroker.archive import delta, store
from raybroker.archive.delta import File
from raybroker.errors import ArchiveError
from raybroker.places import Place

Values = Mapping[str, Any]


class Files(NamedTuple):
    """Some live files of the table in a folder."""

    folder: Place
    handle: DeltaTable
    found: Sequence[File]

    @property
    def paths(self) -> list[str]:
        """As DuckDB opens them; only those of a folder."""
        return [str((self.folder / file.path).absolute()) for file in self.found]  # type: ignore[union-attr]

    @property
    def local(self) -> bool:
        """Whether they are in a folder of this machine."""
        return isinstance(self.folder, Path)

    @property
    def schema(self) -> pa.Schema:
        """The table's columns."""
        return delta.schema_of(self.handle)


def connect(each: Iterable[Files], threads: int) -> duckdb.DuckDBPyConnection:
    """A connection that may open these files and nothing else: for what a person asks."""
    return _locked("allowed_paths", [path for files in each if files.local for path in files.paths], threads)


def engine(folder: Place, threads: int) -> duckdb.DuckDBPyConnection:
    """A connection that may open what is in `folder` and nothing else, for many questions of our own, each with a
    `cursor` of it: to make one takes longer (some 30 ms) than most of them. DuckDB follows links before it looks."""
    places = {folder.absolute(), folder.resolve()} if isinstance(folder, Path) else ()
    return _locked("allowed_directories", [str(place) for place in places], threads)


def _locked(setting: str, allowed: Sequence[str], threads: int) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config={"threads": threads})
    connection.execute(f"set {setting} = {_literal(allowed)}")
    connection.execute("set enable_external_file_cache = false")  # a lookup seldom reads a row group twice
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    return connection


def source(connection: duckdb.DuckDBPyConnection, files: Files, option: str = "union_by_name = true") -> str:
    """What stands after `from` for these files; `option` is one of DuckDB's `read_parquet`."""
    if files.local:
        return f"read_parquet({_literal(files.paths)}, {option})"
    name = "_files_" + "_".join(str(files.folder).split("/")[-2:])
    connection.register(name, _dataset(files))
    return f'"{name}"'


def ask(
    cursor: duckdb.DuckDBPyConnection,
    files: Files,
    query: str,
    values: Values,
    option: str = "union_by_name = true",
) -> pa.Table:
    """The answer to a query in which `{}` or `{0}` stands for the files."""
    text = query.format(source(cursor, files, option))
    return cursor.sql(text, params=dict(values)).to_arrow_table()


def holding(cursor: duckdb.DuckDBPyConnection, files: Files, clauses: Sequence[str], values: Values) -> Files:
    """Those of the files in which some row makes one of the clauses true: read narrowly, so that few are read widely."""
    if not files.found:
        return files
    if files.local:
        one = " union ".join(f"select distinct filename from {{0}} where {clause}" for clause in clauses)
        names = set(ask(cursor, files, one, values, "filename = true")["filename"].to_pylist())
        kept = [file for file, path in zip(files.found, files.paths, strict=True) if path in names]
    else:
        hits = store.at_once(files.folder, lambda file: _holds(files, file, clauses, values), files.found)
        kept = [file for file, hit in zip(files.found, hits, strict=True) if hit]
    return files._replace(found=kept)


def select(
    connection: duckdb.DuckDBPyConnection, query: str, values: Mapping[str, Any] | Sequence[Any]
) -> pa.Table:
    """The answer to one SELECT of a person's; anything else is an ArchiveError."""
    try:
        statements = connection.extract_statements(query)
        if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
            raise ArchiveError("one SELECT statement was expected")
        return connection.sql(query, params=values).to_arrow_table()
    except duckdb.Error as error:
        raise ArchiveError(f"this query cannot be answered: {error}") from error


def _holds(files: Files, file: File, clauses: Sequence[str], values: Values) -> bool:
    where = " or ".join(f"({clause})" for clause in clauses)
    named = pa.schema([field for field in files.schema if field.name in where])
    rows = delta.read_file(files.folder / file.path, named)
    with connect([], threads=1) as connection:
        connection.register("rows_of_file", rows)
        query = f"select 1 from rows_of_file where {where} limit 1"
        return len(connection.sql(query, params=dict(values)).to_arrow_table()) > 0


def _dataset(files: Files) -> pyarrow.dataset.Dataset:
    sizes = {file.path: file.size for file in files.found}
    handler = DeltaStorageHandler(str(files.folder), store.options(files.folder), sizes)
    there = pyarrow.fs.PyFileSystem(handler)
    return pyarrow.dataset.dataset(list(sizes), schema=files.schema, filesystem=there, format="parquet")


def _literal(texts: Sequence[str]) -> str:
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"
