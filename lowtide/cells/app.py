"""The composition root of the front, which has no database."""

from __future__ import annotations

import random
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from typing import TYPE_CHECKING, Self

from flask import current_app, has_app_context, request
from werkzeug.exceptions import NotFound as NoSuchRoute

from lowtide.cells.front import Front
from lowtide.cells.heartbeats import Heartbeats
from lowtide.cells.parsing import read_file
from lowtide.cells.upstream import Upstream
from lowtide.core.errors import Unavailable
from lowtide.settings import read_settings

if TYPE_CHECKING:
    from lowtide.settings import Settings


class FrontApp:
    """The connections and threads of a front. Build it once, after the fork, and close it."""

    pull_loop = None
    observations = None

    def __init__(self, settings: Settings) -> None:
        token = settings.cells_token.get_secret_value()
        if not settings.cells or not token:
            raise ValueError("LOWTIDE_CELLS or LOWTIDE_CELLS_TOKEN is not set: see docs/cells.md.")
        self.settings = settings
        cells = read_file(Path(settings.cells))
        self._upstream = Upstream()
        self.heartbeats = Heartbeats(cells.cells, self._upstream, token)
        self.heartbeats.start()
        self.front = Front(
            cells,
            self.heartbeats.reports,
            self._upstream,
            random.SystemRandom(),
            is_ready=self.check,
        )

    @classmethod
    def of_function(cls, extension: str = "lowtide") -> Self:
        """Build the app of the function being loaded, and register it with its server."""
        # Connections to a thousand cells and as many calls; the usual soft limit is 1,024 files.
        _, hard = getrlimit(RLIMIT_NOFILE)
        setrlimit(RLIMIT_NOFILE, (hard, hard))
        app = cls(read_settings())
        if has_app_context():
            current_app.extensions[extension] = app
            # The framework's own routes do not match a path with a line break.
            current_app.register_error_handler(NoSuchRoute, lambda _: app.front(request))
        return app

    def check(self) -> None:
        """Raise Unavailable while no cell answers."""
        if not self.heartbeats.reports():
            raise Unavailable("No cell answers now.")

    def close(self, seconds: float) -> None:  # noqa: ARG002 - there is nothing to wait for
        """Ask cells no more, and close connections."""
        self.heartbeats.stop()
        self._upstream.close()
