"""The API's functions behind one client, with a real database and a folder of objects."""

from __future__ import annotations

import os
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import functions_framework
import pytest

from lowtide.app import App
from lowtide.settings import PREFIX
from tests.conftest import API_KEY, PEPPER, shared_database, world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

    from tests.conftest import Database
    from tests.worlds import World

    class JsonResponse(TestResponse):
        """A response whose JSON is not type-checked."""

        @property
        def json(self) -> Any: ...


__all__ = ["shared_database", "world"]

create_app: Any = functions_framework.create_app
FUNCTIONS = Path(__file__).parents[2] / "functions"
MAX_FILE_BYTES = 100_000
MASTER_KEY = b64encode(b"m" * 32).decode()
MAX_LINES = 50


@pytest.fixture(scope="session")
def database_name() -> str:
    """The name of this package's database."""
    return "shared_http"


@dataclass
class Api:
    """A client that routes each request to its function; `key` None sends no API key."""

    clients: dict[str, FlaskClient]
    objects: Path
    key: str | None = API_KEY

    def __call__(self, method: str, path: str, **arguments: Any) -> JsonResponse:
        headers = dict(arguments.pop("headers", {}))
        if self.key is not None:
            headers.setdefault("Authorization", f"Bearer {self.key}")
        client = self.clients[_function(method, path.partition("?")[0])]
        return cast("JsonResponse", client.open(path, method=method, headers=headers, **arguments))

    def app(self, function: str = "read") -> App:
        """Return the App of a function."""
        return App.of_server(self.clients[function].application)

    def override(self, patch: pytest.MonkeyPatch, function: str, **settings: Any) -> None:
        """Replace settings of a function."""
        app = self.app(function)
        # What is built on first use must not be built of the replaced settings, and so kept.
        _ = app.services, app.objects
        patch.setattr(app, "settings", app.settings.model_copy(update=settings))
        patch.setattr(app, "services", app._services(app.database))

    def object_keys(self) -> set[str]:
        """Return the keys of all objects."""
        return {
            str(path.relative_to(self.objects))
            for path in self.objects.rglob("*")
            if path.is_file()
        }


def _function(method: str, path: str) -> str:
    if method in {"GET", "HEAD"}:
        return "read"
    if path.startswith(("/v1/files", "/v1/uploads")):
        return "upload"
    return "cancel_batch" if path.rstrip("/").endswith("/cancel") else "create_batch"


@pytest.fixture(scope="session")
def clients(
    shared_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, FlaskClient], Path]]:
    """A client of each HTTP function, built once, and their folder of objects."""
    folder = tmp_path_factory.mktemp("objects")
    settings = {
        "DATABASE_URL": shared_database.url("api"),
        "API_KEY_PEPPER": PEPPER,
        "MASTER_KEY": MASTER_KEY,
        "OBJECT_STORE_URL": f"file://{folder}",
        "MAX_FILE_BYTES": str(MAX_FILE_BYTES),
        "MAX_BATCH_LINES": str(MAX_LINES),
        "MAX_LINE_BYTES": "20000",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith((PREFIX, "K_SINK"))]:
            patch.delenv(name)
        for name, value in settings.items():
            patch.setenv(PREFIX + name, value)
        by_function = {
            name: create_app(name, str(FUNCTIONS / name / "main.py"), "http").test_client()
            for name in ("upload", "read", "create_batch", "cancel_batch")
        }
        yield by_function, folder
        for client in by_function.values():
            App.of_server(client.application).close(10)


@pytest.fixture
def api(clients: tuple[dict[str, FlaskClient], Path], world: World) -> Api:  # noqa: ARG001
    """The API with an empty database and an empty store."""
    client = Api(*clients)
    for key in client.object_keys():
        (client.objects / key).unlink()
    return client
