"""The environment and the user of a process."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from lowtide.core.pools import Pool
from lowtide.core.redaction import masked
from lowtide.local.fleets import bound_variable, declared_fleets, shares_engines
from lowtide.local.options import BadManifest, LocalError, StartFailed
from lowtide.local.ports import HOST
from lowtide.settings import PREFIX, EngineKind, Settings, unknown_variables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowtide.fleets.parsing import ParsedFile
    from lowtide.local import manifests as kinds


NAME = "embedded_postgres"


class Credentials(TypedDict, total=False):
    """Arguments of `subprocess.Popen` that select a child's user."""

    user: int
    group: int
    extra_groups: Sequence[int]


def postgres_user() -> pwd.struct_passwd | None:
    """Return PostgreSQL's user, created on first use; None unless running as root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(NAME)
    except KeyError:
        pass
    try:
        subprocess.run(  # noqa: S603 - a fixed command
            ["useradd", "--system", "--shell", "/usr/sbin/nologin", NAME],  # noqa: S607
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        with suppress(KeyError):  # another stack has created it
            return pwd.getpwnam(NAME)
        raise StartFailed(
            f"PostgreSQL does not run as root, and creating the user {NAME} failed ({error}): "
            "run lowtide as another user."
        ) from error
    return pwd.getpwnam(NAME)


def postgres_credentials() -> Credentials:
    """Return the credentials that PostgreSQL's processes start with."""
    user = postgres_user()
    if user is None:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


Values = dict[str, dict[str, str]]

_SETTINGS = (PREFIX, "OTEL_")
_ENGINE, _ENGINE_URL = f"{PREFIX}ENGINE", f"{PREFIX}ENGINE_URL"
_DEFAULT_URL: str = Settings.model_fields["engine_url"].default

# Every process inherits the same user environment, but each needs its own value of these.
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

_OF_FLEET = (
    "LOWTIDE_FLEET",
    "LOWTIDE_ENGINE",
    "LOWTIDE_ENGINE_URL",
    "LOWTIDE_ENGINE_API_KEY",
    "LOWTIDE_WORKER_CONCURRENCY",
)


def check_user(user: Mapping[str, str]) -> None:
    """Raise LocalError for `LOWTIDE_*` variables that no setting reads, and for invalid fleets."""
    if unknown := unknown_variables(dict(user)):
        raise LocalError(f"Unknown setting {', '.join(unknown)}: see docs/settings.md.")
    declared_fleets(user)


def pool_bounds(user: Mapping[str, str], fleets: ParsedFile | None = None) -> dict[str, str]:
    """Return the max replicas of pools by variable, where the manifests' do not apply.

    These are the user's. With an engine behind one URL, a pool without one gets a single worker: more
    would split the engine's batch, and each is counted as a replica of its own.
    """
    variables = [bound_variable(pool) for pool in Pool]
    shares = user.get(_ENGINE) == EngineKind.OPENAI if fleets is None else shares_engines(fleets)
    shared = dict.fromkeys(variables, "1") if shares else {}
    return shared | {name: user[name] for name in variables if name in user}


def engine_notice(user: Mapping[str, str], fleets: ParsedFile | None = None) -> str:
    """Return a sentence on the bounds that `pool_bounds` chose; empty if it chose none."""
    bounds = pool_bounds(user, fleets)
    chosen = [pool for pool in Pool if bound_variable(pool) in bounds.keys() - user.keys()]
    if not chosen:
        return ""
    workers = " and one ".join(chosen)
    variables = " and ".join(map(bound_variable, chosen))
    if fleets is not None:
        return (
            f"at most one {workers} in a fleet that sets no max_replicas, as its workers share an "
            f"engine; {variables} can allow more"
        )
    url = masked(user.get(_ENGINE_URL, _DEFAULT_URL))
    return f"at most one {workers}, as all share the engine at {url}; {variables} can allow more"


def fleet_environment(container: kinds.Container, manifest: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a worker's fleet, which the user's settings do not override."""
    own = {variable.name for variable in container.env}
    return {name: manifest[name] for name in _OF_FLEET if name in own and name in manifest}


def manifest_environment(
    container: kinds.Container, config_maps: Values, secrets: Values
) -> dict[str, str]:
    """Return the variables of a container; raises BadManifest for a dangling reference."""
    variables: dict[str, str] = {}
    for source in container.env_from:
        for reference, objects, kind in (
            (source.config_map_ref, config_maps, "ConfigMap"),
            (source.secret_ref, secrets, "Secret"),
        ):
            if reference and not (reference.optional and reference.name not in objects):
                variables |= _object(objects, kind, reference.name)
    for variable in container.env:
        value = _value(variable, config_maps, secrets)
        if value is not None:
            variables[variable.name] = value
    return variables


def merge(
    user: Mapping[str, str],
    manifest: Mapping[str, str],
    defaults: Mapping[str, str],
    fixed: Mapping[str, str],
) -> dict[str, str]:
    """Return the environment of one process.

    Ascending precedence: the user's other variables, the manifest, `defaults`, the user's
    `LOWTIDE_*` and `OTEL_*` settings, the manifest's per-process variables, `fixed`.
    """
    settings = {name: value for name, value in user.items() if name.startswith(_SETTINGS)}
    per_process = {name: manifest[name] for name in _PER_PROCESS if name in manifest}
    for name in _PER_PROCESS:
        settings.pop(name, None)
    return {
        **{name: value for name, value in user.items() if not name.startswith(_SETTINGS)},
        **manifest,
        **defaults,
        **settings,
        **per_process,
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
    raise BadManifest(f"Variable {variable.name} has an unsupported valueFrom")


def _object(objects: Values, kind: str, name: str) -> dict[str, str]:
    if name not in objects:
        raise BadManifest(f"No {kind} named {name}")
    return objects[name]
