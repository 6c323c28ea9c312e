"""A requeue calls exactly the modules that ARCHITECTURE.md names."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowtide.core.ids import DEFAULT_TENANT
from lowtide.dead_letters.requeue import RequeueRequest
from tests.dead_letters.test_requeueing import DeadLetterServices

if TYPE_CHECKING:
    from types import FrameType

    from tests.worlds import World

ROOT = Path(__file__).resolve().parents[2]
FOUNDATIONS = ("lowtide/core/", "lowtide/database/", "lowtide/telemetry/")


def test_requeue_calls_exactly_documented_modules(world: World) -> None:
    services = DeadLetterServices(world)
    _, letters = services.batch()
    called = set()

    def record(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT / "lowtide"):
            called.add(str(path.relative_to(ROOT)))

    sys.setprofile(record)
    try:
        services.requeuer.requeue(DEFAULT_TENANT, RequeueRequest(letters, actor="key"))
    finally:
        sys.setprofile(None)
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = page.partition("### A requeue from the portal\n")[2].partition("\n#")[0]
    documented = set(re.findall(r"`(lowtide/[a-z_/]+\.py)`", section))
    assert documented == {path for path in called if not path.startswith(FOUNDATIONS)}
