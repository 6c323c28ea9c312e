"""What happens to a new batch whose window cannot be promised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from lowtide.domain.admission import admit
from lowtide.domain.errors import Conflict
from lowtide.domain.pools import Pool

if TYPE_CHECKING:
    from lowtide.domain.demand import Capacity, Demand
    from lowtide.domain.outlook import Outlook


@dataclass(frozen=True, slots=True)
class AdmissionPolicy:
    """Take such a batch and call it at risk, or, when `strict`, refuse it.

    `capacity` is as configured: what was measured takes its place.
    """

    capacity: Capacity
    strict: bool = False

    def is_at_risk(self, new: Demand, outlook: Outlook) -> bool:
        """Return whether a new batch is at risk from the start, beside all open work.

        Raises Conflict for one that is, when strict: waiting does not help it, asking for a longer
        window does, and the message names the shortest one that would be held.
        """
        verdict = admit(new, outlook.demand, outlook.at, outlook.measured(self.capacity))
        if verdict.held or not self.strict:
            return not verdict.held
        if Pool.DEDICATED in outlook.paused:
            fix = "the dedicated pool is paused, and spot promises nothing: try again once it runs"
        elif verdict.earliest is None:
            fix = "this server has no dedicated capacity to promise any: LOWTIDE_ADMISSION=open takes it"
        else:
            window = math.ceil((verdict.earliest - outlook.at) / timedelta(minutes=1))
            fix = (
                f"the earliest deadline that can be held now is {verdict.earliest:%Y-%m-%d %H:%M:%S} "
                f"UTC, a window of {window}m"
            )
        raise Conflict(
            f"The deadline {new.deadline:%Y-%m-%d %H:%M:%S} UTC of {new.lines} requests cannot be "
            f"held: {fix}.",
            param="completion_window",
            code="deadline_not_feasible",
        )
