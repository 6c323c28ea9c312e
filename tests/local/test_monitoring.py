"""Monitoring of the local stack: configuration, targets and missing programs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import yaml

from lowtide.local.monitoring import (
    ALERTMANAGER,
    PROMETHEUS,
    Monitoring,
    check_programs,
    seconds,
    targets_of,
)
from lowtide.local.options import BadManifest, MissingProgram, Options, default_root
from lowtide.local.processes import State

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def options(tmp_path: Path) -> Options:
    """Options with two placeholder programs."""
    prometheus, alertmanager = programs = tmp_path / PROMETHEUS, tmp_path / ALERTMANAGER
    for program in programs:
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    return Options(
        root=default_root(),
        data_dir=tmp_path,
        monitoring=True,
        prometheus=prometheus,
        alertmanager=alertmanager,
    )


def _read_config(options: Options, name: str) -> Any:
    return yaml.safe_load((options.data_dir / "monitoring" / name).read_text())


def test_rules_equal_shipped_ones_except_for_shorter_waits(options: Options) -> None:
    Monitoring(options).prepare()
    source = yaml.safe_load(
        (options.root / "monitoring" / "rules" / "lowtide.rules.yml").read_text()
    )
    written = _read_config(options, "lowtide.rules.yml")
    longest = yaml.safe_load((options.root / "monitoring" / "local.yml").read_text())["longest_for"]
    before = [rule for group in source["groups"] for rule in group["rules"]]
    after = [rule for group in written["groups"] for rule in group["rules"]]
    assert any(rule["for"] == longest for rule in after if "for" in rule)
    for shipped, local in zip(before, after, strict=True):
        assert seconds(local.pop("for", "0s")) <= seconds(longest)
        shipped.pop("for", None)
        assert shipped == local


def test_routes_equal_shipped_ones_without_notifications(options: Options) -> None:
    Monitoring(options).prepare()
    source = yaml.safe_load(
        (options.root / "monitoring" / "alertmanager" / "alertmanager.yml").read_text()
    )
    written = _read_config(options, "alertmanager.yml")
    assert [one["receiver"] for one in written["route"]["routes"]] == [
        one["receiver"] for one in source["route"]["routes"]
    ]
    assert written["inhibit_rules"] == source["inhibit_rules"]
    assert written["receivers"] == [{"name": one["name"]} for one in source["receivers"]]


def test_settings_have_urls_of_both_programs(options: Options) -> None:
    monitoring = Monitoring(options)
    assert monitoring.settings == {
        "LOWTIDE_PROMETHEUS_URL": monitoring.url(PROMETHEUS),
        "LOWTIDE_ALERTMANAGER_URL": monitoring.url(ALERTMANAGER),
    }


def test_targets_have_the_labels_of_pods() -> None:
    def process(name: str, state: State, port: int | None = 9) -> SimpleNamespace:
        launch = None if port is None else SimpleNamespace(health_port=port)
        return SimpleNamespace(name=name, state=state, launch=launch)

    spot = SimpleNamespace(
        name="infer-spot-large",
        workload=SimpleNamespace(labels={"lowtide.dev/fleet": "large"}),
        processes=[
            process("infer-spot-1", State.READY, 7),
            process("infer-spot-2", State.STOPPING, 8),
            process("infer-spot-3", State.STARTING),
            process("infer-spot-4", State.RESTARTING, None),
        ],
    )
    portal = SimpleNamespace(name="portal", processes=[process("portal", State.READY)])
    targets = targets_of(cast("Any", [spot, portal]))
    assert [one["targets"] for one in targets] == [
        ["127.0.0.1:7"],
        ["127.0.0.1:8"],
        ["127.0.0.1:9"],
    ]
    assert targets[0]["labels"] == {
        "namespace": "local", "pod": "infer-spot-1", "instance": "infer-spot-1",
        "function": "infer-spot-large", "pool": "spot", "fleet": "large",
    }  # fmt: skip
    assert "pool" not in targets[2]["labels"]


def test_missing_program_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    options = Options(data_dir=tmp_path, monitoring=True)
    with pytest.raises(MissingProgram, match=r"apt-get install .*prometheus-alertmanager"):
        check_programs(options)


@pytest.mark.parametrize(
    ("text", "expected"), [("30s", 30), ("1h30m", 5400), ("2d", 172_800), ("0s", 0)]
)
def test_prometheus_duration_is_parsed(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "5", "1 h", "h"])
def test_bad_duration_is_refused(text: str) -> None:
    with pytest.raises(BadManifest):
        seconds(text)
