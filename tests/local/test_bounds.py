from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from lowtide.local.autoscaler import Memory, bounded, decide, policy
from lowtide.local.environment import engine_notice, pool_bounds
from lowtide.local.manifests import ScaledObject
from lowtide.local.options import LocalError
from lowtide.local.workloads import load

from .conftest import ROOT

if TYPE_CHECKING:
    from lowtide.local.workloads import Manifests

SPOT, DEDICATED = "LOWTIDE_SPOT_REPLICAS", "LOWTIDE_DEDICATED_REPLICAS"
ROWS = {"infer-spot": 5, "infer-dedicated": 10}


@pytest.fixture(scope="module")
def manifests() -> Manifests:
    return load(ROOT)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({}, {"infer-spot": 4, "infer-dedicated": 2}),
        ({SPOT: "9"}, {"infer-spot": 9, "infer-dedicated": 2}),
        ({SPOT: "1", DEDICATED: "0"}, {"infer-spot": 1, "infer-dedicated": 0}),
        ({DEDICATED: "30"}, {"infer-spot": 4, "infer-dedicated": 30}),
    ],
    ids=str,
)
def test_user_setting_bounds_replicas_of_pool(
    manifests: Manifests, user: dict[str, str], expected: dict[str, int]
) -> None:
    replicas = {}
    for scaler in manifests.all(ScaledObject):
        rules = policy(bounded(scaler, user))
        name = scaler.spec.scale_target_ref.name
        # The maximum that the query counts of any number of queued requests.
        (limit,) = {int(number) for number in re.findall(r"LIMIT (\d+)\)", rules.query)}
        assert limit == expected[name] * ROWS[name]
        replicas[name] = decide(rules, Memory(), limit, 0.0).replicas
    assert replicas == expected


ENGINE, URL = "LOWTIDE_ENGINE", "LOWTIDE_ENGINE_URL"


@pytest.mark.parametrize(
    ("user", "bounds", "notice"),
    [
        ({}, {}, ""),
        ({ENGINE: "simulated"}, {}, ""),
        ({ENGINE: "noop", SPOT: "9"}, {SPOT: "9"}, ""),
        (
            {ENGINE: "openai", URL: "http://me:password@gpu:8000"},
            {SPOT: "1", DEDICATED: "1"},
            f"at most one spot and one dedicated, as all share the engine at http://me:***@gpu:8000; {SPOT} and {DEDICATED} can allow more",
        ),
        (
            {ENGINE: "openai", SPOT: "3"},
            {SPOT: "3", DEDICATED: "1"},
            f"at most one dedicated, as all share the engine at http://127.0.0.1:8000; {DEDICATED} can allow more",
        ),
        ({ENGINE: "openai", SPOT: "3", DEDICATED: "0"}, {SPOT: "3", DEDICATED: "0"}, ""),
    ],
    ids=str,
)
def test_one_worker_per_pool_shares_an_engine_unless_set(
    user: dict[str, str], bounds: dict[str, str], notice: str
) -> None:
    assert pool_bounds(user) == bounds
    assert engine_notice(user) == notice


def test_setting_that_is_no_number_is_refused(manifests: Manifests) -> None:
    (spot,) = [
        scaler
        for scaler in manifests.all(ScaledObject)
        if scaler.spec.scale_target_ref.name == "infer-spot"
    ]
    for value in ("", "many", "-1", "1.5"):
        with pytest.raises(LocalError, match=f"{SPOT} must be a number of replicas"):
            bounded(spot, {SPOT: value})
