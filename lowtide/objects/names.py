"""Keys of objects that are encrypted: the key of the object names the data key."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from uuid import UUID

from lowtide.core.ids import TenantId

SEALED: Final = "sealed/"
"""The prefix of encrypted objects. The list of a joined one's pieces is plain, and has no text."""
_SEALED_KEY: Final = re.compile(r"(?:joined/)?sealed/([0-9a-f]{32})/([0-9a-f]{32})/")


class DataKeyId(NamedTuple):
    """The name of a data key: a tenant, and the id of what the key belongs to.

    That is an input file, an upload in parts, or a batch, whose answers it encrypts.
    """

    tenant: TenantId
    owner: UUID


def sealed_key(data_key: DataKeyId | None, key: str) -> str:
    """Return the key of an object that is encrypted with a data key; None leaves it plain.

    >>> sealed_key(None, "files/1")
    'files/1'
    """
    if data_key is None:
        return key
    return f"{SEALED}{data_key.tenant.hex}/{data_key.owner.hex}/{key}"


def data_key_of(key: str) -> DataKeyId | None:
    """Return the data key of an object, or of the pieces of a joined one; None if it is plain."""
    match = _SEALED_KEY.match(key)
    return None if match is None else DataKeyId(TenantId(UUID(match[1])), UUID(match[2]))
