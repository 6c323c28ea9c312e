"""TLS to PostgreSQL: libpq's parameters of a URL, and what to do about a server without it."""

from __future__ import annotations

from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING

from pg8000 import dbapi

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ssl import SSLContext

    from sqlalchemy import URL


_PARAMETERS = ("sslmode", "sslrootcert")
# The driver's values: False is plaintext, None encrypts if the server can, True requires TLS.
_UNVERIFIED = {"disable": False, "allow": None, "prefer": None, "require": True}
_VERIFIED = ("verify-ca", "verify-full")
_SYSTEM = "system"


def encryption(url: URL) -> tuple[URL, SSLContext | bool | None]:
    """Return the address without libpq's TLS parameters, and the driver's `ssl_context` for them.

    The default is `verify-full`, and `prefer` for a server on this machine. `require` accepts any
    certificate, unless `sslrootcert` names trusted ones. With `system`, or in a verifying mode
    without `sslrootcert`, the system's certificates are trusted; they sign for any host, so only
    `verify-full` is allowed. Raises ValueError.
    """
    unknown = sorted(set(url.query) - set(_PARAMETERS))
    if unknown:
        raise ValueError(f"unknown parameter in the database URL: {', '.join(unknown)}")
    mode, roots = (_parameter(url, name) for name in _PARAMETERS)
    mode = mode or ("prefer" if _is_local(url.host) and not roots else "verify-full")
    if mode not in (*_UNVERIFIED, *_VERIFIED):
        modes = ", ".join([*_UNVERIFIED, *_VERIFIED])
        raise ValueError(f"invalid sslmode={mode} in the database URL: use one of {modes}")
    if mode == "require" and roots:
        mode = "verify-ca"
    if mode == "verify-ca" and roots in {"", _SYSTEM}:
        raise ValueError("system certificates are valid for any host: use sslmode=verify-full")
    if mode in _UNVERIFIED and roots:
        raise ValueError(f"sslmode={mode} ignores sslrootcert: use sslmode=verify-full")
    address = url.difference_update_query(_PARAMETERS)
    if mode in _UNVERIFIED:
        return address, _UNVERIFIED[mode]
    return address, _ssl_context(roots, check_hostname=mode == "verify-full")


def _is_local(host: str | None) -> bool:
    """Return whether connections to `host` stay on this machine."""
    try:
        return ip_address(host or "").is_loopback
    except ValueError:
        return host in {None, "", "localhost"}


def _parameter(url: URL, name: str) -> str:
    value = url.query.get(name, "")
    return value if isinstance(value, str) else value[-1]


def _ssl_context(roots: str, *, check_hostname: bool) -> SSLContext:
    import ssl

    try:
        context = ssl.create_default_context(cafile=roots if roots not in {"", _SYSTEM} else None)
    except OSError as error:
        raise ValueError(
            f"sslrootcert={roots} in the database URL: {error.strerror or error}"
        ) from error
    context.check_hostname = check_hostname
    return context


_NO_TLS = "Server refuses SSL"  # pg8000's words
_ADVICE = (
    "The PostgreSQL server offers no TLS, which the database URL requires: enable it there. Only on a "
    "network that you trust, end the URL with ?sslmode=disable."
)
_VERIFYING_ADVICE = (
    "The PostgreSQL server's certificate is not valid: {reason}. Name the authority that signed it "
    "with sslrootcert=/path/ca.pem in the database URL, and the host as the certificate does. "
    "sslmode=verify-ca accepts any host name, sslmode=require any certificate."
)


class TlsRefused(dbapi.InterfaceError):
    """A server without the TLS that its URL requires; the message names the parameter to change."""


def tls_problem(error: Exception) -> str:
    """Return the message of the TlsRefused that caused an error, for operators; else ""."""
    refused = getattr(error.__cause__, "orig", None)
    return str(refused) if isinstance(refused, TlsRefused) else ""


@contextmanager
def advised() -> Iterator[None]:
    """Raise TlsRefused if the block cannot open a connection for want of TLS."""
    try:
        yield
    except dbapi.InterfaceError as error:
        if _NO_TLS not in str(error):
            raise
        raise TlsRefused(_ADVICE) from error
    except OSError as error:
        # SSLCertVerificationError, without importing ssl where no connection uses it.
        reason = getattr(error, "verify_message", None)
        if reason is None:
            raise
        raise TlsRefused(_VERIFYING_ADVICE.format(reason=reason)) from error
