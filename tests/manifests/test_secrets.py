"""The External Secrets fill exactly the Secrets that the manifests read."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from lowtide.local.rendering import documents, render
from manifests import check
from manifests.overlays import OVERLAYS, ROOT, rendered
from manifests.pods import templates

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowtide.local.rendering import Document
    from manifests.pods import Template

COMPONENT = "knative/components/external-secrets"
STORES = sorted((ROOT / "knative/examples/secret-stores").glob("*.yaml"))
# What every provider accepts; Azure's rule is the narrowest.
ENTRY = re.compile(r"[0-9a-zA-Z-]{1,127}")


@dataclass
class Reads:
    """The keys of Secrets that manifests read, and the Secrets that become variables as a whole."""

    required: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    optional: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    whole: set[str] = field(default_factory=set)

    @property
    def names(self) -> set[str]:
        """Every Secret."""
        return set(self.required) | set(self.optional) | self.whole

    def add(self, template: Template) -> None:
        """Add what a pod reads."""
        for container in template.containers:
            self.whole |= {
                one["secretRef"]["name"]
                for one in container.get("envFrom", [])
                if "secretRef" in one
            }
            for one in container.get("env", []):
                reference = one.get("valueFrom", {}).get("secretKeyRef")
                if reference is not None:
                    keys = self.optional if reference.get("optional") else self.required
                    keys[reference["name"]].add(reference["key"])


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> Reads:
    """What every overlay reads, with every component."""
    found = Reads()
    for document in everything(tmp_path_factory.mktemp("overlay")):
        for template in templates([document]):
            found.add(template)
        if document["kind"] == "TriggerAuthentication":
            for one in document["spec"]["secretTargetRef"]:
                found.required[one["name"]].add(one["key"])
    return found


def everything(folder: Path) -> Iterator[Document]:
    for overlay in OVERLAYS:
        yield from rendered(f"knative/overlays/{overlay}")
    identity = ROOT / "knative/components/identity"
    (folder / "kustomization.yaml").write_text(
        f"resources: [{ROOT}/knative/overlays/prod]\ncomponents: [{identity}]\n"
    )
    for resource in render(folder):
        yield resource.document


def filled() -> dict[str, Document]:
    """Return the External Secrets by the Secret that each fills."""
    return {one["spec"]["target"]["name"]: one["spec"] for one in rendered(COMPONENT)}


def test_manifests_are_valid() -> None:
    assert check.findings(rendered(COMPONENT)) == []


def test_every_secret_is_filled(reads: Reads) -> None:
    assert set(filled()) == reads.names


def test_required_keys_are_named_so_that_a_missing_one_is_an_error(reads: Reads) -> None:
    named = {
        name: {one["secretKey"] for one in spec["data"]}
        for name, spec in filled().items()
        if "data" in spec
    }
    assert named == reads.required


def test_secrets_with_optional_keys_take_all_of_their_entry(reads: Reads) -> None:
    extracted = {name for name, spec in filled().items() if "dataFrom" in spec}
    assert extracted == set(reads.optional) | reads.whole


def test_entry_has_the_name_and_the_keys_of_its_secret() -> None:
    for name, spec in filled().items():
        assert ENTRY.fullmatch(name)
        for one in spec.get("data", []):
            assert one["remoteRef"] == {"key": name, "property": one["secretKey"]}
        assert spec.get("dataFrom", [{"extract": {"key": name}}]) == [{"extract": {"key": name}}]


def test_every_key_is_documented(reads: Reads) -> None:
    page = (ROOT / "knative/README.md").read_text()
    spans = set(re.findall(r"`([^`]+)`", page))
    # Those of engines are the installation's own.
    keys = set().union(
        *(
            keys
            for group in (reads.required, reads.optional)
            for name, keys in group.items()
            if name != "lowtide-engines"
        )
    )
    assert keys
    assert keys | reads.names <= spans


def test_there_is_a_store_for_each_provider() -> None:
    assert [path.stem for path in STORES] == ["aws", "azure", "google", "vault"]


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.stem)
def test_store_has_the_name_that_the_secrets_refer_to(path: Path) -> None:
    account, store = documents(path)
    assert check.findings([account, store]) == []
    for spec in filled().values():
        reference = spec["secretStoreRef"]
        assert reference == {"kind": store["kind"], "name": store["metadata"]["name"]}
    (provider,) = store["spec"]["provider"].values()
    assert {"name": account["metadata"]["name"]} in list(accounts(provider))


def accounts(node: object) -> Iterator[object]:
    """Return every reference to a service account."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "serviceAccountRef":
                yield value
            else:
                yield from accounts(value)
