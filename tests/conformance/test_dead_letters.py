"""`/v1/dead_letters`: list, show, download, requeue and discard."""

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
class DeadLetteredBatch:
    """An ended batch with four dead letters."""

    batch: dict[str, Any]
    source: bytes
    errors: bytes

    @property
    def lines(self) -> bytes:
        """The input lines of the dead letters."""
        return b"".join(
            line for line in self.source.splitlines(keepends=True) if b"broken for" in line
        )


def _dead_letter(server: Server, name: str) -> DeadLetteredBatch:
    source = jsonl(request("fine"), *broken(name, 4), request("fine too"))
    ended = server.finish(server.create(source))
    return DeadLetteredBatch(ended, source, server.content(ended["error_file_id"]))


@pytest.fixture(scope="module")
def dead_lettered(server: Server, own: Own) -> DeadLetteredBatch:  # noqa: ARG001
    """A batch whose dead letters stay open."""
    return _dead_letter(server, "always")


def _post(server: Server, action: str, **body: Any) -> httpx.Response:
    return server.http.post(f"{PATH}/{action}", json=body)


def _change(server: Server, action: str, **body: Any) -> dict[str, Any]:
    response = _post(server, action, **body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def _letters(server: Server, batch: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    return check_page(server.json(PATH, batch_id=batch["id"], **query))


@proves(Area.BEYOND, LIST)
def test_dead_letters_are_listed_newest_first(
    server: Server, dead_lettered: DeadLetteredBatch
) -> None:
    letters = _letters(server, dead_lettered.batch)
    assert [letter["custom_id"] for letter in letters] == [
        f"broken-{number}" for number in (3, 2, 1, 0)
    ]
    for letter in letters:
        assert set(letter) == LETTER
        assert (letter["object"], letter["state"]) == ("dead_letter", "open")
        assert (letter["status_code"], letter["error_code"]) == (500, "http_500")
        assert letter["batch_id"] == dead_lettered.batch["id"]
    page = server.json(f"/v1/batches/{dead_lettered.batch['id']}/requests", dead_lettered="true")
    assert {state["id"] for state in page["data"]} == {letter["id"] for letter in letters}
    assert {state["status"] for state in page["data"]} == {"Failed"}


@proves(Area.BEYOND, LIST)
@pytest.mark.parametrize(
    ("query", "count"),
    [
        pytest.param({"state": "open"}, 4, id="open"),
        pytest.param({"state": "discarded"}, 0, id="discarded"),
        pytest.param({"error_code": "http_500"}, 4, id="code"),
        pytest.param({"error_code": "worker_lost"}, 0, id="other code"),
        pytest.param({"batch_id": UNKNOWN_BATCH}, 0, id="other batch"),
    ],
)
def test_dead_letters_are_filtered(
    server: Server, dead_lettered: DeadLetteredBatch, query: dict[str, str], count: int
) -> None:
    page = server.json(PATH, **({"batch_id": dead_lettered.batch["id"]} | query))
    assert len(check_page(page)) == count


@proves(Area.BEYOND, LIST)
@pytest.mark.parametrize("limit", [1, 3])
def test_dead_letters_are_paged(
    server: Server, dead_lettered: DeadLetteredBatch, limit: int
) -> None:
    seen: list[str] = []
    query: dict[str, Any] = {"limit": limit}
    more = True
    while more:
        page = server.json(PATH, batch_id=dead_lettered.batch["id"], **query)
        seen += [letter["id"] for letter in check_page(page)]
        more, query["after"] = page["has_more"], page["last_id"]
    assert seen == [letter["id"] for letter in _letters(server, dead_lettered.batch)]


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
def test_invalid_list_arguments_are_refused(
    server: Server, name: str, value: str, status: int
) -> None:
    response = server.http.get(PATH, params={name: value})
    assert response.status_code == status
    assert check_error(response.json())["param"] == name


@proves(Area.BEYOND, SHOW)
def test_dead_letter_has_input_and_last_answer(
    server: Server, dead_lettered: DeadLetteredBatch
) -> None:
    for letter, line in zip(
        reversed(_letters(server, dead_lettered.batch)),
        dead_lettered.lines.splitlines(),
        strict=True,
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
def test_unknown_dead_letter_returns_404(server: Server, letter_id: str) -> None:
    response = server.http.get(f"{PATH}/{letter_id}")
    assert response.status_code == 404
    assert check_error(response.json())["param"] == "letter_id"


@proves(Area.BEYOND, DOWNLOAD)
@pytest.mark.parametrize("which", ["input", "output"])
def test_download_returns_inputs_or_last_answers(
    server: Server, dead_lettered: DeadLetteredBatch, which: str
) -> None:
    query = {"which": which, "batch_id": dead_lettered.batch["id"]}
    response = server.http.get(f"{PATH}/content", params=query)
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert response.content == (dead_lettered.lines if which == "input" else dead_lettered.errors)


@proves(Area.BEYOND, DOWNLOAD)
def test_invalid_download_is_refused(server: Server) -> None:
    response = server.http.get(f"{PATH}/content", params={"which": "both"})
    assert response.status_code == 400
    assert check_error(response.json())["param"] == "which"


def _any_answer(line: oracle.InputLine, body: Any) -> None:
    assert body["model"] == line.body["model"]


@proves(Area.BEYOND, REQUEUE)
@pytest.mark.parametrize("by", ["ids", "filter"])
def test_requeue_creates_batch_of_dead_letters(server: Server, own: Own, by: str) -> None:
    dead_lettered = _dead_letter(server, f"requeue-{by}")
    own.engine.mend(f"requeue-{by}")
    ids = [letter["id"] for letter in _letters(server, dead_lettered.batch)]
    selection = {"ids": ids} if by == "ids" else {"filter": {"batch_id": dead_lettered.batch["id"]}}
    preview = _change(server, "requeue", **selection, dry_run=True)
    assert (preview["changed"], preview["batches"][0]["batch_id"]) == (4, None)
    result = _change(server, "requeue", **selection, completion_window="3h")
    (new_batch,) = result["batches"]
    assert (new_batch["source_batch_id"], new_batch["letters"]) == (dead_lettered.batch["id"], 4)
    ended = server.finish(server.batch(new_batch["batch_id"]))
    assert ended["metadata"] == {"dead_letters_of": dead_lettered.batch["id"]}
    assert ended["completion_window"] == "3h"
    assert server.content(ended["input_file_id"]) == dead_lettered.lines
    output = server.content(ended["output_file_id"])
    oracle.check(ended, dead_lettered.lines, output, b"", answers=_any_answer)
    assert server.batch(dead_lettered.batch["id"]) == dead_lettered.batch
    for letter in _letters(server, dead_lettered.batch):
        assert (letter["state"], letter["requeued_as"]) == ("requeued", new_batch["batch_id"])
        assert letter["ended_by"]
    repeated = _change(server, "requeue", ids=ids)
    assert (repeated["changed"], repeated["unchanged"], repeated["batches"]) == (0, 4, [new_batch])


@proves(Area.BEYOND, REQUEUE_TO)
def test_requeue_to_pool_runs_requests_there(server: Server, own: Own) -> None:
    assert own.stack.settings["LOWTIDE_DEDICATED_REPLICAS"] == "0"
    dead_lettered = _dead_letter(server, "requeue-to")
    own.engine.mend("requeue-to")
    selection = {"filter": {"batch_id": dead_lettered.batch["id"]}}
    refused = _post(server, "requeue", **selection, pool="dedicated")
    assert refused.status_code == 409
    assert check_error(refused.json())["code"] == "pool_without_replicas"
    (new_batch,) = _change(server, "requeue", **selection, pool="spot")["batches"]
    server.finish(server.batch(new_batch["batch_id"]))
    page = server.http.get(f"/v1/batches/{new_batch['batch_id']}/requests").json()
    assert [state["pool"] for state in page["data"]] == ["spot"] * 4


@proves(Area.BEYOND, REQUEUE_TO)
def test_requeue_to_unknown_pool_is_refused(server: Server) -> None:
    response = _post(server, "requeue", filter={}, pool="gold")
    assert response.status_code == 400


@proves(Area.BEYOND, REQUEUE)
def test_idempotency_key_requeues_once(server: Server, own: Own) -> None:  # noqa: ARG001
    dead_lettered = _dead_letter(server, "once")
    ids = [letter["id"] for letter in _letters(server, dead_lettered.batch)]
    headers = {"Idempotency-Key": dead_lettered.batch["id"]}
    answers = [
        server.http.post(f"{PATH}/requeue", json={"ids": ids[:2]}, headers=headers).json()
        for _ in range(2)
    ]
    assert [answer["changed"] for answer in answers] == [2, 0]
    assert answers[0]["batches"] == answers[1]["batches"]
    other = server.http.post(f"{PATH}/requeue", json={"ids": ids}, headers=headers)
    assert other.status_code == 422
    assert check_error(other.json())["code"] == "idempotency_key_reused"
    _change(server, "discard", filter={"batch_id": dead_lettered.batch["id"]})


@proves(Area.BEYOND, REQUEUE)
def test_requeue_without_input_file_is_refused(server: Server, own: Own) -> None:  # noqa: ARG001
    dead_lettered = _dead_letter(server, "gone")
    server.http.delete(f"/v1/files/{dead_lettered.batch['input_file_id']}").raise_for_status()
    selection = {"filter": {"batch_id": dead_lettered.batch["id"]}}
    response = _post(server, "requeue", **selection)
    assert response.status_code == 409
    error = check_error(response.json())
    assert error["code"] == "input_file_gone"
    assert dead_lettered.batch["id"] in error["message"]
    assert _change(server, "discard", **selection)["changed"] == 4


@proves(Area.BEYOND, DISCARD)
def test_discarded_dead_letters_stay_discarded(server: Server, own: Own) -> None:  # noqa: ARG001
    dead_lettered = _dead_letter(server, "discard")
    ids = [letter["id"] for letter in _letters(server, dead_lettered.batch)]
    assert _change(server, "discard", ids=ids[:1], dry_run=True)["changed"] == 1
    assert _change(server, "discard", ids=ids[:1])["changed"] == 1
    result = _change(server, "discard", ids=ids)
    assert (result["changed"], result["unchanged"], result["remaining"]) == (3, 1, 0)
    assert {letter["state"] for letter in _letters(server, dead_lettered.batch)} == {"discarded"}
    assert _change(server, "requeue", ids=ids)["unchanged"] == 4
    assert server.batch(dead_lettered.batch["id"]) == dead_lettered.batch


@proves(Area.BEYOND, "Dead letters: calls that name none, both, or what is not there are refused")
@pytest.mark.parametrize("action", ["requeue", "discard"])
@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        pytest.param({}, 400, "ids", id="empty body"),
        pytest.param({"ids": [UNKNOWN], "filter": {}}, 400, "filter", id="both"),
        pytest.param({"ids": []}, 400, "ids", id="empty ids"),
        pytest.param({"ids": ["odd"]}, 400, "ids", id="malformed id"),
        pytest.param({"ids": [UNKNOWN]}, 404, "ids", id="unknown id"),
        pytest.param({"filter": {"eror_code": "x"}}, 400, "filter", id="unknown field"),
        pytest.param({"filter": {"batch_id": "x"}}, 400, "filter", id="malformed batch id"),
        pytest.param(
            {"filter": {}, "completion_window": "9d"}, 400, "completion_window", id="invalid window"
        ),
    ],
)
def test_invalid_body_is_refused(
    server: Server, action: str, body: dict[str, Any], status: int, param: str
) -> None:
    if action == "discard" and param == "completion_window":
        param = ""
    response = _post(server, action, **body)
    assert response.status_code == status, response.text
    assert (check_error(response.json())["param"] or "") == param
