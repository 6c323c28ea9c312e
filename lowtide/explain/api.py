"""The explanation of a batch over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowtide.batches.api import require_batch_id
from lowtide.core.ids import format_batch_id
from lowtide.explain.words import advice, compared, words
from lowtide.http import types
from lowtide.http.application import json_response
from lowtide.http.types import unix, unix_or_none

if TYPE_CHECKING:
    from flask import Response

    from lowtide.explain.model import Explanation, Finding
    from lowtide.http.application import Call


_DIGITS = 4


def explain_batch(call: Call, batch_id: str) -> Response:
    """`GET /v1/batches/{batch_id}/explain`."""
    batch = require_batch_id(batch_id)
    return json_response(explanation_object(call.services.explainer.explain(call.tenant, batch)))


def explanation_object(explanation: Explanation) -> types.Explanation:
    """Return the Explanation object."""
    return types.Explanation(
        id=format_batch_id(explanation.batch.id),
        at=unix(explanation.at),
        limiting=_finding(explanation.limiting),
        contributing=[_finding(each) for each in explanation.contributing],
        expected_end=_expected_end(explanation),
        rate=_rounded(explanation.rate),
        input_token_rate=_rounded(explanation.input_token_rate),
        output_token_rate=_rounded(explanation.output_token_rate),
        waiting=explanation.waiting,
        running=explanation.running,
        waited_seconds=_rounded(explanation.waited),
        request_seconds=_rounded(explanation.request_seconds),
        waiting_share=_rounded(explanation.waiting_share),
        first_wait_seconds=_rounded(explanation.first_wait),
        retry_share=round(explanation.retry_share, _DIGITS),
        advice=[
            types.Advice(
                factor=each.factor.value,
                text=advice(each.factor, each.numbers),
                expected_end=unix_or_none(each.end),
            )
            for each in explanation.advice
        ],
        comparison=_comparison(explanation),
    )


def _finding(finding: Finding) -> types.Finding:
    return types.Finding(
        factor=finding.factor.value,
        text=words(finding.factor, finding.numbers),
        numbers=dict(finding.numbers),
    )


def _expected_end(explanation: Explanation) -> types.ExpectedEnd | None:
    forecast = explanation.forecast
    if forecast is None:
        return None
    return types.ExpectedEnd(
        low=unix_or_none(forecast.low),
        likely=unix_or_none(forecast.likely),
        high=unix_or_none(forecast.high),
        own_ahead=forecast.own,
        others_ahead=forecast.others,
    )


def _comparison(explanation: Explanation) -> types.Comparison | None:
    comparison = explanation.comparison
    if comparison is None:
        return None
    return types.Comparison(
        text=compared(comparison),
        rate=round(comparison.rate, _DIGITS),
        usual=round(comparison.usual, _DIGITS),
        runs=comparison.runs,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
