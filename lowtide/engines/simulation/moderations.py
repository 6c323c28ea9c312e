"""Moderations: every category of omni-moderation, none of them flagged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lowtide.domain.outcomes import Usage
from lowtide.engines.simulation.drafts import inputs

if TYPE_CHECKING:
    from random import Random

    from lowtide.engines.simulation.drafts import Draft, Made

_MODEL: Final = "omni-moderation-latest"
_TEXT_ONLY: Final = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "sexual/minors",
)
_IMAGES_TOO: Final = (
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "violence",
    "violence/graphic",
)
_HIGHEST_SCORE: Final = 0.01


def moderation(draft: Draft) -> Made:
    """Return the answer of `/v1/moderations`."""
    given = draft.request.input
    random = draft.random()
    # Parts of a message are judged together, texts of a list each by itself.
    if isinstance(given, list) and given and isinstance(given[0], dict):
        kinds = {part.get("type") for part in given if isinstance(part, dict)}
        results = [_result(random, text="text" in kinds, image="image_url" in kinds)]
    else:
        results = [_result(random, text=True, image=False) for _ in inputs(given)]
    model = draft.request.model or _MODEL
    return {"id": f"modr-{draft.id}", "model": model, "results": results}, Usage()


def _result(random: Random, *, text: bool, image: bool) -> dict[str, Any]:
    applied = {name: ["text"] if text else [] for name in _TEXT_ONLY}
    both = [kind for kind, present in (("text", text), ("image", image)) if present]
    applied |= dict.fromkeys(_IMAGES_TOO, both)
    return {
        "flagged": False,
        "categories": dict.fromkeys(applied, False),
        "category_scores": {name: random.random() * _HIGHEST_SCORE for name in applied},
        "category_applied_input_types": applied,
    }
