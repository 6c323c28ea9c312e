"""Prometheus and Alertmanager for the local stack: `monitoring/` with shorter intervals."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any, Final

import msgspec
import yaml

from lowtide.fleets.render import FLEET_LABEL
from lowtide.local.files import write_atomically
from lowtide.local.options import BadManifest, MissingProgram
from lowtide.local.ports import HOST, free_port
from lowtide.local.processes import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lowtide.local.options import Options
    from lowtide.local.replicas import ReplicaSet


PROMETHEUS: Final = "prometheus"
ALERTMANAGER: Final = "alertmanager"
# Debian's name comes first, as `alertmanager` may be another program there.
_NAMES: Final = {
    PROMETHEUS: ("prometheus",),
    ALERTMANAGER: ("prometheus-alertmanager", "alertmanager"),
}
_INSTALL: Final = "apt-get install --no-install-recommends prometheus prometheus-alertmanager"
_DURATION: Final = re.compile(r"(\d+)(ms|[smhd])")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_WORKER: Final = "infer-"
_SCRAPED: Final = (State.READY, State.STOPPING)


class LocalClock(msgspec.Struct, frozen=True, kw_only=True):
    """The settings in `monitoring/local.yml`; durations in Prometheus's notation."""

    scrape_interval: str
    evaluation_interval: str
    lookback: str
    retention: str
    longest_for: str
    longest_wait: str


class Monitoring:
    """The two programs' configuration, addresses and commands.

    Raises MissingProgram if one of them is not installed.
    """

    def __init__(self, options: Options) -> None:
        self._source = options.root / "monitoring"
        self._folder = options.data_dir / "monitoring"
        self._programs = {
            PROMETHEUS: _program_path(PROMETHEUS, options.prometheus),
            ALERTMANAGER: _program_path(ALERTMANAGER, options.alertmanager),
        }
        self.ports = {name: free_port() for name in self._programs}

    def url(self, name: str) -> str:
        """Return the base URL of a program."""
        return f"http://{HOST}:{self.ports[name]}"

    @property
    def settings(self) -> dict[str, str]:
        """The settings that the portal builds its links from."""
        return {
            "LOWTIDE_PROMETHEUS_URL": self.url(PROMETHEUS),
            "LOWTIDE_ALERTMANAGER_URL": self.url(ALERTMANAGER),
        }

    def command(self, name: str) -> tuple[str, ...]:
        """Return the command that starts a program."""
        config = self._folder / f"{name}.yml"
        common = (
            self._programs[name],
            f"--config.file={config}",
            f"--web.listen-address={HOST}:{self.ports[name]}",
            f"--web.external-url={self.url(name)}",
            "--log.level=warn",
        )
        if name == ALERTMANAGER:
            # An empty address disables clustering.
            return (*common, f"--storage.path={self._folder / name}", "--cluster.listen-address=")
        clock = self._clock()
        return (
            *common,
            f"--storage.tsdb.path={self._folder / name}",
            f"--storage.tsdb.retention.time={clock.retention}",
            # A short lookback keeps samples of an earlier run out of this one.
            f"--query.lookback-delta={clock.lookback}",
        )

    def prepare(self) -> None:
        """Write both configurations; raises BadManifest for an invalid file in `monitoring/`."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self.follow([])
        clock = self._clock()
        for path in sorted((self._source / "rules").glob("*.rules.yml")):
            self._write(path.name, shortened_rules(_yaml(path), clock.longest_for))
        self._write("prometheus.yml", self._prometheus(clock))
        routes = _yaml(self._source / "alertmanager" / "alertmanager.yml")
        self._write("alertmanager.yml", quiet_routes(routes, clock.longest_wait))

    def follow(self, workloads: Iterable[ReplicaSet]) -> None:
        """Write the running processes to the file that Prometheus watches for targets."""
        if self._folder.is_dir():
            targets = msgspec.json.encode(targets_of(workloads))
            write_atomically(self._folder / "targets.json", targets)

    def _clock(self) -> LocalClock:
        path = self._source / "local.yml"
        try:
            return msgspec.convert(_yaml(path), LocalClock)
        except msgspec.ValidationError as error:
            raise BadManifest(f"{path}: {error}") from error

    def _prometheus(self, clock: LocalClock) -> dict[str, Any]:
        return {
            "global": {
                "scrape_interval": clock.scrape_interval,
                "scrape_timeout": clock.scrape_interval,
                "evaluation_interval": clock.evaluation_interval,
                "external_labels": {"runbooks": f"{self._source.parent.as_uri()}/"},
            },
            "rule_files": [str(self._folder / "*.rules.yml")],
            "alerting": {
                "alert_relabel_configs": [{"regex": "runbooks", "action": "labeldrop"}],
                "alertmanagers": [
                    {"static_configs": [{"targets": [f"{HOST}:{self.ports[ALERTMANAGER]}"]}]}
                ],
            },
            "scrape_configs": [
                {
                    "job_name": "lowtide",
                    "honor_labels": True,
                    "file_sd_configs": [{"files": [str(self._folder / "targets.json")]}],
                }
            ],
        }

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(dict(content), sort_keys=False)
        write_atomically(self._folder / name, text.encode())


def check_programs(options: Options) -> None:
    """Raise MissingProgram if a program is not installed."""
    _program_path(PROMETHEUS, options.prometheus)
    _program_path(ALERTMANAGER, options.alertmanager)


def shortened_rules(rules: dict[str, Any], longest_for: str) -> dict[str, Any]:
    """Return the rules, with every `for` capped at `longest_for`."""
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = min(rule["for"], longest_for, key=seconds)
    return rules


def quiet_routes(config: dict[str, Any], longest_wait: str) -> dict[str, Any]:
    """Return the routes with waits capped at `longest_wait` and receivers that do not notify."""
    pending = [config["route"]]
    while pending:
        route = pending.pop()
        for wait in ("group_wait", "group_interval"):
            if wait in route:
                route[wait] = min(route[wait], longest_wait, key=seconds)
        pending += route.get("routes", [])
    config["receivers"] = [{"name": receiver["name"]} for receiver in config["receivers"]]
    config.pop("templates", None)
    return config


def targets_of(workloads: Iterable[ReplicaSet]) -> list[dict[str, Any]]:
    """Return the running processes as scrape targets, with the labels of a pod in a cluster."""
    return [
        {
            "targets": [f"{HOST}:{process.launch.health_port}"],
            "labels": {
                "namespace": "local",
                "pod": process.name,
                # Not the address: the port changes with every start.
                "instance": process.name,
                "function": replicas.name,
                **_lane(replicas),
            },
        }
        for replicas in workloads
        for process in replicas.processes
        if process.launch is not None and process.state in _SCRAPED
    ]


def seconds(duration: str) -> float:
    """Return the seconds of a duration such as `1h30m`; raises BadManifest."""
    parts = _DURATION.findall(str(duration))
    if not parts or "".join(number + unit for number, unit in parts) != str(duration):
        raise BadManifest(f"monitoring/: {duration!r} is not a duration, such as 30s or 1h30m")
    return sum(int(number) * _SECONDS[unit] for number, unit in parts)


def _lane(replicas: ReplicaSet) -> dict[str, str]:
    """Return the pool and the fleet of workers."""
    if not replicas.name.startswith(_WORKER):
        return {}
    pool = replicas.name.removeprefix(_WORKER).partition("-")[0]
    return {"pool": pool, "fleet": replicas.workload.labels[FLEET_LABEL]}


def _program_path(name: str, chosen: Path | None) -> str:
    for candidate in [str(chosen)] if chosen else _NAMES[name]:
        if path := shutil.which(candidate):
            return path
    raise MissingProgram(
        f"{chosen or ' or '.join(_NAMES[name])} not found. Install it (Debian, Ubuntu: {_INSTALL}) or pass "
        f"its path: lowtide up --monitoring --{name} PATH."
    )


def _yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadManifest(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise BadManifest(f"{path}: expected a mapping")
    return document
