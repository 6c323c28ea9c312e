"""Kustomize's replacements: a field of one object copied, whole or in part, into others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lowtide.local.errors import BadManifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowtide.local.patches import Document

_STEP = re.compile(r"\[([^\]]+)\]|([^.\[\]]+)")


def replace(documents: Sequence[Document], rule: Mapping[str, Any]) -> None:
    """Apply one replacement, in place; raises BadManifest where it finds nothing."""
    source = rule["source"]
    value = _read(_one(documents, source), source["fieldPath"])
    value = _piece(value, source.get("options", {}))
    for target in rule["targets"]:
        chosen = [one for one in documents if _selected(one, target["select"])]
        for document in chosen:
            for path in target["fieldPaths"]:
                _write(document, path, value, target.get("options", {}))


def _one(documents: Sequence[Document], selector: Mapping[str, Any]) -> Document:
    found = [one for one in documents if _selected(one, selector)]
    if len(found) != 1:
        raise BadManifest(f"A replacement's source {dict(selector)} is {len(found)} objects, not 1")
    return found[0]


def _selected(document: Document, selector: Mapping[str, Any]) -> bool:
    return bool(
        document["kind"] == selector["kind"] and document["metadata"]["name"] == selector["name"]
    )


def _keys(path: str) -> list[str]:
    return [bracketed or plain for bracketed, plain in _STEP.findall(path)]


def _parent(document: Document, path: str) -> tuple[Any, str]:
    place: Any = document
    *ahead, last = _keys(path)
    try:
        for key in ahead:
            place = place[int(key) if isinstance(place, list) else key]
        place[last]
    except (KeyError, IndexError, ValueError):
        raise BadManifest(f"{document['kind']} has no field {path} for a replacement") from None
    return place, last


def _read(document: Document, path: str) -> str:
    place, last = _parent(document, path)
    return str(place[last])


def _piece(value: str, options: Mapping[str, Any]) -> str:
    if "delimiter" not in options:
        return value
    pieces = value.split(options["delimiter"])
    index = options.get("index", 0)
    if index >= len(pieces):
        raise BadManifest(f"{value} has no part {index} by {options['delimiter']!r}")
    return str(pieces[index])


def _write(document: Document, path: str, value: str, options: Mapping[str, Any]) -> None:
    place, last = _parent(document, path)
    if "delimiter" in options:
        pieces = str(place[last]).split(options["delimiter"])
        index = options.get("index", 0)
        # Past the end is one more piece, as kustomize has it.
        pieces[index : index + 1] = [value]
        value = options["delimiter"].join(pieces)
    place[last] = value
