"""The feature that each test proves, of OpenAI's API or Lowtide's additions; docs/compatibility.md lists them."""

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
    UPLOADS = "Uploads in parts"
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
    """One row of the page; the test of an unsupported feature proves that it is refused."""

    area: Area
    name: str
    supported: bool = True


ABSENT = (
    "Webhooks (`batch.completed` and the like)",
    "The bound of 50,000 inputs in all on a batch of embeddings",
    "The headers `openai-organization`, `openai-project`, `openai-processing-ms`, `openai-version`",
)
"""Features of OpenAI that Lowtide lacks and that no call requests, so that no test can prove a refusal."""


def proves(area: Area, name: str, *, supported: bool = True) -> Callable[[_Test], _Test]:
    """Declare the feature that a test proves."""

    def declare(test: _Test) -> _Test:
        test.__dict__["feature"] = Feature(area, name, supported)
        return test

    return declare
