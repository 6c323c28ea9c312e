"""Run the portal: `python -m portal`."""

from __future__ import annotations

import logging
import os
from contextlib import suppress

from lowtide.app import App
from lowtide.settings import read_settings, secret_values
from lowtide.telemetry import health
from lowtide.telemetry.logs import configure
from portal.application import build, serve
from portal.watching import watch_everything

_log = logging.getLogger(__name__)
_FLUSH_SECONDS = 1.0


def main() -> None:
    """Serve the portal until SIGTERM or SIGINT."""
    # NiceGUI takes any process with this variable, like a child of a test, for a test run.
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    settings = read_settings()
    configure(settings.log_format, settings.log_level, secrets=secret_values(os.environ))
    # Ready even without the database: the pages then report that it cannot be read.
    health.serve(settings.health_port, is_ready=lambda: None, host=settings.portal_host)
    lowtide = App(settings, name="portal")
    build(watch_everything(lowtide), lowtide)
    address = f"http://{settings.portal_host}:{settings.portal_port}"
    _log.info("portal.starting", extra={"address": address})
    with suppress(KeyboardInterrupt):
        serve(settings)
    lowtide.close(_FLUSH_SECONDS)
    # A hanging query blocks its thread, and a normal exit would wait for that thread.
    logging.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main()
