"""Links to dashboards: encoded values, and no link without a configured URL."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from lowtide.settings import Settings
from portal.dashboards import ALERT_NAMES, Dashboards

MONITORING = Path(__file__).parents[2] / "monitoring"
CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ENDED = CREATED + timedelta(minutes=11)
BATCH = "batch_01a2089ef54e794eb12ed8517f6539a7"
HOSTILE = '"}&from=0#/x?y=1 or up{a="é\n'
ALL = Dashboards("https://g.example/grafana/", "http://p.example:9090", "https://a.example/am")


def _batch(batch: str = BATCH, ended: datetime | None = ENDED) -> dict[str, str]:
    return {link.name: link.url for link in ALL.batch(batch, CREATED, ended, ENDED)}


def _query(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def test_grafana_link_has_batch_and_time_range() -> None:
    url = _batch()["Grafana"]
    assert url.startswith("https://g.example/grafana/d/lowtide-sla?var-batch=batch_01a2089e")
    assert _query(url) == {
        "var-batch": BATCH, "from": "1767323045000", "to": "1767323706000",
    }  # fmt: skip


def test_links_of_running_batch_end_now_and_are_stable() -> None:
    links = _batch(ended=None)
    assert _query(links["Grafana"])["to"] == "now"
    assert "g0.end_input" not in _query(links["Prometheus"])
    second = ALL.batch(BATCH, CREATED, None, ENDED + timedelta(seconds=1))
    assert [link.url for link in second] == list(links.values())


def test_prometheus_link_has_expressions_and_range() -> None:
    query = _query(_batch()["Prometheus"])
    assert query["g0.expr"] == "max by (fleet, pool) (queue_depth)"
    assert query["g1.expr"] == f'batch_at_risk_seconds_left{{batch="{BATCH}"}}'
    assert query["g0.range_input"] == query["g1.range_input"] == "900s"
    assert query["g0.end_input"] == "2026-01-02 03:15:06"


def test_prometheus_link_ends_in_utc() -> None:
    elsewhere = ENDED.astimezone(timezone(timedelta(hours=9)))
    assert _query(_batch(ended=elsewhere)["Prometheus"])["g0.end_input"] == "2026-01-02 03:15:06"


def test_alertmanager_link_has_filter_in_fragment() -> None:
    url = urlsplit(_batch()["Alertmanager"])
    assert (url.path, url.query) == ("/am/", "")
    path, _, query = url.fragment.partition("?")
    assert path == "/alerts"
    expected = f'{{alertname=~"Lowtide.*", batch="{BATCH}"}}'
    assert parse_qs(query) == {"filter": [expected]}


def test_hostile_values_are_encoded() -> None:
    links = _batch(HOSTILE)
    quoted = json.dumps(HOSTILE, ensure_ascii=False)
    assert _query(links["Grafana"])["var-batch"] == HOSTILE
    assert _query(links["Grafana"])["from"] == "1767323045000"
    assert _query(links["Prometheus"])["g1.expr"].endswith(f"{{batch={quoted}}}")
    filters = parse_qs(urlsplit(links["Alertmanager"]).fragment.partition("?")[2])["filter"]
    assert filters == [f'{{alertname=~"Lowtide.*", batch={quoted}}}']
    alert = ALL.alert({"alertname": HOSTILE})
    assert alert is not None
    for url in (*links.values(), alert):
        assert not set(url) & set(' "<>\n{}é')


def test_unconfigured_dashboard_has_no_link() -> None:
    nothing = Dashboards(None, None, None)
    assert (
        nothing.overview() == nothing.queues() == nothing.batch(BATCH, CREATED, None, ENDED) == ()
    )
    assert nothing.alert({"alertname": "x"}) is None
    partial = Dashboards(None, None, "http://a.example")
    assert [link.name for link in partial.overview()] == ["Alertmanager"]


@pytest.mark.parametrize(
    ("links", "uid"), [(ALL.overview(), "lowtide-overview"), (ALL.queues(), "lowtide-queue")]
)
def test_installation_links_cover_last_six_hours(links: tuple[object, ...], uid: str) -> None:
    urls = [getattr(link, "url") for link in links]  # noqa: B009
    assert urls[0] == f"https://g.example/grafana/d/{uid}?from=now-6h&to=now"
    assert _query(urls[1])["g0.range_input"] == "6h"


@pytest.mark.parametrize("name", ["grafana_url", "prometheus_url", "alertmanager_url"])
@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        "ftp://g.example",
        "//g.example",
        "g.example",
        "https://",
        "https://user:secret@g.example",
        "https://g.example/?a=b",
        "https://g.example/#x",
    ],
)
def test_settings_accept_only_web_addresses(name: str, url: str) -> None:
    with pytest.raises(ValueError, match="must"):
        Settings.model_validate({name: url})


def test_setting_accepts_path() -> None:
    settings = Settings.model_validate({"grafana_url": "https://g.example/grafana"})
    assert Dashboards.of(settings).overview()[0].url.startswith("https://g.example/grafana/d/")


@pytest.mark.parametrize(
    ("page", "trace", "urls"),
    [
        (None, "a" * 32, []),
        ("https://t.example/?q={trace_id}#x", None, []),
        ("https://t.example/?q={trace_id}#x", "a" * 32, [f"https://t.example/?q={'a' * 32}#x"]),
    ],
    ids=["unset", "no trace", "both"],
)
def test_trace_link_needs_url_and_trace(
    page: str | None, trace: str | None, urls: list[str]
) -> None:
    links = Dashboards(None, None, None, page).trace(trace)
    assert [(link.name, link.url) for link in links] == [("Trace", url) for url in urls]


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert('{trace_id}')", "https://t.example/", "https://u:p@t.example/{trace_id}",
        "t.example/{trace_id}", "https:///{trace_id}",
    ],
)  # fmt: skip
def test_trace_url_must_be_web_address_with_placeholder(url: str) -> None:
    with pytest.raises(ValueError, match="must"):
        Settings.model_validate({"trace_url": url})


def test_linked_dashboards_and_alerts_exist() -> None:
    for links in (ALL.overview(), ALL.queues(), ALL.batch(BATCH, CREATED, ENDED, ENDED)):
        uid = urlsplit(links[0].url).path.rpartition("/")[2]
        board = json.loads((MONITORING / "dashboards" / "json" / f"{uid}.json").read_text())
        assert board["uid"] == uid
        variables = {each["name"] for each in board["templating"]["list"]}
        linked = {name.removeprefix("var-") for name in _query(links[0].url) if "var-" in name}
        assert linked <= variables
    rules = yaml.safe_load((MONITORING / "rules" / "lowtide.rules.yml").read_text())
    names = [
        rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule
    ]
    assert names
    assert all(re.fullmatch(ALERT_NAMES, name) for name in names)
