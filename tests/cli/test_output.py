"""Tables of the CLI: ids are whole on a terminal, and a pipe gets tab-separated values."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from lowtide.cli import output
from lowtide.cli.output import print_facts, print_record, print_table

if TYPE_CHECKING:
    from collections.abc import Callable

ID = "batch_01a21ac5af697d8d8cc27d55b03d9ee4"
LONG_ID = f"batch_req_{'0' * 40}"
COLUMNS = ("id", "user", "status")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], StringIO]:
    """Make the output a terminal of a width; return what is printed."""

    def make(width: int) -> StringIO:
        printed = StringIO()
        monkeypatch.setattr(
            output, "OUT", Console(file=printed, force_terminal=True, width=width, no_color=True)
        )
        return printed

    return make


def _lines(printed: StringIO) -> list[str]:
    text = printed.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
    return [line.rstrip() for line in text.splitlines()]


def test_wide_terminal_gets_table(terminal: Callable[[int], StringIO]) -> None:
    printed = terminal(80)
    print_table(COLUMNS, [(ID, "ada", "completed"), (ID, None, "failed")], ids=("id",))
    assert _lines(printed) == [
        f"{'id':38}  user  status",
        f"{ID}  ada   completed",
        f"{ID}        failed",
    ]


def test_long_values_are_folded_beside_whole_ids(terminal: Callable[[int], StringIO]) -> None:
    printed = terminal(60)
    print_table(COLUMNS, [(ID, "tide " * 40, "in progress")], ids=("id",))
    header, first, *rest = _lines(printed)
    assert first.split()[0] == ID
    assert len(rest) > 5
    assert max(map(len, (header, first, *rest))) <= 60
    assert " ".join((header, first, *rest)).split().count("tide") == 40


def test_narrow_terminal_gets_records(terminal: Callable[[int], StringIO]) -> None:
    printed = terminal(50)
    print_table(COLUMNS, [(ID, "ada", "completed"), (LONG_ID, "", "failed")], ids=("id",))
    assert _lines(printed) == [
        ID,
        "  user: ada · status: completed",
        LONG_ID,
        "  status: failed",
    ]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    width=st.integers(10, 200),
    rows=st.lists(st.tuples(st.sampled_from([ID, LONG_ID]), st.text(), st.text()), min_size=1),
)
def test_ids_are_whole_at_any_width(
    terminal: Callable[[int], StringIO], width: int, rows: list[tuple[str, str, str]]
) -> None:
    printed = terminal(width)
    print_table(COLUMNS, rows, ids=("id",))
    found = [word for line in _lines(printed) for word in line.split() if word in {ID, LONG_ID}]
    assert found == [row[0] for row in rows]


def test_table_without_rows_says_so_on_terminal(terminal: Callable[[int], StringIO]) -> None:
    printed = terminal(80)
    print_table(COLUMNS, [], ids=("id",), empty="No batches match.")
    assert _lines(printed) == ["No batches match."]


def test_pipe_gets_tab_separated_values(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\tb\nc\rd\x1b[31m\x85e\u2028f [bold]g[/bold] é"
    print_table(COLUMNS, [(ID, hostile, 7), (LONG_ID, None, "x" * 500)], ids=("id",))
    assert capsys.readouterr().out.split("\n") == [
        "id\tuser\tstatus",
        f"{ID}\ta b c d [31m e f [bold]g[/bold] é\t7",
        f"{LONG_ID}\t\t{'x' * 500}",
        "",
    ]


def test_empty_table_in_pipe_has_header(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [], empty="No batches match.")
    assert capsys.readouterr().out == "id\tuser\tstatus\n"


def test_record_has_line_per_value_on_terminal(terminal: Callable[[int], StringIO]) -> None:
    printed = terminal(20)
    print_record({"id": ID, "a name": 7, "none": None})
    assert _lines(printed) == [f"id      {ID}", "a name  7", "none"]


def test_record_in_pipe_is_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_record({"id": ID, "count": 7})
    assert capsys.readouterr().out == f"id\tcount\n{ID}\t7\n"


def test_facts_are_never_cut() -> None:
    printed = StringIO()
    print_facts(Console(file=printed, width=20), {"output": "/a/" + "b" * 100})
    assert printed.getvalue() == f"output  /a/{'b' * 100}\n"
