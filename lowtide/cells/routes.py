"""Routes of a gateway that send calls with the id of a cell to the cell, past the front.

For Istio: its `Hostname` backends are hosts outside the cluster, and its path matches may be regular
expressions (RE2, of the whole path).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from lowtide.core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lowtide.cells.model import Cell, Cells


_PREFIXES: Final = ("files/file-", "uploads/upload_", "batches/batch_")
_SECONDS: Final = "600s"


def id_pattern(cell: int) -> str:
    """Return a regular expression of the 32 hexadecimal digits of the ids of a cell.

    After milliseconds, version and fraction, the bits are two of the variant (10) and twelve of the
    cell: the 17th digit to the first half of the 20th.

    >>> id_pattern(5)
    '[0-9a-f]{12}7[0-9a-f]{3}801[4567][0-9a-f]{12}'
    """
    variant = 8 | cell >> 10
    middle = cell >> 2 & 0xFF
    low = (cell & 3) << 2
    last = "[{}]".format("".join(f"{low + rest:x}" for rest in range(4)))
    return f"[0-9a-f]{{12}}7[0-9a-f]{{3}}{variant:x}{middle:02x}{last}[0-9a-f]{{12}}"


def routes(cells: Cells, gateway: str, namespace: str) -> Iterator[dict[str, Any]]:
    """Yield the objects for a Gateway; raises InvalidRequest for cells with ids of no number.

    Cells that accept no new work are left out: what was evacuated from them is elsewhere, and the front
    finds it.
    """
    older = [cell.name for cell in cells.cells if cell.unnumbered_ids]
    if older:
        raise InvalidRequest(
            f"Only the front finds the older ids of {', '.join(older)}: a gateway sees numbers alone.",
            param="unnumbered_ids",
        )
    for cell in cells.cells:
        if cell.accepts_work:
            yield from _objects(cell, gateway, namespace)


def _objects(cell: Cell, gateway: str, namespace: str) -> Sequence[dict[str, Any]]:
    address = urlsplit(cell.url)
    secure = address.scheme == "https"
    port = address.port or (443 if secure else 80)
    host = address.hostname or ""
    metadata = {"name": f"cell-{cell.number}", "namespace": namespace}
    entry = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": metadata,
        "spec": {
            "hosts": [host],
            "location": "MESH_EXTERNAL",
            "resolution": "DNS",
            "ports": [{"number": port, "name": address.scheme, "protocol": address.scheme.upper()}],
        },
    }
    tls = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": metadata,
        "spec": {"host": host, "trafficPolicy": {"tls": {"mode": "SIMPLE", "sni": host}}},
    }
    return [entry, *([tls] if secure else []), _route(cell, metadata, gateway, host, port)]


def _route(
    cell: Cell, metadata: dict[str, str], gateway: str, host: str, port: int
) -> dict[str, Any]:
    pattern = id_pattern(cell.number)
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": metadata,
        "spec": {
            "parentRefs": [{"name": gateway}],
            "rules": [
                {
                    "matches": [
                        {
                            "path": {
                                "type": "RegularExpression",
                                "value": f"/v1/{prefix}{pattern}(/.*)?",
                            }
                        }
                        for prefix in _PREFIXES
                    ],
                    "filters": [{"type": "URLRewrite", "urlRewrite": {"hostname": host}}],
                    "backendRefs": [
                        {
                            "group": "networking.istio.io",
                            "kind": "Hostname",
                            "name": host,
                            "port": port,
                        }
                    ],
                    "timeouts": {"request": _SECONDS},
                }
            ],
        },
    }
