"""Fleets behind the API: models of several fleets in one file, and models that none serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lowtide.fleets.parsing import parse
from lowtide.fleets.store import FleetStore
from lowtide.settings import Settings
from tests.http.forms import line, upload

if TYPE_CHECKING:
    from pathlib import Path

    from tests.http.conftest import Api
    from tests.worlds import World

FLEETS = """\
fleets:
  large:
    models: [llama-70b]
    endpoints: [/v1/chat/completions]
  small:
    models: [llama-8b, "qwen-*"]
    aliases: {fast: llama-8b}
"""
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


@pytest.fixture(autouse=True)
def fleets(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """Declare two fleets."""
    file = tmp_path / "fleets.yaml"
    file.write_text(FLEETS)
    for function in api.clients:
        api.override(monkeypatch, function, fleets=str(file))
    FleetStore(world.worker).mirror(parse(FLEETS, Settings()).fleets)


def _create(api: Api, *models: str, endpoint: str = CHAT) -> Any:
    lines = [line(str(n), endpoint, model=model, input="x") for n, model in enumerate(models)]
    file = upload(api, b"".join(lines))["id"]
    wanted = {"input_file_id": file, "endpoint": endpoint, "completion_window": "24h"}
    return api("POST", "/v1/batches", json=wanted)


def test_one_file_goes_to_the_fleets_of_its_models(api: Api, world: World) -> None:
    answer = _create(api, "fast", "llama-70b", "qwen-7b")
    assert answer.status_code == 200
    assert answer.json["model"] is None
    parts = world.rows("SELECT fleet, model, lines, split FROM batch_parts ORDER BY fleet")
    assert [tuple(part) for part in parts] == [("large", "llama-70b", 1, 0), ("small", None, 2, 0)]


def test_one_fleet_runs_a_file_of_one_model(api: Api, world: World) -> None:
    assert _create(api, "llama-70b", "llama-70b").status_code == 200
    parts = world.rows("SELECT fleet, lines FROM batch_parts")
    assert [tuple(part) for part in parts] == [("large", 2)]


def test_model_that_no_fleet_serves_is_refused(api: Api, world: World) -> None:
    answer = _create(api, "llama-70b", "gpt-9")
    assert answer.status_code == 400
    error = answer.json["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "input_file_id")
    assert "'gpt-9'" in error["message"]
    assert "fast, llama-70b, llama-8b" in error["message"]
    assert world.rows("SELECT 1 FROM batches") == []


def test_unserved_model_is_told_at_upload(api: Api) -> None:
    served = upload(api, line("1", CHAT, model="llama-8b"))
    assert (served["status"], served["status_details"]) == ("processed", None)
    unserved = upload(api, line("1", CHAT, model="gpt-9"))
    assert unserved["status"] == "processed", "a fleet may serve it later"
    assert "No fleet serves 'gpt-9'" in unserved["status_details"]


def test_endpoint_that_the_fleet_does_not_offer_is_refused(api: Api) -> None:
    answer = _create(api, "llama-70b", endpoint=EMBEDDINGS)
    assert (answer.status_code, answer.json["error"]["param"]) == (400, "endpoint")
    assert f"not served at {EMBEDDINGS}, but at {CHAT}" in answer.json["error"]["message"]


def test_files_of_several_models_can_be_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = api.app("upload").settings
    api.override(monkeypatch, "upload", fleets=settings.fleets, one_model_per_file=True)
    file = upload(api, line("1", CHAT, model="llama-8b") + line("2", CHAT, model="llama-70b"))
    assert file["status"] == "error"
    assert "use one file per model" in file["status_details"]


def test_models_of_all_fleets_are_listed_without_a_worker(api: Api) -> None:
    models = api("GET", "/v1/models").json["data"]
    assert {model["id"]: model["x_lowtide"] for model in models} == {
        "fast": {"fleet": "small", "workers": 0},
        "llama-70b": {"fleet": "large", "workers": 0},
        "llama-8b": {"fleet": "small", "workers": 0},
    }
    assert api("GET", "/v1/models/fast").json["object"] == "model"
    assert api("GET", "/v1/models/gpt-9").status_code == 404
