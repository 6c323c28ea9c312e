"""Grafana dashboards as code: `python -m monitoring.generate` writes their JSON."""

from __future__ import annotations

from monitoring.dashboards import cells, engines, overview, queue, sla, tenants, workers

ALL = (
    overview.build,
    sla.build,
    queue.build,
    workers.build,
    engines.build,
    tenants.build,
    cells.build,
)
