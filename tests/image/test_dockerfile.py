"""Checks of the Dockerfile that need no build."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pytest
from dockerfile_parse import DockerfileParser

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]


class Step(TypedDict):
    instruction: str
    value: str


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    structure: list[Step] = DockerfileParser(path=str(ROOT / "Dockerfile")).structure
    return structure


def values(steps: list[Step], instruction: str) -> Iterator[str]:
    return (step["value"] for step in steps if step["instruction"] == instruction)


def test_base_image_is_a_tag_by_default(steps: list[Step]) -> None:
    (base,) = (value for value in values(steps, "ARG") if value.startswith("PYTHON="))
    assert re.fullmatch(r"PYTHON=python:3\.\d+-slim-\w+", base)
    assert set(values(steps, "FROM")) == {"${PYTHON} AS build", "${PYTHON}"}


def test_user_is_numeric_and_matches_manifests(steps: list[Step]) -> None:
    (user,) = values(steps, "USER")
    assert user == "10001:10001"
    for path in (ROOT / "knative/base").rglob("*.yaml"):
        for number in re.findall(r"runAsUser: (\d+)", path.read_text()):
            assert number == user.partition(":")[0], path


def test_pid_1_is_init_and_no_manifest_replaces_it(steps: list[Step]) -> None:
    assert list(values(steps, "ENTRYPOINT")) == ['["tini", "--"]']
    for path in (ROOT / "knative/base").rglob("*.yaml"):
        assert not re.search(r"^\s+command:", path.read_text(), re.MULTILINE), path


@pytest.mark.parametrize("name", ["image.txt", "image-build.txt"])
def test_requirements_are_pinned_by_hash(name: str) -> None:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pins = [line for line in lines if not line.startswith(" ")]
    assert pins
    assert all(re.match(r"[a-z0-9._-]+==\S+", line) and line.endswith("\\") for line in pins)
    assert not [line for line in lines if "://" in line]


def test_image_pins_are_among_developer_pins() -> None:
    def pins(name: str) -> set[str]:
        text = (ROOT / "requirements" / name).read_text()
        return set(re.findall(r"^[a-z0-9._-]+==[^\s;\\]+", text, re.MULTILINE))

    assert pins("image.txt") <= pins("dev.txt"), "run: make pins"
