"""`/v1/models`."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import openai
import pytest

from tests.conformance.features import Area, proves
from tests.conformance.lines import MODEL
from tests.conformance.shapes import check_error, check_model

if TYPE_CHECKING:
    from tests.conformance.conftest import Ended
    from tests.conformance.server import Official, Server


@proves(Area.MODELS, "`models.list`")
def test_list_returns_models(official: Official, server: Server, completed: Ended) -> None:
    raw = server.json("/v1/models")
    assert set(raw) == {"object", "data"}
    assert raw["object"] == "list"
    models = [check_model(each) for each in raw["data"]]
    assert completed.batch["model"] in {model.id for model in models}
    assert official.everything(lambda client: client.models.list()) == models


@proves(Area.MODELS, "`models.retrieve`")
def test_retrieve_returns_model(official: Official, completed: Ended) -> None:
    answer = official(
        lambda client: client.models.with_raw_response.retrieve(completed.batch["model"])
    )
    assert check_model(answer.http_response.json()) == answer.parse()
    assert answer.parse().id == MODEL


@proves(Area.MODELS, "`models.retrieve`")
@pytest.mark.parametrize("name", ["unknown", "org/unknown", "🌊"])
def test_unknown_model_returns_404(server: Server, name: str) -> None:
    response = server.http.get(f"/v1/models/{quote(name)}")
    assert response.status_code == 404
    assert check_error(response.json())["param"] == "model"


@proves(Area.MODELS, "`models.delete`", supported=False)
def test_delete_is_refused(official: Official) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        official(lambda client: client.models.delete(MODEL))
    assert refused.value.status_code in {404, 405}


@proves(
    Area.MODELS,
    "Calls outside of a batch: `chat.completions`, `responses`, `embeddings`",
    supported=False,
)
@pytest.mark.parametrize("call", ["chat", "responses", "embeddings"])
def test_calls_outside_of_batch_are_refused(official: Official, call: str) -> None:
    def ask(client: openai.OpenAI) -> object:
        if call == "chat":
            return client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "?"}]
            )
        if call == "responses":
            return client.responses.create(model=MODEL, input="?")
        return client.embeddings.create(model=MODEL, input="?")

    with pytest.raises(openai.APIStatusError) as refused:
        official(ask)
    assert refused.value.status_code in {404, 405}
