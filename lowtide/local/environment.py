"""The environment of a process, and who wins where several say something.

Later wins:
1. the environment of `lowtide up` itself, without its `LOWTIDE_*` and `OTEL_*`;
2. the manifest: `envFrom`, then `env`;
3. this machine's defaults: object store, log format, base URL;
4. the user's `LOWTIDE_*` and `OTEL_*`, so that `LOWTIDE_ENGINE=noop lowtide up` works;
5. what only the runtime can know: ports, the database's address and role, the keys, `K_SINK`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lowtide.local.errors import BadManifest, LocalError
from lowtide.local.ports import HOST
from lowtide.settings import PREFIX, unknown_variables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.local import manifests as kinds

Values = dict[str, dict[str, str]]

_SETTINGS = (PREFIX, "OTEL_")

# Two stacks' worth of processes share one user environment, so these can have no one value.
_PER_PROCESS = (
    "LOWTIDE_DATABASE_URL",
    "LOWTIDE_API_KEY_PEPPER",
    "LOWTIDE_PORTAL_SECRET",
    "LOWTIDE_PORTAL_PASSWORD_HASH",
    "LOWTIDE_PORTAL_TENANT_DATABASE_URL",
    "LOWTIDE_HEALTH_PORT",
    "LOWTIDE_PORTAL_PORT",
    "LOWTIDE_PORTAL_HOST",
)


def check_user(user: Mapping[str, str]) -> None:
    """Raise LocalError for `LOWTIDE_*` variables that no setting reads."""
    if unknown := unknown_variables(dict(user)):
        raise LocalError(f"Unknown setting {', '.join(unknown)}: see docs/settings.md.")


def manifest_environment(
    container: kinds.Container, config_maps: Values, secrets: Values
) -> dict[str, str]:
    """Return what the manifest says; raises BadManifest for a reference that leads nowhere."""
    found: dict[str, str] = {}
    for source in container.env_from:
        for reference, objects, kind in (
            (source.config_map_ref, config_maps, "ConfigMap"),
            (source.secret_ref, secrets, "Secret"),
        ):
            if reference and not (reference.optional and reference.name not in objects):
                found |= _object(objects, kind, reference.name)
    for variable in container.env:
        value = _value(variable, config_maps, secrets)
        if value is not None:
            found[variable.name] = value
    return found


def merge(
    user: Mapping[str, str],
    manifest: Mapping[str, str],
    defaults: Mapping[str, str],
    fixed: Mapping[str, str],
) -> dict[str, str]:
    """Return one process's environment, by the order at the top of this module."""
    settings = {name: value for name, value in user.items() if name.startswith(_SETTINGS)}
    owned = {name: manifest[name] for name in _PER_PROCESS if name in manifest}
    for name in _PER_PROCESS:
        settings.pop(name, None)
    return {
        **{name: value for name, value in user.items() if not name.startswith(_SETTINGS)},
        **manifest,
        **defaults,
        **settings,
        **owned,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), user.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "HOST": HOST,
        **fixed,
    }


def _value(variable: kinds.Variable, config_maps: Values, secrets: Values) -> str | None:
    source = variable.value_from
    if source is None:
        return variable.value
    for reference, objects, kind in (
        (source.config_map_key_ref, config_maps, "ConfigMap"),
        (source.secret_key_ref, secrets, "Secret"),
    ):
        if reference is None:
            continue
        if reference.optional:
            return objects.get(reference.name, {}).get(reference.key)
        values = _object(objects, kind, reference.name)
        if reference.key not in values:
            raise BadManifest(f"{kind} {reference.name} has no key {reference.key}")
        return values[reference.key]
    raise BadManifest(f"Variable {variable.name} takes its value from something unknown")


def _object(objects: Values, kind: str, name: str) -> dict[str, str]:
    if name not in objects:
        raise BadManifest(f"No {kind} named {name}")
    return objects[name]
