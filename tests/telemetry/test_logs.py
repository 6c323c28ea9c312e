"""Log lines: events with fields, in either format."""

from __future__ import annotations

import json
import logging
import os
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from lowtide.settings import secret_values
from lowtide.telemetry.logs import LogFormat, LogLevel, configure

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("lowtide.test")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("lowtide").setLevel(logging.NOTSET)


def _capture(capsys: pytest.CaptureFixture[str], log_format: LogFormat) -> Any:
    """Return a function that returns the log since its last call."""
    capsys.readouterr()
    configure(log_format, secrets=secret_values(os.environ))

    def logged() -> str:
        return capsys.readouterr().err

    return logged


def test_json_log_has_one_object_per_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUNCTION_TARGET", raising=False)
    logged = _capture(capsys, LogFormat.JSON)
    batch = uuid.uuid4()
    log.info(
        "batch.split", extra={"batch": batch, "lines": 3, "note": 'a\n"b"\u2028é', "none": None}
    )
    log.warning("lost %s of %d", "two", 3)
    first, second = map(json.loads, logged().rstrip().split("\n"))
    time = first.pop("time")
    assert time.endswith("+00:00")
    assert first == {
        "level": "info", "event": "batch.split", "batch": str(batch), "lines": 3,
        "note": 'a\n"b"\u2028é', "none": None,
    }  # fmt: skip
    assert (second["level"], second["event"]) == ("warning", "lost two of 3")


def test_field_does_not_override_event(capsys: pytest.CaptureFixture[str]) -> None:
    logged = _capture(capsys, LogFormat.JSON)
    log.info("event.unsent", extra={"event": "other", "level": "x", "time": 1})
    entry = json.loads(logged())
    assert (entry["event"], entry["level"]) == ("event.unsent", "info")
    assert (entry["event_"], entry["level_"], entry["time_"]) == ("other", "x", 1)


def test_text_log_has_level_event_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logged = _capture(capsys, LogFormat.TEXT)
    log.info("batch.split", extra={"lines": 3, "batch": "b"})
    assert logged() == "info    batch.split lines=3 batch=b\n"


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_exception_is_logged_with_traceback(
    capsys: pytest.CaptureFixture[str], log_format: LogFormat
) -> None:
    logged = _capture(capsys, log_format)
    try:
        raise KeyError("missing")  # noqa: TRY301
    except KeyError:
        log.exception("request.failed", extra={"request_id": "req_1"})
    text = logged()
    assert "KeyError: 'missing'" in text
    assert "req_1" in text
    if log_format is LogFormat.JSON:
        entry = json.loads(text)
        assert entry["exception"].startswith("Traceback")
        assert entry["level"] == "error"


@pytest.mark.parametrize("log_format", list(LogFormat))
@pytest.mark.parametrize(
    "value", [SecretStr("hunter2"), object(), {1, 2}, b"\xff", ValueError("x"), 10**40],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_any_value_is_logged_without_error(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    log_format: LogFormat,
    value: object,
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", True)
    logged = _capture(capsys, log_format)
    log.info("odd", extra={"value": value})
    text = logged()
    assert "odd" in text
    assert "hunter2" not in text
    assert "Logging error" not in text


@pytest.mark.parametrize("log_format", list(LogFormat))
@pytest.mark.parametrize("end", ["\n", "\r", "\x1b[2K\r", "\x9b2J", "\u2028", "\x85", "\x0b"])
def test_value_cannot_forge_log_line(
    capsys: pytest.CaptureFixture[str], log_format: LogFormat, end: str
) -> None:
    logged = _capture(capsys, log_format)
    forged = f"a{end}error   key.revoked name=ana"
    log.info("file.stored", extra={"file_name": forged})
    log.info("said %s", forged)
    text = logged()
    assert text.count("\n") == 2
    assert len(text.splitlines()) == 2
    assert all(character == "\n" or character.isprintable() for character in text)
    if log_format is LogFormat.JSON:
        assert json.loads(text.splitlines()[0])["file_name"] == forged


def test_exception_message_cannot_forge_log_line(capsys: pytest.CaptureFixture[str]) -> None:
    logged = _capture(capsys, LogFormat.TEXT)
    try:
        raise ValueError("a\nerror   key.revoked\x1b[0m")  # noqa: TRY301
    except ValueError:
        log.exception("request.failed")
    first, *trace = logged().splitlines()
    assert first == "error   request.failed"
    assert trace[-1] == r"  error   key.revoked\x1b[0m"
    assert all(line.startswith("  ") for line in trace)


KEY = "lt_" + "k" * 43


@pytest.mark.parametrize("log_format", list(LogFormat))
@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"key {KEY} refused", KEY),
        ("postgresql://ana:hunter2@db:5432/lowtide", "hunter2"),
        ("Authorization: Basic YW5hOmh1bnRlcjI=", "YW5hOmh1bnRlcjI="),
        ("headers={'authorization': 'Bearer abcdefgh12345678'}", "abcdefgh12345678"),
        ('{"api_key": "abcdef", "n": 1}', "abcdef"),
        ("aws_secret_access_key=wJalrXUtnFEMI/K7", "wJalrXUtnFEMI/K7"),
        ("https://s3/b?X-Amz-Signature=abc123&x=1", "abc123"),
        ("sk-proj-abcdefghijklmnop", "sk-proj-abcdefghijklmnop"),
        ("the engine said: wrong pass-phrase-1", "pass-phrase-1"),
        ("no access with amazons-own", "amazons-own"),
        ("connecting as quoted%20one failed", "quoted%20one"),
    ],
)  # fmt: skip
def test_secrets_are_masked(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    log_format: LogFormat,
    text: str,
    secret: str,
) -> None:
    monkeypatch.setenv("LOWTIDE_ENGINE_API_KEY", "pass-phrase-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "amazons-own")
    monkeypatch.setenv("LOWTIDE_DATABASE_URL", "postgresql://ana:quoted%20one@db/x")
    logged = _capture(capsys, log_format)
    log.info("tried", extra={"text": text})
    log.info("tried %s", text)
    try:
        raise ValueError(text)  # noqa: TRY301
    except ValueError:
        log.exception("failed")
    written = logged()
    assert secret not in written
    assert "***" in written
    if log_format is LogFormat.JSON:
        assert [json.loads(line)["level"] for line in written.splitlines()][-1] == "error"


def test_masking_keeps_non_string_json_values(capsys: pytest.CaptureFixture[str]) -> None:
    logged = _capture(capsys, LogFormat.JSON)
    log.info("odd", extra={"api_key": None, "signature": 3, "password": ["hunter2"], "n": "b"})
    entry = json.loads(logged())
    assert (entry["api_key"], entry["signature"], entry["n"]) == (None, 3, "b")


def test_server_logs_use_our_format(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("gunicorn.error")
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False
    logged = _capture(capsys, LogFormat.JSON)
    logger.error("Error handling request /v1?api_key=abcdef")
    assert json.loads(logged())["event"] == "Error handling request /v1?api_key=***"


def test_verbose_libraries_log_only_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    logged = _capture(capsys, LogFormat.JSON)
    for name in ("httpx", "httpcore", "alembic"):
        logging.getLogger(name).info("noise")
    logging.getLogger("httpx").warning("news")
    assert json.loads(logged())["event"] == "news"


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (LogLevel.DEBUG, ["lowtide debug", "lowtide info", "lowtide warning", "urllib3 info"]),
        (LogLevel.INFO, ["lowtide info", "lowtide warning", "urllib3 info"]),
        (LogLevel.WARNING, ["lowtide warning", "urllib3 info"]),
    ],
)
def test_log_level_applies_only_to_lowtide(
    capsys: pytest.CaptureFixture[str], level: LogLevel, shown: list[str]
) -> None:
    configure(LogFormat.JSON, level)
    for name in ("lowtide", "urllib3"):
        logger = logging.getLogger(f"{name}.test")
        for severity in ("debug", "info", "warning" if name == "lowtide" else "info"):
            getattr(logger, severity)(f"{name} {severity}")
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert list(dict.fromkeys(events)) == shown
