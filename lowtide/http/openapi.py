"""The OpenAPI 3.1 document, generated from the routes and their types."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from lowtide import __version__
from lowtide.http import operations, types
from lowtide.http.operations import API_VERSION, JSON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.http.operations import Operation, Parameter, Route


_VARIABLE = re.compile(r"<(?:\w+(?:\([^)]*\))?:)?(\w+)>")
_COMMON_ERRORS = (400, 401, 403, 429, 500, 503)
_REQUEST_ID = {"x-request-id": "Id of this call in the logs."}
_RATE_LIMIT = {
    operations.LIMIT: "Max requests per minute, for a tenant with a limit.",
    operations.REMAINING: "Requests that would be accepted now.",
    operations.RESET: "Time until the full limit is available again, such as `8.64s` or `6m0s`.",
}
_RETRY_AFTER = {"Retry-After": "Seconds to wait before a retry."}
_REF = "#/components/schemas/{name}"
EXTENSIONS = "Beyond OpenAI"


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the document of all routes that have an operation."""
    documented = [(route, route.operation) for route in routes if route.operation is not None]
    body_types: list[type] = [types.Error]
    for _, operation in documented:
        bodies = (operation.answer, operation.body, operation.presigned)
        body_types += [type_ for type_ in bodies if type_ is not None]
    _, schemas = msgspec.json.schema_components(dict.fromkeys(body_types), ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route, operation in documented:
        path = _VARIABLE.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Lowtide",
            "version": __version__,
            "description": "OpenAI's Files and Batch APIs on your own GPUs, with extensions.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, operation: Operation) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [EXTENSIONS if operation.extension else route.path.split("/")[2].capitalize()],
        "parameters": [
            *(_path_parameter(name) for name in _VARIABLE.findall(route.path)),
            *(_parameter(parameter) for parameter in (*operation.parameters, API_VERSION)),
        ],
        # The names of an HTTP scheme's rights, which OpenAPI 3.1 allows.
        "security": [{"key": [] if route.scope is None else [route.scope.value]}],
        "responses": _responses(operation),
    }
    if operation.body is not None:
        schema: dict[str, Any] = {"$ref": _REF.format(name=operation.body.__name__)}
        if operation.body_needs:
            schema["anyOf"] = [
                {"required": [name], "properties": {name: {"type": "string"}}}
                for name in operation.body_needs
            ]
        spec["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if operation.form is not None:
        content = {"multipart/form-data": {"schema": operation.form}}
        spec["requestBody"] = {"required": True, "content": content}
    return spec


def _responses(operation: Operation) -> dict[str, Any]:
    if operation.answer is None:
        content: dict[str, Any] = {operation.media: {"schema": {"type": "string"}}}
    else:
        schema = {"$ref": _REF.format(name=operation.answer.__name__)}
        content = {operation.media: {"schema": schema}}
    headers = {
        name: _header(text)
        for name, text in {**_REQUEST_ID, **_RATE_LIMIT, **(operation.headers or {})}.items()
    }
    whole = content
    if operation.presigned is not None:
        schema = {"$ref": _REF.format(name=operation.presigned.__name__)}
        whole = {**content, JSON: {"schema": schema}}
    responses: dict[str, Any] = {"200": {"description": "OK", "content": whole, "headers": headers}}
    if operation.partial:
        responses["206"] = {"description": "Partial Content", "content": content}
    if operation.presigned is not None:
        location = {"Location": _header("A presigned URL of the object store.")}
        responses["302"] = {"description": "Found", "headers": location}
    error = {JSON: {"schema": {"$ref": _REF.format(name="Error")}}}
    for status in sorted({*operation.errors, *_COMMON_ERRORS}):
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": error}
    descriptions = {**_REQUEST_ID, **_RATE_LIMIT, **_RETRY_AFTER}
    responses["429"]["headers"] = {name: _header(text) for name, text in descriptions.items()}
    return responses


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "schema": dict(parameter.schema),
    }
    if parameter.required:
        spec["required"] = True
    elif parameter.place == "query":
        spec["allowEmptyValue"] = True
    return spec
