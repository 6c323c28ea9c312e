"""Batches, dead letters and usage of any tenant, through the services of the portal."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from lowtide.batches.api import batch_object, require_batch_id
from lowtide.batches.model import BatchStatus
from lowtide.batches.views import BatchFilter, BatchOrder, mark_of
from lowtide.core.errors import InvalidRequest, LowtideError, NotFound
from lowtide.core.ids import format_batch_id, parse_request_id
from lowtide.core.pools import Pool
from lowtide.core.scopes import Role
from lowtide.dead_letters import api_types
from lowtide.dead_letters.api import details_json, summary_object
from lowtide.dead_letters.model import LetterFilter, LetterId, LetterState
from lowtide.dead_letters.requeue import RequeueRequest
from lowtide.dead_letters.service import Content
from lowtide.explain.api import explanation_object
from lowtide.reruns.service import ANY, RerunRequest
from lowtide.reruns.store import Failure
from lowtide.search.api import search_page
from lowtide.tenants.sign_in import Principal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lowtide.app import App
    from lowtide.batches.model import Batch
    from lowtide.core.ids import BatchId, TenantId

    Json = dict[str, Any]
    Selection = Sequence[LetterId] | LetterFilter


class OperatorAccess:
    """Access of an operator to one tenant, or to all."""

    tenants = True

    def __init__(self, app: App, actor: str, tenant: str | None) -> None:
        self._services = app.services
        self._principal = Principal(actor, Role.OPERATOR)
        self._names = self._services.lists.tenants(self._principal)
        self._tenant = None if tenant is None else self._tenant_id(tenant)

    def batches(self, query: Mapping[str, str]) -> Json:
        """Return a page of batches."""
        status, user, after = (query.get(name) for name in ("status", "user", "after"))
        batches, has_more = self._services.lists.page(
            self._principal,
            BatchFilter(
                statuses=frozenset() if status is None else frozenset({BatchStatus(status)}),
                user=user or "",
                tenant=self._tenant,
            ),
            BatchOrder.NEWEST,
            after=None if after is None else mark_of(self._batch(require_batch_id(after, "after"))),
            limit=int(query["limit"]),
        )
        with_eta = self._services.forecaster.with_eta
        return _page([self._object(with_eta(batch)) for batch in batches], has_more=has_more)

    def batch(self, batch_id: str) -> Json:
        """Return a batch; raises NotFound."""
        return self._object(self._batch(require_batch_id(batch_id)))

    def batch_file(self, batch: Json, role: str) -> Iterator[bytes]:
        """Return the content of a batch's file, and record the download in the audit log."""
        record = self._batch(require_batch_id(batch["id"]))
        # A generator: a target that cannot be written leaves no download in the audit log.
        yield from _stored(self._services.browser.download(self._principal, record.id, role)[1])

    def failed_inputs(self, batch: Json, outcomes: Sequence[str]) -> Iterator[bytes]:
        """Return the input lines of failed requests; record the download in the audit log."""
        record = self._batch(require_batch_id(batch["id"]))
        failures = frozenset(map(Failure, outcomes)) or ANY
        pieces = self._services.reruns.inputs(
            record.tenant, record.id, failures, actor=self._principal.name
        )
        return _stored(pieces)

    def explain(self, batch_id: str) -> Json:
        """Return the explanation of a batch; raises NotFound."""
        batch = self._batch(require_batch_id(batch_id))
        explanation = self._services.explainer.explain(None, batch.id)
        built: Json = msgspec.to_builtins(explanation_object(explanation))
        return built

    def cancel(self, batch_id: str) -> Json:
        """Cancel a batch, and return it; raises NotFound or Conflict."""
        batch = self._batch(require_batch_id(batch_id))
        cancelled = self._services.batches.cancel(batch.tenant, batch.id, self._principal.name)
        return self._object(cancelled)

    def rerun(self, body: Json) -> Json:
        """Run failed requests again; raises NotFound or Conflict."""
        source = self._batch(require_batch_id(body["batch_id"]))
        outcomes = frozenset(map(Failure, body.get("outcomes") or ANY))
        if body["dry_run"]:
            counts = self._services.reruns.plan(source.tenant, source.id).counts
            new, requests = None, sum(counts[outcome] for outcome in outcomes)
        else:
            window = body.get("completion_window")
            key = f"cli-{uuid.uuid4()}"
            request = RerunRequest(source.id, self._principal.name, outcomes, window, key)
            rerun = self._services.reruns.rerun(source.tenant, request)
            new, requests = format_batch_id(rerun.batch), rerun.requests
        return {
            "dry_run": body["dry_run"],
            "source_batch_id": format_batch_id(source.id),
            "batch_id": new,
            "requests": requests,
        }

    def letters(self, query: Mapping[str, str]) -> Json:
        """Return a page of dead letters, newest first."""
        after = query.get("after")
        letters, has_more = self._services.dead_letters.page(
            self._tenant,
            _filter(query),
            after=None if after is None else _letter_id(after),
            limit=int(query["limit"]),
        )
        data = [
            {**api_types.fields_of(letter), "tenant": self._names[letter.tenant]}
            for letter in letters
        ]
        return _page(data, has_more=has_more)

    def letter_summary(self, query: Mapping[str, str]) -> Json:
        """Return the counts of dead letters by error."""
        summary = self._services.dead_letters.summary(self._tenant, _filter(query))
        built: Json = msgspec.to_builtins(summary_object(summary))
        return built

    def letter(self, letter_id: str) -> Json:
        """Return a dead letter with its input and its last response; raises NotFound."""
        letter = _letter_id(letter_id)
        tenant = self._batch(letter.batch).tenant
        shown = self._services.dead_letters.get(tenant, letter)
        # Inputs and responses hold what msgspec refuses, such as 1e400.
        built: Json = json.loads(b"".join(details_json(shown)))
        return {**built, "tenant": self._names[tenant]}

    def letter_content(self, query: Mapping[str, str]) -> Iterator[bytes]:
        """Return inputs or last responses; record the download in the audit log."""
        letter_filter = _filter(query)
        if letter_filter.batch is not None:
            self._batch(letter_filter.batch)
        yield from _stored(
            self._services.dead_letters.download(
                self._only_tenant(),
                letter_filter,
                Content(query["which"]),
                actor=self._principal.name,
            )
        )

    def usage(self) -> Json:
        """Return the usage of the tenant."""
        from lowtide.routes import usage_object

        usage = self._services.usage.read(self._only_tenant())
        built: Json = msgspec.to_builtins(usage_object(usage))
        return built

    def find(self, text: str) -> Json:
        """Return what a search finds."""
        result = self._services.search.find(self._tenant, text)
        page: Json = msgspec.to_builtins(search_page(result))
        only = None if self._tenant is None else self._names[self._tenant]
        for match, found in zip(result.matches, page["data"], strict=True):
            found["tenant"] = match.tenant_name or only
        return page

    def end_letters(self, action: str, body: Json) -> Json:
        """Requeue or discard dead letters, tenant by tenant."""
        dry_run = bool(body.get("dry_run"))
        total = Counter[str]()
        batches: list[Json] = []
        for tenant, selection in self._selections(body):
            if action == "requeue":
                changes = self._requeue(tenant, selection, body, dry_run=dry_run)
                batches += changes.pop("batches")
            else:
                changes = self._discard(tenant, selection, dry_run=dry_run)
            total.update(changes)
        counts = {name: total[name] for name in ("changed", "unchanged", "remaining")}
        return {"dry_run": dry_run, **counts, "batches": batches}

    def _requeue(
        self, tenant: TenantId, selection: Selection, body: Json, *, dry_run: bool
    ) -> Json:
        request = RequeueRequest(
            selection,
            self._principal.name,
            body.get("completion_window"),
            f"cli-{uuid.uuid4()}",
            dry_run=dry_run,
            pool=Pool(body["pool"]),
        )
        outcome = self._services.requeuer.requeue(tenant, request)
        batches = [
            {
                "source_batch_id": format_batch_id(requeued.source),
                "batch_id": api_types.batch_id_or_none(requeued.batch),
                "letters": requeued.letters,
                "tenant": self._names[tenant],
            }
            for requeued in outcome.batches
        ]
        return _counts(outcome) | {"batches": batches}

    def _discard(self, tenant: TenantId, selection: Selection, *, dry_run: bool) -> Json:
        outcome = self._services.dead_letters.discard(
            tenant, selection, actor=self._principal.name, dry_run=dry_run
        )
        return _counts(outcome)

    def _selections(self, body: Json) -> Sequence[tuple[TenantId, Selection]]:
        """Return what to select of each tenant."""
        if "ids" not in body:
            letter_filter = _filter(body["filter"])
            return [(tenant, letter_filter) for tenant in self._chosen()]
        letters = [_letter_id(id_) for id_ in body["ids"]]
        tenants = {batch: self._batch(batch).tenant for batch in {id_.batch for id_ in letters}}
        by_tenant: dict[TenantId, list[LetterId]] = {}
        for letter in letters:
            by_tenant.setdefault(tenants[letter.batch], []).append(letter)
        return list(by_tenant.items())

    def _chosen(self) -> Sequence[TenantId]:
        return list(self._names) if self._tenant is None else [self._tenant]

    def _only_tenant(self) -> TenantId:
        if self._tenant is None:
            raise InvalidRequest("Name one tenant with --tenant.")
        return self._tenant

    def _batch(self, batch: BatchId) -> Batch:
        """Return a batch; raises NotFound, also for one of another tenant than the chosen one."""
        record = self._services.browser.details(self._principal, batch).batch
        if self._tenant not in (None, record.tenant):
            name = self._names[self._tenant]
            raise NotFound(f"{format_batch_id(batch)} is not a batch of {name!r}.")
        return record

    def _object(self, batch: Batch) -> Json:
        built: Json = msgspec.to_builtins(batch_object(batch))
        return {**built, "tenant": self._names.get(batch.tenant, "")}

    def _tenant_id(self, name: str) -> TenantId:
        for tenant, known in self._names.items():
            if known == name:
                return tenant
        raise NotFound(f"Tenant {name[:100]!r} not found: see `lowtide tenants list`.")


def _stored(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield pieces of recorded files; raises NotFound if the object store does not have them."""
    try:
        yield from pieces
    except LowtideError as error:
        if NotFound not in (type(error), type(error.__cause__)):
            raise
        raise NotFound(
            "The file is not in the object store of this command. If that is not the server's, set "
            "LOWTIDE_OBJECT_STORE_URL."
        ) from error


def _page(data: list[Json], *, has_more: bool) -> Json:
    return {"data": data, "has_more": has_more, "last_id": data[-1]["id"] if data else None}


def _filter(query: Mapping[str, Any]) -> LetterFilter:
    batch, state = query.get("batch_id"), query.get("state")
    return LetterFilter(
        None if batch is None else require_batch_id(batch),
        query.get("error_code"),
        None if state is None else LetterState(state),
    )


def _letter_id(text: str) -> LetterId:
    position = parse_request_id(text)
    if position is None:
        raise NotFound(f"Dead letter {text[:100]!r} not found: check the id.")
    return LetterId(*position)


def _counts(outcome: Any) -> Json:
    return {name: getattr(outcome, name) for name in ("changed", "unchanged", "remaining")}
