"""`lowtide pools`: list, pause and resume pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lowtide.cli.output import OUT, DataDir, Json, print_json
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
    table = Table("pool", "waiting", "running", "workers", "paused")
    for standing in standings:
        paused = "" if standing.pause is None else _since(standing.pause)
        counts = (standing.queued, standing.running, standing.workers)
        table.add_row(standing.pool.value, *map(str, counts), paused)
    OUT.print(table)


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
    OUT.print(f"Paused {pool} {_since(pause)}.", markup=False, highlight=False)
    OUT.print(f"{effect.queued:,} requests queued, {effect.running:,} still running.", markup=False)
    if effect.stops_all:
        OUT.print("The other pool is paused too: no requests run until a pool is resumed.")
    if effect.endangered.batches:
        OUT.print(f"Deadlines of {effect.endangered.batches:,} batches are no longer guaranteed.")


@pools.command("resume")
def resume_pool(pool: Name, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Resume a pool."""
    with operating(data_dir) as operator:
        pause = operator.app.pools.resume(Principal(operator.actor, Role.OPERATOR), pool)
    if as_json:
        print_json({"pool": pool.value, "paused": None, "was_paused": _pause_json(pause)})
        return
    text = "was not paused" if pause is None else f"resumed; it was paused {_since(pause)}"
    OUT.print(f"{pool.capitalize()} {text}.", markup=False, highlight=False)


def _since(pause: PoolPause) -> str:
    return f"since {pause.since:%Y-%m-%d %H:%M} UTC by {pause.by}"


def _pause_json(pause: PoolPause | None) -> dict[str, object] | None:
    return None if pause is None else {"since": pause.since, "by": pause.by}


def _pool_json(standing: PoolState) -> dict[str, object]:
    return {
        "pool": standing.pool.value,
        "waiting": standing.queued,
        "running": standing.running,
        "workers": standing.workers,
        "paused": _pause_json(standing.pause),
    }
