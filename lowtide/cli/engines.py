"""`lowtide engines`: check what an engine supports, and which settings do not fit it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowtide.cli.options import Json
from lowtide.cli.output import fail, print_json, print_record, print_table, say

if TYPE_CHECKING:
    from lowtide.engines.check import EngineReport


engines = typer.Typer(no_args_is_help=True, help="Check an engine before workers use it.")


@engines.command()
def check(
    url: Annotated[
        str | None, typer.Argument(help="Base URL of the engine (default: LOWTIDE_ENGINE_URL).")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model that requests will name; may be repeated.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for each answer.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Show what an engine supports, and which settings do not fit it.

    Sends a minimal request to each endpoint of LOWTIDE_ENDPOINTS, with the key LOWTIDE_ENGINE_API_KEY.
    Exits with 1 if the engine is unusable or lacks a model.
    """
    from lowtide.engines.check import EngineUnusable, check_engine
    from lowtide.engines.fit import misfits
    from lowtide.settings import read_settings

    models = model or []
    try:
        settings = read_settings()
        key = settings.engine_api_key.get_secret_value()
        report = check_engine(url or settings.engine_url, key, settings.endpoints, timeout=timeout)
    except (ValueError, EngineUnusable) as error:
        fail(str(error))
    found = misfits(report, settings, models)
    if as_json:
        print_json({**asdict(report), "misfits": [asdict(each) for each in found]})
    else:
        _show(report)
        for each in found:
            say(f"{each.setting}: {each.text}")
        if not found:
            say("The settings fit this engine.")
    if not report.usable or not report.serves(models):
        raise typer.Exit(1)


def _show(report: EngineReport) -> None:
    print_record(_facts(report))
    print_table(
        ("model", "context"),
        [(each.name, _count(each.context)) for each in report.models],
        empty="no models",
    )
    print_table(
        ("endpoint", "works"),
        [(name, reason or "yes") for name, reason in report.endpoints.items()],
    )


def _facts(report: EngineReport) -> dict[str, Any]:
    return {
        "engine": " ".join(filter(None, (report.kind or "unknown", report.version))),
        "max running requests": _count(report.max_running),
        "structured output": _answer(report.structured_output),
        "prefix caching": _answer(report.prefix_caching),
        "images": _answer(report.takes_images),
    }


def _count(value: int | None) -> str:
    return "not reported" if value is None else f"{value:,}"


def _answer(value: bool | None) -> str:
    return {None: "not reported", True: "yes", False: "no"}[value]
