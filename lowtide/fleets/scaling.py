"""The ScaledObject of a fleet's pool: one template for `keda/` and for every declared fleet."""

from __future__ import annotations

from string import Template
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from lowtide.core.pools import Pool
    from lowtide.fleets.model import PoolSpec


TEMPLATE: Final = "keda/scaled-object.tmpl"


def scaled_object(
    root: Path, fleet: str, pool: Pool, spec: PoolSpec, *, name: str, writer: str
) -> str:
    """Return the ScaledObject of a pool's Deployment `name` as YAML; `writer` is the command for it.

    The query counts no further than `max_replicas` replicas need. A fleet's name is safe in it, as
    the file's validation allows no quotes. Raises OSError if `root` is no checkout.
    """
    return Template((root / TEMPLATE).read_text()).substitute(
        writer=writer,
        name=name,
        fleet=fleet,
        pool=pool.value,
        min=spec.min_replicas,
        max=spec.max_replicas,
        target=spec.rows_per_replica,
        limit=spec.max_replicas * spec.rows_per_replica,
    )
