"""docs/deploy.md: commands without a cluster are run, the others name existing things only."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from typer.main import get_command

from lowtide.cli.main import app
from lowtide.local.rendering import render
from manifests.overlays import rendered
from tests.kn import KN

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
ACTING = {"describe", "update", "delete", "wait", "export"}
FOLDERS = {path.name for path in ROOT.iterdir()} - {"docs"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Return every command of the page that starts with this program, as its arguments."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words[:1] == [program]]


def joined(words: list[str]) -> str:
    return " ".join(words)


@pytest.mark.parametrize("words", commands("kn"), ids=joined)
def test_kn_accepts_command_and_options(words: list[str]) -> None:
    known = [name for name in KN if words[: name.count(" ") + 1] == name.split(" ")]
    assert known, "add it to tests/kn.py, from knative/client's docs/cmd"
    name = max(known, key=len)
    options = [word for word in words[name.count(" ") + 1 :] if re.match(r"--?[a-z]", word)]
    assert {option.partition("=")[0] for option in options} <= set(KN[name].split())


def test_kn_commands_name_objects_of_the_base() -> None:
    """`kn` commands name functions, triggers and sources that the manifests define."""
    kinds = {
        "service": "Service",
        "revision": "Service",
        "trigger": "Trigger",
        "broker": "Broker",
        "ping": "PingSource",
    }
    names: dict[str, set[str]] = {}
    for document in rendered("knative/base"):
        names.setdefault(document["kind"], set()).add(document["metadata"]["name"])
    checked = 0
    for words in commands("kn"):
        verb = next((i for i, word in enumerate(words) if word in ACTING), None)
        if verb is None or words[verb + 1].startswith("-"):
            continue
        name = re.sub(r"-\d{5}$", "", words[verb + 1])
        assert name in names[kinds[words[verb - 1]]], words
        checked += 1
    assert checked


@pytest.mark.parametrize("words", commands("kubectl"), ids=joined)
def test_kubectl_files_exist(words: list[str]) -> None:
    for option, value in pairwise(words):
        if option in {"-k", "kustomize"}:
            assert rendered(value)
        elif option == "-f":
            assert (ROOT / value).is_file()


def test_every_path_on_page_exists() -> None:
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))
    words = [word for block in (*spans, *blocks(r"sh[^\n]*")) for word in block.split()]
    paths = {word for word in words if "/" in word and word.split("/", 1)[0] in FOLDERS}
    assert len(paths) > 10
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def inside_the_cluster() -> list[list[str]]:
    """Return the `lowtide` commands that run in a pod."""
    after = [words[words.index("--") + 1 :] for words in commands("kubectl") if "--" in words]
    return [words[1:] for words in after if words[0] == "lowtide"]


@pytest.mark.parametrize("words", inside_the_cluster(), ids=joined)
def test_lowtide_accepts_commands_for_pods(words: list[str]) -> None:
    command: Any = get_command(app)
    rest = iter(words)
    while hasattr(command, "commands"):
        command = command.commands[next(rest)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("-")} <= known


def test_secrets_have_the_keys_that_manifests_reference(tmp_path: Path) -> None:
    (script,) = blocks("sh local")
    # The stub runs the image's programs from this environment.
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\n[ "$1 $2" = "run --rm" ] && shift 3 && exec "$@"\n')
    docker.chmod(0o755)
    done = subprocess.run(
        ["sh", "-euc", script],  # noqa: S607
        cwd=tmp_path,
        env={
            "PATH": f"{docker.parent}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "REGISTRY": "registry.example",
            "HOME": str(tmp_path),
            "DATABASE_HOST": "database.example:5432",
            "OWNER_PASSWORD": "owner",
            "PORTAL_PASSWORD": "a long enough password",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    written: dict[str, set[str]] = {}
    for secret, name in (("lowtide-database", "database.env"), ("lowtide-keys", "keys.env")):
        pairs = [line.partition("=") for line in (tmp_path / name).read_text().splitlines()]
        assert all(value for _, _, value in pairs)
        written[secret] = {key for key, _, _ in pairs}
    references = {
        (reference["name"], reference["key"])
        for folder in ("knative/base", "keda")
        for document in rendered(folder)
        for reference in _key_references(document)
        if reference["name"] in written
    }
    assert references
    assert {name: {key for of, key in references if of == name} for name in written} == written


def _key_references(value: object) -> Iterator[dict[str, str]]:
    if isinstance(value, dict):
        if {"name", "key"} <= set(value) and isinstance(value["key"], str):
            yield value
        for inner in value.values():
            yield from _key_references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _key_references(inner)


def test_canary_patch_splits_traffic_of_one_function(tmp_path: Path) -> None:
    canary, patches = blocks("yaml")
    for folder in ("knative", "keda"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    overlay = tmp_path / "knative/overlays/canary"
    overlay.mkdir()
    (overlay / "canary.yaml").write_text(canary)
    kustomization = {"resources": ["../prod"], **yaml.safe_load(patches)}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    traffic = {
        resource.document["metadata"]["name"]: resource.document["spec"]["traffic"]
        for resource in render(overlay)
        if "traffic" in resource.document.get("spec", {})
    }
    assert set(traffic) == {"read"}
    assert sum(part["percent"] for part in traffic["read"]) == 100
    assert [part["tag"] for part in traffic["read"]] == ["stable", "candidate"]
