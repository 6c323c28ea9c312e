"""Dashboards: equal to the generator's output, with exported metrics only."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from prometheus_client import REGISTRY

from monitoring.generate import HERE, files
from tests.monitoring.queries import (
    BUILT_IN,
    OF_GPUS,
    boards,
    expressions_of,
    names_in,
    recordings,
    used_names,
)

UIDS = {
    "lowtide-overview": {"datasource", "namespace", "fleet"},
    "lowtide-sla": {"datasource", "namespace", "fleet", "tenant", "batch"},
    "lowtide-queue": {"datasource", "namespace", "fleet", "pool"},
    "lowtide-workers": {"datasource", "namespace", "fleet", "pool"},
    "lowtide-engines": {"datasource", "namespace", "fleet", "pool"},
    "lowtide-cells": {"datasource", "cell"},
    "lowtide-tenants": {"datasource", "namespace", "pool", "tenant"},
}
# Exported, but of no use on a dashboard.
NOT_SHOWN = {"python", "process"}
# Suffixes of the samples of a metric, by type.
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}


def exported() -> dict[str, set[str]]:
    """Return the samples registered by Lowtide's modules, by metric."""
    for path in sorted((HERE.parent / "lowtide").rglob("*.py")):
        if "prometheus_client" in path.read_text():
            importlib.import_module(".".join(path.relative_to(HERE.parent).with_suffix("").parts))
    samples: dict[str, set[str]] = {}
    for collector in list(REGISTRY._collector_to_names):
        for family in getattr(collector, "describe", collector.collect)():
            if family.name.split("_")[0] not in NOT_SHOWN:
                samples[family.name] = {family.name + suffix for suffix in SUFFIXES[family.type]}
    return samples


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_committed_file_matches_generator(path: Any) -> None:
    assert path.read_text(encoding="utf-8") == files()[path], "run: make monitoring"


def test_directory_has_only_generated_dashboards() -> None:
    assert set((HERE / "dashboards" / "json").iterdir()) <= set(files())


@pytest.mark.parametrize("name", UIDS)
def test_dashboard_has_uid_and_used_variables(name: str) -> None:
    board = boards()[name]
    assert board["uid"] == name
    assert {variable["name"] for variable in board["templating"]["list"]} == UIDS[name]
    # Every variable filters an expression.
    expressions = " ".join(expression for _, expression in expressions_of(board))
    for variable in UIDS[name] - {"datasource"}:
        assert f'=~"${variable}"' in expressions, variable
    titles = [panel["title"] for panel in board["panels"]]
    assert len(set(titles)) == len(titles)


def test_every_used_metric_is_exported_or_recorded() -> None:
    known = set().union(*exported().values()) | recordings() | BUILT_IN | OF_GPUS
    assert {
        name: sorted(places) for name, places in used_names().items() if name not in known
    } == {}


def test_every_exported_metric_is_used() -> None:
    assert {
        metric for metric, samples in exported().items() if not samples & set(used_names())
    } == set()


def test_every_recording_rule_is_used() -> None:
    assert recordings() - set(used_names()) == set()


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("sum by (a) (rate(x_total{b='c'}[$__rate_interval]))", {"x_total"}),
        ('a:b:c > 1 unless on (d) (e == 1 or f{g=~"$h"})', {"a:b:c", "e", "f"}),
        ("max_over_time(deriv(x[5m])[1h:1m])", {"x"}),
    ],
    ids=["rate", "sets", "subquery"],
)
def test_metric_names_are_extracted_from_expression(expression: str, names: set[str]) -> None:
    assert names_in(expression) == names


def test_invalid_expression_raises_value_error() -> None:
    with pytest.raises(ValueError, match=r"unclosed|unexpected"):
        names_in("sum(rate(x[5m])")
