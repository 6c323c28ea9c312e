"""Settings are typed and bounded, and unknown names are refused."""

from __future__ import annotations

import os
import re
from base64 import b64encode

import pytest
from pydantic import SecretStr, ValidationError

from lowtide.settings import (
    DURATION,
    PREFIX,
    EngineKind,
    Settings,
    master_key_of,
    read_settings,
    unknown_variables,
)

MASTER_KEY = b64encode(b"m" * 32).decode()


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith((PREFIX, "K_SINK"))]:
        monkeypatch.delenv(name)


def test_every_setting_has_a_default() -> None:
    settings = read_settings()
    assert (settings.engine, settings.max_batch_lines) == (EngineKind.SIMULATED, 50_000)
    assert settings.anonymous_tenant is None
    assert settings.event_sink is None


def test_settings_are_read_from_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWTIDE_MAX_BATCH_LINES", "7")
    monkeypatch.setenv("LOWTIDE_ENDPOINTS", "/v1/a,/v1/b")
    monkeypatch.setenv("K_SINK", "http://broker")
    settings = read_settings()
    assert (settings.max_batch_lines, settings.endpoints) == (7, ("/v1/a", "/v1/b"))
    assert settings.event_sink == "http://broker"


@pytest.mark.parametrize("name", ["LOWTIDE_MAX_BATCH_LINE", "LOWTIDE_", "LOWTIDE_EVENT_SINK"])
def test_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(ValueError, match=f"Unknown setting {name}: see docs/settings.md"):
        read_settings()


def test_every_unknown_variable_is_named() -> None:
    environment = {"LOWTIDE_B": "", "LOWTIDE_A": "", "LOWTIDE_ENGINE": "noop", "PATH": "/"}
    assert unknown_variables(environment) == ["LOWTIDE_A", "LOWTIDE_B"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_BATCH_LINES", "0"),
        ("MAX_BATCH_LINES", "many"),
        ("ENGINE", "magic"),
        ("ENGINE_SHARE", "half"),
        ("ENGINE_SHARE", "spare"),  # of the simulated engine
        ("ENGINE_FIRST_TOKEN_TARGET", "0"),
        ("LOG_FORMAT", "xml"),
        ("DATABASE_POOL_SIZE", "0"),
        ("DATABASE_TIMEOUT", "0"),
        ("SIMULATED_FAILURE_RATE", "1.1"),
        ("SIMULATED_INTERRUPTION_RATE", "-0.1"),
        ("WORKER_CONCURRENCY", "0"),
        ("WORKER_CONCURRENCY", "automatic"),
        ("WORKER_CONCURRENCY", "1.5"),
        ("WORKER_PREFETCH", "-1"),
        ("WORKER_MAX_CONCURRENCY", "0"),
        ("DEDICATED_RATE", "0"),
        ("TICK", "-1"),
        ("MAX_LOST_LEASES", "0"),
        ("ADMISSION", "maybe"),
        ("TENANT_ACTIVE_BATCHES", "0"),
        ("SPOT_PRICE", "-1"),
        ("MODEL_REVISION", "a" * 201),
        ("MODEL_REVISION", "v1\n"),
    ],
)
def test_bad_value_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(ValueError, match=f"^Invalid settings: {PREFIX}{name}: must "):
        read_settings()


@pytest.mark.parametrize(
    ("engine", "concurrency", "prefetch", "expected"),
    [
        ("openai", None, None, (None, None, 32)),
        ("openai", "auto", "auto", (None, None, 32)),
        ("openai", "64", None, (64, None, 64)),
        ("openai", None, "0", (None, 0, 32)),
        ("simulated", None, None, (32, 16, 32)),
        ("noop", "auto", "auto", (32, None, 32)),
        ("simulated", "8", "4", (8, 4, 8)),
    ],
)
def test_workers_of_real_engines_search_for_their_concurrency(
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    concurrency: str | None,
    prefetch: str | None,
    expected: tuple[int | None, int | None, int],
) -> None:
    monkeypatch.setenv("LOWTIDE_ENGINE", engine)
    for name, value in (("CONCURRENCY", concurrency), ("PREFETCH", prefetch)):
        if value is not None:
            monkeypatch.setenv(f"LOWTIDE_WORKER_{name}", value)
    settings = read_settings()
    assert (settings.concurrency, settings.prefetch, settings.assumed_concurrency) == expected


def test_error_names_invalid_part_of_fault_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWTIDE_SIMULATED_FAULTS", "down@0-5,500:2")
    with pytest.raises(ValueError, match="SIMULATED_FAULTS: '500:2': the share must be above 0"):
        read_settings()
    monkeypatch.setenv("LOWTIDE_SIMULATED_FAULTS", "down,broken")
    with pytest.raises(ValueError, match="SIMULATED_FAULTS: 'broken'"):
        read_settings()


DURATIONS = sorted(
    name for name, field in Settings.model_fields.items() if DURATION in field.metadata
)


def test_settings_described_as_times_are_durations() -> None:
    unmarked = [
        name
        for name, field in Settings.model_fields.items()
        if name not in DURATIONS
        and re.match(
            r"(Max |Mean )?(time|seconds|latency) |Timeout", str(field.description), re.IGNORECASE
        )
    ]
    assert unmarked == []
    assert len(DURATIONS) == 26


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("text", ["400d", "34560000"])
def test_duration_takes_units_or_bare_seconds(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(PREFIX + name.upper(), text)
    assert getattr(read_settings(), name) == 34_560_000


@pytest.mark.parametrize("name", DURATIONS)
def test_bad_duration_names_variable_and_accepted_form(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(PREFIX + name.upper(), "10 minutes")
    with pytest.raises(
        ValueError, match=f"{PREFIX}{name.upper()}: must be a duration such as 30d, 1h30m"
    ):
        read_settings()


def test_every_invalid_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWTIDE_TICK", "0s")
    monkeypatch.setenv("LOWTIDE_FILE_EXPIRY", "1.5s")
    monkeypatch.setenv("LOWTIDE_CURRENCY", "")
    with pytest.raises(
        ValueError, match=r"FILE_EXPIRY: must .*; LOWTIDE_CURRENCY: .*; LOWTIDE_TICK: must"
    ):
        read_settings()


def test_secret_settings_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = [
        name
        for name, field in Settings.model_fields.items()
        if "SecretStr" in str(field.annotation)
    ]
    assert {"database_url", "api_key_pepper", "engine_api_key", "portal_secret"} <= set(secret)
    for name in secret:
        monkeypatch.setenv(PREFIX + name.upper(), "hunter2")
    for name in ("master_key", "master_key_previous"):
        monkeypatch.setenv(PREFIX + name.upper(), MASTER_KEY)
    settings = read_settings()
    shown = f"{settings!r} {settings} {settings.model_dump_json()}"
    assert "hunter2" not in shown
    assert MASTER_KEY not in shown
    assert master_key_of(settings.master_key) == b"m" * 32
    assert settings.database_url.get_secret_value() == "hunter2"


@pytest.mark.parametrize(
    "value", ["hunter2", "a" * 44, b64encode(b"m" * 31).decode()], ids=["text", "words", "short"]
)
def test_master_keys_of_another_form_are_refused_without_showing_them(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("LOWTIDE_MASTER_KEY", value)
    with pytest.raises(ValueError, match="LOWTIDE_MASTER_KEY: must be 32 bytes") as error:
        read_settings()
    assert value not in str(error.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        read_settings().tick = 1.0


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_passwords_in_urls_are_masked() -> None:
    settings = Settings(
        database_url=SecretStr("postgresql://ana:hunter2@db/x"),
        engine_url="http://ana:hunter2@engine:8000",
        engine_api_key=SecretStr("hunter2"),
    )
    for text in (repr(settings), str(settings)):
        assert "hunter2" not in text
        assert "http://ana:***@engine:8000" in text


def test_trusted_proxies_must_be_addresses_or_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWTIDE_PORTAL_TRUSTED_PROXIES", "10.0.0.0/8, 2001:db8::1,")
    assert Settings().portal_trusted_proxies == ("10.0.0.0/8", "2001:db8::1")
    for value in ("*", "ingress", "10.0.0.1/8"):
        monkeypatch.setenv("LOWTIDE_PORTAL_TRUSTED_PROXIES", value)
        with pytest.raises(ValidationError, match="addresses or networks"):
            Settings()
