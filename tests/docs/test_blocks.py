"""Blocks are run or say why not; commands for a cluster name what the repository defines."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from typer.main import get_command

from lowtide.cli.main import app
from lowtide.local.rendering import documents, parsed
from manifests.overlays import rendered
from tests.docs.pages import PYTHON, ROOT, SHELL, Marker, blocks, languages, pages, parse
from tests.kn import KN

if TYPE_CHECKING:
    from collections.abc import Iterator

# Blocks in these languages are data; those in Lowtide's own are run or marked.
DATA = {"json", "mermaid", "sql", "toml", "yaml"}
# Namespaces of the pages: ours, the reader's own, and Knative's, KEDA's and the gateway's.
NAMESPACES = {"lowtide", "lowtide-front", "monitoring", "keda", "knative-eventing", "search"}
FOREIGN = {"keda", "knative-eventing", "monitoring", "search"}
ACTING = {"describe", "update", "delete", "wait", "export"}
KN_KINDS = {
    "service": "Service",
    "revision": "Service",
    "trigger": "Trigger",
    "broker": "Broker",
    "ping": "PingSource",
}
# Kinds that kubectl's commands name, by the word that they use.
KINDS = {
    "deploy": "Deployment",
    "scaledobject": "ScaledObject",
    "configmap": "ConfigMap",
    "networkpolicy": "NetworkPolicy",
    "gateway": "Gateway",
    "broker": "Broker",
}


FLEETS = "knative/overlays/prod-fleets"
DATABASE_CA = "knative/components/database-ca/mount.yaml"
SELECTOR = re.compile(
    r"(?P<key>app\.kubernetes\.io/[a-z-]+)(?:=| in \()(?P<values>[a-z0-9, -]+)\)?"
)


def commands(program: str) -> list[tuple[str, ...]]:
    """Return the arguments of every command of this program in shell blocks, each once."""
    split = (
        shlex.split(line, comments=True)
        for block in blocks()
        if block.language == SHELL
        for line in block.commands
        if line.startswith(f"{program} ")
    )
    return list(dict.fromkeys(tuple(words[1:]) for words in split))


def joined(words: tuple[str, ...]) -> str:
    return " ".join(words)


def markers() -> list[Marker]:
    return [marker for page in pages() for marker in parse(page)[1]]


def defined() -> set[tuple[str, str]]:
    """Return kind and name of every object that the manifests define, or expect from the reader."""
    folders = ("knative/base", "keda", FLEETS, "knative/overlays/prod-tls")
    objects = [one for folder in folders for one in rendered(folder)]
    (mount,) = parsed((ROOT / DATABASE_CA).read_text(encoding="utf-8"))
    mounted = [one["value"]["configMap"] for one in mount if "configMap" in one["value"]]
    return {(one["kind"], one["metadata"]["name"]) for one in objects} | {
        ("ConfigMap", one["name"]) for one in mounted
    }


@pytest.mark.parametrize("page", pages())
def test_languages_are_known(page: str) -> None:
    used = {info.partition(" ")[0] for info in languages(page)}
    assert used <= {SHELL, PYTHON, *DATA}


@pytest.mark.parametrize("marker", markers(), ids=lambda it: f"{it.page}:{it.line}")
def test_marker_gives_reason_and_precedes_block(marker: Marker) -> None:
    assert marker.has_block, "no block follows directly"
    assert len(marker.reason.split()) >= 3, "say what the block needs"


@pytest.mark.parametrize("words", commands("kn"), ids=joined)
def test_kn_accepts_command_and_options(words: tuple[str, ...]) -> None:
    known = [name for name in KN if list(words[: name.count(" ") + 1]) == name.split(" ")]
    assert known, "add it to tests/kn.py, from knative/client's docs/cmd"
    name = max(known, key=len)
    options = [word for word in words[name.count(" ") + 1 :] if re.match(r"--?[a-z]", word)]
    assert {option.partition("=")[0] for option in options} <= set(KN[name].split())


def test_kn_commands_name_objects_of_the_base() -> None:
    """`kn` commands name functions, triggers and sources that the manifests define."""
    checked = 0
    for words in commands("kn"):
        verb = next((i for i, word in enumerate(words) if word in ACTING), None)
        if verb is None or words[verb + 1].startswith("-"):
            continue
        name = re.sub(r"-\d{5}$", "", words[verb + 1])
        assert (KN_KINDS[words[verb - 1]], name) in defined(), words
        checked += 1
    assert checked


@pytest.mark.parametrize("words", commands("kubectl"), ids=joined)
def test_kubectl_files_namespaces_and_names_exist(words: tuple[str, ...]) -> None:
    options = dict(pairwise(words))
    for flag in ("-k", "kustomize"):
        assert flag not in options or builds(options[flag])
    assert "-f" not in options or (ROOT / options["-f"]).is_file()
    namespace = options.get("-n")
    assert namespace is None or namespace in NAMESPACES
    if namespace not in FOREIGN:
        assert set(named(of_a_fleet(words))) <= defined()


def of_a_fleet(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command with one of the fleets in the example."""
    return tuple(word.replace("<FLEET>", "llama-70b") for word in words)


def builds(folder: str) -> bool:
    """Return whether a kustomization renders; of one with generators, whether its files exist."""
    (kustomization,) = documents(ROOT / folder / "kustomization.yaml")
    if "configMapGenerator" not in kustomization:
        return bool(rendered(folder))
    generated = [file for one in kustomization["configMapGenerator"] for file in one["files"]]
    files = [*kustomization["resources"], *generated]
    return all((ROOT / folder / file.rpartition("=")[2]).is_file() for file in files)


def named(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield kind and name of the objects that a kubectl command names."""
    for word in words:
        kind, slash, name = word.partition("/")
        if slash and kind in KINDS:
            yield KINDS[kind], name
    for kind, name in pairwise(words):
        if kind in KINDS and not name.startswith("-"):
            yield KINDS[kind], name


@pytest.mark.parametrize("words", commands("kubectl"), ids=joined)
def test_kubectl_selectors_match_pods(words: tuple[str, ...]) -> None:
    options = dict(pairwise(of_a_fleet(words)))
    selector = SELECTOR.fullmatch(options.get("-l", ""))
    if selector is None:
        return
    key, values = selector["key"], selector["values"].split(", ")
    objects = [one for folder in ("knative/base", "keda", FLEETS) for one in rendered(folder)]
    pods = [one["spec"]["template"] for one in objects if "template" in one.get("spec", {})]
    selected = [pod for pod in pods if pod["metadata"].get("labels", {}).get(key) in values]
    found = {pod["metadata"]["labels"][key] for pod in selected}
    assert found == set(values)
    containers = {one["name"] for pod in selected for one in pod["spec"]["containers"]}
    assert "-c" not in options or options["-c"] in containers


def unrun_lowtide() -> list[tuple[str, ...]]:
    """Return the `lowtide` commands of marked blocks; those of others are run."""
    marked = [block for block in blocks() if block.reason and block.language == SHELL]
    lines = [line.rpartition(" -- ")[2] for block in marked for line in block.commands]
    split = [shlex.split(line, comments=True) for line in lines if line.startswith("lowtide ")]
    return [tuple(words[1:]) for words in split]


def test_lowtide_accepts_commands_that_are_not_run() -> None:
    for words in unrun_lowtide():
        command: Any = get_command(app)
        rest = iter(words)
        while hasattr(command, "commands"):
            command = command.commands[next(rest)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= known, words
