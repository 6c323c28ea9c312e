"""TLS on the way to PostgreSQL, by libpq's names in the address: `?sslmode=…&sslrootcert=…`.

KEDA reads such addresses with a driver of its own: one form must do for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssl import SSLContext

    from sqlalchemy.engine import URL

_PARAMETERS = ("sslmode", "sslrootcert")
# As the driver has it: False speaks plainly, None encrypts where the server can, True insists.
_UNVERIFIED = {"disable": False, "allow": None, "prefer": None, "require": True}
_VERIFIED = ("verify-ca", "verify-full")
_SYSTEM = "system"


def encryption(url: URL) -> tuple[URL, SSLContext | bool | None]:
    """Return the address without libpq's parameters, and what they mean to the driver.

    Without both it is `prefer`. `require` takes any certificate, unless `sslrootcert` names those to
    trust. With `system`, or none named for a mode that verifies, the system's are trusted; they sign
    for anybody, so that only `verify-full` will do. Raises ValueError.
    """
    unknown = sorted(set(url.query) - set(_PARAMETERS))
    if unknown:
        raise ValueError(f"unknown parameter in the database's address: {', '.join(unknown)}")
    mode, roots = (_one(url, name) for name in _PARAMETERS)
    mode = mode or ("verify-full" if roots == _SYSTEM else "prefer")
    if mode not in (*_UNVERIFIED, *_VERIFIED):
        known = ", ".join([*_UNVERIFIED, *_VERIFIED])
        raise ValueError(f"sslmode={mode} in the database's address is none of {known}")
    if mode == "require" and roots:
        mode = "verify-ca"
    if mode == "verify-ca" and roots in {"", _SYSTEM}:
        raise ValueError("the system's certificates sign for anybody: say sslmode=verify-full")
    if mode in _UNVERIFIED and roots:
        raise ValueError(f"sslmode={mode} verifies nothing, and sslrootcert says what to trust")
    plain = url.difference_update_query(_PARAMETERS)
    if mode in _UNVERIFIED:
        return plain, _UNVERIFIED[mode]
    return plain, _trusting(roots, named=mode == "verify-full")


def _one(url: URL, name: str) -> str:
    value = url.query.get(name, "")
    return value if isinstance(value, str) else value[-1]


def _trusting(roots: str, *, named: bool) -> SSLContext:
    import ssl

    try:
        context = ssl.create_default_context(cafile=roots if roots not in {"", _SYSTEM} else None)
    except OSError as error:
        raise ValueError(
            f"sslrootcert={roots} in the database's address: {error.strerror or error}"
        ) from error
    context.check_hostname = named
    return context
