from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lowtide.local.autoscaler import policy
from lowtide.local.environment import (
    check_user,
    engine_notice,
    fleet_environment,
    manifest_environment,
    merge,
    pool_bounds,
)
from lowtide.local.fleets import declared_fleets, engine_keys
from lowtide.local.manifests import ConfigMap, ScaledObject
from lowtide.local.options import LocalError
from lowtide.local.workloads import load, workloads

from .conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SPOT, DEDICATED = "LOWTIDE_SPOT_REPLICAS", "LOWTIDE_DEDICATED_REPLICAS"
SIMULATED = """\
fleets:
  large:
    models: [large]
    spot: {max_replicas: 3, rows_per_replica: 7}
  small:
    models: [small]
"""
REAL = (
    SIMULATED
    + """\
    engine: {kind: openai, url: "http://gpu:8000", api_key_env: SMALL_KEY, concurrency: 9}
"""
)


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The user's environment, with a file of fleets."""
    monkeypatch.setenv("LOWTIDE_FLEETS", str(tmp_path / "fleets.yaml"))
    monkeypatch.setenv("SMALL_KEY", "s3cret")
    (tmp_path / "fleets.yaml").write_text(REAL)
    return dict(os.environ)


def test_without_a_file_the_default_workers_run() -> None:
    assert declared_fleets({}) is None
    names = {one.metadata.name for one in load(ROOT, None).all(ScaledObject)}
    assert names == {"infer-spot", "infer-dedicated"}


def test_each_fleet_and_pool_has_its_scaled_workers(user: dict[str, str]) -> None:
    manifests = load(ROOT, declared_fleets(user))
    names = {
        f"infer-{pool}-{name}" for pool in ("spot", "dedicated") for name in ("large", "small")
    }
    workers = {one.name: one for one in workloads(manifests) if one.name.startswith("infer-")}
    assert set(workers) == names
    assert all(one.scaled and one.replicas == 0 for one in workers.values())
    assert {one.services for one in workers.values()} == {(name,) for name in names}
    assert {one.spec.scale_target_ref.name for one in manifests.all(ScaledObject)} == names


@pytest.mark.parametrize(
    ("text", "extra", "bounds", "expected"),
    [
        (SIMULATED, {}, {}, {"spot-large": 3, "spot-small": 4, "dedicated-large": 2}),
        (SIMULATED, {SPOT: "9"}, {SPOT: "9"}, {"spot-large": 3, "spot-small": 9}),
        (
            REAL,
            {},
            {SPOT: "1", DEDICATED: "1"},
            {"spot-large": 3, "spot-small": 1, "dedicated-large": 1},
        ),
        (REAL, {SPOT: "2"}, {SPOT: "2", DEDICATED: "1"}, {"spot-small": 2, "dedicated-small": 1}),
    ],
    ids=["simulated", "simulated, set", "real", "real, set"],
)  # fmt: skip
def test_file_then_user_then_one_worker_per_engine_bounds_a_pool(
    user: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    text: str,
    extra: dict[str, str],
    bounds: dict[str, str],
    expected: dict[str, int],
) -> None:
    (tmp_path / "fleets.yaml").write_text(text)
    for name, value in extra.items():
        monkeypatch.setenv(name, value)
    file = declared_fleets(user | extra)
    assert pool_bounds(extra, file) == bounds
    scalers = {one.metadata.name: policy(one) for one in load(ROOT, file).all(ScaledObject)}
    found = {name: scalers[f"infer-{name}"].most for name in expected}
    assert found == expected
    notice = engine_notice(extra, file)
    assert ("in a fleet that sets no max_replicas" in notice) == (len(bounds) > len(extra))


def test_worker_has_the_engine_of_its_fleet_whatever_the_user_sets(user: dict[str, str]) -> None:
    user |= {
        "LOWTIDE_ENGINE": "noop",
        "LOWTIDE_ENGINE_URL": "http://other",
        "LOWTIDE_LOG_LEVEL": "debug",
    }
    file = declared_fleets(user)
    assert file is not None
    manifests = load(ROOT, file)
    maps = {one.metadata.name: one.data for one in manifests.all(ConfigMap)}
    secrets = {
        "lowtide-database": {"worker-url": "postgresql://w"},
        "lowtide-engines": engine_keys(file, user),
    }
    found = {}
    for one in workloads(manifests):
        if one.name.startswith("infer-spot-"):
            manifest = manifest_environment(one.container, maps, secrets)
            fixed = fleet_environment(one.container, manifest)
            found[one.name.removeprefix("infer-spot-")] = merge(user, manifest, {}, fixed)
    names = ("FLEET", "ENGINE", "ENGINE_URL", "ENGINE_API_KEY", "WORKER_CONCURRENCY", "LOG_LEVEL")
    values = {
        fleet: [environment.get(f"LOWTIDE_{name}") for name in names]
        for fleet, environment in found.items()
    }
    assert values == {
        "small": ["small", "openai", "http://gpu:8000", "s3cret", "9", "debug"],
        # What the file does not set stays the user's.
        "large": ["large", "noop", "http://other", None, None, "debug"],
    }


@pytest.mark.parametrize(
    ("text", "gone", "message"),
    [
        (REAL, "SMALL_KEY", r"Set the API keys of the engines: SMALL_KEY \(fleet small\)"),
        (REAL.replace("models", "model"), "", r"fleets\.yaml:3: fleet large: model: is an unknown"),
        ("", "", r"fleets\.yaml:1: must be a mapping"),
    ],
    ids=["no-key", "mistake", "empty"],
)
def test_fleets_that_cannot_run_are_refused_before_the_start(
    user: dict[str, str], tmp_path: Path, text: str, gone: str, message: str
) -> None:
    check_user(user)
    (tmp_path / "fleets.yaml").write_text(text)
    user.pop(gone, None)
    with pytest.raises(LocalError, match=message):
        check_user(user)
