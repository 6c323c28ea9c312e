#!/usr/bin/env python3
"""Reads and writes which image an overlay runs, as tag@sha256:…, and keeps the rest of the file.

promotion.py show knative/overlays/stage
promotion.py set knative/overlays/prod <image name> <tag>@sha256:<digest>
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

RELEASE = re.compile(r"(?P<tag>[\w.-]{1,128})@(?P<digest>sha256:[0-9a-f]{64})")
# The entry of `images` that the manifests' name for the image leads to.
ENTRY = re.compile(r"^(?P<indent> *)- name: lowtide\n(?:(?P=indent)  \w+: .*\n)*", re.MULTILINE)


def shown(text: str) -> str:
    """Return the release that a kustomization names; raises ValueError where it names none."""
    entry = _entry(text)[0]
    tag, digest = (
        found[1].strip("\"'") if (found := re.search(rf"\b{key}: (\S+)", entry)) else ""
        for key in ("newTag", "digest")
    )
    return _release(f"{tag}@{digest}")[0]


def changed(text: str, name: str, release: str) -> str:
    """Return the kustomization with another image; raises ValueError for no release."""
    found = _release(release)
    indent = _entry(text)["indent"]
    lines = ("name: lowtide", f"newName: {name}", f"newTag: {found['tag']!r}".replace("'", '"'))
    entry = f"\n{indent}  ".join((*lines, f"digest: {found['digest']}"))
    return ENTRY.sub(lambda _: f"{indent}- {entry}\n", text, count=1)


def _entry(text: str) -> re.Match[str]:
    found = ENTRY.search(text)
    if found is None:
        raise ValueError("No image named lowtide in the overlay's kustomization.yaml.")
    return found


def _release(text: str) -> re.Match[str]:
    found = RELEASE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no release: name it as tag@sha256:<64 digits>.")
    return found


def main() -> None:
    """Run one of the two commands."""
    path = Path(sys.argv[2]) / "kustomization.yaml"
    text = path.read_text(encoding="utf-8")
    try:
        if sys.argv[1] == "show":
            sys.stdout.write(shown(text) + "\n")
        else:
            path.write_text(changed(text, *sys.argv[3:]), encoding="utf-8")
    except ValueError as error:
        sys.exit(f"{path}: {error}")


if __name__ == "__main__":
    main()
