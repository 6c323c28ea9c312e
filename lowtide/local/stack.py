"""The whole stack: its processes, their start and stop order, and their status."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from aiohttp import ClientError, ClientSession, ClientTimeout

from lowtide.database.schema import UnknownSchema
from lowtide.fleets.render import ENGINE_KEYS
from lowtide.local import environment, files, state
from lowtide.local.autoscaler import bounded
from lowtide.local.bootstrap import addresses, bootstrap
from lowtide.local.broker import DATABASE_VARIABLE, SYNCHRONOUS_VARIABLE
from lowtide.local.database import Cluster
from lowtide.local.environment import postgres_credentials
from lowtide.local.files import SUPERUSER, read_or_create
from lowtide.local.fleets import FILE_VARIABLE, declared_fleets, engine_keys
from lowtide.local.manifests import ConfigMap, ScaledObject
from lowtide.local.monitoring import ALERTMANAGER, PROMETHEUS, Monitoring
from lowtide.local.options import StartFailed, object_store_url
from lowtide.local.ports import HOST, free_port, release_ports
from lowtide.local.processes import Launch, Process, State
from lowtide.local.queue_listener import QueueListener
from lowtide.local.replicas import ReplicaSet, Scaler, connection_of
from lowtide.local.state import BROKER
from lowtide.local.workloads import load, workloads
from lowtide.tenants.passwords import hash_password

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lowtide.local.options import Options
    from lowtide.local.processes import Log
    from lowtide.local.workloads import Workload


_MAX_CRASHES = 4  # crashes of a process before it was ever ready
_POLL = 0.05
_COLD_START_SECONDS = "15"  # KEDA's poll and a process start; a cluster also boots a node


class Stack:
    """One stack; call `start`, then `stop`. `kill` ends every process at once."""

    def __init__(self, options: Options, log: Log) -> None:
        self._options = options
        self._log = log
        self._fleets = declared_fleets(os.environ)
        self._manifests = load(options.root, self._fleets)
        self._secrets = read_or_create(options.data_dir)
        self._cluster = Cluster(options.data_dir / "postgres", self._secrets.passwords[SUPERUSER])
        self._postgres_port = free_port()
        self._broker_port = free_port()
        self._config_maps = {
            config_map.metadata.name: config_map.data
            for config_map in self._manifests.all(ConfigMap)
        }
        self._secret_values = self._kubernetes_secrets()
        self._postgres = self._process("postgres", self._plan_postgres, stop=signal.SIGINT)
        self._helpers = [
            self._process(BROKER, self._plan_broker),
            self._process("router", self._plan_router),
        ]
        self._monitoring = Monitoring(options) if options.monitoring else None
        if self._monitoring:
            self._helpers += [
                self._process(name, self._monitoring_plan(self._monitoring, name))
                for name in (PROMETHEUS, ALERTMANAGER)
            ]
        self._replicas = [
            ReplicaSet(workload, self._process_factory(workload), self._publish_state)
            for workload in workloads(self._manifests)
        ]
        self._scaling: list[asyncio.Task[None]] = []
        self._ready = False
        self._session: ClientSession | None = None
        self._supervisor = psutil.Process()

    async def start(self) -> None:
        """Start everything and wait until it is ready; raises StartFailed if it is not in time."""
        self._session = ClientSession(timeout=ClientTimeout(total=2))
        self._publish_state()
        await asyncio.to_thread(self._cluster.prepare)
        self._postgres.start()
        await self._wait_for([self._postgres])
        await self._migrate()
        if self._monitoring:
            self._monitoring.prepare()
        for process in self._helpers:
            process.start()
        for replicas in self._replicas:
            replicas.scale(replicas.workload.replicas)
        await self._wait_for(
            [
                *self._helpers,
                *(process for replicas in self._replicas for process in replicas.active),
            ]
        )
        scalers = self._scalers()
        self._scaling = [asyncio.create_task(scaler.run()) for scaler in scalers]
        self._scaling.append(asyncio.create_task(self._listener(scalers).run()))
        self._ready = True
        self._publish_state()

    async def _migrate(self) -> None:
        try:
            await asyncio.to_thread(bootstrap, self._cluster, self._postgres_port, self._secrets)
        except UnknownSchema as error:
            raise StartFailed(
                f"{error} It is in {self._options.data_dir}; see docs/upgrade.md."
            ) from error

    async def stop(self) -> None:
        """Stop workers and functions first, then portal and helper processes, PostgreSQL last."""
        self._ready = False
        for task in self._scaling:
            task.cancel()
        functions = [replicas for replicas in self._replicas if not _is_front(replicas.workload)]
        fronts = [replicas for replicas in self._replicas if _is_front(replicas.workload)]
        count = sum(len(replicas.processes) for replicas in functions)
        self._log.line("lowtide", f"stopping {count} functions and workers")
        await asyncio.gather(*(replicas.stop() for replicas in functions))
        self._log.line("lowtide", "stopping the portal, router, broker and monitoring")
        await asyncio.gather(
            *(replicas.stop() for replicas in fronts),
            *(process.stop() for process in self._helpers),
        )
        self._log.line("lowtide", "stopping PostgreSQL")
        await self._postgres.stop()
        if self._session is not None:
            await self._session.close()
        state.forget(self._options.data_dir)
        (self._options.data_dir / files.ENDPOINTS).unlink(missing_ok=True)
        self._log.line("lowtide", "stopped")

    def kill(self) -> None:
        """Kill every process at once; claimed requests are claimed again after the next start."""
        for process in self._processes():
            process.kill()

    def status(self) -> state.Status:
        """Return the current status."""
        return state.Status(
            base_url=self._options.base_url,
            portal_url=self._options.portal_url,
            data_dir=str(self._options.data_dir),
            pid=self._supervisor.pid,
            created=self._supervisor.create_time(),
            ready=self._ready,
            processes=[process.status() for process in self._processes()],
            api_key=self._secrets.api_key,
            portal_password=self._secrets.portal_password,
            notice=environment.engine_notice(os.environ, self._fleets),
            prometheus_url=self._monitoring.url(PROMETHEUS) if self._monitoring else "",
            alertmanager_url=self._monitoring.url(ALERTMANAGER) if self._monitoring else "",
        )

    def _processes(self) -> list[Process]:
        replicas = [process for replica_set in self._replicas for process in replica_set.processes]
        return [self._postgres, *self._helpers, *replicas]

    def _publish_state(self) -> None:
        state.write(self._options.data_dir, self.status())
        endpoints: dict[str, list[str]] = {}
        for replicas in self._replicas:
            for service in replicas.workload.services:
                endpoints.setdefault(service, []).extend(replicas.addresses())
        files.write_endpoints(self._options.data_dir, endpoints)
        if self._monitoring:
            self._monitoring.follow(self._replicas)

    async def _wait_for(self, processes: list[Process]) -> None:
        deadline = asyncio.get_running_loop().time() + self._options.ready_timeout
        while pending := [process for process in processes if process.state is not State.READY]:
            crashing = [process.name for process in pending if process.restarts >= _MAX_CRASHES]
            if crashing:
                raise StartFailed(f"{', '.join(crashing)} keeps crashing; see the log above.")
            if asyncio.get_running_loop().time() > deadline:
                names = ", ".join(process.name for process in pending)
                raise StartFailed(f"Not ready in {self._options.ready_timeout:g} s: {names}.")
            await asyncio.sleep(_POLL)

    def _scalers(self) -> list[Scaler]:
        by_name = {replicas.name: replicas for replicas in self._replicas}
        return [
            Scaler(
                bounded(scaler, self._bounds()),
                connection_of(scaler, self._manifests, self._secret_values),
                by_name[scaler.spec.scale_target_ref.name],
                self._log,
            )
            for scaler in self._manifests.all(ScaledObject)
        ]

    def _bounds(self) -> dict[str, str]:
        return environment.pool_bounds(os.environ, self._fleets)

    def _listener(self, scalers: list[Scaler]) -> QueueListener:
        def ask() -> None:
            for scaler in scalers:
                scaler.ask()

        return QueueListener(self._secret_values["lowtide-database"]["autoscaler-url"], ask)

    def _via(self, name: str, port: int) -> int:
        """Return the port of the proxy in front of a process, else its own `port`."""
        return self._options.via.get(name, port)

    def _kubernetes_secrets(self) -> environment.Values:
        urls = addresses(self._cluster, self._via("postgres", self._postgres_port), self._secrets)
        return {
            "lowtide-database": {
                "migration-url": urls.migration,
                **{
                    f"{role.removeprefix('lowtide_')}-url": url
                    for role, url in urls.by_role.items()
                },
            },
            "lowtide-keys": {
                "api-key-pepper": self._secrets.api_key_pepper,
                "portal-secret": self._secrets.portal_secret,
                "portal-password-hash": hash_password(self._secrets.portal_password),
            },
            ENGINE_KEYS: {} if self._fleets is None else engine_keys(self._fleets, os.environ),
        }

    def _process(
        self,
        name: str,
        plan: Callable[[], Launch],
        *,
        grace: float = 10.0,
        stop: signal.Signals = signal.SIGTERM,
    ) -> Process:
        return Process(
            name, plan, self._log, changed=self._publish_state, grace=grace, stop_signal=stop
        )

    def _process_factory(self, workload: Workload) -> Callable[[str], Process]:
        def make(name: str) -> Process:
            return self._process(name, lambda: self._plan(workload, name), grace=workload.grace)

        return make

    def _plan_postgres(self) -> Launch:
        async def ready() -> bool:
            return await asyncio.to_thread(self._cluster.answers, self._postgres_port)

        return Launch(
            command=self._cluster.command(self._postgres_port),
            environment={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            folder=self._cluster.folder,
            ready=ready,
            port=self._postgres_port,
            credentials=postgres_credentials(),
            before=lambda: asyncio.to_thread(self._cluster.reap),
        )

    def _plan_broker(self) -> Launch:
        synchronous = {SYNCHRONOUS_VARIABLE: "1"} if self._options.synchronous_broker else {}
        urls = addresses(self._cluster, self._via("postgres", self._postgres_port), self._secrets)
        return self._plan_helper(
            BROKER,
            self._broker_port,
            {DATABASE_VARIABLE: urls.migration, **synchronous},
            self._answers_http(self._broker_port, "/health/ready"),
        )

    def _plan_router(self) -> Launch:
        port = self._options.port
        return self._plan_helper("router", port, {}, _accepts(port))

    def _monitoring_plan(self, monitoring: Monitoring, name: str) -> Callable[[], Launch]:
        port = monitoring.ports[name]
        return lambda: Launch(
            command=monitoring.command(name),
            environment=os.environ,
            folder=self._options.data_dir,
            ready=self._answers_http(port, "/-/ready"),
            port=port,
        )

    def _plan_helper(
        self, name: str, port: int, extra: dict[str, str], ready: Callable[[], Awaitable[bool]]
    ) -> Launch:
        paths = ["--root", str(self._options.root), "--data-dir", str(self._options.data_dir)]
        module = f"lowtide.local.{name}"
        return Launch(
            command=(sys.executable, "-m", module, *paths, "--port", str(port)),
            environment={**os.environ, "PYTHONUNBUFFERED": "1", **extra},
            folder=self._options.root,
            ready=ready,
            port=port,
        )

    def _plan(self, workload: Workload, name: str) -> Launch:
        container = workload.container
        reserved = [free_port(), *([] if _is_front(workload) else [free_port()])]
        health_port, port = (*reserved, self._options.portal)[:2]
        fixed = {
            "PORT": str(port),
            "LOWTIDE_HEALTH_PORT": str(health_port),
            "LOWTIDE_PORTAL_PORT": str(self._options.portal),
            "LOWTIDE_PORTAL_HOST": HOST,
            # Kubernetes sets HOSTNAME to the pod's name.
            "HOSTNAME": name,
        }
        manifest = environment.manifest_environment(
            container, self._config_maps, self._secret_values
        )
        fixed |= environment.fleet_environment(container, manifest)
        if self._fleets is not None:
            # Processes run in another directory.
            fixed[FILE_VARIABLE] = str(Path(os.environ[FILE_VARIABLE]).resolve())
        if "K_SINK" in manifest:
            fixed["K_SINK"] = f"http://{HOST}:{self._via('broker', self._broker_port)}/"
        if workload.ready_path is None:
            ready = _accepts(port)
        else:
            ready = self._answers_http(health_port, workload.ready_path)
        return Launch(
            command=(*container.command, *container.args),
            environment=environment.merge(os.environ, manifest, self._defaults(workload), fixed),
            folder=self._options.root,
            ready=ready,
            port=port,
            health_port=health_port,
            after=lambda: release_ports(*reserved),
        )

    def _defaults(self, workload: Workload) -> dict[str, str]:
        """Return the defaults for this machine, which the user's settings override."""
        return {
            "LOWTIDE_OBJECT_STORE_URL": object_store_url(self._options.data_dir),
            "LOWTIDE_LOG_FORMAT": "text",
            "LOWTIDE_API_URL": self._options.base_url,
            "LOWTIDE_COLD_START": _COLD_START_SECONDS,
            "LOWTIDE_WORKER_GRACE": f"{workload.grace * 0.8:g}",
            "NICEGUI_STORAGE_PATH": str(self._options.data_dir / "portal"),
            **self._bounds(),
            **(self._monitoring.settings if self._monitoring else {}),
        }

    def _answers_http(self, port: int, path: str) -> Callable[[], Awaitable[bool]]:
        async def ready() -> bool:
            if self._session is None:
                return False
            try:
                async with self._session.get(f"http://{HOST}:{port}{path}") as response:
                    return response.status == 200
            except (ClientError, OSError, TimeoutError):
                return False

        return ready


def _is_front(workload: Workload) -> bool:
    """Return True for the portal, which users reach at its own fixed port."""
    return workload.name == "portal"


def _accepts(port: int) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            return False
        writer.close()
        return True

    return ready
