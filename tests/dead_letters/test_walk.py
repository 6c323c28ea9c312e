"""A requeue passes the modules that ARCHITECTURE.md names, and no others."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowtide.core.ids import DEFAULT_TENANT
from lowtide.dead_letters.requeue import RequeueRequest
from tests.dead_letters.test_requeueing import Desk

if TYPE_CHECKING:
    from types import FrameType

    from tests.worlds import World

ROOT = Path(__file__).resolve().parents[2]
FOUNDATIONS = ("lowtide/core/", "lowtide/database/", "lowtide/telemetry/")


def test_requeue_calls_exactly_documented_modules(world: World) -> None:
    desk = Desk(world)
    _, letters = desk.batch()
    passed = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT / "lowtide"):
            passed.add(str(path.relative_to(ROOT)))

    sys.setprofile(note)
    try:
        desk.requeuer.requeue(DEFAULT_TENANT, RequeueRequest(letters, actor="key"))
    finally:
        sys.setprofile(None)
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = page.partition("### A requeue from the portal\n")[2].partition("\n#")[0]
    named = set(re.findall(r"`(lowtide/[a-z_/]+\.py)`", section))
    assert named == {path for path in passed if not path.startswith(FOUNDATIONS)}
