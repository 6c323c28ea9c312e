from __future__ import annotations

from dataclasses import replace

import pytest

from lowtide.local.autoscaler import Memory, Policy, decide, policy
from lowtide.local.manifests import Fallback, ScaledObject, ScalingPolicy, ScalingRules
from lowtide.local.options import BadManifest
from lowtide.local.workloads import load

from .conftest import ROOT

AT_ONCE = ScalingRules(
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
    up=AT_ONCE,
    down=AT_ONCE,
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
def test_rows_become_replicas_by_exact_ceiling(rows: int, replicas: int) -> None:
    assert decide(RULES, Memory(), rows, 0.0).replicas == replicas


@pytest.mark.parametrize("rows", range(201))
def test_every_count_from_every_replica_count(rows: int) -> None:
    expected = min(20, max(1, -(-rows // 5)))
    for current in range(1, 21):
        memory = Memory(replicas=current, last_active=0.0)
        assert decide(RULES, memory, rows, 1.0).replicas == expected


def test_default_tolerance_of_the_hpa_keeps_26_lines_at_five() -> None:
    rules = replace(RULES, up=replace_tolerance(AT_ONCE, None))
    assert decide(rules, Memory(replicas=5), 26, 0.0).replicas == 5
    assert decide(rules, Memory(replicas=5), 28, 0.0).replicas == 6


def replace_tolerance(rules: ScalingRules, tolerance: float | None) -> ScalingRules:
    return ScalingRules(
        stabilization_window_seconds=rules.stabilization_window_seconds,
        tolerance=tolerance,
        policies=rules.policies,
    )


@pytest.mark.parametrize(
    ("value", "activation", "replicas"),
    [(3, 3, 0), (4, 3, 1), (0, 0, 0), (1, 0, 1)],
    ids=["at-threshold", "over-threshold", "nothing", "one-line"],
)
def test_activation_must_be_exceeded(value: int, activation: int, replicas: int) -> None:
    assert decide(replace(RULES, activation=activation), Memory(), value, 0.0).replicas == replicas


def test_zero_only_after_the_cooldown() -> None:
    memory = decide(RULES, Memory(), 12, 0.0)
    assert memory.replicas == 3
    memory = decide(RULES, memory, 0, 29.0)
    assert memory.replicas == 1, "the HPA goes to one at once, KEDA waits"
    memory = decide(RULES, memory, 0, 30.0)
    assert memory.replicas == 1
    assert decide(RULES, memory, 0, 30.1).replicas == 0


def test_a_minimum_above_zero_is_kept_without_work() -> None:
    rules = replace(RULES, least=2)
    assert decide(rules, Memory(replicas=2), 0, 1000.0).replicas == 2
    assert decide(rules, Memory(replicas=0), 0, 0.0).replicas == 2


def test_scale_down_waits_for_the_stabilization_window() -> None:
    slow = ScalingRules(stabilization_window_seconds=60, tolerance=0, policies=AT_ONCE.policies)
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
    ids=["pods", "percent", "most-change", "least-change", "disabled"],
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
    rules, memory, seen = replace(RULES, down=down), Memory(replicas=10), []
    for poll in range(7):
        memory = decide(rules, memory, 1, 5.0 * poll)
        seen.append(memory.replicas)
    assert seen == counts


def test_scale_up_policies_of_the_hpa_double_from_four() -> None:
    rules = replace(RULES, up=ScalingRules(tolerance=0))
    memory, seen = Memory(), []
    for poll in range(4):
        memory = decide(rules, memory, 100, 15.0 * poll)
        seen.append(memory.replicas)
    assert seen == [5, 10, 20, 20]


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
def test_without_a_metric_the_fallback_holds(
    behavior: str, failures: int, current: int, expected: int
) -> None:
    rules = replace(RULES, fallback=Fallback(failure_threshold=3, replicas=6, behavior=behavior))
    memory = Memory(replicas=current, last_active=0.0)
    for second in range(failures):
        memory = decide(rules, memory, None, 1000.0 + second)
    assert memory.replicas == expected


def test_without_a_fallback_a_failed_query_changes_nothing() -> None:
    assert decide(RULES, Memory(replicas=4, last_active=0.0), None, 1e6).replicas == 4


def test_our_scalers_are_exact_up_and_slow_down() -> None:
    scaler = next(s for s in load(ROOT).all(ScaledObject) if s.metadata.name == "infer-spot")
    rules = policy(scaler)
    counts = [decide(rules, Memory(), rows, 0.0).replicas for rows in (0, 1, 5, 6, 16, 21, 40)]
    assert counts == [0, 1, 1, 2, 4, 4, 4]
    memory = decide(rules, Memory(), 40, 0.0)
    memory = decide(rules, memory, 1, 5.0)
    assert memory.replicas == 4
    assert decide(rules, memory, 1, 61.0).replicas == 3


def test_another_scaler_is_refused() -> None:
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
