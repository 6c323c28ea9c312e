"""The thread in which a worker pulls lines, beside the function that wakes it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowtide.domain.pools import Pool
    from lowtide.services.inference import Worker

_log = logging.getLogger(__name__)


class PullLoop:
    """Runs one worker. A function names its pool; the server starts and stops the loop."""

    def __init__(self) -> None:
        self._pool: Pool | None = None
        self._worker: Worker | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def serve(self, pool: Pool) -> None:
        """Make this process a worker of a pool."""
        self._pool = pool

    def start(self) -> None:
        """Start pulling, if this process is a worker and was not told to stop meanwhile."""
        if self._pool is None or self._stopping.is_set():
            return
        from lowtide.wiring import build_worker

        self._worker = build_worker(self._pool)
        # A signal's handler runs between any two steps: from here on it finds the worker.
        if self._stopping.is_set():
            return
        self._thread = threading.Thread(target=self._run, args=(self._worker,), name="pull-loop")
        self._thread.start()

    def wake(self) -> None:
        """Look for work now."""
        if self._worker is not None:
            self._worker.wake()

    def check_engine(self) -> None:
        """Raise Unavailable while this worker's engine is; no other process has one."""
        if self._worker is not None:
            self._worker.check_engine()

    def begin_stop(self) -> None:
        """Claim nothing more, if it has not started yet nothing at all."""
        self._stopping.set()
        if self._worker is not None:
            self._worker.stop()

    def join(self) -> None:
        """Wait until work in hand is finished or given back."""
        if self._thread is not None:
            self._thread.join()

    @staticmethod
    def _run(worker: Worker) -> None:
        try:
            asyncio.run(worker.run())
        except BaseException:
            # A worker without its loop would look healthy and do nothing: die and be restarted.
            _log.exception("pull_loop.failed")
            os.kill(os.getppid(), signal.SIGTERM)
            raise


PULL_LOOP = PullLoop()
