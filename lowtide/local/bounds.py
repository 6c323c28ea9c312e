"""How far a pool scales: `LOWTIDE_SPOT_REPLICAS` and `LOWTIDE_DEDICATED_REPLICAS` of the user win here.

A cluster has the same number in its overlay's ConfigMap and, by `python -m manifests.bounds`, in the
overlay's ScaledObjects.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from lowtide.domain.pools import Pool
from lowtide.local.errors import LocalError
from lowtide.settings import PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.local.manifests import ScaledObject

_LIMIT = re.compile(r"LIMIT \d+\)")


def limited(query: str, limit: int) -> str:
    """Return a query that counts no further than `limit` in each of its parts."""
    return _LIMIT.sub(f"LIMIT {limit})", query)


def bounded(scaler: ScaledObject, user: Mapping[str, str]) -> ScaledObject:
    """Return the ScaledObject with the user's bound, if there is one; raises LocalError."""
    variables = {f"infer-{pool.value}": f"{PREFIX}{pool.value.upper()}_REPLICAS" for pool in Pool}
    variable = variables.get(scaler.spec.scale_target_ref.name, "")
    if variable not in user:
        return scaler
    if not user[variable].isdecimal():
        raise LocalError(f"{variable} must be a number of replicas, and is {user[variable]!r}.")
    most = int(user[variable])
    (trigger,) = scaler.spec.triggers
    target = int(trigger.metadata["targetQueryValue"])
    # Zero replicas need no query of their own: one that counts nothing wants none.
    query = limited(trigger.metadata["query"], most * target)
    trigger = msgspec.structs.replace(trigger, metadata={**trigger.metadata, "query": query})
    spec = msgspec.structs.replace(scaler.spec, max_replica_count=most, triggers=[trigger])
    return msgspec.structs.replace(scaler, spec=spec)
