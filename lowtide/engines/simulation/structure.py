"""JSON text for requests that ask for it: any object, or an instance of a schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lowtide.engines.simulation.requests import BadRequest, Draft, Request, shorten, write

if TYPE_CHECKING:
    from random import Random

    from lowtide.engines.simulation.requests import Written


def structured(draft: Draft, prompt: str, choice: int = 0) -> Written | None:
    """Return the text that `response_format` or vLLM's options ask for; None for plain text.

    Raises BadRequest for an invalid format, as OpenAI does.
    """
    request = draft.request
    if request.response_format is not None:
        return _write_formatted(draft, prompt, choice, request.response_format)
    schema = request.guided_json
    if isinstance(request.structured_outputs, dict):
        schema = request.structured_outputs.get("json")
    if schema is None:
        return None
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise BadRequest(f"The schema is not JSON: {error}", "structured_outputs") from error
    text = instance_text(schema, draft.random(choice), "structured outputs", "structured_outputs")
    return shorten(draft, text)


def formatted_text(draft: Draft, prompt: str, format_: object) -> Written | None:
    """Return the text that `text.format` of the Responses API asks for; None for plain text."""
    if format_ is None:
        return None
    if not isinstance(format_, dict):
        raise BadRequest("'text.format' must be an object.", "text.format")
    match format_.get("type"):
        case "text":
            return None
        case "json_object":
            return shorten(draft, _object_text(draft, prompt))
        case "json_schema":
            text = _schema_text(format_, draft.random(), "text.format", "invalid_json_schema")
            return shorten(draft, text)
    raise BadRequest("'text.format.type' must be text, json_object or json_schema.", "text.format")


def instance_text(
    schema: object, random: Random, owner: str, param: str, code: str | None = None
) -> str:
    """Return an instance of a schema as JSON text; BadRequest names the schema's owner."""
    # Most requests want plain text; only the others pay for this import.
    from lowtide.engines.simulation.schemas import InvalidSchema, instance_of

    try:
        instance = instance_of(schema, random)
    except InvalidSchema as error:
        raise BadRequest(f"Invalid schema for {owner}: {error}", param, code) from error
    return json.dumps(instance, ensure_ascii=False, separators=(",", ":"))


def _write_formatted(draft: Draft, prompt: str, choice: int, format_: object) -> Written | None:
    kind = format_.get("type") if isinstance(format_, dict) else None
    match kind:
        case "text":
            return None
        case "json_object":
            return shorten(draft, _object_text(draft, prompt, choice))
        case "json_schema":
            inner = format_.get("json_schema") if isinstance(format_, dict) else None
            if not isinstance(inner, dict):
                raise BadRequest(
                    "Missing required parameter: 'response_format.json_schema'.",
                    "response_format.json_schema",
                    "missing_required_parameter",
                )
            text = _schema_text(inner, draft.random(choice), "response_format", None)
            return shorten(draft, text)
    raise BadRequest(
        "'response_format.type' must be text, json_object or json_schema.", "response_format"
    )


def _schema_text(format_: dict[str, Any], random: Random, param: str, code: str | None) -> str:
    name = format_.get("name")
    if not isinstance(name, str) or not name:
        name_param = f"{param}.name" if param == "text.format" else f"{param}.json_schema.name"
        raise BadRequest(
            f"Missing required parameter: '{name_param}'.", name_param, "missing_required_parameter"
        )
    schema = format_.get("schema", {})
    schema_param = f"{param}.schema" if param == "text.format" else param
    return instance_text(schema, random, f"response_format '{name}'", schema_param, code)


def _object_text(draft: Draft, prompt: str, choice: int = 0) -> str:
    plain = Draft(Request(), draft.id, draft.created, draft.tokens)
    text = write(plain, prompt, choice).text
    return json.dumps({"answer": text}, ensure_ascii=False, separators=(",", ":"))
