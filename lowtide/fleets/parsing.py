"""The file of fleets: its format, and all problems of one at once, with their lines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from lowtide.core.yaml_files import KEY, Part, YamlFile, problems_of, read_text
from lowtide.fleets.checks import contradictions
from lowtide.fleets.file import default_fleet
from lowtide.fleets.model import Fleet, Fleets, Share
from lowtide.settings import AUTO, Duration, EngineKind, NumberOrAuto, at_least

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lowtide.core.yaml_files import Location, Problem
    from lowtide.settings import Settings


_NAME: Final = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
_MODEL: Final = r"^([^\s*]{1,256}\*?|\*)$"
_EXACT_MODEL: Final = r"^[^\s*]{1,256}$"
_VARIABLE: Final = r"^[A-Z_][A-Z0-9_]*$"
_LABEL: Final = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
_FIXES: Final = {
    _NAME: "a fleet's name becomes part of the names of Kubernetes objects: use at most 40 of a-z, 0-9 "
    "and -, with a letter or a digit first and last",
    _MODEL: "must be a model's name, a prefix such as qwen-*, or *",
    _EXACT_MODEL: "must be the exact name of a model, without spaces and without *",
    _VARIABLE: "must be the name of an environment variable, such as QWEN_API_KEY: keys do not belong "
    "in this file",
    _LABEL: "must be usable as the value of a Kubernetes label, such as H100",
}

_SECRETS_IN: Final = "name a variable in engine.api_key_env"

_Name = Annotated[str, StringConstraints(pattern=_NAME)]
_Model = Annotated[str, StringConstraints(pattern=_MODEL)]
_ExactModel = Annotated[str, StringConstraints(pattern=_EXACT_MODEL)]
_Variable = Annotated[str, StringConstraints(pattern=_VARIABLE)]
_Label = Annotated[str, StringConstraints(pattern=_LABEL)]


def _engine_url(value: str) -> str:
    """Validate the base URL of an engine; raises ValueError."""
    parts = urlsplit(value)
    if parts.username is not None or parts.password is not None:
        raise ValueError("must hold no user and no password: name a variable in api_key_env")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must start with http:// or https:// and have a host, but no query")
    return value.rstrip("/")


class _Part(Part):
    """A mapping of the file; what it omits comes from the settings."""

    def given(self) -> dict[str, Any]:
        """Return the values that the file sets, except those of mappings."""
        return {
            name: value
            for name in self.model_fields_set
            if not isinstance(value := getattr(self, name), _Part) and value is not None
        }


class PoolPart(_Part):
    """Bounds and prices of the workers of one price class."""

    min_replicas: int | None = Field(default=None, ge=0, description="Replicas without any work.")
    max_replicas: int | None = Field(default=None, ge=0, description="Max replicas.")
    price: float | None = Field(default=None, ge=0, description="Price of a replica per hour.")
    rows_per_replica: int | None = Field(
        default=None, ge=1, description="KEDA's target: requests per replica."
    )
    cold_start: Duration | None = Field(
        default=None, ge=0, description="Max time until a new replica works, such as 15m."
    )
    rate: float | None = Field(
        default=None,
        gt=0,
        description="Assumed requests per second of a replica, until measurements suffice.",
    )


class EnginePart(_Part):
    """The engine of the fleet's workers."""

    kind: EngineKind | None = Field(default=None, description="As LOWTIDE_ENGINE.")
    url: Annotated[str, AfterValidator(_engine_url)] | None = Field(
        default=None, description="Base URL, without /v1. 127.0.0.1 is the worker's own pod."
    )
    api_key_env: _Variable | None = Field(
        default=None,
        description="Name of the environment variable that holds the engine's API key.",
    )
    concurrency: Annotated[NumberOrAuto, at_least(1)] | None = Field(
        default=None, description="Max requests in flight per worker, or auto."
    )
    longest_context: int | None = Field(
        default=None, ge=1, description="Max tokens of request and answer together."
    )
    share: Share | None = Field(
        default=None, description="`spare` if the engine also serves online traffic, else `all`."
    )


class FleetPart(_Part):
    """Workers that serve a set of models on one kind of hardware."""

    models: tuple[_Model, ...] = Field(
        min_length=1, description="Names of models, prefixes such as qwen-*, or *."
    )
    aliases: dict[_ExactModel, _ExactModel] | None = Field(
        default=None, description="Further names, each of a model that the fleet serves."
    )
    endpoints: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Endpoints that the models support."
    )
    engine: EnginePart = Field(default=EnginePart(), description="The engine.")
    spot: PoolPart = Field(default=PoolPart(), description="Cheap and interruptible workers.")
    dedicated: PoolPart = Field(
        default=PoolPart(), description="Stable and more expensive workers."
    )
    gpu: _Label | None = Field(
        default=None, description="Kind of GPU, the value of the nodes' label lowtide.dev/gpu."
    )
    fallback: str | None = Field(
        default=None, description="Fleet that takes over what this one cannot finish in time."
    )


class FleetsFile(_Part):
    """The file that LOWTIDE_FLEETS names."""

    fleets: dict[_Name, FleetPart] = Field(min_length=1, description="The fleets, by name.")


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """A valid file: its text, what it sets by fleet, and the fleets with what it omits."""

    text: str
    parts: Mapping[str, FleetPart]
    fleets: Fleets


def read_file(path: Path, settings: Settings) -> ParsedFile:
    """Read a file of fleets; raises InvalidFile."""
    return parse(read_text(path), settings, path.name)


def parse(text: str, settings: Settings, name: str = "fleets.yaml") -> ParsedFile:
    """Parse the text of a file; raises InvalidFile, whose lines name the file and the line."""
    file = YamlFile.parse(text, name)
    found: list[Problem] = []
    try:
        parts = FleetsFile.model_validate(file.data).fleets
    except ValidationError as error:
        found += problems_of(error, FleetsFile, _FIXES, secrets_in=_SECRETS_IN)
    else:
        fleets = Fleets(tuple(_fleet(name, part, settings) for name, part in parts.items()))
        problems = (*contradictions(fleets), *_closed_endpoints(parts, settings))
        found += [(("fleets", *location), message) for location, message in problems]
        if not found and not file.repeated:
            return ParsedFile(text, parts, fleets)
    raise file.refusal((location, _text(location, message)) for location, message in found)


def _fleet(name: str, part: FleetPart, settings: Settings) -> Fleet:
    default = default_fleet(settings)
    engine = part.engine.given()
    if engine.get("concurrency") == AUTO:
        engine["concurrency"] = None
    return replace(
        default,
        name=name,
        engine=replace(default.engine, **engine),
        spot=replace(default.spot, **part.spot.given()),
        dedicated=replace(default.dedicated, **part.dedicated.given()),
        **part.given(),
    )


def _closed_endpoints(
    parts: Mapping[str, FleetPart], settings: Settings
) -> Iterator[tuple[Location, str]]:
    for name, part in parts.items():
        for position, endpoint in enumerate(part.endpoints or ()):
            if endpoint not in settings.endpoints:
                yield (
                    (name, "endpoints", position),
                    f"{endpoint} is not one of LOWTIDE_ENDPOINTS: {', '.join(settings.endpoints)}",
                )


def _text(location: Location, message: str) -> str:
    parts = [str(part) for part in location if part != KEY]
    if not parts:
        return message
    if parts[0] != "fleets" or len(parts) < 2:
        return f"{'.'.join(parts)}: {message}"
    key = f" {'.'.join(parts[2:])}:" if parts[2:] else ""
    return f"fleet {parts[1]}:{key} {message}"
