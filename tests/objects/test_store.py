"""Conformance of a folder, memory and the buckets of three clouds to the `ObjectStore` protocol."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import urllib.request
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lowtide.core.errors import NotFound, Unavailable
from lowtide.objects.store import CHUNK, ObstoreObjects

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.objects.store import ObjectStore

KEY = "0190/file-abc"
LARGE = random.Random(1).randbytes(20 * CHUNK + 3)  # noqa: S311


def put(objects: ObjectStore, data: bytes, key: str = KEY, piece: int = 3 * CHUNK) -> None:
    with objects.open_writer(key) as writer:
        for start in range(0, len(data), piece):
            writer.write(data[start : start + piece])


def read(objects: ObjectStore, key: str = KEY) -> bytes:
    return b"".join(objects.stream(key))


def fail_after(objects: ObjectStore, inspect: Callable[[], None], size: int = len(LARGE)) -> None:
    """Write some bytes, call `inspect`, and raise inside the block."""

    def work() -> None:
        with objects.open_writer(KEY) as writer:
            writer.write(LARGE[:size])
            inspect()
            raise KeyError

    with pytest.raises(KeyError):
        work()


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("data", [b"", b"a", LARGE], ids=["empty", "small", "parts"])
def test_written_object_is_read_back(objects: ObjectStore, data: bytes) -> None:
    put(objects, data)
    assert read(objects) == data


def test_stream_yields_chunks(objects: ObjectStore) -> None:
    put(objects, LARGE)
    assert [len(piece) for piece in objects.stream(KEY)] == [CHUNK] * 20 + [3]


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, None), (5, 9), (5, 5), (9, 5), (5, 10**9), (10**9, None), (4 * CHUNK - 1, 4 * CHUNK + 1)],
)
def test_range_is_streamed(objects: ObjectStore, start: int, end: int | None) -> None:
    put(objects, LARGE)
    assert b"".join(objects.stream(KEY, start, end)) == LARGE[start:end]


@pytest.mark.parametrize(
    "ranges",
    [
        [],
        [(0, 3)],
        [(3, 0)],
        [(7, 3), (0, 2), (0, 2), (5 * CHUNK, 4), (1, 0), (20 * CHUNK, 3)],
        [(n * 1000, 1000) for n in range(300)],
    ],
    ids=["none", "one", "empty", "mixed", "lines"],
)
def test_ranges_are_read(objects: ObjectStore, ranges: list[tuple[int, int]]) -> None:
    put(objects, LARGE)
    expected = [LARGE[offset : offset + length] for offset, length in ranges]
    assert list(objects.read_ranges(KEY, ranges)) == expected
    assert list(asyncio.run(objects.fetch_ranges(KEY, ranges))) == expected


SHORT = LARGE[: CHUNK // 2]
BEYOND = [
    pytest.param([(len(SHORT) - 2, 5)], [2], id="across the end"),
    pytest.param([(len(SHORT) + 5, 5)], [0], id="after the end"),
    pytest.param([(len(SHORT) - 9, 5), (len(SHORT) + 5, 5)], [5, 0], id="before and after"),
    pytest.param([(len(SHORT) + 9, 5), (0, 3), (5, 0)], [0, 3, 0], id="far apart"),
]


@pytest.mark.parametrize(("ranges", "lengths"), BEYOND)
def test_range_beyond_end_is_truncated(
    objects: ObjectStore, ranges: list[tuple[int, int]], lengths: list[int]
) -> None:
    put(objects, SHORT)
    parts = asyncio.run(objects.fetch_ranges(KEY, ranges))
    expected = [SHORT[offset : offset + length] for offset, length in ranges]
    assert list(parts) == list(objects.read_ranges(KEY, ranges)) == expected
    assert [len(part) for part in parts] == lengths


def test_unknown_key_is_not_found(objects: ObjectStore) -> None:
    put(objects, b"x", "0190/another")
    with pytest.raises(NotFound):
        read(objects)
    with pytest.raises(NotFound):
        objects.read_ranges(KEY, [(0, 1)])
    with pytest.raises(NotFound):
        asyncio.run(objects.fetch_ranges(KEY, [(0, 1)]))


@pytest.mark.parametrize("size", [0, 10, 20 * CHUNK], ids=["nothing", "little", "parts"])
def test_exception_while_writing_leaves_no_object(objects: ObjectStore, size: int) -> None:
    fail_after(objects, lambda: None, size)
    with pytest.raises(NotFound):
        read(objects)


def test_object_is_replaced_only_when_complete(objects: ObjectStore) -> None:
    put(objects, b"old")
    with objects.open_writer(KEY) as writer:
        writer.write(LARGE)
        assert read(objects) == b"old"
    assert read(objects) == LARGE


def test_stream_fails_rather_than_mix_versions(objects: ObjectStore) -> None:
    put(objects, LARGE)
    stream = objects.stream(KEY)
    first = next(stream)
    put(objects, b"y" * (len(LARGE) + 1))
    with pytest.raises(Unavailable):
        list(stream)
    assert first == LARGE[:CHUNK]


def test_concurrent_writers_leave_one_whole_object(
    objects: ObjectStore, request: pytest.FixtureRequest
) -> None:
    chunks = [LARGE[start : start + CHUNK] for start in range(0, len(LARGE), CHUNK)]
    # On Azure, the end of one writer discards the parts of the other.
    is_azure = "azure" in request.node.name
    outcome: Any = pytest.raises(Unavailable) if is_azure else nullcontext()
    with outcome, objects.open_writer(KEY) as first, objects.open_writer(KEY) as second:
        for chunk in chunks:
            first.write(chunk)
            second.write(chunk[::-1])
    expected = b"".join(chunk[::-1] for chunk in chunks) if is_azure else LARGE
    assert read(objects) == expected


def test_delete_ignores_missing_keys(objects: ObjectStore) -> None:
    keys = [f"0190/file-{n}" for n in range(20)]
    for key in keys:
        put(objects, b"x", key)
    objects.delete(["0190/missing", *keys[:-1], "0190/missing"])
    objects.delete([])
    for key in keys[:-1]:
        with pytest.raises(NotFound):
            read(objects, key)
    assert read(objects, keys[-1]) == b"x"


def test_check_passes_for_working_store(objects: ObjectStore) -> None:
    objects.check()


@pytest.mark.usefixtures("s3_environment")
@pytest.mark.parametrize("name", ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_endpoint_is_read_from_any_of_three_variables(
    monkeypatch: pytest.MonkeyPatch, s3_endpoint: str, name: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(name, s3_endpoint)
    objects = ObstoreObjects("s3://bucket/named")
    with objects.open_writer(name) as writer:
        writer.write(b"x")
    assert list(objects.stream(name)) == [b"x"]


@pytest.mark.usefixtures("s3_environment")
def test_missing_bucket_is_unavailable() -> None:
    missing = ObstoreObjects("s3://nowhere/here")
    with pytest.raises(Unavailable):
        missing.check()
    with pytest.raises(Unavailable):
        put(missing, LARGE)
    with pytest.raises(Unavailable):
        asyncio.run(missing.fetch_ranges(KEY, [(0, 1)]))


@pytest.mark.usefixtures("s3_environment")
def test_aborted_upload_is_removed_from_server(s3_endpoint: str) -> None:
    objects = ObstoreObjects("s3://bucket/aborted")
    url = f"{s3_endpoint}/bucket?uploads"

    def uploads() -> int:
        with urllib.request.urlopen(url) as response:  # noqa: S310
            listed: bytes = response.read()
        return listed.count(b"<Key>aborted/")

    counts: list[int] = []
    fail_after(objects, lambda: counts.append(uploads()))
    assert [*counts, uploads()] == [1, 0]


def test_missing_folder_is_unavailable(tmp_path: Path) -> None:
    objects = ObstoreObjects((tmp_path / "gone").as_uri())
    (tmp_path / "gone").rmdir()
    with pytest.raises(Unavailable):
        objects.check()
    with pytest.raises(Unavailable):
        asyncio.run(objects.fetch_ranges(KEY, [(0, 1)]))


def test_unwritable_path_is_unavailable(tmp_path: Path) -> None:
    objects = ObstoreObjects(tmp_path.as_uri())
    (tmp_path / "0190").write_bytes(b"a file where a folder has to be")
    with pytest.raises(Unavailable):
        put(objects, LARGE)
    assert files_in(tmp_path) == ["0190"]


def test_folder_keeps_no_staging_files(tmp_path: Path) -> None:
    objects = ObstoreObjects(tmp_path.as_uri())
    counts: list[int] = []
    fail_after(objects, lambda: counts.append(len(files_in(tmp_path))))
    assert [*counts, *files_in(tmp_path)] == [1]
    put(objects, LARGE)
    assert files_in(tmp_path) == [KEY]


def test_deletion_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    objects = ObstoreObjects(tmp_path.as_uri())
    put(objects, LARGE)
    for name in (f"{KEY}#1", f"{KEY}#2", f"{KEY}0"):
        (tmp_path / name).write_bytes(b"x")
    objects.delete([KEY, "unknown/key"])
    assert files_in(tmp_path) == [f"{KEY}0"]


def test_files_and_folders_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    put(ObstoreObjects(tmp_path.as_uri()), b"x")
    assert synced == [str(tmp_path / KEY), str(tmp_path / "0190"), str(tmp_path)]


WRITE_AND_WAIT = """
import sys
from lowtide.objects.store import ObstoreObjects
with ObstoreObjects(sys.argv[1]).open_writer(sys.argv[2]) as writer:
    for _ in range(40):
        writer.write(b"x" * 1024 * 1024)
    print("written", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_killed_writer_leaves_old_object(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = tmp_path.as_uri()
    if kind == "s3":
        request.getfixturevalue("s3_environment")
        url = "s3://bucket/killed"
    objects = ObstoreObjects(url)
    put(objects, b"old")
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_WAIT, url, KEY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert read(objects) == b"old"
    put(objects, b"new")
    assert read(objects) == b"new"


@pytest.mark.parametrize(
    "url", ["", "relative/path", "file:relative", "file://host/x", "ftp://h/x"]
)
def test_invalid_url_is_rejected(url: str) -> None:
    with pytest.raises(ValueError, match="object store URL"):
        ObstoreObjects(url)


def test_folder_name_may_contain_space(tmp_path: Path) -> None:
    put(ObstoreObjects((tmp_path / "a b#c").as_uri()), b"x")
    assert (tmp_path / "a b#c" / KEY).read_bytes() == b"x"


def test_small_object_is_created_once_replaced_read_and_listed(objects: ObstoreObjects) -> None:
    assert objects.read("small/a") is None
    assert objects.create("small/a", b"first")
    assert not objects.create("small/a", b"second")
    assert objects.read("small/a") == b"first"
    objects.put("small/a", b"third")
    objects.put("small/b", b"")
    objects.put("smaller", b"")
    assert objects.read("small/a") == b"third"
    assert sorted(each.key for each in objects.objects_in("small")) == ["small/a", "small/b"]
    objects.delete(["small/a"])
    assert objects.create("small/a", b"again")
