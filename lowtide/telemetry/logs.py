"""Structured logs: JSON in production, readable lines on a terminal, secrets masked."""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from lowtide.core.redaction import masked, printable, printable_json
from lowtide.telemetry.tracing import log_fields

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# Too long for a terminal, with little information.
_LONG_WINDED = frozenset({"span_id", "tenant_id"})


# The handlers of these servers would bypass the formatter.
_SERVERS = ("gunicorn.error", "uvicorn", "uvicorn.error")


class LogFormat(StrEnum):
    """The format of a process's log."""

    JSON = "json"
    TEXT = "text"


class LogLevel(StrEnum):
    """The min level of Lowtide's own records in a log."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def configure(
    log_format: LogFormat, level: LogLevel = LogLevel.INFO, *, secrets: tuple[str, ...] = ()
) -> None:
    """Send every log record of this process to standard error in one format.

    `level` is that of Lowtide's own records; libraries log at INFO and above. `secrets` are masked.
    """
    handler = logging.StreamHandler(sys.stderr)
    lines = _JsonLines() if log_format.value == "json" else _ReadableLines()
    handler.setFormatter(_Masked(lines, secrets))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in ("lowtide", "portal"):
        logging.getLogger(name).setLevel(level.value.upper())
    for server in map(logging.getLogger, _SERVERS):
        server.handlers.clear()
        server.propagate = True
    # These log every request at INFO.
    for library in ("httpx", "httpcore", "alembic"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # It logs a traceback for every pooled connection that a restarting database drops.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class _Masked(logging.Formatter):
    """The lines of another formatter, with secrets masked."""

    def __init__(self, lines: logging.Formatter, secrets: tuple[str, ...]) -> None:
        super().__init__()
        self._lines = lines
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return masked(self._lines.format(record), self._secrets)


class _JsonLines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__()
        function = os.environ.get("FUNCTION_TARGET")
        self._process = {"function": function} if function else {}

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        entry |= self._process | log_fields()
        for key, value in _fields(record).items():
            entry[f"{key}_" if key in entry else key] = value
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return printable_json(msgspec.json.encode(entry, enc_hook=str).decode())


class _ReadableLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        parts = [f"{record.levelname.lower():7}", record.getMessage()]
        context = {key: value for key, value in log_fields().items() if key not in _LONG_WINDED}
        parts += [f"{key}={value}" for key, value in (_fields(record) | context).items()]
        lines = [printable(" ".join(parts))]
        if record.exc_info:
            # Indented, so that a line of an error's message cannot pass for a log line.
            trace = self.formatException(record.exc_info).split("\n")
            lines += [f"  {printable(line)}" for line in trace]
        return "\n".join(lines)
