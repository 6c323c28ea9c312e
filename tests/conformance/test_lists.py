"""Lists: order, limits, cursors, and exact paging during concurrent changes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.conformance.features import Area, proves
from tests.conformance.lines import requests
from tests.conformance.shapes import check_batch, check_error, check_file, check_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conformance.server import Official, Server

FILES, BATCHES = "/v1/files", "/v1/batches"
BAD = b"not a request\n"


@pytest.fixture(scope="module")
def file_ids(server: Server) -> list[str]:
    """Files, oldest first."""
    return [server.upload(BAD)["id"] for _ in range(7)]


@pytest.fixture(scope="module")
def batch_ids(server: Server) -> list[str]:
    """Batches, oldest first."""
    return [server.create(BAD)["id"] for _ in range(5)]


def _walk(server: Server, path: str, **parameters: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a list, page by page."""
    while True:
        page = server.json(path, **parameters)
        yield from check_page(page)
        if not page["has_more"]:
            return
        parameters["after"] = page["last_id"]


def _ids(objects: Iterator[dict[str, Any]]) -> list[str]:
    return [each["id"] for each in objects]


@proves(Area.LISTS, "`files.list`, with the client's own paging")
@pytest.mark.parametrize("order", ["asc", "desc", None], ids=["asc", "desc", "default"])
def test_files_are_listed_in_order(
    official: Official, file_ids: list[str], order: str | None
) -> None:
    parameters = {} if order is None else {"order": order}
    listed = official.everything(
        lambda client: client.files.list(limit=3, purpose="batch", **parameters)
    )
    expected = file_ids if order == "asc" else file_ids[::-1]
    assert [file.id for file in listed if file.id in file_ids] == expected
    assert {file.purpose for file in listed} == {"batch"}


@proves(Area.LISTS, "`batches.list`, newest first, with the client's own paging")
def test_batches_are_listed_newest_first(official: Official, batch_ids: list[str]) -> None:
    listed = official.everything(lambda client: client.batches.list(limit=2))
    assert [batch.id for batch in listed if batch.id in batch_ids] == batch_ids[::-1]


@proves(Area.LISTS, "Pages: `object`, `data`, `first_id`, `last_id`, `has_more`")
@pytest.mark.parametrize(
    ("path", "check"), [(FILES, check_file), (BATCHES, check_batch)], ids=["files", "batches"]
)
def test_page_has_objects_and_cursors(
    server: Server,
    file_ids: list[str],
    batch_ids: list[str],
    path: str,
    check: Callable[[dict[str, Any]], object],
) -> None:
    newest = file_ids[::-1] if path == FILES else batch_ids[::-1]
    page = server.json(path, limit=2, after=newest[0])
    data = check_page(page)
    for each in data:
        check(each)
    if path == BATCHES:
        assert [each["id"] for each in data] == newest[1:3]
    assert (len(data), page["has_more"]) == (2, True)


@proves(Area.LISTS, "Pages: `object`, `data`, `first_id`, `last_id`, `has_more`")
@pytest.mark.parametrize("path", [FILES, BATCHES])
def test_page_after_oldest_object_is_empty(
    server: Server, file_ids: list[str], batch_ids: list[str], path: str
) -> None:
    assert file_ids
    assert batch_ids
    oldest = list(_walk(server, path, limit=100))[-1]["id"]
    page = server.json(path, after=oldest)
    assert (check_page(page), page["has_more"]) == ([], False)


@proves(Area.LISTS, "`purpose` filters files")
@pytest.mark.parametrize("purpose", ["batch", "batch_output", "fine-tune"])
def test_purpose_filters_files(server: Server, purpose: str) -> None:
    ended = server.finish(server.create(requests(1)))
    listed = {file["id"]: file["purpose"] for file in _walk(server, FILES, purpose=purpose)}
    assert set(listed.values()) <= {purpose}
    assert (ended["input_file_id"] in listed) == (purpose == "batch")
    assert (ended["output_file_id"] in listed) == (purpose == "batch_output")


@proves(Area.LISTS, "`limit`: 1 to 10,000 files, 1 to 100 batches, 1 to 1000 requests")
@pytest.mark.parametrize(
    ("path", "limit"),
    [(FILES, 1), (FILES, 10_000), (BATCHES, 1), (BATCHES, 100)],
    ids=str,
)
def test_limit_bounds_page(server: Server, path: str, limit: int) -> None:
    assert len(check_page(server.json(path, limit=limit))) <= limit


@proves(Area.LISTS, "`limit`: 1 to 10,000 files, 1 to 100 batches, 1 to 1000 requests")
@pytest.mark.parametrize(
    ("path", "limit"),
    [
        *((path, limit) for path in (FILES, BATCHES) for limit in ("0", "-1", "1.5", "many")),
        (FILES, "10001"),
        (BATCHES, "101"),
        (FILES, "9" * 40),
        (BATCHES, "0" * 8 + "5" + "9" * 40),
    ],
    ids=lambda value: str(value)[:12],
)
def test_invalid_limit_is_refused(server: Server, path: str, limit: str) -> None:
    response = server.http.get(path, params={"limit": limit})
    assert response.status_code == 400
    assert check_error(response.json())["param"] == "limit"


@proves(Area.LISTS, "Arguments that make no sense are refused")
@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        pytest.param("order=upwards", 400, "order", id="order"),
        pytest.param("after=batch_" + "0" * 32, 404, "after", id="after-of-other-kind"),
        pytest.param("purpose=%00", 400, "purpose", id="nul-in-purpose"),
    ],
)
def test_invalid_arguments_are_refused(server: Server, query: str, status: int, param: str) -> None:
    response = server.http.get(f"{FILES}?{query}")
    assert response.status_code == status
    assert check_error(response.json())["param"] == param


@proves(Area.LISTS, "An empty argument is an absent one")
@pytest.mark.parametrize(
    ("path", "query"),
    [
        *((FILES, f"{name}=") for name in ("after", "limit", "order", "purpose")),
        *((BATCHES, f"{name}=") for name in ("after", "limit")),
    ],
)
def test_empty_argument_is_ignored(server: Server, path: str, query: str) -> None:
    response = server.http.get(f"{path}?{query}")
    assert response.status_code == 200
    check_page(response.json())


@proves(Area.LISTS, "`after` an id that was never there is 404")
@pytest.mark.parametrize("kind", ["files", "batches"])
def test_unknown_cursor_returns_404(official: Official, kind: str) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        official.everything(lambda client: getattr(client, kind).list(after="abc"))
    assert refused.value.param == "after"


@proves(Area.LISTS, "`after` may be an object that is deleted meanwhile")
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_deleted_file_is_valid_cursor(server: Server, order: str) -> None:
    ids = [server.upload(BAD)["id"] for _ in range(3)]
    server.http.delete(f"{FILES}/{ids[1]}")
    page = server.json(FILES, after=ids[1], order=order, limit=1)
    if order == "desc":
        assert [file["id"] for file in page["data"]] == [ids[0]]
    assert ids[1] not in [file["id"] for file in page["data"]]


@proves(Area.LISTS, "Walks stay exact while objects are created and deleted")
@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        pytest.param(FILES, {"order": "asc", "limit": 20}, id="files-asc"),
        pytest.param(FILES, {"order": "desc", "limit": 20}, id="files-desc"),
        pytest.param(FILES, {"order": "desc", "limit": 20, "purpose": "batch"}, id="files-purpose"),
        pytest.param(BATCHES, {"limit": 10}, id="batches"),
    ],
)
def test_paging_stays_exact_during_changes(
    server: Server,
    file_ids: list[str],
    batch_ids: list[str],
    path: str,
    parameters: dict[str, Any],
) -> None:
    walked = threading.Event()
    input_file = server.upload(BAD)["id"]
    created: list[list[str]] = [[], []]

    def create_and_delete(made: list[str]) -> None:
        while not walked.is_set():
            made.append(server.upload(BAD)["id"])
            if len(made) % 2:
                server.http.delete(f"{FILES}/{made[len(made) // 2]}")

    def submit() -> None:
        while not walked.is_set():
            response = server.http.post(BATCHES, json={"input_file_id": input_file})
            assert response.status_code == 200

    with ThreadPoolExecutor(3) as threads:
        others = [threads.submit(create_and_delete, made) for made in created] + [
            threads.submit(submit)
        ]
        try:
            walks = [_ids(_walk(server, path, **parameters)) for _ in range(3)]
        finally:
            walked.set()
        for other in others:
            other.result()

    stable = file_ids if path == FILES else batch_ids
    expected = stable if parameters.get("order") == "asc" else stable[::-1]
    for walk in walks:
        assert len(walk) == len(set(walk)), "an object was listed twice"
        assert [each for each in walk if each in stable] == expected
    assert all(made for made in created), "nothing was created meanwhile"
