"""docs/upgrade.md quotes what `lowtide up` reports about a database of another version."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT
from tests.e2e.command import lowtide
from tests.e2e.stacks import new_stack

pytestmark = pytest.mark.slow


def test_unknown_schema_is_reported_as_quoted() -> None:
    page = (ROOT / "docs/upgrade.md").read_text(encoding="utf-8")
    (quoted,) = re.findall(r'^## "(.+)"$', page, re.MULTILINE)
    stack = new_stack({})
    stack.up()
    try:
        stack.query("UPDATE alembic_version SET version_num = 'later' RETURNING 1")
        stack.down()
        reported = lowtide("up", "--detach", *stack.arguments, fails=True).stderr
    finally:
        stack.discard()
    assert quoted.replace("…", "later") in reported.replace("\n", " ")
    assert str(stack.data_dir) in reported
    assert "Traceback" not in reported
