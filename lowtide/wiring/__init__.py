"""The one place that builds adapters from the settings and hands them to the services."""

from __future__ import annotations

from lowtide.wiring.api import (
    batches,
    dead_letters,
    files,
    forecaster,
    models,
    prices,
    requests,
    requeue_rules,
    requeuer,
    tenants,
)
from lowtide.wiring.base import (
    admission_policy,
    database,
    line_limits,
    new_id,
    now,
    objects,
    publisher,
    sightings,
    tracer,
)
from lowtide.wiring.operators import administration, open_pools, open_tenancy
from lowtide.wiring.portal import Desks, database_for, desks_for, entrance, pools, signed_out
from lowtide.wiring.steps import build_worker, finalizer, scheduler, splitter, vitals

__all__ = [
    "Desks",
    "administration",
    "admission_policy",
    "batches",
    "build_worker",
    "database",
    "database_for",
    "dead_letters",
    "desks_for",
    "entrance",
    "files",
    "finalizer",
    "forecaster",
    "line_limits",
    "models",
    "new_id",
    "now",
    "objects",
    "open_pools",
    "open_tenancy",
    "pools",
    "prices",
    "publisher",
    "requests",
    "requeue_rules",
    "requeuer",
    "scheduler",
    "sightings",
    "signed_out",
    "splitter",
    "tenants",
    "tracer",
    "vitals",
]
