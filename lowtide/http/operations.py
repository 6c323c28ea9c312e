"""Routes that say what they take and answer: the OpenAPI document is made from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flask import Response

JSON = "application/json"


@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """A query parameter or header; `schema` is JSON Schema."""

    name: str
    description: str
    schema: Mapping[str, Any]
    place: str = "query"


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """What a route does. `answer` is a type, or None for a body of `media` that has no schema.

    `body` is the type of a JSON body, which needs one of `body_needs`; `form` is the schema of a
    multipart one. `errors` are the statuses besides those that every authenticated call can meet.
    """

    name: str
    summary: str
    answer: type | None
    media: str = JSON
    body: type | None = None
    body_needs: tuple[str, ...] = ()
    form: Mapping[str, Any] | None = None
    parameters: tuple[Parameter, ...] = ()
    errors: tuple[int, ...] = ()
    partial: bool = False
    headers: Mapping[str, str] | None = None
    extension: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """A method and a path pattern (werkzeug's syntax), and what answers it.

    The handler gets a Call and the path's values, or just the values when `public`. A route without
    an operation is not documented.
    """

    method: str
    path: str
    handler: Callable[..., Response]
    operation: Operation | None = None
    public: bool = False
