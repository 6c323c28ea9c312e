"""docs/operations.md: its commands name existing objects, and its SQL runs as the operator."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from manifests.overlays import rendered
from tests.kn import KN

if TYPE_CHECKING:
    from tests.conftest import Database

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SQL = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
# Namespaces on the page: ours, the reader's monitoring, and Knative's and KEDA's.
NAMESPACES = {"lowtide", "monitoring", "keda", "knative-eventing"}
FOREIGN = {"keda", "knative-eventing"}


def commands(program: str) -> list[list[str]]:
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).splitlines()
    split = (shlex.split(line) for line in lines)
    return [words[1:] for words in split if words[:1] == [program]]


def _option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


@pytest.mark.parametrize("words", commands("kn"), ids=" ".join)
def test_kn_accepts_command_and_options(words: list[str]) -> None:
    known = [name for name in KN if words[: name.count(" ") + 1] == name.split(" ")]
    assert known
    name = max(known, key=len)
    options = [word for word in words[name.count(" ") + 1 :] if re.match(r"--?[a-z]", word)]
    assert {option.partition("=")[0] for option in options} <= set(KN[name].split())


@pytest.mark.parametrize("words", commands("kubectl"), ids=" ".join)
def test_kubectl_names_and_labels_exist_in_manifests(words: list[str]) -> None:
    """The manifests define the names, and the labels select a pod."""
    if folder := _option(words, "-k"):
        assert rendered(folder)
    namespace = _option(words, "-n")
    assert namespace is None or namespace in NAMESPACES
    if namespace in FOREIGN:
        return
    documents = [*rendered("knative/base"), *rendered("keda")]
    names = {(one["kind"].lower(), one["metadata"]["name"]) for one in documents}
    for word in words:
        if word.startswith("deploy/"):
            assert ("deployment", word.removeprefix("deploy/")) in names
    if words[:2] == ["describe", "scaledobject"]:
        assert ("scaledobject", words[2]) in names
    selector = _option(words, "-l") or ""
    if selector.startswith("app.kubernetes.io/"):
        key, _, value = selector.partition("=")
        pods = [one["spec"]["template"] for one in documents if "template" in one.get("spec", {})]
        selected = [pod for pod in pods if pod["metadata"].get("labels", {}).get(key) == value]
        assert selected
        container = _option(words, "-c")
        containers = {one["name"] for pod in selected for one in pod["spec"]["containers"]}
        assert container is None or container in containers


@pytest.mark.parametrize("statement", SQL, ids=lambda sql: " ".join(sql.split())[:40])
def test_sql_is_read_only_and_runs_as_operator(database: Database, statement: str) -> None:
    with database.engine("operator").connect() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        connection.execute(text(statement)).all()


def test_linked_sections_exist() -> None:
    headings = {
        heading.lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= headings


def test_settings_named_on_page_exist() -> None:
    from lowtide.settings import unknown_variables

    named = set(re.findall(r"\bLOWTIDE_[A-Z_]+[A-Z]\b", PAGE))
    assert named
    assert unknown_variables(dict.fromkeys(named, "")) == []
