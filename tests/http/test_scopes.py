"""Every call by every scope: what a key may do answers, and all else is refused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from lowtide.core.scopes import Scope
from lowtide.tenants.keys import KeyTerms, new_key
from lowtide.tenants.store import TenantStore
from tests.conftest import PEPPER
from tests.http.forms import form, line, part, post

if TYPE_CHECKING:
    from tests.http.conftest import Api
    from tests.worlds import World

NEEDED = {
    Scope.FILES_READ: {"listFiles", "getFile", "getFileContent"},
    Scope.FILES_WRITE: {
        "uploadFile",
        "deleteFile",
        "createUpload",
        "addUploadPart",
        "completeUpload",
        "cancelUpload",
    },
    Scope.BATCHES_READ: {
        "listBatches",
        "getBatch",
        "explainBatch",
        "listRequests",
        "listResults",
        "getFailedInputs",
        "listDeadLetters",
        "summarizeDeadLetters",
        "getDeadLetter",
        "getDeadLetterContent",
        "search",
        "listModels",
        "getModel",
        "getUsage",
    },
    Scope.BATCHES_WRITE: {"createBatch", "cancelBatch", "createRerun"},
    Scope.DEAD_LETTERS_WRITE: {"requeueDeadLetters", "discardDeadLetters"},
}
PUBLIC = {"/health/live", "/health/ready", "/openapi.json", "/docs"}


def key_with(world: World, *scopes: Scope) -> str:
    """Return a new key of the default tenant with these scopes."""
    key = new_key()
    store = TenantStore(world.database.engine("operator"), pepper=PEPPER)
    store.add_key("default", f"scoped-{key[3:20].lower()}", key, KeyTerms(scopes), "me")
    return key


def operations(api: Api) -> list[tuple[str, str, str]]:
    """Return the method, an existing path's form, and the name of each documented operation."""
    paths = api("GET", "/openapi.json").json["paths"]
    return [
        (method.upper(), re.sub(r"\{\w+\}", "unknown-object", path), operation["operationId"])
        for path, methods in paths.items()
        for method, operation in methods.items()
    ]


def test_document_names_the_scope_of_each_operation(api: Api) -> None:
    paths = api("GET", "/openapi.json").json["paths"]
    documented = {
        operation["operationId"]: operation["security"]
        for methods in paths.values()
        for operation in methods.values()
    }
    assert documented == {
        name: [{"key": [scope]}] for scope, names in NEEDED.items() for name in names
    }


@pytest.mark.parametrize("scopes", [*((scope,) for scope in Scope), ()], ids=str)
def test_key_may_do_exactly_what_its_scopes_say(
    api: Api, world: World, scopes: tuple[Scope, ...]
) -> None:
    api.key = key_with(world, *scopes)
    for method, path, name in operations(api):
        (needed,) = (scope for scope, names in NEEDED.items() if name in names)
        answer = api(method, path)
        if needed in scopes or Scope.ADMIN in scopes:
            assert answer.status_code not in (401, 403), (method, path)
            continue
        assert answer.status_code == 403, (method, path)
        error = answer.json["error"]
        assert error["code"] == "insufficient_scope"
        assert f"the scope {needed}, but your key has" in error["message"]
        assert answer.headers["WWW-Authenticate"] == (
            f'Bearer error="insufficient_scope", scope="{needed}"'
        )


@pytest.mark.parametrize("path", sorted(PUBLIC))
def test_public_pages_need_no_key(api: Api, path: str) -> None:
    api.key = None
    assert api("GET", path).status_code == 200


def test_every_other_call_needs_a_key(api: Api) -> None:
    api.key = None
    for method, path, _ in operations(api):
        assert api(method, path).status_code == 401, (method, path)


def test_refused_upload_stores_nothing(api: Api, world: World) -> None:
    api.key = key_with(world, Scope.FILES_READ)
    body = form(part("purpose", b"batch"), part("file", line(), "in.jsonl"))
    assert post(api, body).status_code == 403
    assert api("GET", "/v1/files").json["data"] == []
    assert api.object_keys() == set()
