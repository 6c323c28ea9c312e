"""`/v1/dead_letters`: lines that were set aside, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests import oracle
from tests.conformance.features import Area, proves
from tests.conformance.lines import broken, jsonl, request
from tests.conformance.shapes import check_error, check_page

if TYPE_CHECKING:
    import httpx

    from tests.conformance.server import Own, Server

PATH = "/v1/dead_letters"
LETTER = {
    "id",
    "object",
    "batch_id",
    "line",
    "custom_id",
    "state",
    "attempts",
    "status_code",
    "error_code",
    "error_message",
    "created_at",
    "ended_at",
    "ended_by",
    "requeued_as",
}
LIST = (
    "`dead_letters`: lines that exhausted their attempts, newest first, by batch, cause and state"
)
SHOW = "`dead_letters/{id}`: a letter with its line and its last answer"
DOWNLOAD = "`dead_letters/content`: inputs to upload again, or last answers as in the error file"
REQUEUE = (
    "`dead_letters/requeue`: by ids or filter, in a new batch; repeating it runs no line twice"
)
REQUEUE_TO = "`dead_letters/requeue` to a pool: requests run in it; one without replicas is refused"
DISCARD = "`dead_letters/discard`: by ids or filter"
UNKNOWN_BATCH = "batch_" + "0" * 32
UNKNOWN = "batch_req_" + "0" * 39 + "1"


@dataclass(frozen=True)
class Died:
    """A batch that is over, and of which four lines died."""

    batch: dict[str, Any]
    source: bytes
    errors: bytes

    @property
    def lines(self) -> bytes:
        """The lines that died, as they are in the input."""
        return b"".join(
            line for line in self.source.splitlines(keepends=True) if b"broken for" in line
        )


def _died(server: Server, name: str) -> Died:
    source = jsonl(request("fine"), *broken(name, 4), request("fine too"))
    ended = server.finish(server.create(source))
    return Died(ended, source, server.content(ended["error_file_id"]))


@pytest.fixture(scope="module")
def died(server: Server, own: Own) -> Died:  # noqa: ARG001
    """A batch whose letters stay open."""
    return _died(server, "always")


def _post(server: Server, what: str, **body: Any) -> httpx.Response:
    return server.http.post(f"{PATH}/{what}", json=body)


def _changed(server: Server, what: str, **body: Any) -> dict[str, Any]:
    response = _post(server, what, **body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def _letters(server: Server, batch: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    return check_page(server.json(PATH, batch_id=batch["id"], **query))


@proves(Area.BEYOND, LIST)
def test_letters(server: Server, died: Died) -> None:
    letters = _letters(server, died.batch)
    assert [letter["custom_id"] for letter in letters] == [
        f"broken-{number}" for number in (3, 2, 1, 0)
    ]
    for letter in letters:
        assert set(letter) == LETTER
        assert (letter["object"], letter["state"]) == ("dead_letter", "open")
        assert (letter["status_code"], letter["error_code"]) == (500, "http_500")
        assert letter["batch_id"] == died.batch["id"]
    states = server.json(f"/v1/batches/{died.batch['id']}/requests", status="DeadLettered")
    assert {line["id"] for line in states["data"]} == {letter["id"] for letter in letters}


@proves(Area.BEYOND, LIST)
@pytest.mark.parametrize(
    ("query", "count"),
    [
        pytest.param({"state": "open"}, 4, id="open"),
        pytest.param({"state": "discarded"}, 0, id="discarded"),
        pytest.param({"error_code": "http_500"}, 4, id="code"),
        pytest.param({"error_code": "worker_lost"}, 0, id="another code"),
        pytest.param({"batch_id": UNKNOWN_BATCH}, 0, id="another batch"),
    ],
)
def test_filters(server: Server, died: Died, query: dict[str, str], count: int) -> None:
    page = server.json(PATH, **({"batch_id": died.batch["id"]} | query))
    assert len(check_page(page)) == count


@proves(Area.BEYOND, LIST)
@pytest.mark.parametrize("limit", [1, 3])
def test_letters_page_by_page(server: Server, died: Died, limit: int) -> None:
    seen: list[str] = []
    query: dict[str, Any] = {"limit": limit}
    more = True
    while more:
        page = server.json(PATH, batch_id=died.batch["id"], **query)
        seen += [letter["id"] for letter in check_page(page)]
        more, query["after"] = page["has_more"], page["last_id"]
    assert seen == [letter["id"] for letter in _letters(server, died.batch)]


@proves(Area.BEYOND, LIST)
@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("after", "x", 404),
        ("after", UNKNOWN, 404),
        ("limit", "0", 400),
        ("limit", "1001", 400),
        ("state", "Open", 400),
        ("batch_id", "x", 400),
        ("error_code", "\x00", 400),
    ],
)
def test_bad_list_arguments(server: Server, name: str, value: str, status: int) -> None:
    response = server.http.get(PATH, params={name: value})
    assert response.status_code == status
    assert check_error(response.json())["param"] == name


@proves(Area.BEYOND, SHOW)
def test_letter(server: Server, died: Died) -> None:
    for letter, line in zip(
        reversed(_letters(server, died.batch)), died.lines.splitlines(), strict=True
    ):
        response = server.http.get(f"{PATH}/{letter['id']}")
        shown = response.json()
        assert set(shown) == LETTER | {"input", "response", "error"}
        assert b'"input":' + line in response.content
        assert shown["response"]["status_code"] == 500
        assert shown["response"]["body"]["error"]["message"] == "The engine is broken."
        assert shown["error"] is None


@proves(Area.BEYOND, SHOW)
@pytest.mark.parametrize("letter_id", [UNKNOWN, "batch_req_odd", "batch_req_" + "f" * 40])
def test_unknown_letter(server: Server, letter_id: str) -> None:
    response = server.http.get(f"{PATH}/{letter_id}")
    assert response.status_code == 404
    assert check_error(response.json())["param"] == "letter_id"


@proves(Area.BEYOND, DOWNLOAD)
@pytest.mark.parametrize("which", ["input", "output"])
def test_download(server: Server, died: Died, which: str) -> None:
    query = {"which": which, "batch_id": died.batch["id"]}
    response = server.http.get(f"{PATH}/content", params=query)
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert response.content == (died.lines if which == "input" else died.errors)


@proves(Area.BEYOND, DOWNLOAD)
def test_bad_download(server: Server) -> None:
    response = server.http.get(f"{PATH}/content", params={"which": "both"})
    assert response.status_code == 400
    assert check_error(response.json())["param"] == "which"


def _any_answer(line: oracle.InputLine, body: Any) -> None:
    assert body["model"] == line.body["model"]


@proves(Area.BEYOND, REQUEUE)
@pytest.mark.parametrize("by", ["ids", "filter"])
def test_requeue(server: Server, own: Own, by: str) -> None:
    died = _died(server, f"requeue-{by}")
    own.engine.mend(f"requeue-{by}")
    ids = [letter["id"] for letter in _letters(server, died.batch)]
    wanted = {"ids": ids} if by == "ids" else {"filter": {"batch_id": died.batch["id"]}}
    would = _changed(server, "requeue", **wanted, dry_run=True)
    assert (would["changed"], would["batches"][0]["batch_id"]) == (4, None)
    done = _changed(server, "requeue", **wanted, completion_window="3h")
    (made,) = done["batches"]
    assert (made["source_batch_id"], made["letters"]) == (died.batch["id"], 4)
    ended = server.finish(server.batch(made["batch_id"]))
    assert ended["metadata"] == {"dead_letters_of": died.batch["id"]}
    assert ended["completion_window"] == "3h"
    assert server.content(ended["input_file_id"]) == died.lines
    output = server.content(ended["output_file_id"])
    oracle.check(ended, died.lines, output, b"", answers=_any_answer)
    assert server.batch(died.batch["id"]) == died.batch
    for letter in _letters(server, died.batch):
        assert (letter["state"], letter["requeued_as"]) == ("requeued", made["batch_id"])
        assert letter["ended_by"]
    again = _changed(server, "requeue", ids=ids)
    assert (again["changed"], again["unchanged"], again["batches"]) == (0, 4, [made])


@proves(Area.BEYOND, REQUEUE_TO)
def test_requeue_to_a_pool(server: Server, own: Own) -> None:
    assert own.stack.settings["LOWTIDE_DEDICATED_REPLICAS"] == "0"
    died = _died(server, "requeue-to")
    own.engine.mend("requeue-to")
    wanted = {"filter": {"batch_id": died.batch["id"]}}
    refused = _post(server, "requeue", **wanted, pool="dedicated")
    assert refused.status_code == 409
    assert check_error(refused.json())["code"] == "pool_without_replicas"
    (made,) = _changed(server, "requeue", **wanted, pool="spot")["batches"]
    server.finish(server.batch(made["batch_id"]))
    page = server.http.get(f"/v1/batches/{made['batch_id']}/requests").json()
    assert [line["pool"] for line in page["data"]] == ["spot"] * 4


@proves(Area.BEYOND, REQUEUE_TO)
def test_an_unknown_pool(server: Server) -> None:
    response = _post(server, "requeue", filter={}, pool="gold")
    assert response.status_code == 400


@proves(Area.BEYOND, REQUEUE)
def test_idempotency_key(server: Server, own: Own) -> None:  # noqa: ARG001
    died = _died(server, "once")
    ids = [letter["id"] for letter in _letters(server, died.batch)]
    headers = {"Idempotency-Key": died.batch["id"]}
    answers = [
        server.http.post(f"{PATH}/requeue", json={"ids": ids[:2]}, headers=headers).json()
        for _ in range(2)
    ]
    assert [answer["changed"] for answer in answers] == [2, 0]
    assert answers[0]["batches"] == answers[1]["batches"]
    other = server.http.post(f"{PATH}/requeue", json={"ids": ids}, headers=headers)
    assert other.status_code == 422
    assert check_error(other.json())["code"] == "idempotency_key_reused"
    _changed(server, "discard", filter={"batch_id": died.batch["id"]})


@proves(Area.BEYOND, REQUEUE)
def test_requeue_without_input(server: Server, own: Own) -> None:  # noqa: ARG001
    died = _died(server, "gone")
    server.http.delete(f"/v1/files/{died.batch['input_file_id']}").raise_for_status()
    wanted = {"filter": {"batch_id": died.batch["id"]}}
    response = _post(server, "requeue", **wanted)
    assert response.status_code == 409
    error = check_error(response.json())
    assert error["code"] == "input_file_gone"
    assert died.batch["id"] in error["message"]
    assert _changed(server, "discard", **wanted)["changed"] == 4


@proves(Area.BEYOND, DISCARD)
def test_discard(server: Server, own: Own) -> None:  # noqa: ARG001
    died = _died(server, "discard")
    ids = [letter["id"] for letter in _letters(server, died.batch)]
    assert _changed(server, "discard", ids=ids[:1], dry_run=True)["changed"] == 1
    assert _changed(server, "discard", ids=ids[:1])["changed"] == 1
    done = _changed(server, "discard", ids=ids)
    assert (done["changed"], done["unchanged"], done["remaining"]) == (3, 1, 0)
    assert {letter["state"] for letter in _letters(server, died.batch)} == {"discarded"}
    assert _changed(server, "requeue", ids=ids)["unchanged"] == 4
    assert server.batch(died.batch["id"]) == died.batch


@proves(Area.BEYOND, "Dead letters: calls that name none, both, or what is not there are refused")
@pytest.mark.parametrize("what", ["requeue", "discard"])
@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        pytest.param({}, 400, "ids", id="nothing"),
        pytest.param({"ids": [UNKNOWN], "filter": {}}, 400, "filter", id="both"),
        pytest.param({"ids": []}, 400, "ids", id="no ids"),
        pytest.param({"ids": ["odd"]}, 400, "ids", id="an odd id"),
        pytest.param({"ids": [UNKNOWN]}, 404, "ids", id="an unknown id"),
        pytest.param({"filter": {"eror_code": "x"}}, 400, "filter", id="a typing error"),
        pytest.param({"filter": {"batch_id": "x"}}, 400, "filter", id="an odd batch"),
        pytest.param(
            {"filter": {}, "completion_window": "9d"}, 400, "completion_window", id="window"
        ),
    ],
)
def test_bad_bodies(
    server: Server, what: str, body: dict[str, Any], status: int, param: str
) -> None:
    if what == "discard" and param == "completion_window":
        param = ""
    response = _post(server, what, **body)
    assert response.status_code == status, response.text
    assert (check_error(response.json())["param"] or "") == param
