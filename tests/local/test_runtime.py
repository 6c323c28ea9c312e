"""The runtime with two small workloads, a real PostgreSQL and real processes."""

from __future__ import annotations

import os
import signal
import socket
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
from sqlalchemy import text

from lowtide.local.database import engine
from lowtide.local.files import SUPERUSER, read_or_create
from lowtide.local.options import AlreadyRunning, PortInUse, StartFailed
from lowtide.local.ports import free_port
from lowtide.local.runtime import Options, Status, down, status, up, up_detached
from lowtide.local.workloads import OVERLAY

from .conftest import eventually, is_reserved, write_overlay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowtide.local.state import ProcessStatus

SERVER = """
import os, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{os.environ['GREETING']} {os.environ.get('K_SINK')}".encode())

    def log_message(self, *_):
        pass

for name in ("LOWTIDE_HEALTH_PORT", "PORT"):
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ[name])), Handler)
    threading.Thread(target=server.serve_forever).start()
print("serving", flush=True)
"""
KNATIVE = """
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: hello}
spec:
  template:
    spec:
      timeoutSeconds: 2
      containers:
        - command: [python, server.py]
          readinessProbe: {httpGet: {path: /health/ready}}
          env: [{name: GREETING, value: hello}, {name: K_SINK, value: "http://elsewhere/"}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: worker}
spec:
  template:
    metadata: {labels: {app: worker}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
        - command: [python, server.py]
          readinessProbe: {httpGet: {path: /health/ready}}
          env: [{name: GREETING, value: work}]
---
apiVersion: v1
kind: Service
metadata: {name: worker}
spec: {selector: {app: worker}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  rules:
    - matches: [{path: {type: Exact, value: /hello}}]
      backendRefs: [{name: hello}]
    - matches: [{path: {value: /work}}]
      backendRefs: [{name: worker}]
"""
KEDA = """
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: worker}
spec:
  scaleTargetRef: {name: worker}
  pollingInterval: 0.1
  cooldownPeriod: 0
  maxReplicaCount: 2
  advanced:
    horizontalPodAutoscalerConfig:
      behavior: {scaleDown: {stabilizationWindowSeconds: 0}}
  triggers:
    - type: postgresql
      metadata: {query: SELECT wanted FROM wish, targetQueryValue: "1"}
      authenticationRef: {name: a}
---
apiVersion: keda.sh/v1alpha1
kind: TriggerAuthentication
metadata: {name: a}
spec:
  secretTargetRef: [{parameter: connection, name: lowtide-database, key: autoscaler-url}]
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    root = tmp_path_factory.mktemp("root")
    write_overlay(root, {"knative.yaml": KNATIVE, "keda.yaml": KEDA})
    (root / "server.py").write_text(SERVER)
    port, portal_port = free_port(), free_port()
    return Options(
        root=root, data_dir=root / "data", port=port, portal_port=portal_port, ready_timeout=30
    )


@pytest.fixture
def stack(options: Options) -> Status:
    return status(options.data_dir) or up_detached(options)


@pytest.fixture(scope="module", autouse=True)
def _stopped_afterwards(options: Options) -> Iterator[None]:
    yield
    down(options.data_dir)


def process(options: Options, name: str) -> ProcessStatus:
    current = status(options.data_dir)
    assert current is not None
    return next(one for one in current.processes if one.name == name)


def alive(current: Status) -> list[str]:
    return [one.name for one in current.processes if one.running()]


def set_replicas(options: Options, wanted: int) -> None:
    secrets = read_or_create(options.data_dir)
    port = process(options, "postgres").port
    password = secrets.passwords[SUPERUSER]
    with engine(f"postgresql://postgres:{password}@127.0.0.1:{port}/lowtide").connect() as one:
        one.execute(text("CREATE TABLE IF NOT EXISTS wish (wanted int)"))
        one.execute(text("GRANT SELECT ON wish TO PUBLIC"))
        one.execute(text("TRUNCATE wish"))
        one.execute(text("INSERT INTO wish VALUES (:wanted)"), {"wanted": wanted})


def test_status_lists_urls_key_and_processes(stack: Status, options: Options) -> None:
    assert stack.ready
    assert stack.base_url == f"http://127.0.0.1:{options.port}"
    assert stack.api_key.startswith("lt_")
    assert {one.name for one in stack.processes} == {"postgres", "broker", "router", "hello"}
    assert all(one.state == "ready" and one.running() for one in stack.processes)
    assert '"api_key": "lt_' in stack.to_json()
    for private in ("secrets.json", "state.json", "endpoints.json", "lowtide.log"):
        assert (options.data_dir / private).stat().st_mode & 0o077 == 0, private


def test_ports_are_bound_to_loopback_only(stack: Status) -> None:
    if sys.platform != "linux":
        pytest.skip("reads the addresses of sockets")
    for one in stack.processes:
        running = one.running()
        assert running is not None
        for connection in running.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr[0] == "127.0.0.1", one.name
                assert connection.family == socket.AF_INET


def test_ports_stay_reserved_and_follow_restarted_process(stack: Status, options: Options) -> None:
    before = process(options, "hello")
    assert before.pid is not None
    ports = [each for one in stack.processes for each in (one.port, one.health_port) if each]
    assert all(is_reserved(port) for port in [*ports, options.port, options.portal])
    os.kill(before.pid, signal.SIGKILL)
    now = eventually(
        lambda: process(options, "hello"),
        lambda now: now.restarts > before.restarts and now.state == "ready",
    )
    assert now.port is not None
    assert is_reserved(now.port)
    for port in {before.port, before.health_port} - {now.port, now.health_port}:
        assert port is not None
        assert not is_reserved(port), "released when its process ended"


def test_router_forwards_to_function(stack: Status) -> None:
    sink = next(one.port for one in stack.processes if one.name == "broker")
    text = httpx.get(f"{stack.base_url}/hello").text
    assert text == f"hello http://127.0.0.1:{sink}/"


def test_via_option_sends_events_through_proxy(options: Options, tmp_path: Path) -> None:
    proxy_port = free_port()
    port, portal_port = free_port(), free_port()
    other = replace(
        options, data_dir=tmp_path, port=port, portal_port=portal_port, via={"broker": proxy_port}
    )
    started = up_detached(other)
    try:
        greeting = httpx.get(f"{started.base_url}/hello").text
    finally:
        down(tmp_path)
    assert greeting == f"hello http://127.0.0.1:{proxy_port}/"


@pytest.mark.parametrize("name", ["hello", "router", "broker", "postgres"])
def test_killed_process_is_restarted(stack: Status, options: Options, name: str) -> None:
    before = process(options, name)
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    eventually(
        lambda: process(options, name),
        lambda now: now.pid not in {None, before.pid} and now.state == "ready",
        within=20,
    )
    assert eventually(lambda: _get(f"{stack.base_url}/hello")) == 200


def _get(url: str) -> int:
    try:
        return httpx.get(url, timeout=10).status_code
    except httpx.TransportError:
        return 0


def test_workers_scale_from_zero_and_back(stack: Status, options: Options) -> None:
    assert _get(f"{stack.base_url}/work") == 503

    def workers() -> list[str]:
        current = status(options.data_dir)
        assert current is not None
        return [one.name for one in current.processes if one.name.startswith("worker")]

    set_replicas(options, 5)
    eventually(workers, lambda names: names == ["worker-1", "worker-2"])
    assert httpx.get(f"{stack.base_url}/work/a", timeout=10).text == "work None"
    set_replicas(options, 0)
    eventually(workers, lambda names: names == [])


def test_second_stack_on_same_data_is_refused(stack: Status, options: Options) -> None:
    for start in (up, up_detached):
        with pytest.raises(AlreadyRunning, match=rf"pid {stack.pid}.*lowtide down"):
            start(options)


def test_port_in_use_is_refused_before_start(
    stack: Status, options: Options, tmp_path: Path
) -> None:
    other = Options(root=options.root, data_dir=tmp_path, port=options.port)
    for start in (up, up_detached):
        with pytest.raises(PortInUse, match=rf"Port {options.port} is in use by pid \d+"):
            start(other)
    assert stack.ready
    assert not (tmp_path / "postgres").exists()


def test_portal_port_in_use_is_refused_before_start(options: Options, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        used = other.getsockname()[1]
        conflicting = replace(options, data_dir=tmp_path, port=free_port(), portal_port=used)
        for start in (up, up_detached):
            with pytest.raises(PortInUse, match=rf"Port {used} is in use by pid \d+"):
                start(conflicting)


def test_start_after_kill_9_of_supervisor_reaps_orphans(stack: Status, options: Options) -> None:
    os.kill(stack.pid, signal.SIGKILL)
    eventually(lambda: status(options.data_dir), lambda current: current is None)
    again = up_detached(options)
    assert alive(stack) == []
    assert again.api_key == stack.api_key
    assert _get(f"{again.base_url}/hello") == 200


def test_down_stops_every_process_in_order(stack: Status, options: Options) -> None:
    assert down(options.data_dir) is True
    assert status(options.data_dir) is None
    assert alive(stack) == []
    assert down(options.data_dir) is False
    log = (options.data_dir / "lowtide.log").read_text()
    steps = [
        log.rindex(f"lowtide      | {step}") for step in ("stopping 1", "stopping P", "stopped")
    ]
    assert steps == sorted(steps)


def test_failed_start_shows_end_of_log(options: Options, tmp_path: Path) -> None:
    write_overlay(tmp_path, {"knative.yaml": KNATIVE, "keda.yaml": KEDA})
    (tmp_path / "server.py").write_text("raise SystemExit('no luck today')")
    broken = Options(root=tmp_path, data_dir=options.data_dir, port=free_port())
    with pytest.raises(StartFailed, match="no luck today") as caught:
        up_detached(broken)
    assert "hello keeps crashing" in str(caught.value)
    assert status(options.data_dir) is None


def test_second_ctrl_c_kills_immediately(options: Options) -> None:
    server = options.root / "server.py"
    server.write_text("import signal; signal.signal(signal.SIGTERM, lambda *_: None)\n" + SERVER)
    manifest = options.root / OVERLAY / "knative.yaml"
    manifest.write_text(KNATIVE.replace("timeoutSeconds: 2", "timeoutSeconds: 25"))
    started = up_detached(options)
    supervisor = psutil.Process(started.pid)
    supervisor.send_signal(signal.SIGINT)
    log = options.data_dir / "lowtide.log"
    eventually(lambda: log.read_text().rstrip().endswith("stopping 1 functions and workers"))
    supervisor.send_signal(signal.SIGINT)
    eventually(lambda: alive(started), lambda names: names == [], within=5)
    eventually(lambda: status(options.data_dir) is None, within=5)
