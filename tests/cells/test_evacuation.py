"""Evacuation of a cell into others: each batch ends exactly once, whatever is killed or comes back."""

from __future__ import annotations

import json
import shutil
from base64 import b64encode
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import url2pathname

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from typer.testing import CliRunner

from lowtide.batches.ledger import Ledger
from lowtide.batches.model import BatchStatus
from lowtide.batches.service import BatchRequest
from lowtide.cells.evacuation import LEFT, Outcome
from lowtide.cli.main import app
from lowtide.core.errors import Conflict, NotFound
from lowtide.core.ids import DEFAULT_TENANT
from lowtide.files.model import object_key
from lowtide.objects.joined import Piece
from lowtide.objects.store import ObstoreObjects
from tests.cells.hosts import Host, Killed, Steps, check_ends_once, input_of, kill
from tests.worlds import World, together

if TYPE_CHECKING:
    from lowtide.batches.ledger import Fence
    from lowtide.cells.evacuation import Evacuated
    from lowtide.core.ids import BatchId, FileId

# They interrupt evacuations at every call, on two real databases.
pytestmark = pytest.mark.slow


def outcomes(results: list[Evacuated]) -> list[Outcome]:
    return [result.outcome for result in results]


def test_unfinished_batches_continue_in_another_cell(hosts: list[Host]) -> None:
    dead, target, _ = hosts
    dead.check()
    finished = dead.create(2)
    dead.finish()
    begun, new = dead.create(4), dead.create(3)
    dead.split(begun)
    dead.work(most=2)
    assert outcomes(target.evacuate(dead)) == [Outcome.EVACUATED] * 2
    assert target.get(finished) is None
    target.finish()
    dead.check()
    for batch in (begun, new):
        assert check_ends_once(hosts, batch, dead.sources[batch]) is target
    assert check_ends_once(hosts, finished, dead.sources[finished]) is dead


def _steps_of_evacuation(dead: Host, target: Host) -> int:
    """Return the number of calls that the evacuation of one batch makes."""
    dead.create()
    steps = Steps()
    with steps.of(target.app("operator").database):
        target.evacuate(dead)
    return steps.count


def _drained(host: Host) -> BatchId:
    """Return a batch whose requests have all ended."""
    batch = host.create()
    host.split(batch)
    host.work()
    return batch


def _steps_of_finalizing(host: Host) -> int:
    """Return the number of calls that finalizing one batch makes."""
    batch = _drained(host)
    steps = Steps()
    with steps.of(host.app("worker").database):
        host.finalize(batch)
    return steps.count


def _return(host: Host) -> None:
    """Run all that a cell does when it is back."""
    host.check()
    host.finish()


@pytest.mark.parametrize("returns_first", [False, True], ids=["repeated first", "returns first"])
def test_evacuation_is_killed_at_any_call_and_repeated(
    hosts: list[Host], *, returns_first: bool
) -> None:
    dead, target, _ = hosts
    dead.check()
    calls = _steps_of_evacuation(dead, target)
    assert calls > 30
    ended_at = set()
    for call in range(calls):
        batch = dead.create()
        dead.split(batch)
        dead.work(most=1)
        steps = Steps(call, kill)
        with pytest.raises(Killed), steps.of(target.app("operator").database):
            target.evacuate(dead)
        if returns_first:
            _return(dead)
        target.evacuate(dead)
        target.finish()
        _return(dead)
        ended_at.add(check_ends_once(hosts, batch, dead.sources[batch]).number)
    # Returning first, the cell keeps what was not claimed yet.
    assert ended_at == ({1, 2} if returns_first else {2})


@pytest.mark.parametrize("tick", [False, True], ids=["finalizes", "ticks"])
def test_cell_comes_back_at_any_call_of_an_evacuation(hosts: list[Host], *, tick: bool) -> None:
    dead, target, _ = hosts
    dead.check()
    calls = _steps_of_evacuation(dead, target)
    ended_at = set()
    for call in range(calls):
        batch = _drained(dead)
        action = partial(_return, dead) if tick else partial(dead.finalize, batch)
        with Steps(call, action).of(target.app("operator").database):
            target.evacuate(dead)
        target.finish()
        _return(dead)
        ended_at.add(check_ends_once(hosts, batch, dead.sources[batch]).number)
    assert ended_at == {1, 2}


def test_evacuation_at_any_call_of_a_batch_that_ends(hosts: list[Host]) -> None:
    dead, target, _ = hosts
    dead.check()
    ended_at = set()
    for call in range(_steps_of_finalizing(dead)):
        batch = _drained(dead)
        with Steps(call, partial(target.evacuate, dead)).of(dead.app("worker").database):
            dead.finalize(batch)
        target.finish()
        _return(dead)
        ended_at.add(check_ends_once(hosts, batch, dead.sources[batch]).number)
    assert ended_at == {1, 2}


def test_cell_is_killed_at_any_call_of_a_batch_that_ends(hosts: list[Host]) -> None:
    dead, target, _ = hosts
    dead.check()
    ended_at = set()
    for call in range(_steps_of_finalizing(dead)):
        batch = _drained(dead)
        with pytest.raises(Killed), Steps(call, kill).of(dead.app("worker").database):
            dead.finalize(batch)
        results = _by_batch(target.evacuate(dead))
        target.finish()
        if results.get(batch) is Outcome.ENDED:
            assert target.get(batch) is None
        _return(dead)
        ended_at.add(check_ends_once(hosts, batch, dead.sources[batch]).number)
    assert ended_at == {1, 2}


def test_returning_cell_is_killed_at_any_call(hosts: list[Host]) -> None:
    dead, target, _ = hosts
    dead.check()

    def moved() -> BatchId:
        batch = dead.create()
        dead.split(batch)
        dead.work(most=2)
        target.evacuate(dead)
        target.finish()
        return batch

    moved()
    counted = Steps()
    with counted.of(dead.app("worker").database):
        dead.check()
    for call in range(counted.count):
        batch = moved()
        with pytest.raises(Killed), Steps(call, kill).of(dead.app("worker").database):
            dead.check()
        with pytest.MonkeyPatch.context() as patch:
            # What a killed drop leaves goes with its fence.
            patch.setattr("lowtide.scheduler.ledger_check.FENCE_KEPT", timedelta(0))
            _return(dead)
        assert check_ends_once(hosts, batch, dead.sources[batch]) is target
    assert list(Path(url2pathname(dead.bucket[7:]), "cells", "ended").glob("*.json")) == []


def test_creation_is_killed_at_any_call(hosts: list[Host]) -> None:
    """A batch whose client got no answer may run or not; one that was acknowledged runs once."""
    dead, target, _ = hosts
    dead.check()
    file = _upload(dead)
    counted = Steps()
    with counted.of(dead.app("api").database):
        dead.create(file=file, idempotency_key="key")
    for call in range(counted.count):
        key = f"key-{call}"
        with suppress(Killed), Steps(call, kill).of(dead.app("api").database):
            dead.create(file=file, idempotency_key=key)
        batch = dead.create(file=file, idempotency_key=key)
        target.evacuate(dead)
        target.finish()
        _return(dead)
        source = dead.sources[batch]
        assert check_ends_once(hosts, batch, source) is target
        under_key = "SELECT count(*) FROM batches WHERE idempotency_key = :key"
        assert target.value(under_key, key=key) == 1
    unknown = "SELECT count(*) FROM batches WHERE idempotency_key IS NULL"
    assert target.value(unknown) == 0


def _upload(host: Host) -> FileId:
    with host.app("api").services.files.upload(DEFAULT_TENANT) as upload:
        upload.write(input_of(3))
        return upload.finish("in.jsonl", "batch").id


def test_two_cells_share_the_batches_of_a_third(hosts: list[Host]) -> None:
    dead, *targets = hosts
    dead.check()
    batches = [dead.create(2) for _ in range(12)]
    for target in targets:
        target.app("operator")
    results = together(
        *(partial(target.evacuate, dead, at_once=2) for target in targets for _ in range(2))
    )
    assert not [each for each in chain(*results) if each.outcome in LEFT]
    for target in targets:
        target.finish()
    _return(dead)
    found = [check_ends_once(hosts, batch, dead.sources[batch]) for batch in batches]
    assert dead not in found
    moved = Counter(each.batch for each in chain(*results) if each.outcome is Outcome.EVACUATED)
    assert set(moved) == set(batches)


def test_cell_that_never_stopped_works_on_while_it_is_evacuated(hosts: list[Host]) -> None:
    """It is only cut off from the operator: its own database and bucket still answer it."""
    alive, target, _ = hosts
    alive.check()
    batches = [alive.create(2) for _ in range(16)]

    def work() -> None:
        # From the other end than the evacuation, to meet it.
        for batch in reversed(batches):
            alive.split(batch)
            while alive.work():
                pass
            alive.finalize(batch)

    together(work, partial(target.evacuate, alive))
    target.finish()
    _return(alive)
    found = [check_ends_once(hosts, batch, alive.sources[batch]).number for batch in batches]
    assert Counter(found).keys() == {1, 2}, found


def test_batch_that_ended_since_the_list_was_read_is_not_created(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowtide.scheduler.ledger_check.FENCE_KEPT", timedelta(0))
    dead, target, _ = hosts
    dead.check()
    batch = dead.create()
    evacuation = target.evacuation(dead)
    claim = Ledger.claim

    def late(ledger: Ledger, batch: BatchId) -> Fence:
        # The batch ends, and its fence is old enough to go, just before the claim.
        monkeypatch.setattr(Ledger, "claim", claim)
        dead.finish()
        dead.check()
        assert ledger.fence(batch) is None
        return claim(ledger, batch)

    monkeypatch.setattr(Ledger, "claim", late)
    assert outcomes(evacuation.run([batch])) == [Outcome.ENDED]
    target.finish()
    assert check_ends_once(hosts, batch, dead.sources[batch]) is dead
    dead.check()
    assert Ledger(ObstoreObjects(dead.bucket), 1).fence(batch) is None


def test_batch_moves_on_and_comes_home(hosts: list[Host]) -> None:
    first, second, third = hosts
    for host in hosts:
        host.check()
    batch = first.create()
    assert outcomes(second.evacuate(first)) == [Outcome.EVACUATED]
    assert outcomes(third.evacuate(second)) == [Outcome.EVACUATED]
    # An older copy is still in the first cell until its tick.
    assert outcomes(first.evacuate(third)) == [Outcome.STILL_HERE]
    first.check()
    assert first.get(batch) is None
    assert outcomes(first.evacuate(third)) == [Outcome.EVACUATED]
    for host in hosts:
        _return(host)
    assert check_ends_once(hosts, batch, first.sources[batch]) is first


def test_client_that_tried_again_elsewhere_has_both_batches(hosts: list[Host]) -> None:
    dead, target, _ = hosts
    dead.check()
    batch = dead.create(idempotency_key="k")
    again = target.create(idempotency_key="k")
    assert outcomes(target.evacuate(dead)) == [Outcome.EVACUATED]
    target.finish()
    _return(dead)
    for each in (batch, again):
        assert check_ends_once(hosts, each, input_of(3)) is target


def test_record_of_a_creation_that_was_rolled_back_is_superseded(hosts: list[Host]) -> None:
    dead, target, _ = hosts
    dead.check()
    with suppress(Killed):
        file = _upload(dead)
        steps = Steps()
        with steps.of(dead.app("api").database):
            dead.create(file=file, idempotency_key="other")
        # The last call is the commit.
        assert steps.names[-1] == "COMMIT"
        target.evacuate(dead)
        with Steps(steps.count - 1, kill).of(dead.app("api").database):
            dead.create(file=file, idempotency_key="k")
    batch = dead.create(file=file, idempotency_key="k")
    results = {each.batch: each for each in target.evacuate(dead)}
    assert results.pop(batch).outcome is Outcome.EVACUATED
    (phantom,) = results.values()
    assert (phantom.outcome, phantom.reason) == (
        Outcome.SUPERSEDED,
        f"batch_{batch.hex} was created instead",
    )


def test_cancellation_at_any_call_of_an_evacuation_is_kept_or_refused(hosts: list[Host]) -> None:
    dead, target, _ = hosts
    dead.check()
    calls = _steps_of_evacuation(dead, target)
    answers = set()
    for call in range(calls):
        batch = dead.create()
        accepted: list[bool] = []

        def cancel(batch: BatchId = batch, accepted: list[bool] = accepted) -> None:
            with suppress(NotFound):
                accepted.append(dead.cancel(batch) is not None)

        with Steps(call, cancel).of(target.app("operator").database):
            target.evacuate(dead)
        target.finish()
        dead.check()
        record = target.get(batch)
        assert record is not None
        assert record.ended_at is not None
        assert (record.status is BatchStatus.CANCELLED) >= bool(accepted), (call, record.status)
        assert dead.get(batch) is None
        answers.add(bool(accepted))
    assert answers == {True, False}


def test_deleted_input_file_does_not_come_back(hosts: list[Host]) -> None:
    dead, target, _ = hosts
    dead.check()
    batch = dead.create()
    record = dead.get(batch)
    assert record is not None
    dead.app("api").services.files.delete(DEFAULT_TENANT, record.input_file, "me")
    assert outcomes(target.evacuate(dead)) == [Outcome.EVACUATED]
    with pytest.raises(NotFound):
        target.app("api").services.files.get(DEFAULT_TENANT, record.input_file)
    target.finish()
    _return(dead)
    assert check_ends_once(hosts, batch, dead.sources[batch]) is target
    target.app("worker").scheduler.tick()
    key = object_key(record.input_file)
    assert key not in {each.key for each in ObstoreObjects(target.bucket).objects_in("files")}


def test_input_file_of_several_batches_is_copied_with_its_index(hosts: list[Host]) -> None:
    dead, target, _ = hosts
    dead.check()
    file = _upload(dead)
    batches = [dead.create(file=file) for _ in range(3)]
    assert outcomes(target.evacuate(dead, at_once=3)) == [Outcome.EVACUATED] * 3
    files = [host.app("api").services.files.get(DEFAULT_TENANT, file) for host in (dead, target)]
    assert files[0] == files[1]
    assert target.content(file) == input_of(3)
    indexes = [
        [each.key for each in ObstoreObjects(host.bucket).objects_in("indexes")]
        for host in (dead, target)
    ]
    assert indexes[0] == indexes[1] != []
    target.finish()
    _return(dead)
    for batch in batches:
        assert check_ends_once(hosts, batch, input_of(3)) is target
    target.app("worker").scheduler.tick()
    assert target.content(file) == input_of(3)


def test_batch_keeps_its_parameters(hosts: list[Host]) -> None:
    dead, target, _ = hosts
    dead.check()
    batch = dead.create(
        completion_window="3h", metadata={"a": "b"}, output_expires_after=7200, priority=2,
        idempotency_key="k", idempotency_digest=b"d",
    )  # fmt: skip
    before = dead.get(batch)
    target.evacuate(dead)
    after = target.get(batch)
    assert before is not None
    assert after is not None
    assert replace(after, eta=None, trace=None) == replace(before, eta=None, trace=None)
    # The client that repeats its call gets the same batch.
    services = target.app("api").services
    request = BatchRequest(
        f"file-{before.input_file.hex}", "u", idempotency_key="k", idempotency_digest=b"d"
    )
    assert services.batches.create(DEFAULT_TENANT, request).id == batch


def test_unknown_tenant_is_created_and_another_one_of_its_name_is_not_mixed_up(
    hosts: list[Host],
) -> None:
    dead, target, third = hosts
    dead.check()
    tenant = World(dead.database).tenant("acme")
    World(third.database).tenant("acme")
    batch = dead.create(tenant=tenant)
    (left,) = third.evacuate(dead)
    assert left.outcome is Outcome.TENANT_CONFLICT
    assert outcomes(target.evacuate(dead)) == [Outcome.EVACUATED]
    name = "SELECT name FROM tenants WHERE id = :id"
    assert target.value(name, id=tenant) == "acme"
    record = target.get(batch, tenant)
    assert record is not None
    assert record.tenant == tenant
    assert target.get(batch) is None


def test_batches_that_cannot_run_here_stay(hosts: list[Host], tmp_path: Path) -> None:
    dead, target, _ = hosts
    dead.settings["master_key"] = SecretStr(b64encode(b"m" * 32).decode())
    fleets = tmp_path / "fleets.yaml"
    fleets.write_text("fleets: {small: {models: [small]}}")
    target.settings["fleets"] = str(fleets)
    dead.check()
    unserved = dead.create(source=input_of(2, "large"))
    served = dead.create(source=input_of(2, "small"))
    with dead.app("api").services.files.upload(DEFAULT_TENANT, zero_retention=True) as upload:
        upload.write(input_of(2, "small"))
        sealed = dead.create(file=upload.finish("in.jsonl", "batch").id)
    missing = dead.create(source=input_of(2, "small"))
    record = dead.get(missing)
    assert record is not None
    ObstoreObjects(dead.bucket).delete([record.input_key])
    exported = dead.create(source=input_of(2, "small"))
    with dead.app("worker").database.begin() as connection:
        connection.execute(
            text(
                "UPDATE batches SET output_url = 's3://theirs/', export_state = 'pending', export_next_at = now() WHERE id = :id"
            ),
            {"id": exported},
        )
        dead.app("worker").ledger_keeper.record(connection, [exported])
    expected = {
        unserved: Outcome.MODEL_NOT_SERVED,
        served: Outcome.EVACUATED,
        sealed: Outcome.ZERO_RETENTION,
        missing: Outcome.INPUT_MISSING,
        exported: Outcome.BUCKET_NOT_REGISTERED,
    }
    assert _by_batch(target.evacuate(dead, dry_run=True)) == expected
    assert target.unfinished() == []
    assert _by_batch(target.evacuate(dead)) == expected
    assert target.unfinished() == [served]
    # What stays is not fenced: its cell goes on with it.
    dead.check()
    assert set(dead.unfinished()) == set(expected) - {served}
    refused = target.evacuate(dead, may_have=lambda _: False)
    assert Outcome.WRONG_REGION in outcomes(refused)


def _by_batch(results: list[Evacuated]) -> dict[BatchId, Outcome]:
    return {each.batch: each.outcome for each in results}


def test_wrong_buckets_are_refused(hosts: list[Host], tmp_path: Path) -> None:
    dead, target, third = hosts
    for host in (dead, third):
        host.check()
    with pytest.raises(NotFound, match="no ledger"):
        target.evacuate(dead, bucket=(tmp_path / "empty").as_uri())
    with pytest.raises(Conflict, match="bucket of cell 3, but cell-1 is cell 1"):
        target.evacuate(dead, bucket=third.bucket)
    with pytest.raises(Conflict, match="into itself"):
        dead.evacuate(dead)


def test_joined_input_becomes_one_object(hosts: list[Host]) -> None:
    dead, target, _ = hosts
    dead.check()
    file = _upload(dead)
    objects, content = dead.app("worker").objects, input_of(3)
    for name, piece in (("a", content[:50]), ("b", content[50:])):
        with objects.open_writer(f"parts/{name}") as writer:
            writer.write(piece)
    pieces = [Piece("parts/a", 50), Piece("parts/b", len(content) - 50)]
    objects.join("joined/x", pieces)
    with dead.app("worker").database.begin() as connection:
        sql = "UPDATE files SET object_key = 'joined/x', index_key = NULL, segments = NULL"
        connection.execute(text(sql))
    batch = dead.create(file=file)
    assert outcomes(target.evacuate(dead)) == [Outcome.EVACUATED]
    target.finish()
    _return(dead)
    assert check_ends_once(hosts, batch, content) is target
    assert target.content(file) == content


def test_replica_is_evacuated_and_its_fences_are_copied_back(
    hosts: list[Host], tmp_path: Path
) -> None:
    """A batch that the replica does not have yet goes on in its cell."""
    dead, target, _ = hosts
    dead.check()
    ended, moved = dead.create(), dead.create()
    replica = tmp_path / "replica"
    dead.split(ended)
    dead.work()
    dead.finalize(ended)
    shutil.copytree(tmp_path / "bucket-1", replica)
    late = dead.create()
    assert _by_batch(target.evacuate(dead, bucket=replica.as_uri())) == {moved: Outcome.EVACUATED}
    target.finish()
    arguments = ["cells", "copy-fences", "--from", replica.as_uri(), "--to", dead.bucket, "--json"]
    copied = CliRunner().invoke(app, arguments)
    assert (copied.exit_code, json.loads(copied.stdout)) == (0, {"copied": 1, "ended_twice": []})
    _return(dead)
    assert check_ends_once(hosts, moved, dead.sources[moved]) is target
    for batch in (ended, late):
        assert check_ends_once(hosts, batch, dead.sources[batch]) is dead


def test_batch_that_ended_before_its_replica_knew_is_reported(
    hosts: list[Host], tmp_path: Path
) -> None:
    dead, target, _ = hosts
    dead.check()
    batch = dead.create()
    replica = tmp_path / "replica"
    shutil.copytree(tmp_path / "bucket-1", replica)
    dead.finish()
    target.evacuate(dead, bucket=replica.as_uri())
    arguments = ["cells", "copy-fences", "--from", replica.as_uri(), "--to", dead.bucket, "--json"]
    copied = CliRunner().invoke(app, arguments)
    assert copied.exit_code == 1
    assert json.loads(copied.stdout) == {"copied": 0, "ended_twice": [f"batch_{batch.hex}"]}


@pytest.mark.usefixtures("s3_environment")
def test_evacuation_through_s3(hosts: list[Host], tmp_path: Path) -> None:
    dead, target, _ = hosts
    for host in (dead, target):
        host.bucket = f"s3://bucket/{tmp_path.name}/{host.number}"
    dead.check()
    batches = [dead.create() for _ in range(3)]
    dead.split(batches[0])
    dead.work()
    dead.finalize(batches[0])
    assert outcomes(target.evacuate(dead, at_once=2)) == [Outcome.EVACUATED] * 2
    assert outcomes(target.evacuate(dead)) == []
    target.finish()
    _return(dead)
    found = [check_ends_once(hosts, batch, dead.sources[batch]).number for batch in batches]
    assert found == [1, 2, 2]
