"""The fleets of a process: those of the file that `LOWTIDE_FLEETS` names, or one of the settings."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.fleets.model import ANY, EngineSpec, Fleet, Fleets, PoolSpec
from lowtide.settings import AUTO

if TYPE_CHECKING:
    from lowtide.settings import Settings


_API_KEY: Final = "LOWTIDE_ENGINE_API_KEY"


@lru_cache(maxsize=1)
def read_fleets(settings: Settings) -> Fleets:
    """Return the fleets; a changed file takes effect when the process starts again.

    Raises InvalidFile, a ValueError, with every problem of the file.
    """
    if not settings.fleets:
        return Fleets((default_fleet(settings),))
    # Functions without a file start without YAML, and without the models that validate it.
    from lowtide.fleets.parsing import read_file

    return read_file(Path(settings.fleets), settings).fleets


def default_fleet(settings: Settings) -> Fleet:
    """Return the fleet that the settings describe; the file's fleets take what they omit from it."""
    return Fleet(
        name=DEFAULT_FLEET,
        models=(ANY,),
        aliases={},
        endpoints=settings.endpoints,
        engine=EngineSpec(
            kind=settings.engine.value,
            url=settings.engine_url,
            api_key_env=_API_KEY,
            concurrency=None
            if settings.worker_concurrency == AUTO
            else settings.worker_concurrency,
        ),
        spot=_pool(settings, Pool.SPOT),
        dedicated=_pool(settings, Pool.DEDICATED),
    )


def _pool(settings: Settings, pool: Pool) -> PoolSpec:
    spot = pool is Pool.SPOT
    return PoolSpec(
        min_replicas=0,
        max_replicas=settings.spot_replicas if spot else settings.dedicated_replicas,
        price=settings.spot_price if spot else settings.dedicated_price,
        rows_per_replica=settings.spot_rows_per_replica
        if spot
        else settings.dedicated_rows_per_replica,
        cold_start=settings.cold_start,
        rate=settings.dedicated_rate,
    )
