"""The front: calls reach the cell of their object, and lists are those of all cells."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from random import Random
from typing import TYPE_CHECKING

import pytest
from flask import Flask, request

from lowtide.cells.front import MISSING, Front
from lowtide.cells.model import Cell, Cells, Quote, Report
from lowtide.cells.upstream import Upstream
from lowtide.core.errors import Unavailable
from lowtide.core.ids import FileId, format_file_id, new_id
from tests.cells.stubs import Stub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

WELL = Report((Quote(("*",), 1.0, 1.0),))


@pytest.fixture
def stubs() -> Iterator[list[Stub]]:
    cells = [Stub(number) for number in (1, 2, 3)]
    yield cells
    for cell in cells:
        cell.stop()


@pytest.fixture
def well() -> dict[int, Report]:
    return dict.fromkeys((1, 2, 3), WELL)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


@pytest.fixture
def front(stubs: list[Stub], well: dict[int, Report], upstream: Upstream) -> FlaskClient:
    return client(stubs, well, upstream)


def client(stubs: list[Stub], well: dict[int, Report], upstream: Upstream) -> FlaskClient:
    """Return a client of a front that knows no caller yet; the bank's data stays in cell 3."""
    cells = Cells(
        [
            Cell(
                stub.number,
                f"cell-{stub.number}",
                stub.url,
                f"region-{stub.number}",
                unnumbered_ids=stub.number == 2,
            )
            for stub in stubs
        ],
        {"bank": frozenset({"region-3"})},
    )
    handler = Front(cells, lambda: well, upstream, Random(1))  # noqa: S311
    app = Flask(__name__)
    app.add_url_rule(
        "/<path:_>",
        view_func=lambda _: handler(request._get_current_object()),  # type: ignore[attr-defined]
        methods=["GET", "POST", "DELETE"],
    )
    return app.test_client()


def test_object_is_found_in_its_cell_without_asking_others(
    front: FlaskClient, stubs: list[Stub]
) -> None:
    names = [stub.create("batches")["id"] for stub in stubs]
    for stub, name in zip(stubs, names, strict=True):
        answer = front.get(f"/v1/batches/{name}")
        assert (answer.json, answer.headers["x-cell"]) == (
            {"id": name, "cell": stub.number},
            str(stub.number),
        )
    assert [len(stub.calls) for stub in stubs] == [1, 1, 1]


def test_evacuated_object_is_found_under_its_old_id(
    front: FlaskClient, stubs: list[Stub], well: dict[int, Report]
) -> None:
    name = stubs[0].create("batches")["id"]
    stubs[2].objects[name] = {"id": name, "cell": 3}
    assert front.get(f"/v1/batches/{name}").json == {"id": name, "cell": 1}
    del stubs[0].objects[name]
    assert front.get(f"/v1/batches/{name}").json == {"id": name, "cell": 3}
    stubs[0].stop()
    del well[1]
    assert front.get(f"/v1/batches/{name}").json == {"id": name, "cell": 3}
    assert front.post(f"/v1/batches/{name}/cancel", json={}).status_code == 200
    assert stubs[2].calls[-1].startswith("POST")


def test_deletion_reaches_the_copy_of_an_evacuated_file(
    front: FlaskClient, stubs: list[Stub]
) -> None:
    name = stubs[0].create("files")["id"]
    stubs[2].objects[name] = {"id": name, "cell": 3}
    assert front.delete(f"/v1/files/{name}").status_code == 200
    assert front.get(f"/v1/files/{name}").status_code == 404
    assert front.delete(f"/v1/files/{name}").status_code == 404


def test_older_object_is_found_in_the_cell_that_had_it(
    front: FlaskClient, stubs: list[Stub]
) -> None:
    name = format_file_id(FileId(new_id()))
    stubs[1].objects[name] = {"id": name}
    assert front.get(f"/v1/files/{name}").json == {"id": name}
    calls = [*stubs[0].calls, *stubs[2].calls]
    assert not [call for call in calls if "files" in call]


def test_batch_is_created_where_its_file_is(front: FlaskClient, stubs: list[Stub]) -> None:
    file = stubs[2].create("files")["id"]
    created = front.post("/v1/batches", json={"input_file_id": file}).json
    assert created is not None
    assert (created["cell"], created["input_file_id"]) == (3, file)


def test_new_files_go_to_cells_that_are_well(front: FlaskClient, well: dict[int, Report]) -> None:
    del well[1]
    created = [front.post("/v1/files", data=b"x" * 10).json for _ in range(20)]
    assert {each["cell"] for each in created if each} == {2, 3}


def test_pages_of_all_cells_are_merged(front: FlaskClient, stubs: list[Stub]) -> None:
    names = [stubs[n % 3].create("batches")["id"] for n in range(50)]
    listed: list[str] = []
    after = ""
    while True:
        page = front.get(f"/v1/batches?limit=7{after}").json
        assert page is not None
        listed += [each["id"] for each in page["data"]]
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], listed[-1])
        if not page["has_more"]:
            break
        after = f"&after={listed[-1]}"
    assert listed == sorted(names, reverse=True)


def test_list_names_the_cells_that_do_not_answer(front: FlaskClient, stubs: list[Stub]) -> None:
    names = [stub.create("batches")["id"] for stub in stubs]
    stubs[0].stop()
    stubs[1].status = 500
    answer = front.get("/v1/batches")
    assert answer.json is not None
    assert [each["id"] for each in answer.json["data"]] == [names[2]]
    assert answer.headers[MISSING] == "cell-1, cell-2"


def test_refusal_of_one_cell_is_that_of_the_list(front: FlaskClient, stubs: list[Stub]) -> None:
    """A list without the part of a cell that refused would look whole."""
    front.get("/v1/batches")
    stubs[1].status = 429
    assert front.get("/v1/batches").status_code == 429
    stubs[1].status = 401
    assert front.get("/v1/batches").status_code == 200
    stubs[0].status = stubs[2].status = 401
    assert front.get("/v1/batches").status_code == 401


def test_unknown_key_is_refused_by_a_cell(front: FlaskClient, stubs: list[Stub]) -> None:
    for stub in stubs:
        stub.status = 401
    for path in ("/v1/batches", "/v1/files", "/v1/usage", "/v1/dead_letters/content"):
        assert front.get(path).status_code == 401
    assert front.post("/v1/files", data=b"x").status_code == 401


def test_key_that_some_cells_know_gets_work_there(front: FlaskClient, stubs: list[Stub]) -> None:
    stubs[0].status = stubs[1].status = 401
    created = [front.post("/v1/files", data=b"x" * 10).json for _ in range(10)]
    assert {each["cell"] for each in created if each} == {3}


def test_cell_that_does_not_connect_is_passed_over(front: FlaskClient, stubs: list[Stub]) -> None:
    front.get("/v1/batches")
    stubs[0].stop()
    stubs[1].stop()
    created = [front.post("/v1/files", data=b"x" * 100_000).json for _ in range(10)]
    assert {each["cell"] for each in created if each} == {3}
    assert stubs[2].received == 1_000_000


def test_object_of_a_cell_that_is_away_is_unavailable_not_missing(
    front: FlaskClient, stubs: list[Stub]
) -> None:
    name = stubs[2].create("batches")["id"]
    stubs[2].stop()
    answer = front.get(f"/v1/batches/{name}")
    assert answer.status_code == 503
    assert answer.json is not None
    assert "cell-3" in answer.json["error"]["message"]


def test_large_upload_streams(front: FlaskClient, stubs: list[Stub]) -> None:
    assert front.post("/v1/files", data=b"x" * (20 << 20)).status_code == 200
    assert sum(stub.received for stub in stubs) == 20 << 20


def test_import_goes_to_a_cell_that_knows_the_key(front: FlaskClient, stubs: list[Stub]) -> None:
    stubs[0].status = stubs[1].status = 401
    for _ in range(10):
        created = front.post("/v1/batches", json={"input_url": "s3://bucket/a.jsonl"}).json
        assert created is not None
        assert created["cell"] == 3


def test_import_with_a_key_is_repeated_in_its_cell(
    front: FlaskClient, stubs: list[Stub], well: dict[int, Report]
) -> None:
    """Another cell would create the batch again."""

    def create(key: str) -> TestResponse:
        headers = {"Idempotency-Key": key}
        return front.post("/v1/batches", json={"input_url": "s3://bucket/a.jsonl"}, headers=headers)

    cells = {key: create(key).json["cell"] for key in map(str, range(20))}  # type: ignore[index]
    assert set(cells.values()) == {1, 2, 3}
    well[1] = Report([Quote(["*"], 1e6, 1e6)])
    assert {key: create(key).json["cell"] for key in cells} == cells  # type: ignore[index]
    stubs[2].stop()
    del well[3]
    answers = {key: create(key).status_code for key in cells}
    assert {key for key, status in answers.items() if status == 503} == {
        key for key, cell in cells.items() if cell == 3
    }


def test_caller_of_one_cell_gets_its_answer_to_what_all_answer_alike(
    front: FlaskClient, stubs: list[Stub]
) -> None:
    stubs[0].status = stubs[1].status = 401
    answers = [
        front.get("/v1/batches/odd", headers={"Authorization": "Bearer its"}) for _ in range(20)
    ]
    assert {answer.headers["x-cell"] for answer in answers} == {"3"}


def test_model_of_one_cell_is_found(front: FlaskClient, stubs: list[Stub]) -> None:
    stubs[1].objects["qwen"] = {"id": "qwen"}
    answers = [front.get("/v1/models/qwen") for _ in range(20)]
    assert [answer.json for answer in answers] == [{"id": "qwen"}] * 20
    assert front.get("/v1/models/other").status_code == 404


def test_head_of_a_list_has_no_body(front: FlaskClient) -> None:
    answer = front.head("/v1/files")
    assert (answer.status_code, answer.data) == (200, b"")


def test_downloads_of_all_cells_follow_each_other(front: FlaskClient, stubs: list[Stub]) -> None:
    for stub in stubs:
        stub.objects["content"] = {"cell": stub.number}
    answer = front.get("/v1/dead_letters/content")
    assert answer.data == b'{"cell": 1}{"cell": 2}{"cell": 3}'


def test_list_has_the_tightest_rate_limit(front: FlaskClient, stubs: list[Stub]) -> None:
    for stub, remaining in zip(stubs, (9, 10, 11), strict=True):
        stub.headers = {
            "x-ratelimit-remaining-requests": str(remaining),
            "x-ratelimit-limit-requests": str(remaining * 10),
        }
    headers = front.get("/v1/files").headers
    assert headers["x-ratelimit-remaining-requests"] == "9"
    assert headers["x-ratelimit-limit-requests"] == "90"


@pytest.mark.parametrize("path", ["/v1/files", "/v1/uploads", "/v1/batches"])
def test_body_of_an_unknown_caller_is_not_read(
    front: FlaskClient, stubs: list[Stub], path: str
) -> None:
    for stub in stubs:
        stub.status = 401
    assert front.post(path, input_stream=_Unreadable(), content_length=100).status_code == 401
    assert not any(call.startswith("POST") for stub in stubs for call in stub.calls)


def test_cell_may_pause_while_it_reads_a_body(
    stubs: list[Stub], well: dict[int, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit for connections is not one for bodies."""
    monkeypatch.setattr("lowtide.cells.upstream._CONNECT_SECONDS", 0.2)
    upstream = Upstream()
    for stub in stubs:
        stub.pause = 0.8
    answer = client(stubs, well, upstream).post("/v1/files", data=b"x" * (20 << 20))
    assert answer.status_code == 200
    upstream.close()


def test_cell_that_hangs_is_not_waited_for_forever(
    stubs: list[Stub], well: dict[int, Report]
) -> None:
    upstream = Upstream(stalled=0.3)
    front = client(stubs, well, upstream)
    name = stubs[0].create("batches")["id"]
    front.get("/v1/batches")
    stubs[0].delay = 3.0
    assert front.get(f"/v1/batches/{name}").status_code == 503
    upstream.close()


def test_batch_is_not_created_again_elsewhere_if_the_answer_is_lost(
    front: FlaskClient, stubs: list[Stub]
) -> None:
    """An evacuation has copied the file to another cell, under the same id."""
    file = stubs[0].create("files")["id"]
    stubs[0].loses_answers = True
    front.get("/v1/batches")
    assert front.post("/v1/batches", json={"input_file_id": file}).status_code == 503
    assert [[call for call in stub.calls if "POST" in call] for stub in stubs] == [
        ["POST /v1/batches"], [], [],
    ]  # fmt: skip


@pytest.mark.parametrize("status", [401, 502, 503, 504])
def test_evacuated_object_is_found_though_its_cell_answers(
    front: FlaskClient, stubs: list[Stub], status: int
) -> None:
    """A gateway answers for a cell that is down; a cell that is back may not know the key."""
    name = stubs[0].create("batches")["id"]
    stubs[2].objects[name] = {"id": name, "cell": 3}
    stubs[0].status = status
    assert front.get(f"/v1/batches/{name}").json == {"id": name, "cell": 3}
    del stubs[2].objects[name]
    refused = front.get(f"/v1/batches/{name}").status_code
    assert refused == (404 if status == 401 else status)


@pytest.mark.parametrize("batch", [5, "of cell 1"])
def test_import_stays_in_its_region_whatever_else_is_in_the_body(
    front: FlaskClient, stubs: list[Stub], batch: object
) -> None:
    """A cell ignores the other field, and would create the batch."""
    if batch != 5:
        batch = stubs[0].create("batches")["id"]
    for stub in stubs:
        stub.tenant = "bank"
    body = {"input_url": "s3://bucket/a.jsonl", "batch_id": batch}
    answers = [front.post("/v1/batches", json=body).json for _ in range(10)]
    assert {answer["cell"] for answer in answers if answer} == {3}


def test_list_is_whole_as_soon_as_a_cell_is_back(
    front: FlaskClient, stubs: list[Stub], well: dict[int, Report]
) -> None:
    names = [stub.create("batches")["id"] for stub in stubs]
    report = well.pop(1)
    assert front.get("/v1/batches").headers[MISSING] == "cell-1"
    well[1] = report
    answer = front.get("/v1/batches")
    assert answer.json is not None
    assert MISSING not in answer.headers
    assert [each["id"] for each in answer.json["data"]] == names[::-1]


def test_import_with_a_key_waits_for_its_cell_at_a_front_that_is_new(
    front: FlaskClient, well: dict[int, Report]
) -> None:
    """The cell that is away may have created the batch."""

    def create(key: str) -> TestResponse:
        headers = {"Idempotency-Key": key}
        return front.post("/v1/batches", json={"input_url": "s3://bucket/a.jsonl"}, headers=headers)

    report = well.pop(3)
    refused = [key for key in map(str, range(20)) if create(key).status_code == 503]
    assert refused
    well[3] = report
    assert {create(key).json["cell"] for key in refused} == {3}  # type: ignore[index]


def test_work_waits_for_a_cell_with_a_fleet(front: FlaskClient, well: dict[int, Report]) -> None:
    well.update(dict.fromkeys(well, Report(())))
    assert front.post("/v1/files", data=b"x").status_code == 503


def test_few_unknown_keys_are_looked_up_at_a_time(front: FlaskClient, stubs: list[Stub]) -> None:
    """Each costs a question to every cell."""
    for stub in stubs:
        stub.status, stub.delay = 401, 0.1

    def call(number: int) -> int:
        headers = {"Authorization": f"Bearer unknown-{number}"}
        return front.application.test_client().get("/v1/batches/odd", headers=headers).status_code

    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(call, range(12))) == {401}
    assert max(stub.most_lookups for stub in stubs) <= 4


def test_unknown_key_is_looked_up_once_in_a_while(front: FlaskClient, stubs: list[Stub]) -> None:
    for stub in stubs:
        stub.status = 401
    for _ in range(3):
        answer = front.get("/v1/batches", headers={"Authorization": "Bearer unknown"})
        assert answer.status_code == 401
    assert [stub.calls.count("GET /v1/cell/tenant") for stub in stubs] == [1, 1, 1]


def test_download_of_all_cells_is_whole_or_breaks(front: FlaskClient, stubs: list[Stub]) -> None:
    for stub in stubs:
        stub.objects["content"] = {"cell": stub.number}
    assert "Content-Length" not in front.get("/v1/dead_letters/content").headers
    stubs[1].status = 429
    answer = front.get("/v1/dead_letters/content")
    with pytest.raises(Unavailable):
        answer.get_data()
    stubs[0].status, stubs[1].status = 429, None
    assert front.get("/v1/dead_letters/content").status_code == 429


def test_query_that_is_not_encoded_arrives(front: FlaskClient, stubs: list[Stub]) -> None:
    raw = "user=é&status=a%20b".encode().decode("latin-1")
    front.get("/v1/batches", environ_overrides={"QUERY_STRING": raw})
    assert stubs[0].calls == ["GET /v1/batches?user=%C3%A9&status=a%20b"]


@pytest.mark.parametrize("path", ["/v1/files/../cell", "/..", "/v1/models/./a", "/v1/%2e%2e/x"])
def test_path_does_not_lead_out_of_a_cell(front: FlaskClient, stubs: list[Stub], path: str) -> None:
    answer = front.get(path)
    assert answer.json is not None
    assert (answer.status_code, answer.json["error"]["code"]) == (404, "unknown_url")
    assert not any(stub.calls for stub in stubs)


def test_headers_of_one_connection_are_not_passed_on(front: FlaskClient, stubs: list[Stub]) -> None:
    name = stubs[0].create("batches")["id"]
    stubs[0].headers = {"Connection": "x-of-cell", "x-of-cell": "1"}
    headers = {"Connection": "close, X-Of-Caller", "X-Of-Caller": "1", "X-Kept": "1"}
    answer = front.get(f"/v1/batches/{name}", headers=headers)
    assert answer.status_code == 200
    assert "x-of-cell" not in answer.headers
    assert (stubs[0].seen.get("X-Of-Caller"), stubs[0].seen.get("X-Kept")) == (None, "1")


def test_letters_after_one_of_a_cell_that_does_not_answer_are_unavailable(
    front: FlaskClient, stubs: list[Stub], well: dict[int, Report]
) -> None:
    front.get("/v1/dead_letters")
    del well[3]
    assert front.get("/v1/dead_letters?after=letter").status_code == 503
    assert len(stubs[0].calls) == 2


def test_body_that_ends_early_reaches_no_cell(front: FlaskClient, stubs: list[Stub]) -> None:
    """The cell would wait for the rest."""
    answer = front.post(
        "/v1/batches",
        input_stream=BytesIO(b'{"input_file_id": "fi'),
        # As gunicorn has it: the end of the stream is that of the body.
        environ_overrides={"CONTENT_LENGTH": "100", "wsgi.input_terminated": True},
    )
    assert answer.status_code == 400
    assert not any(call.startswith("POST") for stub in stubs for call in stub.calls)


class _Unreadable(BytesIO):
    def read(self, _: int | None = -1) -> bytes:
        raise AssertionError("The body was read.")


def test_key_that_a_cell_away_may_know_is_not_refused(
    front: FlaskClient, stubs: list[Stub], well: dict[int, Report]
) -> None:
    """Clients try again after a 503, and give up after a 401."""
    stubs[0].status = stubs[1].status = 401
    del well[3]
    headers = {"Authorization": "Bearer its"}
    for answer in (
        front.get("/v1/batches", headers=headers),
        front.post("/v1/files", data=b"x", headers=headers),
    ):
        assert answer.status_code == 503
        assert answer.json is not None
        assert "cell-3 does not answer" in answer.json["error"]["message"]
    assert front.get("/v1/batches").status_code == 401
    well[3] = WELL
    assert front.get("/v1/batches", headers=headers).status_code == 200
