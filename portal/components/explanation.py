"""The explanation of a batch: a card with what it waits for or what limited it, and its end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.explain.words import advice, compared, words
from portal.components.basics import heading
from portal.formats import absolute, duration, number, token_rates

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.batches.workload import Forecast
    from lowtide.explain.model import Advice, Explanation


@dataclass(frozen=True, slots=True)
class Card:
    """The texts of the card: it is built again only once one of them changes."""

    title: str
    limiting: str
    contributing: tuple[str, ...]
    figures: tuple[tuple[str, str], ...]
    advice: tuple[str, ...]


def card_of(explanation: Explanation) -> Card:
    """Return the texts of an explanation, with times to the minute."""
    limiting = explanation.limiting
    return Card(
        title="What limits it" if explanation.batch.ended_at is None else "What limited it",
        limiting=words(limiting.factor, limiting.numbers),
        contributing=tuple(words(each.factor, each.numbers) for each in explanation.contributing),
        figures=tuple(figures(explanation)),
        advice=tuple(_advice(each, explanation.forecast) for each in explanation.advice),
    )


def card_without_data(at: datetime) -> Card:
    """Return the texts for a batch whose data has ended."""
    return Card(
        title="Data deleted",
        limiting=f"The requests and answers of this batch were deleted at the end of their retention, {absolute(at)}.",
        contributing=(),
        figures=(),
        advice=(),
    )


def explanation_card(card: Card) -> None:
    """Show the limiting factor, what adds to it, the figures, and what would speed the batch up."""
    heading(card.title)
    ui.label(card.limiting).classes("break").mark("limiting factor")
    if card.contributing:
        with ui.element("ul").classes("small reasons"):
            for text in card.contributing:
                with ui.element("li"):
                    ui.label(text).classes("muted")
    with ui.element("dl").classes("facts"):
        for name, value in card.figures:
            with ui.element("div").classes("wide"):
                with ui.element("dt"):
                    ui.label(name)
                with ui.element("dd"):
                    ui.label(value)
    if card.advice:
        ui.label("What an operator can change to make it faster").classes("muted small")
        with ui.element("ul").classes("small reasons"):
            for text in card.advice:
                with ui.element("li"):
                    ui.label(text).mark("advice")


def figures(explanation: Explanation) -> list[tuple[str, str]]:
    """Return the names and the texts of the figures, without unknown ones."""
    rows = []
    if explanation.forecast is not None:
        rows.append(("Expected end", _range(explanation.forecast)))
    if explanation.rate is not None:
        rows.append(("Rate", f"{explanation.rate:.3g} requests/s{_tokens(explanation)}"))
    if explanation.first_wait is not None:
        rows.append(("First request started", f"after {_span(explanation.first_wait)}"))
    if explanation.waited is not None and explanation.request_seconds is not None:
        waited, ran = _span(explanation.waited), _span(explanation.request_seconds)
        rows.append(("Time per request", f"waited {waited} and ran {ran} on average"))
    if explanation.retry_share:
        rows.append(("Retries", f"{explanation.retry_share:.1%} of all attempts"))
    if explanation.comparison is not None:
        rows.append(("Earlier runs", compared(explanation.comparison)))
    return rows


def _tokens(explanation: Explanation) -> str:
    """Return the tokens per second in words, to two digits; empty if there are none."""
    rates = [
        None if rate is None else float(f"{rate:.2g}")
        for rate in (explanation.input_token_rate, explanation.output_token_rate)
    ]
    return f", {token_rates(*rates)}" if any(rates) else ""


def _range(forecast: Forecast) -> str:
    if forecast.likely is None:
        return "Unknown: no workers"
    low = "" if forecast.low is None else _minute(forecast.low)
    high = "unknown" if forecast.high is None else _minute(forecast.high)
    return f"{_minute(forecast.likely)} (between {low} and {high})"


def _advice(change: Advice, forecast: Forecast | None) -> str:
    text = advice(change.factor, change.numbers)
    likely = None if forecast is None else forecast.likely
    if change.end is None:
        return text
    if likely is None:
        return f"{text}: then it ends at {_minute(change.end)}"
    saved = likely - change.end
    return f"{text}: {duration(saved)} sooner" if saved >= timedelta(minutes=1) else text


def _span(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.2g} s"
    return duration(timedelta(seconds=seconds)) if seconds >= 60 else f"{number(round(seconds))} s"


def _minute(at: datetime) -> str:
    return absolute(at.replace(second=0, microsecond=0))
