"""Names of encrypted objects, which name their data key, and what is said without that key."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, NoReturn
from uuid import UUID

from lowtide.core.errors import Conflict, LowtideError, NotFound
from lowtide.core.ids import TenantId

MARK: Final = "lowtide-sealed:"
"""The first characters of an encrypted text; no JSON value starts with them."""
_JOINED: Final = "joined/"
_SEALED_KEY: Final = re.compile(r"(?:(?:joined|indexes)/)?sealed/([0-9a-f]{32})/([0-9a-f]{32})/")


class DataKeyId(NamedTuple):
    """The name of a data key: a tenant, and the id of what the key belongs to.

    That is an input file, an upload in parts, or a batch, whose answers it encrypts.
    """

    tenant: TenantId
    owner: UUID


class KeyDestroyed(NotFound):
    """Something encrypted whose key was destroyed: nobody can read it again."""

    def __init__(self) -> None:
        super().__init__(
            "The data was kept with zero retention, and its key has been destroyed: it cannot be "
            "read again.",
            code="data_key_destroyed",
        )


class Damaged(LowtideError):
    """Encrypted bytes that were changed, cut or moved, or belong to another key."""

    default_code = "object_damaged"


def no_data_key(_: DataKeyId) -> NoReturn:
    """Refuse to read something encrypted: this process has no data keys."""
    raise KeyDestroyed


def no_new_key(_tenant: TenantId, _owner: UUID) -> NoReturn:
    """Refuse to make a data key: there is no master key; raises Conflict."""
    raise Conflict(
        "Zero retention is not available: LOWTIDE_MASTER_KEY is not set. Ask the operator to set "
        "it, or upload without zero_retention.",
        param="zero_retention",
        code="zero_retention_not_available",
    )


def sealed_key(data_key: DataKeyId | None, key: str) -> str:
    """Return the key of an object that is encrypted with a data key; None leaves it plain.

    >>> sealed_key(None, "files/1")
    'files/1'
    """
    if data_key is None:
        return key
    return f"sealed/{data_key.tenant.hex}/{data_key.owner.hex}/{key}"


def is_sealed(key: str) -> bool:
    """Return whether an object is encrypted.

    So is the index of an encrypted file; the list of a joined one's pieces is plain, and has no
    text.
    """
    return not key.startswith(_JOINED) and data_key_of(key) is not None


def data_key_of(key: str) -> DataKeyId | None:
    """Return the data key of an object, or of the pieces of a joined one; None if it is plain."""
    match = _SEALED_KEY.match(key)
    return None if match is None else DataKeyId(TenantId(UUID(match[1])), UUID(match[2]))
