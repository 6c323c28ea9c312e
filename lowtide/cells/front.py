"""The front of several cells: finds the cell of each call, merges lists, and passes bytes through.

It keeps nothing: ids say which cell owns an object, callers' keys are checked by the cells.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import uuid
from contextlib import closing
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlencode

import msgspec
from werkzeug.exceptions import ClientDisconnected, HTTPException
from werkzeug.exceptions import RequestTimeout as BodyTooSlow
from werkzeug.routing import Map, Rule

from lowtide.cells.callers import Callers, Refused
from lowtide.cells.merging import (
    MERGES,
    Page,
    joined_pages,
    merged_changes,
    merged_pages,
    merged_search,
)
from lowtide.cells.model import Demand
from lowtide.cells.upstream import NotConnected, Question, as_response, has_body, pieces_of
from lowtide.core.errors import (
    InvalidRequest,
    LowtideError,
    NotFound,
    PayloadTooLarge,
    RequestTimeout,
    Unavailable,
)
from lowtide.core.ids import (
    cell_of,
    parse_batch_id,
    parse_file_id,
    parse_request_id,
    parse_upload_id,
)
from lowtide.http.application import answered, error_response, json_response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from random import Random
    from uuid import UUID

    from flask import Request, Response

    from lowtide.cells.callers import Homes
    from lowtide.cells.merging import Answer
    from lowtide.cells.model import Cell, Cells, Report
    from lowtide.cells.upstream import Answer as Answered
    from lowtide.cells.upstream import Content, Upstream


_log = logging.getLogger(__name__)
MISSING: Final = "x-lowtide-missing-cells"
"""Header of a merged answer: the names of the cells that did not answer in time."""
_MAX_BODY: Final = 4 << 20
_RATE_LIMIT: Final = "x-ratelimit-"
_REMAINING: Final = "x-ratelimit-remaining-requests"
# Segments of a path that could lead out of a cell's part of an address.
_DOTS: Final = frozenset({".", ".."})
_DAY: Final = 86_400.0
_NOT_THERE: Final = frozenset({401, 404})
# Of the gateway of a cell that is down, or of a cell without its database.
_AWAY: Final = frozenset({502, 503, 504})
_SEARCHED: Final = 20
_PEEKED: Final = 64 * 1024
# The model of a file's first request, which needs a fleet that serves it.
_MODEL: Final = re.compile(rb'"model"\s*:\s*"([\w./:@+-]{1,256})"', re.ASCII)


def _letter_batch(text: str) -> UUID | None:
    found = parse_request_id(text)
    return None if found is None else found[0]


_LISTS: Final[Mapping[str, tuple[Callable[[str], UUID | None], int]]] = {
    "/v1/files": (parse_file_id, 10_000),
    "/v1/batches": (parse_batch_id, 20),
}
"""What orders each list, and how many objects a page has by default."""
_LETTERS: Final = 100
_PARSERS: Final[Mapping[str, Callable[[str], UUID | None]]] = {
    "file": parse_file_id,
    "upload": parse_upload_id,
    "batch": parse_batch_id,
    "letter": _letter_batch,
}


class _NewBatch(msgspec.Struct):
    """What names the cell of a new batch. Cells ignore fields that they do not know: so must this."""

    input_file_id: str | None = None
    inputFileId: str | None = None  # noqa: N815 - as some callers write it
    input_url: str | None = None


class _NewRerun(msgspec.Struct):
    """What names the cell of a rerun."""

    batch_id: str | None = None


_Parameters = TypeVar("_Parameters", _NewBatch, _NewRerun)


class Front:
    """Answers calls with the answers of cells. `reports` returns those of the cells that are well."""

    def __init__(
        self,
        cells: Cells,
        reports: Callable[[], Mapping[int, Report]],
        upstream: Upstream,
        rng: Random,
        *,
        is_ready: Callable[[], None] = lambda: None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_ready = is_ready
        self._cells = cells
        self._reports = reports
        self._upstream = upstream
        self._rng = rng
        self._timer = timer
        self._callers = Callers(cells, reports, upstream, timer)
        self._map = Map(
            [
                Rule(path, methods=methods, endpoint=handler)
                for methods, path, handler in self._rules()
            ],
            strict_slashes=False,
            merge_slashes=False,
        )

    def _rules(self) -> Iterator[tuple[list[str], str, Callable[..., Response]]]:
        """Yield methods, path and handler of each route; all else is answered by any cell."""
        yield ["GET"], "/health/live", lambda _: json_response({"status": "ok"})
        yield ["GET"], "/health/ready", self._ready
        for path in _LISTS:
            yield ["GET"], path, self._list
        for path, merge in (
            ("/v1/models", "models"),
            ("/v1/usage", "usage"),
            ("/v1/dead_letters/summary", "summary"),
        ):
            yield ["GET"], path, lambda request, merge=merge: self._merged(request, MERGES[merge])
        yield ["GET"], "/v1/models/<path:model>", self._found
        yield ["GET"], "/v1/dead_letters", self._letters
        yield ["GET"], "/v1/search", self._search
        yield ["GET"], "/v1/dead_letters/content", self._concatenated
        yield ["POST"], "/v1/files", self._place
        yield ["POST"], "/v1/uploads", self._place
        yield ["POST"], "/v1/batches", self._create
        yield ["POST"], "/v1/reruns", self._rerun
        yield ["POST"], "/v1/dead_letters/requeue", self._change_letters
        yield ["POST"], "/v1/dead_letters/discard", self._change_letters
        yield ["GET"], "/v1/files/<file>", self._object
        yield ["DELETE"], "/v1/files/<file>", self._delete
        yield ["GET"], "/v1/files/<file>/content", self._object
        yield ["POST"], "/v1/uploads/<upload>/<action>", self._object
        yield ["GET"], "/v1/batches/<batch>", self._object
        yield ["GET"], "/v1/batches/<batch>/<view>", self._object
        yield ["POST"], "/v1/batches/<batch>/<action>", self._object
        yield ["GET"], "/v1/dead_letters/<letter>", self._object

    def __call__(self, request: Request) -> Response:
        """Return the response to a request; never raises."""
        start = self._timer()
        handler: Callable[..., Response]
        try:
            rule, values = self._map.bind_to_environ(request.environ).match(return_rule=True)
            pattern, handler = rule.rule, rule.endpoint
        except HTTPException:
            pattern, handler, values = "unmatched", self._any_cell, {}
        if not _DOTS.isdisjoint(request.path.split("/")):
            pattern, handler, values = "unmatched", _unknown_path, {}
        try:
            response = handler(request, **values)
        except Refused as error:
            response = as_response(error.answer)
        except LowtideError as error:
            response = error_response(error)
        except HTTPException as error:
            response = error_response(_of_client(error))
        except Exception:  # noqa: BLE001 - the last resort: a caller gets an answer, the log the cause
            _log.exception("request.failed")
            response = error_response(LowtideError("Internal server error: please report it."))
        response.headers.setdefault("x-request-id", f"req_{uuid.uuid4().hex}")
        answered(pattern, request.method, response.status_code, self._timer() - start)
        return response

    def _ready(self, _: Request) -> Response:
        self._is_ready()
        return json_response({"status": "ok"})

    def _any_cell(self, request: Request) -> Response:
        """Answer with the answer of a cell that is well and knows the caller: all answer alike."""
        return self._upstream.send(request, self._any(self._known_to(request)))

    def _known_to(self, request: Request) -> list[Cell]:
        """Return the cells that are well and know the caller's key; those that are well if none does."""
        well = self._well()
        if "Authorization" not in request.headers:
            return well
        homes = self._callers.homes(request).cells
        return [cell for cell in well if cell.number in homes] or well

    def _well(self) -> list[Cell]:
        """Return the cells that are well; raises Unavailable without any."""
        reports = self._reports()
        well = [cell for cell in self._cells.cells if cell.number in reports]
        if not well:
            raise Unavailable("No cell answers now: try again.")
        return well

    def _any(self, cells: Sequence[Cell]) -> Cell:
        return self._rng.choice(cells)

    def _object(self, request: Request, **values: str) -> Response:
        """Answer with the cell that has an object."""
        kind, text = next((kind, values[kind]) for kind in _PARSERS if kind in values)
        id_ = _PARSERS[kind](text)
        if id_ is None:
            return self._any_cell(request)
        if kind == "upload" and has_body(request):
            # A part can be sent once. Uploads are young: their cell had its number.
            self._callers.welcome(request)
            return self._upstream.send(request, self._cells.owners(id_)[0])
        return self._of_owner(request, id_, self._body(request) if has_body(request) else None)

    def _delete(self, request: Request, **values: str) -> Response:
        """Delete a file in the cell that has it, and the copy of one that a batch was evacuated with."""
        response = self._object(request, **values)
        if response.status_code == 200:
            reports = self._reports()
            homes = [number for number in self._callers.homes(request).cells if number in reports]
            cells = [cell for cell in self._cells.cells if cell.number in homes]
            self._upstream.ask_all(cells, Question.of(request))
        return response

    def _of_owner(
        self, request: Request, id_: UUID, body: bytes | None = None, *, creates: bool = False
    ) -> Response:
        """Answer with the first owner that has an object, else with what the likeliest one says.

        A request that `creates` something goes no further than to a cell that may have done it: another
        one, which has the input since an evacuation, would do it again.
        """
        passed_over = _NOT_THERE if creates else _NOT_THERE | _AWAY
        refusal: Response | Unavailable | None = None
        for cell in self._owners(request, id_):
            try:
                response = self._upstream.send(request, cell, body)
            except Unavailable as error:
                if creates and not isinstance(error, NotConnected):
                    raise
                refusal = refusal or error
                continue
            if response.status_code not in passed_over:
                return response
            if refusal is None:
                refusal = response
            elif not isinstance(refusal, Unavailable) and refusal.status_code == 401:
                # A cell that knows the key knows better.
                refusal.close()
                refusal = response
            else:
                response.close()
        if isinstance(refusal, Unavailable):
            raise refusal
        return refusal or self._any_cell(request)

    def _owners(self, request: Request, id_: UUID) -> Iterator[Cell]:
        """Yield the cells that may have an object, the likeliest one first.

        That one may be away; others are asked only if they know the caller's key.
        """
        first, *others = self._cells.owners(id_)
        if cell_of(id_) == first.number:
            yield first
        else:
            others.insert(0, first)
        homes = self._callers.homes(request).cells
        reports = self._reports()
        yield from (cell for cell in others if cell.number in homes and cell.number in reports)

    def _body(self, request: Request) -> bytes:
        """Return the JSON body of a caller whom some cell knows; raises PayloadTooLarge, Refused."""
        self._callers.welcome(request)
        body = request.stream.read(_MAX_BODY + 1)
        if len(body) > _MAX_BODY:
            raise PayloadTooLarge(f"The body is larger than {_MAX_BODY} bytes.")
        if len(body) < (request.content_length or 0):
            # A cell would wait for the rest.
            raise ClientDisconnected
        return body

    def _place(self, request: Request) -> Response:
        """Pass new work to the cell that suits it best."""
        homes = self._callers.welcome(request)
        head = request.stream.read(_PEEKED)
        found = _MODEL.search(head)
        model = None if found is None else found[1].decode()
        return self._placed(request, homes, model, lambda: chain([head], pieces_of(request)))

    def _placed(
        self, request: Request, homes: Homes, model: str | None, content: Callable[[], Content]
    ) -> Response:
        """Send a request with `content` to the best cell that connects."""
        reports = {
            number: report for number, report in self._reports().items() if number in homes.cells
        }
        demand = Demand(homes.tenant, _DAY, model)
        while True:
            try:
                cell = self._cells.place(demand, reports, self._rng)
            except InvalidRequest as error:
                if demand.model is None:
                    raise Unavailable("No cell has a fleet now: try again.") from error
                # A cell warns of the model, and says what is wrong with it.
                demand = replace(demand, model=None)
                continue
            try:
                return self._upstream.send(request, cell, content())
            except NotConnected:
                # Nothing of the body but its head was read: another cell may have it.
                del reports[cell.number]

    def _import(self, request: Request, body: bytes) -> Response:
        """Create a batch whose input is in a bucket; one key leads to one cell, whatever its quote.

        Elsewhere a repeated call would create the batch again.
        """
        homes = self._callers.welcome(request)
        key = request.headers.get("Idempotency-Key")
        if key is None:
            return self._placed(request, homes, None, lambda: body)
        # Those that did not say whether they know the caller may have created it before.
        may_know = homes.cells | homes.silent | homes.away
        cells = [
            cell
            for cell in self._cells.allowed(homes.tenant)
            if cell.number in may_know and cell.accepts_work
        ]
        if not cells:
            raise Unavailable(f"No cell that may have the work of {homes.tenant} accepts any now.")
        cell = max(cells, key=lambda each: _rank(key, each))
        if cell.number not in homes.cells:
            raise Unavailable(f"Cell {cell.name} does not answer now, and may have this already.")
        return self._upstream.send(request, cell, body)

    def _create(self, request: Request) -> Response:
        """Create a batch in the cell that has its file, or that imports it."""
        body = self._body(request)
        batch = _decoded(body, _NewBatch)
        file = parse_file_id(batch.input_file_id or batch.inputFileId or "")
        if file is not None:
            return self._of_owner(request, file, body, creates=True)
        if batch.input_url is not None:
            return self._import(request, body)
        # The cell says what is wrong.
        return self._placed(request, self._callers.homes(request), None, lambda: body)

    def _rerun(self, request: Request) -> Response:
        """Create a rerun in the cell that has its batch."""
        body = self._body(request)
        batch = parse_batch_id(_decoded(body, _NewRerun).batch_id or "")
        if batch is not None:
            return self._of_owner(request, batch, body, creates=True)
        return self._placed(request, self._callers.homes(request), None, lambda: body)

    def _change_letters(self, request: Request) -> Response:
        """Change dead letters in all cells that have some."""
        body = self._body(request)
        return self._merged(request, merged_changes, body)

    def _found(self, request: Request, **_: str) -> Response:
        """Answer with the first cell that has what is asked for."""
        answers, refusal, _missing = self._asked(request)
        return as_response(answers[0][1]) if answers else refusal

    def _list(self, request: Request) -> Response:
        """Merge the pages of all cells, exactly."""
        position, default = _LISTS[request.path.rstrip("/")]
        answers, refusal, missing = self._asked(request)
        if not answers:
            return refusal
        merged = merged_pages(
            [msgspec.json.decode(answer.content, type=Page) for _, answer in answers],
            position,
            int(request.args.get("limit") or default),
            newest_first=(request.args.get("order") or "desc") == "desc",
        )
        return _with_headers(json_response(merged), answers, missing)

    def _letters(self, request: Request) -> Response:
        """List dead letters cell by cell: the cell that knows the last letter goes on with it."""
        answers, refusal, missing = self._asked(request)
        if not answers and missing and refusal.status_code == 404:
            raise Unavailable("The cell of the last letter does not answer now: try again.")
        if not answers:
            return refusal
        if request.args.get("after"):
            holder, answer = answers[0]
            cells = self._cells.cells
            others = cells[cells.index(holder) + 1 :]
            query = {name: value for name, value in request.args.items() if name != "after"}
            answers, missing = [(holder, answer)], []
            if self._callers.homes(request).cells.intersection(cell.number for cell in others):
                later, _, missing = self._asked(
                    request, query=urlencode(query).encode(), among=others
                )
                answers += later
        pages = [msgspec.json.decode(answer.content, type=Page) for _, answer in answers]
        merged = joined_pages(pages, int(request.args.get("limit") or _LETTERS))
        return _with_headers(json_response(merged), answers, missing)

    def _search(self, request: Request) -> Response:
        limit = request.args.get("limit") or str(_SEARCHED)
        return self._merged(request, lambda answers: merged_search(answers, int(limit)))

    def _merged(
        self,
        request: Request,
        merge: Callable[[Sequence[Answer]], Answer],
        body: bytes | None = None,
    ) -> Response:
        """Merge the answers of all cells."""
        answers, refusal, missing = self._asked(request, body)
        if not answers:
            return refusal
        merged = merge([msgspec.json.decode(answer.content) for _, answer in answers])
        return _with_headers(json_response(merged), answers, missing)

    def _concatenated(self, request: Request) -> Response:
        """Send the lines of all cells, one cell after the other."""
        homes = self._callers.homes(request)
        cells = [cell for cell in self._well() if cell.number in homes.cells]
        if not cells:
            return self._any_cell(request)
        later = iter(cells)
        for cell in later:
            first = self._upstream.send(request, cell)
            if first.status_code not in _NOT_THERE:
                break
        if first.status_code != 200:
            return first
        first.response = chain(first.iter_encoded(), self._contents(request, later))
        first.headers.pop("Content-Length", None)
        missing = [cell for cell in self._cells.cells if cell not in cells]
        return _with_missing(first, [cell for cell in missing if cell.number in homes.cells])

    def _contents(self, request: Request, cells: Iterator[Cell]) -> Iterator[bytes]:
        """Yield what each cell answers, one cell after the other; a refusal breaks the download.

        A cell would not wait for its turn with a response that it has begun.
        """
        for cell in cells:
            response = self._upstream.send(request, cell)
            with closing(response):
                if response.status_code == 200:
                    yield from response.iter_encoded()
                elif response.status_code not in _NOT_THERE:
                    raise Unavailable(f"Cell {cell.name} answers {response.status_code}.")

    def _asked(
        self,
        request: Request,
        body: bytes | None = None,
        *,
        query: bytes | None = None,
        among: Sequence[Cell] | None = None,
    ) -> tuple[list[tuple[Cell, Answered]], Response, list[Cell]]:
        """Ask all cells of the caller: good answers, a refusal, and the cells that are missing."""
        homes = self._callers.homes(request)
        reports = self._reports()
        cells = self._cells.cells if among is None else among
        mine = [cell for cell in cells if cell.number in homes.cells and cell.number in reports]
        if not homes.cells:
            # One says what is wrong with the key.
            mine = self._well()[:1]
        asked = self._upstream.ask_all(mine, Question.of(request, body=body, query=query))
        answers = [(cell, answer) for cell, answer in asked if answer is not None]
        if not answers:
            raise Unavailable("No cell answers now: try again.")
        missing = [cell for cell, answer in asked if answer is None]
        allowed = self._cells.allowed(homes.tenant)
        missing += [
            cell
            for cell in cells
            if cell in allowed and (cell.number not in reports or cell.number in homes.silent)
        ]
        good = [(cell, answer) for cell, answer in answers if answer.status == 200]
        # A cell need not know a key or an object that another one has; any other refusal counts.
        refused = [each for _, each in answers if each.status not in {200, 401, 404}]
        if refused:
            good = []
        return good, as_response((refused or [answers[0][1]])[0]), missing


def _unknown_path(_: Request) -> Response:
    raise NotFound("Unknown path: see /openapi.json.", code="unknown_url")


def _of_client(error: HTTPException) -> LowtideError:
    """Return the error for a body that did not arrive."""
    if isinstance(error, BodyTooSlow):
        return RequestTimeout(error.description or "")
    return InvalidRequest(error.description or "The request is malformed.")


def _with_headers(
    response: Response, answers: Sequence[tuple[Cell, Answered]], missing: Sequence[Cell]
) -> Response:
    """Add the rate limit of the cell that has least of it left, and the names of missing cells."""
    limits = [
        {
            name.lower(): value
            for name, value in answer.headers
            if name.lower().startswith(_RATE_LIMIT)
        }
        for _, answer in answers
    ]
    limited = [each for each in limits if _REMAINING in each]
    if limited:
        response.headers.update(min(limited, key=lambda each: int(each[_REMAINING])))
    return _with_missing(response, missing)


def _decoded(body: bytes, type_: type[_Parameters]) -> _Parameters:
    """Return the parameters that name a cell; none if the body is malformed, as its cell will say."""
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.DecodeError:
        return type_()


def _rank(key: str, cell: Cell) -> bytes:
    """Return the rank of a cell for a key: each key has the same first cell at every front."""
    return hashlib.sha256(f"{cell.number} {key}".encode()).digest()


def _with_missing(response: Response, cells: Sequence[Cell]) -> Response:
    if cells:
        response.headers[MISSING] = ", ".join(sorted({cell.name for cell in cells}))
    return response
