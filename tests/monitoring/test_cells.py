"""What leaves a cell is bounded by its fleets, whatever its workers, tenants and batches."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
import yaml

from lowtide.local.ports import HOST, free_port
from monitoring.generate import CELL_RULES, HERE
from tests.monitoring.installation import Installation
from tests.monitoring.programs import needs, run
from tests.worlds import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SMALL = Installation(fleets=3, workers=1, tenants=2, batches=1, pods=1)
LARGE = Installation(fleets=3, workers=28, tenants=100, batches=50, pods=1)
OF_A_FLEET: Final = 38
OF_A_CELL: Final = 21
"""The most series of a fleet, and others of a cell: with one currency and a front, while two versions run."""
THREE_FLEETS: Final = 132
NAMES: Final = '{__name__=~"lowtide_cell:.+"}'


def selector(name: str, labels: Mapping[str, str]) -> str:
    """Return a series as Prometheus writes it."""
    return f"{name}{{{','.join(f'{key}={json.dumps(value)}' for key, value in labels.items())}}}"


@needs("promtool")
@pytest.mark.parametrize(
    "installation",
    [pytest.param(SMALL, id="small"), pytest.param(LARGE, id="large", marks=pytest.mark.slow)],
)
def test_series_of_a_cell_depend_on_its_fleets_alone(
    tmp_path: Path, installation: Installation
) -> None:
    assert THREE_FLEETS <= 3 * OF_A_FLEET + OF_A_CELL
    test = {
        "rule_files": [str(CELL_RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": selector(name, labels), "values": "1+60x1"}
                    for name, labels in installation.series()
                ],
                "promql_expr_test": [
                    {
                        "expr": f"count({NAMES})",
                        "eval_time": "1m",
                        "exp_samples": [{"labels": "{}", "value": THREE_FLEETS}],
                    }
                ],
            }
        ],
    }
    (tmp_path / "cell.test.yml").write_text(json.dumps(test))
    run("promtool", "test", "rules", tmp_path / "cell.test.yml")


def test_federation_admits_a_cell_of_fifty_fleets() -> None:
    (job,) = read("federation.yml")["scrape_configs"]
    assert job["sample_limit"] >= 50 * OF_A_FLEET + OF_A_CELL


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CELL_RULES.parent / name).read_text(encoding="utf-8"))
    return content


def cell_configuration() -> dict[str, Any]:
    """Return the configuration of a cell's Prometheus: both files, merged."""
    config: dict[str, Any] = yaml.safe_load((HERE / "prometheus.yml").read_text(encoding="utf-8"))
    addition = read("cell.yml")
    config["global"]["external_labels"] |= addition["global"]["external_labels"]
    config["rule_files"] = [str(CELL_RULES.parent / name) for name in addition["rule_files"]]
    return config | {"remote_write": addition["remote_write"]}


@needs("promtool")
def test_promtool_accepts_both_configurations(tmp_path: Path) -> None:
    config = cell_configuration()
    for job in config["scrape_configs"]:
        del job["kubernetes_sd_configs"]
    (tmp_path / "cell.yml").write_text(yaml.safe_dump(config))
    assert "SUCCESS" in run("promtool", "check", "config", tmp_path / "cell.yml")
    assert "SUCCESS" in run("promtool", "check", "config", CELL_RULES.parent / "federation.yml")


@contextmanager
def exporter(installation: Installation) -> Iterator[str]:
    """Yield the address of one page with the series of all pods; counters rise with each scrape."""
    series = [selector(name, labels) for name, labels in installation.series()]

    class Page(BaseHTTPRequestHandler):
        scrapes = 0

        def do_GET(self) -> None:
            Page.scrapes += 1
            body = "".join(f"{each} {Page.scrapes}\n" for each in series).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer((HOST, 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"{HOST}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def prometheus(
    folder: Path, port: int, config: dict[str, Any], env: Mapping[str, str]
) -> Iterator[None]:
    """Run a Prometheus with short intervals."""
    folder.mkdir()
    config["global"] |= {
        "scrape_interval": "1s",
        "scrape_timeout": "1s",
        "evaluation_interval": "1s",
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        [
            str(shutil.which("prometheus")),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={HOST}:{port}",
            "--web.enable-remote-write-receiver",
            "--enable-feature=expand-external-labels",
            "--log.level=warn",
        ],
        env=dict(env),
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def values(port: int, query: str, label: str) -> dict[str, float]:
    """Return the values of a query by a label; empty while Prometheus starts."""
    try:
        answer = httpx.get(f"http://{HOST}:{port}/api/v1/query", params={"query": query})
    except httpx.TransportError:
        return {}
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return {}
    found = answer.raise_for_status().json()["data"]["result"]
    return {each["metric"].get(label, ""): float(each["value"][1]) for each in found}


def arrived(port: int, query: str, cells: set[str]) -> bool:
    """Return whether all series of each cell are there."""
    return values(port, query, "cell") == dict.fromkeys(cells, THREE_FLEETS)


@needs("prometheus")
@pytest.mark.slow
def test_aggregated_series_of_each_cell_arrive_and_no_others(tmp_path: Path) -> None:
    """By federation and by remote write, from two cells, in the Prometheus of all."""
    ports = {cell: free_port() for cell in ("1", "2")}
    everywhere = free_port()
    federation = read("federation.yml")
    targets = [
        {"targets": [f"{HOST}:{port}"], "labels": {"cell": cell}} for cell, port in ports.items()
    ]
    (tmp_path / "targets.yml").write_text(yaml.safe_dump(targets))
    federation["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(tmp_path / "targets.yml")]
    with ExitStack() as stack:
        page = stack.enter_context(exporter(SMALL))
        stack.enter_context(prometheus(tmp_path / "all", everywhere, federation, {}))
        for cell, port in ports.items():
            config = cell_configuration()
            (job,) = config["scrape_configs"]
            config["scrape_configs"] = [
                {key: job[key] for key in ("job_name", "honor_labels")}
                | {"static_configs": [{"targets": [page]}]}
            ]
            del config["alerting"]
            config["remote_write"][0]["url"] = f"http://{HOST}:{everywhere}/api/v1/write"
            variables = {"LOWTIDE_CELL": cell}
            stack.enter_context(prometheus(tmp_path / cell, port, config, variables))
        for job in ("lowtide-cells", ""):
            query = f'count by (cell) ({{__name__=~"lowtide_cell:.+",job="{job}"}})'
            eventually(partial(arrived, everywhere, query, set(ports)))
        others = 'count by (__name__) ({cell!="",__name__!~"lowtide_cell:.+|up|scrape_.+"})'
        assert values(everywhere, others, "__name__") == {}
        assert values(everywhere, "up", "cell") == {"1": 1.0, "2": 1.0}
