"""Checkov's checks of every object, and the list of allowed findings.

Checkov depends on a hundred packages, some older than ours: it is installed in its own environment
(`requirements/manifests.txt`) and run as a program.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from manifests.overlays import ROOT
from manifests.pods import templates

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lowtide.local.rendering import Document

ALLOWED = Path(__file__).with_name("allowed.yaml")
CHECKOV = ROOT / ".venv-manifests" / "bin" / "checkov"


@dataclass(frozen=True, slots=True)
class Allowance:
    """A check that these objects may fail in these kustomizations, and the reason."""

    check: str
    objects: tuple[str, ...]
    kustomizations: tuple[str, ...]
    reason: str

    def covers(self, finding: Finding) -> bool:
        """Return True if this allows the finding."""
        return (
            finding.check == self.check
            and any(fnmatchcase(finding.object, one) for one in self.objects)
            and any(fnmatchcase(finding.kustomization, one) for one in self.kustomizations)
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """A check of checkov that an object fails."""

    kustomization: str
    object: str
    check: str
    text: str


def allowances(path: Path = ALLOWED) -> list[Allowance]:
    """Return the allowed findings; names are shell patterns."""
    return [
        Allowance(
            one["check"],
            tuple(one["objects"]),
            tuple(one.get("kustomizations", ["*"])),
            one["reason"],
        )
        for one in yaml.safe_load(path.read_text())
    ]


def wrapped(document: Document) -> Document:
    """Return an object in a form that checkov knows: a Knative Service as its Deployment."""
    if document["apiVersion"] != "serving.knative.dev/v1":
        return document
    (template,) = templates([document])
    pod = {
        name: value
        for name, value in template.spec.items()
        if name not in {"containerConcurrency", "timeoutSeconds", "responseStartTimeoutSeconds"}
    }
    metadata = document["metadata"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "spec": {
            "selector": {"matchLabels": template.labels},
            "template": {"metadata": {"labels": template.labels}, "spec": pod},
        },
    }


def scan(kustomizations: Mapping[str, Iterable[Document]]) -> list[Finding]:
    """Return every check that an object fails.

    Raises FileNotFoundError without checkov, CalledProcessError if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, documents in kustomizations.items():
            file = Path(folder) / f"{name.replace('/', '-')}.yaml"
            file.write_text(yaml.safe_dump_all([wrapped(one) for one in documents]))
            files[file.name] = name
        output = subprocess.run(  # noqa: S603 - our own environment
            [
                *(str(CHECKOV), "--directory", folder, "--framework", "kubernetes"),
                *("--output", "json", "--soft-fail", "--compact", "--quiet", "--skip-download"),
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    report: Any = json.loads(output)
    return [
        Finding(
            files[Path(one["file_path"]).name],
            _object(one["resource"]),
            one["check_id"],
            one["check_name"],
        )
        for one in report["results"]["failed_checks"]
    ]


def _object(resource: str) -> str:
    """Convert `Deployment.lowtide.portal` to `Deployment/portal`."""
    kind, _, name = resource.split(".", 2)
    return f"{kind}/{name}"


def unexplained(found: Sequence[Finding], allowed: Sequence[Allowance]) -> list[str]:
    """Return the findings without an allowance, and the allowances without a finding."""
    problems = [
        f"{one.kustomization} {one.object}: {one.check}: {one.text}"
        for one in found
        if not any(allowance.covers(one) for allowance in allowed)
    ]
    for allowance in allowed:
        for name in allowance.objects:
            alone = replace(allowance, objects=(name,))
            if not any(alone.covers(one) for one in found):
                problems.append(f"{ALLOWED.name}: {allowance.check} has no finding for {name}")
    return problems
