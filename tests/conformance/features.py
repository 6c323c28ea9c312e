"""What each test proves of OpenAI's API, or of what Lowtide adds; docs/compatibility.md is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    _Test = TypeVar("_Test", bound=Callable[..., None])


class Area(StrEnum):
    """The parts of the API, in the order of the page."""

    FILES = "Files"
    CONTENT = "File content"
    BATCHES = "Batches"
    INPUT = "Input files"
    RESULTS = "Results"
    ENDING = "Cancelling and expiry"
    LISTS = "Lists"
    MODELS = "Models"
    ERRORS = "Errors"
    BEYOND = "Beyond OpenAI"


@dataclass(frozen=True, slots=True)
class Feature:
    """One line of the page; a test of an unsupported one proves that it is refused plainly."""

    area: Area
    name: str
    supported: bool = True


ABSENT = (
    "Webhooks (`batch.completed` and the like)",
    "The bound of 50,000 inputs in all on a batch of embeddings",
    "The headers `openai-organization`, `openai-project`, `openai-processing-ms`, `openai-version`",
)
"""What OpenAI has, Lowtide lacks, and no call asks for: there is nothing that a test could see refused."""


def proves(area: Area, name: str, *, supported: bool = True) -> Callable[[_Test], _Test]:
    """Declare the feature that a test proves."""

    def declare(test: _Test) -> _Test:
        test.__dict__["feature"] = Feature(area, name, supported)
        return test

    return declare
