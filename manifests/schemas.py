"""Validation of objects against the schemas that an API server applies.

Core kinds are checked by kubernetes-validate, custom resources by the schemas of the exact versions
that `docs/deploy.md` installs. `python -m manifests.schemas FILE…` takes these from their projects'
CRDs; all are under the Apache License 2.0, see `schemas/README.md`. An unknown field is a finding,
as an API server drops it with a warning.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator

if TYPE_CHECKING:
    from lowtide.local.rendering import Document

KUBERNETES = "1.36"
FOLDER = Path(__file__).with_name("schemas")
_CORE = frozenset(
    [
        "v1",
        "apps/v1",
        "batch/v1",
        "networking.k8s.io/v1",
        "policy/v1",
        "rbac.authorization.k8s.io/v1",
        "scheduling.k8s.io/v1",
    ]
)
_KEPT = frozenset(
    [
        "type",
        "properties",
        "items",
        "additionalProperties",
        "required",
        "enum",
        "pattern",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "anyOf",
        "oneOf",
        "allOf",
        "not",
    ]
)


def findings(document: Document) -> list[str]:
    """Return the problems that an API server would report."""
    # Cached by content: most objects are the same in every overlay, and validation is slow.
    return list(_findings(json.dumps(document, sort_keys=True)))


@cache
def _findings(text: str) -> tuple[str, ...]:
    document = json.loads(text)
    version, kind = document["apiVersion"], document["kind"]
    if version in _CORE:
        return _core(document)
    if kind == "ApplicationSet":
        # Its own schema is 400 kB of nested generators; only the generated Application matters.
        made = document["spec"]["template"]["spec"]
        return tuple(findings({**document, "kind": "Application", "spec": made}))
    validator = _validator(version, kind)
    if validator is None:
        return (f"no schema for {version} {kind}: see manifests/schemas/README.md",)
    return tuple(
        f"{'.'.join(str(step) for step in error.absolute_path)}: {error.message}"
        for error in validator.iter_errors(document)
    )


def _core(document: Document) -> tuple[str, ...]:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        where = ".".join(str(step) for step in error.path)
        return (f"{where}: {error.message}",)
    except kubernetes_validate.SchemaNotFoundError:
        return (f"Kubernetes {KUBERNETES} has no {document['kind']} of {document['apiVersion']}",)
    return ()


@cache
def _validator(version: str, kind: str) -> Draft202012Validator | None:
    path = FOLDER / _name(version, kind)
    return Draft202012Validator(json.loads(path.read_bytes())) if path.exists() else None


def _name(version: str, kind: str) -> str:
    return f"{version.replace('/', '_')}_{kind}.json".lower()


def strict(schema: Any) -> Any:
    """Return a CRD's schema as plain JSON Schema, without prose; it allows no unknown fields."""
    found = {name: value for name, value in schema.items() if name in _KEPT}
    for name in ("anyOf", "oneOf", "allOf"):
        if name in found:
            # Conditions on fields that the enclosing schema defines.
            found[name] = [_condition(one) for one in found[name]]
    if "not" in found:
        found["not"] = _condition(found["not"])
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("anyOf", None)
        found["type"] = ["integer", "string"]
    if "properties" in found:
        found["properties"] = {name: strict(one) for name, one in found["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
    if "items" in found:
        found["items"] = strict(found["items"])
    if isinstance(found.get("additionalProperties"), dict):
        found["additionalProperties"] = strict(found["additionalProperties"])
    return found


def _condition(schema: Any) -> Any:
    return {
        name: (
            {key: _condition(one) for key, one in value.items()} if name == "properties" else value
        )
        for name, value in schema.items()
        if name in _KEPT
    }


def take(crd: Path) -> None:
    """Write the schemas of a CRD's served versions, except deprecated ones."""
    for document in yaml.safe_load_all(crd.read_text()):
        if not document or document.get("kind") != "CustomResourceDefinition":
            continue
        spec = document["spec"]
        for version in spec["versions"]:
            if not version["served"] or version.get("deprecated"):
                continue
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"] |= {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": {"type": "object"},
            }
            group = cast("str", spec["group"])
            path = FOLDER / _name(f"{group}/{version['name']}", spec["names"]["kind"])
            path.write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        take(Path(argument))
