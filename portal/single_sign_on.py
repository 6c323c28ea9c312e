"""Sign-in at an identity provider: authorization code with PKCE, state and nonce, and logout there."""

from __future__ import annotations

import logging
import ssl
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode, urlsplit

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.starlette_client import OAuth
from fastapi.responses import RedirectResponse
from joserfc.errors import JoseError

from lowtide.core.errors import Forbidden, LowtideError
from lowtide.identity.model import Issuers
from lowtide.identity.tokens import TokenVerifier
from portal.services import in_thread, run_blocking
from portal.sessions import SIGN_IN, SIGN_IN_CALLBACK, open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastapi import Request, Response

    from lowtide.core.ids import TenantId
    from lowtide.identity.model import Claims, Issuer
    from lowtide.tenants.sign_in import Principal, TokenSignIn


_TARGET: Final = "target"
_TIMEOUT: Final = 5.0
# It comes from the provider itself, and may name hundreds of groups.
_MAX_ID_TOKEN_BYTES: Final = 65_536
_FAILURES: Final = (
    OAuthError, JoseError, LowtideError, httpx2.HTTPError, RuntimeError, ValueError,
)  # fmt: skip
_log: Final = logging.getLogger(__name__)


class SingleSignOn:
    """Sign-in of people by an identity provider; `secret` is the portal's there, empty without one."""

    def __init__(self, sign_in: TokenSignIn, secret: str, *, session_seconds: int) -> None:
        self._client = client = sign_in.client
        self._sign_in = sign_in
        self._session_seconds = session_seconds
        # An ID token is for the client, a token of the API is not.
        issuer = replace(client.issuer, audiences=(client.client_id,))
        self._verifier = TokenVerifier(Issuers((issuer,)), max_bytes=_MAX_ID_TOKEN_BYTES)
        trust = ssl.create_default_context(cafile=issuer.ca_file or None)
        # Its types do not cover what it has.
        self._provider: Any = OAuth().register(
            "provider",
            client_id=client.client_id,
            client_secret=secret or None,
            server_metadata_url=f"{issuer.url.rstrip('/')}/.well-known/openid-configuration",
            client_kwargs={
                "scope": " ".join(client.scopes),
                "code_challenge_method": "S256",
                "token_endpoint_auth_method": "client_secret_basic" if secret else "none",
                "timeout": _TIMEOUT,
                "verify": trust,
            },
        )

    async def start(self, request: Request, target: str) -> Response:
        """Send the browser to the provider; it returns to `target`."""
        try:
            response: Response = await self._provider.authorize_redirect(
                request, _address_of(request, SIGN_IN_CALLBACK)
            )
        except _FAILURES as error:
            return _failed(error, target)
        request.session[_TARGET] = target
        return response

    async def finish(
        self, request: Request, read_tenants: Callable[[], Mapping[str, TenantId]]
    ) -> Response:
        """Open the session of a person whom the provider sends back."""
        target = str(request.session.pop(_TARGET, "/"))
        try:
            token = await self._provider.authorize_access_token(request)
            # A refused ID token or unreadable keys are the provider's fault, not the user's.
            issuer, claims = await run_blocking(lambda: self._claims(token))
        except _FAILURES as error:
            return _failed(error, target)
        try:
            tenants = await in_thread(read_tenants)
            principal = self._sign_in.principal(issuer.identity(claims), tenants)
        except LowtideError as error:
            _log.warning("sign_in.refused", extra={"error": error.message})
            problem = "account" if isinstance(error, Forbidden) else str(error.status)
            return _back(problem, target)
        seconds = min(int(claims["exp"]) - int(time.time()), self._session_seconds)
        open_session(request.session, principal, seconds)
        return RedirectResponse(target, status_code=303)

    @property
    def provider(self) -> str:
        """The provider's host, for the button."""
        return urlsplit(self._client.issuer.url).netloc

    def opened(self, principal: Principal | None) -> bool:
        """Return whether a session comes from the provider."""
        return principal is not None and bool(self._sign_in.holding({principal.credential}))

    async def logout_address(self, request: Request) -> str | None:
        """Return the address that ends the provider's own session; None if it has none."""
        try:
            metadata = await self._provider.load_server_metadata()
        except (httpx2.HTTPError, RuntimeError, ValueError) as error:
            _log.warning("sign_out.only_here", extra={"error": str(error)})
            return None
        endpoint = metadata.get("end_session_endpoint")
        if not endpoint:
            return None
        # An ID token as a hint would not fit into the session's cookie.
        query = {
            "client_id": self._client.client_id,
            "post_logout_redirect_uri": _address_of(request, SIGN_IN),
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    def _claims(self, token: Mapping[str, Any]) -> tuple[Issuer, Claims]:
        """Return the issuer and the claims of the ID token in the provider's answer."""
        # The library has checked its nonce; its rules are laxer than those for the API.
        return self._verifier.claims(str(token.get("id_token", "")))


def _failed(error: Exception, target: str) -> Response:
    _log.warning("sign_in.failed", extra={"error": f"{type(error).__name__}: {error}"[:500]})
    return _back("provider", target)


def _back(problem: str, target: str) -> Response:
    path = f"{SIGN_IN}?problem={problem}"
    if target != "/":
        path += f"&next={quote(target, safe='')}"
    return RedirectResponse(path, status_code=303)


def _address_of(request: Request, path: str) -> str:
    return str(request.url.replace(path=path, query="", fragment=""))
