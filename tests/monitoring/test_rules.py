"""Rules: their tests, annotations, runbook sections and PrometheusRule."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lowtide.engines.attribution import NOT_THE_REQUEST
from lowtide.engines.outcomes import TRANSIENT_STATUSES
from monitoring.generate import CELL_RULES, HERE, RULES, prometheus_rule
from tests.monitoring.programs import needs, run
from tests.monitoring.queries import ROOT, alerts, recordings, rules

if TYPE_CHECKING:
    from pathlib import Path

TESTS = sorted(
    path for rules in (RULES, CELL_RULES) for path in (rules.parent / "tests").glob("*.test.yml")
)
SEVERITIES = {"critical", "warning", "info"}
ANCHOR = "{{ $externalLabels.runbooks }}docs/operations.md#"
# Alerts without `for`: their expressions count over a window already.
WITHOUT_FOR = {"LowtideDeadLettersGrowing"}


@cache
def _cases(kind: str) -> list[dict[str, Any]]:
    return [
        case
        for path in TESTS
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
        for case in test.get(kind, ())
    ]


def _anchors() -> set[str]:
    """Return the fragments of the headings in the runbooks, as GitHub and its like build them."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@needs("promtool")
@pytest.mark.parametrize("file", [RULES, CELL_RULES], ids=lambda path: path.name)
def test_promtool_accepts_rules(file: Path) -> None:
    assert f"{len(rules(file))} rules found" in run("promtool", "check", "rules", file)


@needs("promtool")
@pytest.mark.slow
def test_rules_pass_promtool_tests() -> None:
    run("promtool", "test", "rules", *TESTS)


@pytest.mark.parametrize("name", sorted(alerts()))
def test_alert_has_firing_and_silent_test(name: str) -> None:
    cases = [case for case in _cases("alert_rule_test") if case["alertname"] == name]
    assert any(case["exp_alerts"] for case in cases), "no test in which the alert fires"
    assert any(not case["exp_alerts"] for case in cases), "no test in which the alert stays silent"


@pytest.mark.parametrize("name", sorted(recordings()))
def test_recording_rule_has_test(name: str) -> None:
    cases = [case for case in _cases("promql_expr_test") if case["expr"] == name]
    assert any(case["exp_samples"] for case in cases)


@pytest.mark.parametrize("name", sorted(alerts()))
def test_alert_has_labels_annotations_and_runbook(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"]["severity"] in SEVERITIES
    assert "component" in rule["labels"]
    assert "for" in rule or name in WITHOUT_FOR
    annotations = rule["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert "$" in annotations["summary"] or name == "LowtideNotScraped"
    assert annotations["runbook_url"] == ANCHOR + name.lower()
    assert name.lower() in _anchors()


@pytest.mark.parametrize("name", sorted(alerts()))
def test_alert_shows_whole_numbers(name: str) -> None:
    annotations = alerts()[name]["annotations"].values()
    shown = {value for text in annotations for value in re.findall(r"{{ (\$value[^}]*) }}", text)}
    assert shown <= {'$value | printf "%.0f"', "$value | humanizeDuration"}


def test_expected_texts_of_alerts_have_whole_numbers_and_name_requests() -> None:
    texts = [
        text
        for case in _cases("alert_rule_test")
        for alert in case["exp_alerts"]
        for text in alert["exp_annotations"].values()
    ]
    assert [text for text in texts if re.search(r"\d\.\d|\blines?\b", text)] == []


@pytest.mark.parametrize(
    "name",
    [
        "namespace_fleet_pool:engine_failures:ratio_rate5m",
        "namespace_fleet_pool:engine_rejections:ratio_rate5m",
    ],
)
def test_rule_names_every_status_that_requests_do_not_cause(name: str) -> None:
    (expression,) = [rule["expr"] for rule in rules() if rule.get("record") == name]
    named = {int(status) for status in re.findall(r"\b4\d\d\b", expression)}
    statuses = TRANSIENT_STATUSES | NOT_THE_REQUEST
    assert named == {status for status in statuses if 400 <= status < 500}


def test_runbook_sections_match_alerts() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### (Lowtide\w+)$", page, re.MULTILINE)) == set(alerts())


@pytest.mark.parametrize("name", sorted(alerts()))
def test_runbook_section_has_all_parts(name: str) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = re.split(r"^##", page.split(f"### {name}\n", 1)[1], flags=re.MULTILINE)[0]
    for part in ("**Means:**", "**Look:**", "**Causes:**", "**Do:**", "**Over when:**"):
        assert part in section, part


@pytest.mark.parametrize(
    ("copy", "file", "name"),
    [
        (HERE / "prometheusrule.yaml", RULES, "lowtide"),
        (CELL_RULES.parent / "prometheusrule.yaml", CELL_RULES, "lowtide-cell"),
    ],
    ids=["all", "cell"],
)
def test_prometheus_rule_matches_rules(copy: Path, file: Path, name: str) -> None:
    text = copy.read_text(encoding="utf-8")
    assert text == prometheus_rule(file, name), "run: make monitoring"
    assert yaml.safe_load(text)["spec"] == yaml.safe_load(file.read_text(encoding="utf-8"))
