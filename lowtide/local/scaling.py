"""Runs each ScaledObject: asks the database, decides, and moves the replicas."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from lowtide.local import autoscaler
from lowtide.local.errors import BadManifest
from lowtide.local.manifests import TriggerAuthentication
from lowtide.postgres.connections import engine_of

if TYPE_CHECKING:
    from lowtide.local.environment import Values
    from lowtide.local.kustomize import Manifests
    from lowtide.local.log import Log
    from lowtide.local.manifests import ScaledObject
    from lowtide.local.replicas import ReplicaSet


class Scaler:
    """One ScaledObject and the replicas it owns."""

    def __init__(
        self, scaler: ScaledObject, connection: str, replicas: ReplicaSet, log: Log
    ) -> None:
        self.policy = autoscaler.policy(scaler)
        self._replicas = replicas
        self._log = log
        self._query = text(self.policy.query)
        # One connection is kept open, as KEDA does; the ping notices a restarted server.
        self._engine = engine_of(
            make_url(connection),
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            isolation_level="AUTOCOMMIT",
            connect_args={"timeout": 5, "application_name": "lowtide-autoscaler"},
        )

    async def run(self) -> None:
        """Poll until cancelled."""
        memory = autoscaler.Memory(replicas=self._replicas.wanted)
        while True:
            value = await asyncio.to_thread(self.read)
            if value is None and memory.failures == 0:
                self._log.line("autoscaler", f"{self._replicas.name}: no metric, replicas held")
            memory = autoscaler.decide(self.policy, memory, value, time.monotonic())
            if memory.replicas != self._replicas.wanted:
                self._log.line(
                    "autoscaler",
                    f"{self._replicas.name}: {self._replicas.wanted} -> {memory.replicas} "
                    f"replicas for {value:g} lines",
                )
                self._replicas.scale(memory.replicas)
            await asyncio.sleep(self.policy.interval)

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()

    def read(self) -> float | None:
        """Return the metric; None when the database does not answer."""
        try:
            with self._engine.connect() as connection:
                value = connection.scalar(self._query)
        except Exception as error:  # noqa: BLE001
            # The driver lets odd ones through when a server dies under it. Without this loop no
            # worker would ever start again.
            if not isinstance(error, SQLAlchemyError):
                self._log.line("autoscaler", f"{self._replicas.name}: {error!r}")
                self._engine.dispose()
            return None
        return None if value is None else float(value)


def connection_of(scaler: ScaledObject, manifests: Manifests, secrets: Values) -> str:
    """Return the database address that the scaler's TriggerAuthentication points at."""
    name = scaler.metadata.name
    reference = scaler.spec.triggers[0].authentication_ref
    for authentication in manifests.all(TriggerAuthentication):
        if reference is None or authentication.metadata.name != reference.name:
            continue
        for parameter in authentication.spec.secret_target_ref:
            if parameter.parameter == "connection":
                try:
                    return secrets[parameter.name][parameter.key]
                except KeyError as error:
                    raise BadManifest(f"ScaledObject {name}: no secret {error}") from error
    raise BadManifest(f"ScaledObject {name}: its trigger needs a connection by authenticationRef")
