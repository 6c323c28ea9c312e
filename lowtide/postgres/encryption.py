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


def encryption(url: URL) -> tuple[URL, SSLContext | bool | None]:
    """Return the address without libpq's parameters, and what they mean to the driver.

    Without `sslmode` it is `prefer`. `require` takes any certificate, unless `sslrootcert` names
    those to trust; `system`, or nothing, stands for the system's. Raises ValueError.
    """
    unknown = sorted(set(url.query) - set(_PARAMETERS))
    if unknown:
        raise ValueError(f"unknown parameter in the database's address: {', '.join(unknown)}")
    mode, roots = (_one(url, name) for name in _PARAMETERS)
    plain = url.difference_update_query(_PARAMETERS)
    if mode == "require" and roots:
        mode = "verify-ca"
    if mode in _VERIFIED:
        return plain, _trusting(roots, named=mode == "verify-full")
    if mode and mode not in _UNVERIFIED:
        known = ", ".join([*_UNVERIFIED, *_VERIFIED])
        raise ValueError(f"sslmode={mode} in the database's address is none of {known}")
    return plain, _UNVERIFIED[mode or "prefer"]


def _one(url: URL, name: str) -> str:
    value = url.query.get(name, "")
    return value if isinstance(value, str) else value[-1]


def _trusting(roots: str, *, named: bool) -> SSLContext:
    import ssl

    try:
        context = ssl.create_default_context(cafile=roots if roots not in {"", "system"} else None)
    except OSError as error:
        raise ValueError(
            f"sslrootcert={roots} in the database's address: {error.strerror or error}"
        ) from error
    context.check_hostname = named
    return context
