"""`lowtide pools`: list, pause and resume pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lowtide.cli.options import DataDir, Json
from lowtide.cli.output import moment, print_json, print_table, say
from lowtide.cli.stack import operating
from lowtide.core.pools import Pool
from lowtide.tenants.sign_in import Principal, Role

if TYPE_CHECKING:
    from lowtide.core.pools import PoolPause, PoolState


pools = typer.Typer(no_args_is_help=True, help="List, pause and resume worker pools.")

Name = Annotated[Pool, typer.Argument(help="Name of the pool.")]


@pools.command("list")
def list_pools(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show each pool's queued and running requests, workers and pause."""
    with operating(data_dir) as operator:
        standings = operator.app.pools.standings()
    if as_json:
        print_json([_pool_json(standing) for standing in standings])
        return
    print_table(
        ("pool", "queued", "running", "workers", "paused"),
        [
            (each.pool, each.queued, each.running, each.workers, each.pause and _since(each.pause))
            for each in standings
        ],
    )


@pools.command("pause")
def pause_pool(pool: Name, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Pause a pool: its workers finish their running requests and claim no more."""
    with operating(data_dir) as operator:
        service, principal = operator.app.pools, Principal(operator.actor, Role.OPERATOR)
        effect = service.effect(principal, pool)
        pause = service.pause(principal, pool)
    if as_json:
        print_json({"pool": pool.value, "paused": _pause_json(pause)})
        return
    say(f"Paused {pool} {_since(pause)}.")
    say(f"{effect.queued:,} requests queued, {effect.running:,} still running.")
    if effect.stops_all:
        say("The other pool is paused too: no requests run until a pool is resumed.")
    if effect.endangered.batches:
        say(f"Deadlines of {effect.endangered.batches:,} batches are no longer guaranteed.")


@pools.command("resume")
def resume_pool(pool: Name, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Resume a pool."""
    with operating(data_dir) as operator:
        pause = operator.app.pools.resume(Principal(operator.actor, Role.OPERATOR), pool)
    if as_json:
        print_json({"pool": pool.value, "paused": None, "was_paused": _pause_json(pause)})
        return
    text = "was not paused" if pause is None else f"resumed; it was paused {_since(pause)}"
    say(f"{pool.capitalize()} {text}.")


def _since(pause: PoolPause) -> str:
    return f"since {moment(pause.since)} by {pause.by}"


def _pause_json(pause: PoolPause | None) -> dict[str, object] | None:
    return None if pause is None else {"since": pause.since, "by": pause.by}


def _pool_json(standing: PoolState) -> dict[str, object]:
    return {
        "pool": standing.pool.value,
        "queued": standing.queued,
        "running": standing.running,
        "workers": standing.workers,
        "paused": _pause_json(standing.pause),
    }
