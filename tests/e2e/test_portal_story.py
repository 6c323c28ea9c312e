"""An operator's session in the portal, in a real browser on a running stack."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.browsing import Visit, launched, new_visit
from tests.e2e.stacks import running
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import FilePayload, Page

    from tests.e2e.stacks import LocalStack

# One request at a time per worker: dedicated cannot finish a batch within its window of two minutes.
SETTINGS = {
    "LOWTIDE_SIMULATED_LATENCY": "1.5",
    "LOWTIDE_SIMULATED_INTERRUPTION_RATE": "0.2",
    "LOWTIDE_SIMULATED_FAILURE_RATE": "0.1",
    "LOWTIDE_MAX_ATTEMPTS": "1",
    "LOWTIDE_WORKER_CONCURRENCY": "1",
    "LOWTIDE_WORKER_PREFETCH": "1",
    "LOWTIDE_DEDICATED_RATE": "0.2",
}
REQUESTS = 40
HOSTILE = (
    "=cmd|' /C calc'!A0 <img src=x onerror=\"ran='img'\"><script>ran='script'</script>"
    "{{ran='braces'}}{{7*7}}${ran='dollar'}"
)
FILENAME = HOSTILE.replace("/", "") + ".jsonl"
# Any hostile string that is executed sets this, on any page.
TRAP = "Object.defineProperty(window, 'ran', { set(how) { console.error(`${how} ran`); } });"
EXACT = '{"zebra":123456789012345678901234567890,"apple":1.50E+3,"escaped":"\\u003c"}'


def _lines() -> list[str]:
    """Return lines with hostile ids, prompts and parameters, whose JSON text must survive as it is."""
    prompt = json.dumps(f"{HOSTILE} How high is the tide?")
    return [
        f'{{"custom_id":{json.dumps(f"{number} {HOSTILE}")},"method":"POST",'
        f'"url":"/v1/chat/completions","body":{{"model":"tide-1","metadata":{EXACT},'
        f'"messages":[{{"role":"user","content":{prompt}}}],"seed":{number}}}}}\n'
        for number in range(1, REQUESTS + 1)
    ]


def _file(*lines: str) -> FilePayload:
    return {
        "name": FILENAME,
        "mimeType": "application/jsonl",
        "buffer": "".join(lines).encode(),
    }


@pytest.fixture(scope="module")
def story_stack() -> Iterator[LocalStack]:
    """A stack that fails, interrupts and escalates some requests of every batch."""
    with running(SETTINGS) as stack:
        yield stack


@pytest.fixture
def visit(story_stack: LocalStack) -> Iterator[Visit]:
    """An empty page that records problems, error responses and executed scripts."""
    with launched() as browser:
        made = new_visit(browser, story_stack.status()["portal_url"])
        made.context.add_init_script(TRAP)
        made.page.on(
            "response",
            lambda response: (
                made.problems.append(f"{response.status} {response.url}")
                if response.status >= 400
                else None
            ),
        )
        yield made
        made.context.close()


def test_operator_runs_inspects_and_requeues_a_batch(story_stack: LocalStack, visit: Visit) -> None:
    page, lines = visit.page, _lines()
    _sign_in(page, story_stack.status())
    _drop_bad_file(page)
    batch = _create(page, lines)
    _watch_progress(page)
    _make_errors_hostile(story_stack, batch)
    final = story_stack.batch(batch)
    assert final["request_counts"]["total"] == REQUESTS
    assert final["request_counts"]["failed"] > 0
    output, errors = _compare_files(page, batch, lines)
    _filter_and_inspect(page, lines, output, errors)
    again = _requeue(page, batch, final["request_counts"]["failed"])
    _cancel(page, story_stack)
    _check_lists(page, batch)
    until(lambda: story_stack.batch(again)["completed_at"], "the requeued batch is completed")
    assert page.locator("img[src=x]").count() == 0
    assert visit.problems == []


def _sign_in(page: Page, status: dict[str, Any]) -> None:
    page.goto(f"{status['portal_url']}/upload")
    page.get_by_role("heading", name="Sign in to Lowtide").wait_for()
    page.get_by_label("Password or API key").fill(status["portal_password"])
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Upload", level=1).wait_for()


def _drop_bad_file(page: Page) -> None:
    """Drop a file on the page like a mouse and check the listed problems."""
    bad = json.dumps({"custom_id": "b", "method": "POST", "url": HOSTILE, "body": {}}) + "\n"
    files = page.evaluate_handle(
        """([name, text]) => {
          const files = new DataTransfer();
          files.items.add(new File([text], name, { type: "application/jsonl" }));
          return files;
        }""",
        [FILENAME, "".join((_lines()[0], "{no\n", bad))],
    )
    zone = page.locator(".drop-zone")
    zone.wait_for()
    zone.dispatch_event("dragover", {"dataTransfer": files})
    zone.dispatch_event("drop", {"dataTransfer": files})
    page.get_by_text("line 2", exact=True).wait_for()
    page.get_by_text("line 3", exact=True).first.wait_for()
    assert page.get_by_text("line 1", exact=True).count() == 0
    assert not page.get_by_role("button", name="Create batch").is_visible()


def _create(page: Page, lines: list[str]) -> str:
    page.get_by_label("Input file").set_input_files(_file(*lines))
    page.get_by_text(FILENAME).first.wait_for()
    page.get_by_role("button", name="Create batch").wait_for()
    page.get_by_label("Completion window").fill("2m")
    page.get_by_label("User").fill(HOSTILE)
    page.get_by_role("button", name="Create batch").click()
    link = page.get_by_role("link", name=re.compile("^View batch_"))
    link.wait_for()
    batch = (link.get_attribute("href") or "").removeprefix("/batches/")
    link.click()
    page.get_by_role("heading", name=batch).wait_for()
    return batch


def _watch_progress(page: Page) -> None:
    """Watch the batch on one page from the first request to the last."""
    page.evaluate("window.stayed = true")
    page.get_by_text("Running requests").wait_for()
    page.get_by_role("tab", name="Events").click()
    events = page.get_by_role("region", name="Newest events")
    events.get_by_text("Interrupted: Simulated spot interruption").first.wait_for(timeout=30_000)
    events.get_by_text(re.compile("^Escalated: ")).first.wait_for(timeout=30_000)
    page.get_by_text("Every request has a result").wait_for(timeout=120_000)
    page.get_by_text(f"{REQUESTS} of {REQUESTS} · 100%").wait_for()
    page.get_by_role("link", name=re.compile("^Output file")).wait_for()
    assert page.evaluate("window.stayed"), "the page was reloaded"
    assert page.get_by_text(HOSTILE, exact=True).first.is_visible(), "the user is shown"


def _make_errors_hostile(stack: LocalStack, batch: str) -> None:
    """Overwrite each error message with hostile text, which an engine may send."""
    for table in ("results", "dead_letters"):
        stack.query(
            f"UPDATE {table} SET error_message = :hostile "  # noqa: S608 - constant names
            "WHERE batch_id = :batch AND error_code IS NOT NULL RETURNING 1",
            hostile=HOSTILE,
            batch=batch.removeprefix("batch_"),
        )


def _compare_files(page: Page, batch: str, lines: list[str]) -> list[list[str]]:
    """Download all files on the page, compare them with the input and return the results' lines."""
    contents = []
    for role in ("Input", "Output", "Error"):
        with page.expect_download() as download:
            page.get_by_role("link", name=re.compile(f"^{role} file")).click()
        assert download.value.suggested_filename == f"{batch}_{role.lower()}.jsonl"
        contents.append(download.value.path().read_bytes())
    source, *results = contents
    assert source == "".join(lines).encode()
    custom_ids = [json.loads(line)["custom_id"] for each in results for line in each.splitlines()]
    assert sorted(custom_ids) == sorted(json.loads(line)["custom_id"] for line in lines)
    return [each.decode().splitlines() for each in results]


def _line_number(result: str) -> int:
    return int(json.loads(result)["custom_id"].partition(" ")[0])


def _filter_and_inspect(page: Page, lines: list[str], output: list[str], errors: list[str]) -> None:
    page.locator("a.tab").filter(has_text="Completed").click()
    page.wait_for_url("**?status=Completed*")
    # An answer that is long enough to repeat the whole hostile prompt.
    answered = next(each for each in output if each.count("ran='script'") > 1)
    line = _line_number(answered)
    page.get_by_role("textbox", name="custom_id starts with").fill(f"{line} ")
    page.get_by_role("button", name=f"View request on line {line}", exact=True).click()
    drawer = page.get_by_role("dialog", name="Request")
    drawer.get_by_text(re.compile(r"\d+ attempts?")).first.wait_for()
    # The drawer adds line breaks, and changes no digit or escape.
    text = drawer.get_by_role("region", name="Input").inner_text()
    assert _without_whitespace(text) == _without_whitespace(lines[line - 1])
    text = drawer.get_by_role("region", name="Output").inner_text()
    assert _without_whitespace(text) in _without_whitespace(answered)
    drawer.get_by_role("button", name="Close").click()
    # What arrives when the drawer closes would bring back the text.
    drawer.wait_for(state="hidden")
    page.wait_for_url(lambda url: "line=" not in url and "request=" not in url)
    page.get_by_role("textbox", name="custom_id starts with").fill("")
    page.wait_for_url(lambda url: "custom_id" not in url)
    page.locator("a.tab").filter(has_text="Failed").click()
    page.wait_for_url("**?status=Failed*")
    # The rows of the completed requests stay until those of the failed ones arrive.
    line = min(_line_number(error) for error in errors)
    page.get_by_role("button", name=f"View request on line {line}", exact=True).click()
    drawer.get_by_text(HOSTILE).first.wait_for()


def _without_whitespace(text: str) -> str:
    return re.sub(r"\s", "", text)


def _requeue(page: Page, batch: str, failed: int) -> str:
    page.goto(f"{page.url.split('/batches')[0]}/dead-letters?batch_id={batch}")
    page.get_by_text(HOSTILE).first.wait_for()
    page.get_by_role("button", name=re.compile("^View ")).first.click()
    page.get_by_text('"zebra"').wait_for()
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Requeue…").click()
    page.get_by_role("button", name=re.compile(r"^Requeue \d+$")).click()
    page.get_by_text(re.compile(rf"^{failed} dead letters? requeued")).wait_for()
    page.get_by_role("link", name=re.compile(r"^batch_.*requests?\)$")).click()
    page.get_by_role("tab", name="Timeline").wait_for()
    again = page.url.rpartition("/")[2]
    assert again != batch
    page.get_by_text(re.compile(rf"of {failed} · ")).wait_for()
    return again


def _cancel(page: Page, stack: LocalStack) -> None:
    batch = stack.submit(stack.upload("".join(_lines()).encode()))
    page.goto(f"{page.url.rpartition('/')[0]}/{batch}")
    page.get_by_role("button", name="Cancel batch…").click()
    page.get_by_role("button", name="Cancel 1 batch").click()
    page.get_by_text("Cancelling 1 batch.").wait_for()
    page.get_by_text("Cancelled: requests without a result were dropped").wait_for(timeout=60_000)
    assert stack.batch(batch)["cancelled_at"] is not None


def _check_lists(page: Page, batch: str) -> None:
    """Check that hostile users are plain text in batch lists, and can be filtered by."""
    origin = page.url.split("/batches")[0]
    page.goto(origin)
    page.get_by_role("link", name=HOSTILE).first.wait_for()
    page.goto(f"{origin}/batches")
    page.get_by_role("textbox", name="User").fill("{{7*7}}")
    page.wait_for_url(re.compile("user=%7B%7B7"))
    page.locator(f'a[href="/batches/{batch}"]').first.wait_for()
