"""The runner: runs a worker's claimed requests on the engine and settles the outcomes."""

from __future__ import annotations

import asyncio
import logging
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING

from msgspec.structs import replace

from lowtide.core.pools import Pool
from lowtide.engines.attribution import Fault
from lowtide.engines.model import EngineRequest
from lowtide.engines.outcomes import is_success
from lowtide.files.syntax import decode_any_model, renamed, text_of
from lowtide.queue.claims import Returned
from lowtide.telemetry.tracing import UNTRACED
from lowtide.worker.engine_watch import SUCCESS
from lowtide.worker.settlement import settle_line
from lowtide.worker.spans import SetSpans

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    from lowtide.engines.model import Engine
    from lowtide.engines.outcomes import Outcome, RetryPolicy
    from lowtide.queue.claims import Claim, Finished
    from lowtide.telemetry.tracing import Tracer
    from lowtide.worker.engine_watch import EngineWatch, Verdict
    from lowtide.worker.inputs import InputLoader
    from lowtide.worker.lease import Utilization
    from lowtide.worker.metrics import WorkerMetrics
    from lowtide.worker.prefetch import Prefetch
    from lowtide.worker.results import ResultWriter


_log = logging.getLogger(__name__)
_UNRUN_DELAY_SECONDS = 1.0


class _Set:
    """A claimed set: its requests by key, its spans, and its start."""

    def __init__(self, claims: Mapping[int, Claim], share: float, spans: SetSpans) -> None:
        self.claims = dict(claims)
        self.share = share
        self.spans = spans
        self.started = monotonic()


class Runner:
    """Runs claimed sets concurrently; whatever fails, no request stays claimed.

    The lease is renewed as long as the worker lives: a request left claimed by a bug would never
    run again. `on_room` is called whenever requests have left.
    """

    def __init__(
        self,
        engine: Engine,
        watch: EngineWatch,
        loader: InputLoader,
        utilization: Utilization,
        writer: ResultWriter,
        meter: WorkerMetrics,
        *,
        pool: Pool,
        policy: RetryPolicy,
        rng: Random,
        tracer: Tracer,
        on_room: Callable[[], None],
        prefetch: Prefetch,
        served_names: Mapping[str, str],
    ) -> None:
        self._served_names = served_names
        self._engine = engine
        self._watch = watch
        self._loader = loader
        self._utilization = utilization
        self._writer = writer
        self._meter = meter
        self._pool = pool
        self._policy = policy
        self._rng = rng
        self._tracer = tracer
        self._on_room = on_room
        self._prefetch = prefetch
        self._keys = count()
        self._claims: dict[int, Claim] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def held(self) -> int:
        """The number of claimed requests."""
        return len(self._claims)

    def start(self, claims: Sequence[Claim]) -> None:
        """Run claimed requests."""
        share = self._utilization.took(len(claims))
        by_key = {next(self._keys): claim for claim in claims}
        self._claims |= by_key
        task = asyncio.create_task(self._run_set(by_key, share))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def abandon(self) -> None:
        """Drop all requests: the lease is lost."""
        self._cancel()
        self._claims.clear()
        self._loader.release_all()
        self._writer.discard()

    def release(self, reason: str) -> None:
        """Stop running, and release everything without counting an attempt."""
        self._cancel()
        claims = list(self._claims.values())
        self._drop(list(self._claims), ran=0)
        self._writer.add([Returned(claim.batch, claim.line, reason) for claim in claims])

    async def finish(self, grace: float) -> None:
        """Let requests finish for at most `grace` seconds, and release the rest."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        tasks = list(self._tasks)
        self._cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._claims:
            _log.info("worker.released", extra={"lines": len(self._claims)})
        spot = self._pool is Pool.SPOT
        self._writer.add(
            [
                Returned(claim.batch, claim.line, "The worker was stopped", interrupted=spot)
                for claim in self._claims.values()
            ]
        )
        self._claims.clear()

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _run_set(self, claims: Mapping[int, Claim], share: float) -> None:
        """Run requests as one span. If tracing fails, log that and run them without."""
        try:
            spans = SetSpans(self._tracer, self._pool, list(claims.values()))
            with spans.working():
                await self._run_parts(_Set(claims, share, spans))
        except Exception:  # noqa: BLE001 - the lease lives on: nobody else would run them
            _log.exception("tracing.failed")
            remaining = {key: claim for key, claim in claims.items() if key in self._claims}
            if remaining:
                untraced = SetSpans(UNTRACED, self._pool, list(remaining.values()))
                await self._run_parts(_Set(remaining, share, untraced))

    async def _run_parts(self, work: _Set) -> None:
        parts = self._loader.parts(work.claims)
        if len(parts) == 1:
            await self._run_part(work.claims, work)
            return
        async with asyncio.TaskGroup() as running:
            for part in parts:
                running.create_task(self._run_part(part, work))

    async def _run_part(self, part: Mapping[int, Claim], work: _Set) -> None:
        try:
            loaded = await self._loader.load(part)
            self._prefetch.loaded(monotonic() - work.started)
            self._add_settled(loaded.settled, work.spans)
            work.claims |= self._with_models(work.claims, loaded.bodies)
            groups = self._engine.run(self._requests(loaded.bodies, work))
            # The engine frees each body when its request ends: no other reference may remain.
            del loaded
            async for group in groups:
                await self._settle_group(group, work)
                del group
        except Exception:  # noqa: BLE001 - its requests must end or go back
            _log.exception("lines.failed")
            unrun = {key: _unrun(claim) for key, claim in part.items() if key in self._claims}
            self._add_settled(unrun, work.spans)
        finally:
            self._loader.release(part)

    async def _settle_group(self, group: Sequence[tuple[int, Outcome]], work: _Set) -> None:
        """Settle outcomes, successes first: judging the others may need a probe of the engine."""
        self._meter.ran(outcome for _, outcome in group)
        failed = [pair for pair in group if not is_success(pair[1])]
        succeeded = [pair for pair in group if is_success(pair[1])] if failed else group
        if succeeded:
            self._watch.succeeded(len(succeeded), (work.claims[key].model for key, _ in succeeded))
            self._settle([(*pair, SUCCESS) for pair in succeeded], work)
        for key, outcome in failed:
            verdict = await self._watch.judge(work.claims[key], outcome)
            self._settle([(key, outcome, verdict)], work)

    def _settle(self, verdicts: Sequence[tuple[int, Outcome, Verdict]], work: _Set) -> None:
        ran = sum(verdict.fault in (None, Fault.REQUEST) for *_, verdict in verdicts)
        replica_seconds = self._drop([key for key, *_ in verdicts], ran=ran) - work.share
        age = monotonic() - work.started
        settled = [
            _to_be_sealed(
                work.claims[key],
                settle_line(
                    work.claims[key],
                    outcome,
                    verdict.fault,
                    self._policy,
                    self._rng,
                    age=age,
                    replica_seconds=replica_seconds,
                    at_once=verdict.at_once,
                ),
            )
            for key, outcome, verdict in verdicts
        ]
        self._writer.add(settled)
        work.spans.add(settled)

    def _add_settled(self, settled: Mapping[int, Finished | Returned], spans: SetSpans) -> None:
        if settled:
            self._drop(list(settled), ran=0)
            self._writer.add(list(settled.values()))
            spans.add(list(settled.values()))

    def _drop(self, keys: Sequence[int], *, ran: int) -> float:
        """Drop requests, `ran` of which ran to an end; return the share that they end at."""
        remove = self._claims.pop
        for key in keys:
            remove(key, None)
        self._loader.release(keys)
        self._prefetch.ended(len(keys))
        self._on_room()
        return self._utilization.left(len(keys), ran=ran)

    def _with_models(
        self, claims: Mapping[int, Claim], bodies: Mapping[int, bytes]
    ) -> dict[int, Claim]:
        """Return the claims among those of `bodies` whose model is not their batch's.

        These are of mixed batches, or name a model as the engine does not.
        """
        served = self._served_names
        found = {}
        for key, body in bodies.items():
            claim = claims[key]
            if claim.mixed or claim.model in served:
                model = text_of(decode_any_model(body).model)
                named = None if model is None else served.get(model, model)
                found[key] = replace(claim, model=named, mixed=True)
        return found

    def _requests(self, bodies: Mapping[int, bytes], work: _Set) -> list[EngineRequest]:
        claims, names, trace_of = work.claims, self._served_names, work.spans.trace_of
        is_spot = self._pool is Pool.SPOT
        return [
            EngineRequest(
                key,
                claim.endpoint,
                renamed(body, names) if names else body,
                claim.attempts + 1,
                is_spot,
                claim.interruptions,
                trace_of(claim.batch),
            )
            for key, body in bodies.items()
            for claim in (claims[key],)
        ]


def _to_be_sealed(claim: Claim, settled: Finished | Returned) -> Finished | Returned:
    """Mark what the engine said to a request with zero retention, so that it is encrypted."""
    return settled if claim.data_key is None else replace(settled, data_key=claim.data_key)


def _unrun(claim: Claim) -> Returned:
    reason = "The worker failed to run the request"
    return Returned(claim.batch, claim.line, reason, delay=_UNRUN_DELAY_SECONDS)
