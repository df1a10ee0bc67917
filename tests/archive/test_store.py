"""The verbs of a place, in a folder and in an object store."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
import pytest

from raybroker.archive import delta, store
from raybroker.errors import ArchiveError
from raybroker.places import ObjectUrl, Place, place

from .s3_server import CREDENTIALS, S3Server


def test_what_is_written_is_read_listed_and_deleted(root: Place) -> None:
    assert (store.exists(root), store.files(root), store.folders(root)) == (False, [], [])
    store.replace(root / "a", b"one")
    store.replace(root / "a", b"another")
    store.replace(root / "deep" / "b", b"")
    assert store.exists(root)
    assert (store.has(root / "a"), store.has(root / "deep"), store.has(root / "none")) == (True, False, False)
    assert store.read(root / "a") == b"another"
    assert [(f.name, f.size) for f in store.files(root)] == [("a", 7)]
    assert store.folders(root) == [root / "deep"]
    store.delete(root / "a")
    store.delete(root / "a")
    assert store.files(root) == []
    with pytest.raises(FileNotFoundError):
        store.read(root / "a")
    with pytest.raises(FileNotFoundError):
        store.open_file(root / "a")


def test_of_many_that_take_a_name_one_gets_it(root: Place) -> None:
    start = threading.Barrier(8)

    def take(number: int) -> bool:
        start.wait()
        return store.write_new(root / "name", str(number).encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(take, range(8)))
    assert sum(won) == 1
    assert store.read(root / "name") == str(won.index(True)).encode()


def test_what_is_named_by_its_content_is_written_once(root: Place) -> None:
    asked = []
    for _ in range(3):
        store.write_once(root / "digest", lambda: asked.append(1) or b"content")  # type: ignore[func-returns-value]
    assert (store.read(root / "digest"), len(asked)) == (b"content", 1)


@pytest.mark.parametrize("size", [1000, store.TAIL_BYTES, store.TAIL_BYTES + 1, 3_000_000])
def test_a_file_is_read_at_any_position(root: Place, size: int) -> None:
    content = random.Random(size).randbytes(size)
    with store.sink(root / "file") as file:
        file.write(content)
    found = store.open_file(root / "file")
    edge = max(size - store.TAIL_BYTES, 0)
    for start in (0, size // 2, edge - 5, edge, size - 8, size):
        for length in (0, 3, 10, 2_000_000):
            found.seek(max(start, 0))
            assert found.read(length) == content[max(start, 0) : max(start, 0) + length]
    assert found.size() == size


def test_a_small_file_is_one_request_and_of_a_large_one_only_what_is_asked_comes(
    bucket: ObjectUrl, s3: S3Server
) -> None:
    store.replace(bucket / "small", b"x" * 1000)
    store.replace(bucket / "large", b"y" * 5_000_000)
    before = len(s3.requests())
    assert store.open_file(bucket / "small").read() == b"x" * 1000
    assert len(s3.requests()) == before + 1
    large = store.open_file(bucket / "large")
    large.seek(10)
    assert large.read(5) == b"yyyyy"
    assert len(s3.requests()) == before + 3


def test_a_write_that_fails_leaves_nothing(root: Place) -> None:
    def write() -> None:
        with store.sink(root / "file") as file:
            file.write(b"half")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        write()
    assert (store.has(root / "file"), store.files(root)) == (False, [])


def test_work_beside_one_another_keeps_its_order(root: Place) -> None:
    assert store.at_once(root, lambda n: n * n, range(100)) == [n * n for n in range(100)]


def test_a_file_is_fetched_once_for_all_workers_of_a_machine(
    bucket: ObjectUrl, s3: S3Server, tmp_path: Path
) -> None:
    store.replace(bucket / "catalogue", b"z" * 2_000_000)
    before, start = len(s3.requests()), threading.Barrier(4)

    def fetch(_: int) -> int:  # the lock is the opened file's: threads are told apart as processes are
        start.wait()
        return store.fetch(bucket / "catalogue", tmp_path / "cache" / "catalogue").stat().st_size

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(fetch, range(4))) == [2_000_000] * 4
    assert sum("catalogue" in request for request in s3.requests()[before:]) == 1


def test_a_store_that_lets_two_be_first_is_refused(
    bucket: ObjectUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.check(bucket)
    assert not store.exists(bucket)
    put = obstore.put
    monkeypatch.setattr(obstore, "put", lambda *given, mode=None, **more: put(*given, **more))
    with pytest.raises(ArchiveError, match=r"does not heed 'If-None-Match: \*': two workers would overwrite"):
        store.check(bucket)


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArchiveError, match=r"the archive at .*file/archive cannot be written: "):
        store.check(tmp_path / "file" / "archive")


ASKING: dict[str, Callable[[Place], Any]] = {
    "read": lambda there: store.read(there / "x"),
    "write": lambda there: store.replace(there / "x", b""),
    "list": store.folders,
    "open": delta.exists,
}


@pytest.mark.parametrize("verb", ASKING)
def test_a_store_that_is_away_is_an_error_that_names_it(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "RETRY", {"max_retries": 0})
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ArchiveError, match=f"the object store did not answer for s3://away-{verb}"):
        ASKING[verb](place(f"s3://away-{verb}/prefix"))


def test_a_bucket_that_is_not_there_is_said_so(bucket: ObjectUrl) -> None:
    other = ObjectUrl("s3", "no-such-bucket-here", "prefix")
    with pytest.raises(
        ArchiveError,
        match=r"s3://no-such-bucket-here/prefix/x cannot be written: .*[Nn]o.?[Ss]uch.?[Bb]ucket",
    ):
        store.replace(other / "x", b"")
    with pytest.raises(ArchiveError, match="no-such-bucket-here"):
        store.check(other)
