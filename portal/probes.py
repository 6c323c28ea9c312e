"""Looks at other processes."""

from __future__ import annotations

import httpx

from lowtide.domain.errors import Unavailable

TIMEOUT = 3.0


class ApiProbe:
    """Asks the API whether it is ready."""

    def __init__(self, base_url: str) -> None:
        self._url = f"{base_url.rstrip('/')}/health/ready"
        # The API is a neighbour: never through a proxy that the environment names.
        self._client = httpx.Client(timeout=TIMEOUT, trust_env=False)

    def __call__(self) -> None:
        """Raise Unavailable unless `GET /health/ready` answers 200."""
        try:
            response = self._client.get(self._url)
        except httpx.TimeoutException as error:
            raise Unavailable(f"No answer within {TIMEOUT:.0f} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable("No connection") from error
        if response.status_code != 200:
            raise Unavailable(f"Answers HTTP {response.status_code}")
