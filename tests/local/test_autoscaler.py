from __future__ import annotations

from dataclasses import replace

import pytest

from lowtide.local.autoscaler import Memory, Policy, decide, policy
from lowtide.local.manifests import Fallback, ScaledObject, ScalingPolicy, ScalingRules
from lowtide.local.options import BadManifest
from lowtide.local.workloads import load

from .conftest import ROOT

IMMEDIATE = ScalingRules(
    stabilization_window_seconds=0,
    tolerance=0,
    policies=[ScalingPolicy(type="Pods", value=100, period_seconds=15)],
)
RULES = Policy(
    query="SELECT 1",
    target=5,
    activation=0,
    interval=5,
    cooldown=30,
    least=0,
    most=20,
    up=IMMEDIATE,
    down=IMMEDIATE,
    fallback=None,
)


@pytest.mark.parametrize(
    ("rows", "replicas"),
    [
        (0, 0),
        (1, 1),
        (5, 1),
        (6, 2),
        (10, 2),
        (25, 5),
        (26, 6),
        (27, 6),
        (99, 20),
        (100, 20),
        (101, 20),
        (200, 20),
    ],
    ids=str,
)
def test_replicas_are_exact_ceiling_of_rows(rows: int, replicas: int) -> None:
    assert decide(RULES, Memory(), rows, 0.0).replicas == replicas


@pytest.mark.parametrize("rows", range(201))
def test_replicas_do_not_depend_on_current_replicas(rows: int) -> None:
    expected = min(20, max(1, -(-rows // 5)))
    for current in range(1, 21):
        memory = Memory(replicas=current, last_active=0.0)
        assert decide(RULES, memory, rows, 1.0).replicas == expected


def test_default_hpa_tolerance_keeps_26_rows_at_five_replicas() -> None:
    rules = replace(RULES, up=with_tolerance(IMMEDIATE, None))
    assert decide(rules, Memory(replicas=5), 26, 0.0).replicas == 5
    assert decide(rules, Memory(replicas=5), 28, 0.0).replicas == 6


def with_tolerance(rules: ScalingRules, tolerance: float | None) -> ScalingRules:
    return ScalingRules(
        stabilization_window_seconds=rules.stabilization_window_seconds,
        tolerance=tolerance,
        policies=rules.policies,
    )


@pytest.mark.parametrize(
    ("value", "activation", "replicas"),
    [(3, 3, 0), (4, 3, 1), (0, 0, 0), (1, 0, 1)],
    ids=["at-threshold", "over-threshold", "no-rows", "one-row"],
)
def test_activation_must_be_exceeded(value: int, activation: int, replicas: int) -> None:
    assert decide(replace(RULES, activation=activation), Memory(), value, 0.0).replicas == replicas


def test_scale_to_zero_waits_for_cooldown() -> None:
    memory = decide(RULES, Memory(), 12, 0.0)
    assert memory.replicas == 3
    memory = decide(RULES, memory, 0, 29.0)
    assert memory.replicas == 1, "the HPA scales to one at once, KEDA waits for the cooldown"
    memory = decide(RULES, memory, 0, 30.0)
    assert memory.replicas == 1
    assert decide(RULES, memory, 0, 30.1).replicas == 0


def test_minimum_above_zero_is_kept_without_work() -> None:
    rules = replace(RULES, least=2)
    assert decide(rules, Memory(replicas=2), 0, 1000.0).replicas == 2
    assert decide(rules, Memory(replicas=0), 0, 0.0).replicas == 2


def test_scale_down_waits_for_stabilization_window() -> None:
    slow = ScalingRules(stabilization_window_seconds=60, tolerance=0, policies=IMMEDIATE.policies)
    rules = replace(RULES, down=slow)
    memory = decide(rules, Memory(), 50, 0.0)
    assert memory.replicas == 10
    memory = decide(rules, memory, 5, 30.0)
    assert memory.replicas == 10
    assert decide(rules, memory, 5, 61.0).replicas == 1


@pytest.mark.parametrize(
    ("policies", "select", "counts"),
    [
        ([("Pods", 1, 15)], "Max", [9, 9, 9, 8, 8, 8, 7]),
        ([("Percent", 50, 15)], "Max", [5, 5, 5, 2, 2, 2, 1]),
        ([("Pods", 1, 15), ("Percent", 50, 15)], "Max", [5, 5, 5, 2, 2, 2, 1]),
        ([("Pods", 1, 15), ("Percent", 50, 15)], "Min", [9, 9, 9, 8, 8, 8, 7]),
        ([("Pods", 1, 15)], "Disabled", [10, 10, 10, 10, 10, 10, 10]),
    ],
    ids=["pods", "percent", "max-change", "min-change", "disabled"],
)
def test_scale_down_policies_limit_the_rate(
    policies: list[tuple[str, int, int]], select: str, counts: list[int]
) -> None:
    down = ScalingRules(
        stabilization_window_seconds=0,
        tolerance=0,
        select_policy=select,
        policies=[ScalingPolicy(type=t, value=v, period_seconds=p) for t, v, p in policies],
    )
    rules, memory, replicas = replace(RULES, down=down), Memory(replicas=10), []
    for poll in range(7):
        memory = decide(rules, memory, 1, 5.0 * poll)
        replicas.append(memory.replicas)
    assert replicas == counts


def test_default_scale_up_adds_four_pods_or_doubles() -> None:
    rules = replace(RULES, up=ScalingRules(tolerance=0))
    memory, replicas = Memory(), []
    for poll in range(4):
        memory = decide(rules, memory, 100, 15.0 * poll)
        replicas.append(memory.replicas)
    assert replicas == [5, 10, 20, 20]


@pytest.mark.parametrize(
    ("behavior", "failures", "current", "expected"),
    [
        ("currentReplicas", 10, 3, 3),
        ("static", 3, 3, 3),
        ("static", 4, 3, 6),
        ("currentReplicasIfHigher", 4, 8, 8),
        ("currentReplicasIfHigher", 4, 3, 6),
        ("currentReplicasIfLower", 4, 8, 6),
        ("static", 10, 0, 0),
    ],
)
def test_fallback_applies_without_metric(
    behavior: str, failures: int, current: int, expected: int
) -> None:
    rules = replace(RULES, fallback=Fallback(failure_threshold=3, replicas=6, behavior=behavior))
    memory = Memory(replicas=current, last_active=0.0)
    for second in range(failures):
        memory = decide(rules, memory, None, 1000.0 + second)
    assert memory.replicas == expected


def test_failed_query_without_fallback_keeps_replicas() -> None:
    assert decide(RULES, Memory(replicas=4, last_active=0.0), None, 1e6).replicas == 4


def test_shipped_scaler_is_exact_up_and_slow_down() -> None:
    scaler = next(s for s in load(ROOT).all(ScaledObject) if s.metadata.name == "infer-spot")
    rules = policy(scaler)
    counts = [decide(rules, Memory(), rows, 0.0).replicas for rows in (0, 1, 5, 6, 16, 21, 40)]
    assert counts == [0, 1, 1, 2, 4, 4, 4]
    memory = decide(rules, Memory(), 40, 0.0)
    memory = decide(rules, memory, 1, 5.0)
    assert memory.replicas == 4
    assert decide(rules, memory, 1, 61.0).replicas == 3


def test_scaler_without_postgresql_trigger_is_refused() -> None:
    scaler = next(iter(load(ROOT).all(ScaledObject)))
    trigger = scaler.spec.triggers[0]
    with pytest.raises(BadManifest, match="only a single postgresql trigger"):
        policy(
            ScaledObject(
                metadata=scaler.metadata,
                spec=type(scaler.spec)(
                    scale_target_ref=scaler.spec.scale_target_ref,
                    triggers=[type(trigger)(type="cpu", metadata={})],
                ),
            )
        )
