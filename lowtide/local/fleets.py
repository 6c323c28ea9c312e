"""The fleets of a local stack: their file, their workers, and the keys of their engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from lowtide.core.pools import Pool
from lowtide.fleets.parsing import read_file
from lowtide.fleets.render import scaler_text, worker_documents
from lowtide.local.options import LocalError
from lowtide.settings import PREFIX, EngineKind, read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.fleets.parsing import ParsedFile
    from lowtide.local.rendering import Document


FILE_VARIABLE: Final = f"{PREFIX}FLEETS"


def declared_fleets(user: Mapping[str, str]) -> ParsedFile | None:
    """Return the fleets of the user's file; None without one. Raises LocalError if it is invalid.

    Where a real engine is shared, one worker per pool is the default, as more would split its batch.
    """
    if not user.get(FILE_VARIABLE):
        return None
    path = Path(user[FILE_VARIABLE])
    try:
        settings = read_settings()
        file = read_file(path, settings)
        if shares_engines(file):
            one = {f"{pool.value}_replicas": 1 for pool in Pool if bound_variable(pool) not in user}
            file = read_file(path, settings.model_copy(update=one))
    except ValueError as error:
        raise LocalError(str(error)) from error
    missing = [f"{key} (fleet {name})" for name, key in _keys(file).items() if key not in user]
    if missing:
        raise LocalError(f"Set the API keys of the engines: {', '.join(missing)}.")
    return file


def shares_engines(file: ParsedFile) -> bool:
    """Return whether a fleet has a real engine, which all its workers share."""
    return any(fleet.engine.kind == EngineKind.OPENAI for fleet in file.fleets)


def bound_variable(pool: Pool) -> str:
    """Return the variable of a pool's max replicas."""
    return f"{PREFIX}{pool.value.upper()}_REPLICAS"


def engine_keys(file: ParsedFile, user: Mapping[str, str]) -> dict[str, str]:
    """Return the API keys of the engines, by the variables that the file names."""
    return {key: user[key] for key in _keys(file).values()}


def worker_objects(root: Path, file: ParsedFile) -> list[Document]:
    """Return the Deployments, Services and ScaledObjects of all fleets, as `fleets render` writes."""
    objects: list[Document] = []
    for fleet in file.fleets:
        for pool in Pool:
            objects += worker_documents(root, fleet, file.parts[fleet.name].engine, pool)
            objects.append(yaml.safe_load(scaler_text(root, fleet, pool)))
    return objects


def _keys(file: ParsedFile) -> dict[str, str]:
    """Return the variable of each engine's key, by the fleets that name one."""
    return {
        name: part.engine.api_key_env
        for name, part in file.parts.items()
        if part.engine.api_key_env is not None
    }
