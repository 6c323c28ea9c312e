"""docs/operations.md: its commands name what there is, and its SQL runs as the role it names."""

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
# Not ours: Knative's and KEDA's own, and those of whoever reads the page.
NAMESPACES = {"lowtide", "monitoring", "keda", "knative-eventing"}
FOREIGN = {"keda", "knative-eventing"}


def commands(program: str) -> list[list[str]]:
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).splitlines()
    found = (shlex.split(line) for line in lines)
    return [words[1:] for words in found if words[:1] == [program]]


def _option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


@pytest.mark.parametrize("words", commands("kn"), ids=" ".join)
def test_kn_knows_the_command_and_its_options(words: list[str]) -> None:
    known = [name for name in KN if words[: name.count(" ") + 1] == name.split(" ")]
    assert known
    name = max(known, key=len)
    options = [word for word in words[name.count(" ") + 1 :] if re.match(r"--?[a-z]", word)]
    assert {option.partition("=")[0] for option in options} <= set(KN[name].split())


@pytest.mark.parametrize("words", commands("kubectl"), ids=" ".join)
def test_what_kubectl_is_given_is_there(words: list[str]) -> None:
    """Names are those of the manifests, and labels select something."""
    if folder := _option(words, "-k"):
        assert rendered(folder)
    namespace = _option(words, "-n")
    assert namespace is None or namespace in NAMESPACES
    if namespace in FOREIGN:
        return
    documents = [*rendered("knative/base"), *rendered("keda")]
    named = {(found["kind"].lower(), found["metadata"]["name"]) for found in documents}
    for word in words:
        if word.startswith("deploy/"):
            assert ("deployment", word.removeprefix("deploy/")) in named
    if words[:2] == ["describe", "scaledobject"]:
        assert ("scaledobject", words[2]) in named
    selector = _option(words, "-l") or ""
    if selector.startswith("app.kubernetes.io/"):
        key, _, value = selector.partition("=")
        pods = [
            found["spec"]["template"] for found in documents if "template" in found.get("spec", {})
        ]
        chosen = [pod for pod in pods if pod["metadata"].get("labels", {}).get(key) == value]
        assert chosen
        container = _option(words, "-c")
        names = {one["name"] for pod in chosen for one in pod["spec"]["containers"]}
        assert container is None or container in names


@pytest.mark.parametrize("statement", SQL, ids=lambda sql: " ".join(sql.split())[:40])
def test_sql_only_looks_and_runs_as_the_operator(database: Database, statement: str) -> None:
    with database.engine("operator").connect() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        connection.execute(text(statement)).all()


def test_every_section_that_is_linked_to_exists() -> None:
    headings = {
        heading.lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= headings


def test_every_setting_that_it_names_exists() -> None:
    from lowtide.settings import unknown_variables

    named = set(re.findall(r"\bLOWTIDE_[A-Z_]+[A-Z]\b", PAGE))
    assert named
    assert unknown_variables(dict.fromkeys(named, "")) == []
