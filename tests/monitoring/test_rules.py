"""The rules: each is tested to fire and to keep quiet, says what to do, and is the operator's too."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import yaml

from monitoring.generate import HERE, RULES, prometheus_rule
from tests.monitoring.programs import needs, run
from tests.monitoring.queries import ROOT, alerts, recordings, rules

TESTS = sorted((RULES.parent / "tests").glob("*.test.yml"))
SEVERITIES = {"critical", "warning", "info"}
ANCHOR = "{{ $externalLabels.runbooks }}docs/operations.md#"
# Those need no trend: a count over a window of its own has waited already.
AT_ONCE = {"LowtideDeadLettersGrowing"}


@cache
def _cases(kind: str) -> list[dict[str, Any]]:
    return [
        case
        for path in TESTS
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
        for case in test.get(kind, ())
    ]


@needs("promtool")
def test_promtool_takes_the_rules() -> None:
    assert f"{len(rules())} rules found" in run("promtool", "check", "rules", RULES)


@needs("promtool")
@pytest.mark.slow
def test_each_rule_does_what_its_tests_say() -> None:
    run("promtool", "test", "rules", *TESTS)


@pytest.mark.parametrize("name", sorted(alerts()))
def test_an_alert_is_tested_both_ways(name: str) -> None:
    cases = [case for case in _cases("alert_rule_test") if case["alertname"] == name]
    assert any(case["exp_alerts"] for case in cases), "no test in which it fires"
    assert any(not case["exp_alerts"] for case in cases), "no test in which it keeps quiet"


@pytest.mark.parametrize("name", sorted(recordings()))
def test_a_recording_is_tested(name: str) -> None:
    cases = [case for case in _cases("promql_expr_test") if case["expr"] == name]
    assert any(case["exp_samples"] for case in cases)


@pytest.mark.parametrize("name", sorted(alerts()))
def test_an_alert_says_how_bad_it_is_what_it_is_and_what_to_do(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"]["severity"] in SEVERITIES
    assert "component" in rule["labels"]
    assert "for" in rule or name in AT_ONCE
    notes = rule["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url"}
    assert "$" in notes["summary"] or name == "LowtideNotScraped"
    assert notes["runbook_url"] == ANCHOR + name.lower()


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### (Lowtide\w+)$", page, re.MULTILINE)) == set(alerts())


@pytest.mark.parametrize("name", sorted(alerts()))
def test_a_runbook_says_all_four_things(name: str) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = re.split(r"^##", page.split(f"### {name}\n", 1)[1], flags=re.MULTILINE)[0]
    for part in ("**Means:**", "**Look:**", "**Causes:**", "**Do:**", "**Over when:**"):
        assert part in section, part


def test_the_operators_copy_says_the_same() -> None:
    copy = (HERE / "prometheusrule.yaml").read_text(encoding="utf-8")
    assert copy == prometheus_rule(), "run: make monitoring"
    assert yaml.safe_load(copy)["spec"] == yaml.safe_load(RULES.read_text(encoding="utf-8"))
