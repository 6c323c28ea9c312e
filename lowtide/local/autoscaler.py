"""Replica counts by the rules of KEDA and the HPA; pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from lowtide.core.pools import Pool
from lowtide.local.manifests import ScalingPolicy, ScalingRules
from lowtide.local.options import BadManifest, LocalError
from lowtide.settings import PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.local.manifests import Fallback, ScaledObject


_LIMIT = re.compile(r"(LIMIT|most =>) (\d+)\)")


def limited(query: str, limit: int) -> str:
    """Return the query with every `LIMIT n)` or `most => n)` set to `limit`: it counts no further."""
    return _LIMIT.sub(rf"\1 {limit})", query)


def limits_of(query: str) -> list[int]:
    """Return how far each part of the query counts."""
    return [int(limit) for _, limit in _LIMIT.findall(query)]


def bounded(scaler: ScaledObject, user: Mapping[str, str]) -> ScaledObject:
    """Return the ScaledObject with the user's maximum, if set; raises LocalError if invalid."""
    variables = {f"infer-{pool.value}": f"{PREFIX}{pool.value.upper()}_REPLICAS" for pool in Pool}
    variable = variables.get(scaler.spec.scale_target_ref.name, "")
    if variable not in user:
        return scaler
    if not user[variable].isdecimal():
        raise LocalError(f"{variable} must be a number of replicas, not {user[variable]!r}.")
    max_replicas = int(user[variable])
    (trigger,) = scaler.spec.triggers
    target = int(trigger.metadata["targetQueryValue"])
    # A maximum of zero needs no special case: LIMIT 0 counts nothing.
    query = limited(trigger.metadata["query"], max_replicas * target)
    trigger = msgspec.structs.replace(trigger, metadata={**trigger.metadata, "query": query})
    spec = msgspec.structs.replace(scaler.spec, max_replica_count=max_replicas, triggers=[trigger])
    return msgspec.structs.replace(scaler, spec=spec)


_DEFAULT_TOLERANCE = 0.1
_DEFAULT_UP = [
    ScalingPolicy(type="Pods", value=4, period_seconds=15),
    ScalingPolicy(type="Percent", value=100, period_seconds=15),
]
_DEFAULT_DOWN = [ScalingPolicy(type="Percent", value=100, period_seconds=15)]
_DEFAULT_DOWN_WINDOW = 300


@dataclass(frozen=True, slots=True)
class Policy:
    """The scaling policy of one ScaledObject; times in seconds."""

    query: str
    target: float
    activation: float
    interval: float
    cooldown: float
    least: int
    most: int
    up: ScalingRules
    down: ScalingRules
    fallback: Fallback | None


@dataclass(frozen=True, slots=True)
class Memory:
    """State between polls; times are of the caller's monotonic clock.

    `proposals` are the counts that the metric called for, `moves` the changes made.
    """

    replicas: int = 0
    last_active: float | None = None
    failures: int = 0
    proposals: tuple[tuple[float, int], ...] = ()
    moves: tuple[tuple[float, int], ...] = ()


def policy(scaler: ScaledObject) -> Policy:
    """Return the policy of a ScaledObject with one postgresql trigger.

    Raises BadManifest for other triggers and for invalid metadata.
    """
    spec, name = scaler.spec, scaler.metadata.name
    if [trigger.type for trigger in spec.triggers] != ["postgresql"]:
        raise BadManifest(f"ScaledObject {name}: only a single postgresql trigger is supported")
    metadata = spec.triggers[0].metadata
    behavior = spec.advanced.horizontal_pod_autoscaler_config.behavior
    try:
        return Policy(
            query=metadata["query"],
            target=float(metadata["targetQueryValue"]),
            activation=float(metadata.get("activationTargetQueryValue", "0")),
            interval=spec.polling_interval,
            cooldown=spec.cooldown_period,
            least=spec.min_replica_count,
            most=spec.max_replica_count,
            up=behavior.scale_up,
            down=behavior.scale_down,
            fallback=spec.fallback,
        )
    except (KeyError, ValueError) as error:
        raise BadManifest(f"ScaledObject {name}: invalid trigger metadata: {error}") from error


def decide(rules: Policy, memory: Memory, value: float | None, now: float) -> Memory:
    """Return the memory after one poll; its `replicas` is the decision.

    `value` is the query's result, or None if it could not be read: the count then stays, and after
    more than `failureThreshold` failures in a row it is the fallback's.
    """
    if value is None:
        return _without_metric(rules, replace(memory, failures=memory.failures + 1))
    memory = replace(memory, failures=0)
    if value > rules.activation:
        # KEDA itself scales only to one (or the minimum); from there the HPA decides.
        replicas = memory.replicas or max(1, rules.least)
        memory = replace(memory, last_active=now, replicas=replicas)
    elif memory.replicas == 0:
        return replace(memory, replicas=rules.least)
    elif rules.least == 0 and _cooled_down(rules, memory, now):
        return replace(memory, replicas=0, proposals=(), moves=())
    return _follow_metric(rules, memory, value, now)


def _cooled_down(rules: Policy, memory: Memory, now: float) -> bool:
    return memory.last_active is None or now - memory.last_active > rules.cooldown


def _without_metric(rules: Policy, memory: Memory) -> Memory:
    fallback, current = rules.fallback, memory.replicas
    # The HPA applies the fallback, and it ignores a Deployment at zero.
    if fallback is None or memory.failures <= fallback.failure_threshold or current == 0:
        return memory
    desired = {
        "static": fallback.replicas,
        "currentReplicas": current,
        "currentReplicasIfHigher": max(current, fallback.replicas),
        "currentReplicasIfLower": min(current, fallback.replicas),
    }[fallback.behavior]
    return replace(memory, replicas=_clamp(rules, desired))


def _follow_metric(rules: Policy, memory: Memory, value: float, now: float) -> Memory:
    """Return the HPA's decision, between one (or the minimum) and the maximum."""
    current = memory.replicas
    ratio = value / (rules.target * current)
    within_tolerance = 1 - _tolerance(rules.down) <= ratio <= 1 + _tolerance(rules.up)
    proposal = _clamp(rules, current if within_tolerance else math.ceil(value / rules.target))
    memory = _remember(rules, memory, proposal, now)
    desired = _stabilized(rules, memory, proposal, now)
    if desired > current:
        desired = min(desired, max(current, _limit(rules.up, memory, now, up=True)))
    elif desired < current:
        desired = max(desired, min(current, _limit(rules.down, memory, now, up=False)))
    if desired == current:
        return memory
    return replace(memory, replicas=desired, moves=(*memory.moves, (now, desired - current)))


def _clamp(rules: Policy, count: int) -> int:
    return max(1, rules.least, min(rules.most, count))


def _stabilized(rules: Policy, memory: Memory, proposal: int, now: float) -> int:
    """Return the count within the stabilization windows.

    The lowest proposal of the up window limits a rise, the highest of the down window a fall.
    """
    lowest = highest = proposal
    for at, count in memory.proposals:
        if now - at < (rules.up.stabilization_window_seconds or 0):
            lowest = min(lowest, count)
        if now - at < _down_window(rules):
            highest = max(highest, count)
    return min(max(memory.replicas, lowest), highest)


def _limit(rules: ScalingRules, memory: Memory, now: float, *, up: bool) -> int:
    """Return the furthest count that the rate policies allow in one direction."""
    if rules.select_policy == "Disabled":
        return memory.replicas
    policies = (_DEFAULT_UP if up else _DEFAULT_DOWN) if rules.policies is None else rules.policies
    limits = []
    for rule in policies:
        start = memory.replicas - sum(
            change for at, change in memory.moves if now - at < rule.period_seconds
        )
        step = rule.value if up else -rule.value
        if rule.type == "Pods":
            limits.append(start + step)
        else:
            limits.append((math.ceil if up else math.floor)(start * (1 + step / 100)))
    furthest = up == (rules.select_policy == "Max")
    return max(limits) if furthest else min(limits)


def _remember(rules: Policy, memory: Memory, proposal: int, now: float) -> Memory:
    window = max(_down_window(rules), rules.up.stabilization_window_seconds or 0)
    policies = [*_DEFAULT_UP, *(rules.up.policies or ()), *(rules.down.policies or ())]
    period = max(rule.period_seconds for rule in policies)
    return replace(
        memory,
        proposals=(
            *(entry for entry in memory.proposals if now - entry[0] < window),
            (now, proposal),
        ),
        moves=tuple(entry for entry in memory.moves if now - entry[0] < period),
    )


def _down_window(rules: Policy) -> int:
    window = rules.down.stabilization_window_seconds
    return _DEFAULT_DOWN_WINDOW if window is None else window


def _tolerance(rules: ScalingRules) -> float:
    return _DEFAULT_TOLERANCE if rules.tolerance is None else float(rules.tolerance)
