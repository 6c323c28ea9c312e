"""The dashboards: as their code builds them, and of metrics that are exported."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from prometheus_client import REGISTRY

from monitoring.generate import HERE, files
from tests.monitoring.queries import BUILT_IN, boards, expressions_of, names_in, recordings, used

UIDS = {
    "lowtide-overview": {"datasource", "namespace"},
    "lowtide-sla": {"datasource", "namespace", "tenant", "batch"},
    "lowtide-queue": {"datasource", "namespace", "pool"},
    "lowtide-workers": {"datasource", "namespace", "pool"},
    "lowtide-tenants": {"datasource", "namespace", "pool", "tenant"},
}
# Exported, and of no use to an operator who looks at a graph.
NOT_SHOWN = {"python", "process"}
# Samples that a metric of a kind has.
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}


def exported() -> dict[str, set[str]]:
    """Return the samples that our modules register, by metric."""
    for path in sorted((HERE.parent / "lowtide").rglob("*.py")):
        if "prometheus_client" in path.read_text():
            importlib.import_module(".".join(path.relative_to(HERE.parent).with_suffix("").parts))
    found: dict[str, set[str]] = {}
    for collector in list(REGISTRY._collector_to_names):
        for family in getattr(collector, "describe", collector.collect)():
            if family.name.split("_")[0] not in NOT_SHOWN:
                found[family.name] = {family.name + end for end in SUFFIXES[family.type]}
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_what_is_committed_is_what_the_code_builds(path: Any) -> None:
    assert path.read_text(encoding="utf-8") == files()[path], "run: make monitoring"


def test_no_other_dashboard_lies_about() -> None:
    assert set((HERE / "dashboards" / "json").iterdir()) <= set(files())


@pytest.mark.parametrize("name", UIDS)
def test_a_dashboard_has_its_address_and_variables(name: str) -> None:
    board = boards()[name]
    assert board["uid"] == name
    assert {variable["name"] for variable in board["templating"]["list"]} == UIDS[name]
    # What is there to choose must make a difference.
    said = " ".join(expression for _, expression in expressions_of(board))
    for variable in UIDS[name] - {"datasource"}:
        assert f'=~"${variable}"' in said, variable
    titles = [panel["title"] for panel in board["panels"]]
    assert len(set(titles)) == len(titles)


def test_every_metric_that_is_used_is_exported_or_recorded() -> None:
    known = set().union(*exported().values()) | recordings() | BUILT_IN
    assert {name: sorted(places) for name, places in used().items() if name not in known} == {}


def test_every_metric_that_is_exported_is_used() -> None:
    assert {metric for metric, samples in exported().items() if not samples & set(used())} == set()


def test_every_recording_is_used() -> None:
    assert recordings() - set(used()) == set()


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("sum by (a) (rate(x_total{b='c'}[$__rate_interval]))", {"x_total"}),
        ('a:b:c > 1 unless on (d) (e == 1 or f{g=~"$h"})', {"a:b:c", "e", "f"}),
        ("max_over_time(deriv(x[5m])[1h:1m])", {"x"}),
    ],
    ids=["rate", "sets", "subquery"],
)
def test_names_are_read_from_an_expression(expression: str, names: set[str]) -> None:
    assert names_in(expression) == names


def test_what_is_no_expression_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unclosed|unexpected"):
        names_in("sum(rate(x[5m])")
