"""`lowtide pools`: list, pause and resume pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lowtide.cli.options import DataDir, Json
from lowtide.cli.output import moment, print_json, print_table, say
from lowtide.cli.stack import operating
from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.core.scopes import Role
from lowtide.tenants.sign_in import Principal

if TYPE_CHECKING:
    from lowtide.core.pools import PoolPause, PoolState


pools = typer.Typer(no_args_is_help=True, help="List, pause and resume worker pools.")

Name = Annotated[Pool, typer.Argument(help="Name of the pool.")]
OfFleet = Annotated[str, typer.Option("--fleet", help="Fleet of the pool.")]


@pools.command("list")
def list_pools(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show the queued and running requests, workers and pause of each fleet's pools."""
    with operating(data_dir) as operator:
        standings = operator.app.pools.standings()
    if as_json:
        print_json([_pool_json(standing) for standing in standings])
        return
    print_table(
        ("fleet", "pool", "queued", "running", "workers", "paused"),
        [
            (
                each.fleet,
                each.pool,
                each.queued,
                each.running,
                each.workers,
                each.pause and _since(each.pause),
            )
            for each in standings
        ],
    )


@pools.command("pause")
def pause_pool(
    pool: Name, fleet: OfFleet = DEFAULT_FLEET, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Pause a pool: its workers finish their running requests and claim no more."""
    with operating(data_dir) as operator:
        service, principal = operator.app.pools, Principal(operator.actor, Role.OPERATOR)
        effect = service.effect(principal, pool, fleet)
        pause = service.pause(principal, pool, fleet)
    if as_json:
        print_json({"fleet": fleet, "pool": pool.value, "paused": _pause_json(pause)})
        return
    say(f"Paused {_name(pool, fleet)} {_since(pause)}.")
    say(f"{effect.queued:,} requests queued, {effect.running:,} still running.")
    if effect.stops_all:
        say("The other pool is paused too: no requests run until a pool is resumed.")
    if effect.endangered.batches:
        say(f"Deadlines of {effect.endangered.batches:,} batches are no longer guaranteed.")


@pools.command("resume")
def resume_pool(
    pool: Name, fleet: OfFleet = DEFAULT_FLEET, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Resume a pool."""
    with operating(data_dir) as operator:
        pause = operator.app.pools.resume(Principal(operator.actor, Role.OPERATOR), pool, fleet)
    if as_json:
        place = {"fleet": fleet, "pool": pool.value}
        print_json(place | {"paused": None, "was_paused": _pause_json(pause)})
        return
    text = "was not paused" if pause is None else f"resumed; it was paused {_since(pause)}"
    name = _name(pool, fleet)
    say(f"{name[0].upper()}{name[1:]} {text}.")


def _name(pool: Pool, fleet: str) -> str:
    return pool.value if fleet == DEFAULT_FLEET else f"{pool} of {fleet}"


def _since(pause: PoolPause) -> str:
    return f"since {moment(pause.since)} by {pause.by}"


def _pause_json(pause: PoolPause | None) -> dict[str, object] | None:
    return None if pause is None else {"since": pause.since, "by": pause.by}


def _pool_json(standing: PoolState) -> dict[str, object]:
    return {
        "fleet": standing.fleet,
        "pool": standing.pool.value,
        "queued": standing.queued,
        "running": standing.running,
        "workers": standing.workers,
        "paused": _pause_json(standing.pause),
    }
