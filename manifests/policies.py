"""Checkov over every pod template, and the one list of what it may find.

Checkov brings a hundred packages of its own, some older than ours: it has an environment of its own
(`requirements/manifests.txt`) and is run as a program.
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
    """A check that these objects may fail in these kustomizations, and why."""

    check: str
    objects: tuple[str, ...]
    kustomizations: tuple[str, ...]
    reason: str

    def covers(self, finding: Finding) -> bool:
        """Whether this is what the finding is about."""
        return (
            finding.check == self.check
            and any(fnmatchcase(finding.object, one) for one in self.objects)
            and any(fnmatchcase(finding.kustomization, one) for one in self.kustomizations)
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """What checkov has against an object."""

    kustomization: str
    object: str
    check: str
    text: str


def allowances(path: Path = ALLOWED) -> list[Allowance]:
    """Return what may be found; names are shell patterns."""
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
    """Return an object as checkov knows it: a Service of Knative's is its Deployment."""
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

    Raises FileNotFoundError without checkov, CalledProcessError when it does not run.
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
    """`Deployment.lowtide.portal` is `Deployment/portal`."""
    kind, _, name = resource.split(".", 2)
    return f"{kind}/{name}"


def unexplained(found: Sequence[Finding], allowed: Sequence[Allowance]) -> list[str]:
    """Return the findings that nothing allows, and the allowances that allow nothing."""
    problems = [
        f"{one.kustomization} {one.object}: {one.check}: {one.text}"
        for one in found
        if not any(allowance.covers(one) for allowance in allowed)
    ]
    for allowance in allowed:
        for name in allowance.objects:
            alone = replace(allowance, objects=(name,))
            if not any(alone.covers(one) for one in found):
                problems.append(f"{ALLOWED.name}: {allowance.check} is found in no {name}")
    return problems
