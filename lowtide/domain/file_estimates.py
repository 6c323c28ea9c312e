"""What an input file will probably take, before it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lowtide.domain.pricing import cost_of

if TYPE_CHECKING:
    from lowtide.domain.pricing import Prices

BYTES_A_TOKEN: Final = 4
"""English text has about four bytes a token in today's vocabularies; JSON around it has fewer."""


@dataclass(frozen=True, slots=True)
class FileEstimate:
    """A rough guess: tokens that are read, replica time, and what that costs in either pool.

    Answers are not counted in tokens: how long they get, only the model knows.
    """

    input_tokens: int
    replica_seconds: float
    spot: float
    dedicated: float
    currency: str


def estimate_file(size: int, lines: int, rate: float, prices: Prices) -> FileEstimate:
    """Return the estimate of a file of `size` bytes, at `rate` lines a second of one replica.

    Every byte is taken for prompt, so that tokens come out high where a line has little text.

        >>> from lowtide.domain.pricing import Prices
        >>> estimate_file(4000, 7200, 2.0, Prices(1.0, 3.0, "USD")).dedicated
        3.0
    """
    seconds = lines / rate
    return FileEstimate(
        input_tokens=-(-size // BYTES_A_TOKEN),
        replica_seconds=seconds,
        spot=cost_of(seconds, 0.0, prices).total,
        dedicated=cost_of(0.0, seconds, prices).total,
        currency=prices.currency,
    )
