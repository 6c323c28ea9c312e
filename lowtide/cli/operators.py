"""`lowtide tenants`, `keys` and `rewrap-keys`: administration that the API does not offer.

The commands connect as the role `lowtide_operator` to the database of LOWTIDE_DATABASE_URL, else to
the local stack's.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lowtide.cli.options import DataDir, Json
from lowtide.cli.output import moment, print_json, print_table, say
from lowtide.cli.stack import operating
from lowtide.core.durations import format_window, parse_span
from lowtide.core.ids import format_key_id, parse_key_id
from lowtide.tenants.model import LIMITS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowtide.tenants.keys import ApiKey
    from lowtide.tenants.model import Tenant
    from lowtide.tenants.service import Tenancy, TenantChanges


tenants = typer.Typer(no_args_is_help=True, help="Manage tenants, their weights and limits.")
keys = typer.Typer(no_args_is_help=True, help="Manage API keys of tenants.")

NONE = "none"


def _limit(text: str) -> str:
    if text != NONE and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise typer.BadParameter(f"{text!r}: use a positive integer, or '{NONE}' for no limit.")
    return text


def _span(text: str) -> str:
    if text != NONE and parse_span(text) is None:
        raise typer.BadParameter(
            f"{text!r}: use a number and a unit, such as 24h or 7d, or '{NONE}'."
        )
    return text


def _seconds(span: str) -> int:
    """Return the seconds of a retention; 0 stands for the setting's."""
    parsed = parse_span(span)
    return 0 if parsed is None else int(parsed.total_seconds())


Name = Annotated[str, typer.Argument(help="Name of the tenant.")]
KeyName = Annotated[str, typer.Option(help="Name of the key.")]
Weight = Annotated[
    int | None,
    typer.Option(min=1, help="Share of capacity relative to tenants with equally urgent work."),
]
Requests = Annotated[
    str | None, typer.Option(parser=_limit, metavar="N|none", help="Max API requests per minute.")
]
Active = Annotated[
    str | None, typer.Option(parser=_limit, metavar="N|none", help="Max active batches.")
]
Queued = Annotated[
    str | None,
    typer.Option(
        parser=_limit, metavar="N|none", help="Max queued requests, running ones included."
    ),
]
Running = Annotated[
    str | None, typer.Option(parser=_limit, metavar="N|none", help="Max requests running at once.")
]

Enqueued = Annotated[
    str | None,
    typer.Option(
        parser=_limit, metavar="N|none", help="Max estimated input tokens of unfinished requests."
    ),
]
Daily = Annotated[
    str | None,
    typer.Option(
        parser=_limit, metavar="N|none", help="Max input and output tokens per day in UTC."
    ),
]
Monthly = Annotated[
    str | None,
    typer.Option(
        parser=_limit,
        metavar="N|none",
        help="Max cost per month in UTC, in the currency of the prices.",
    ),
]

Retention = Annotated[
    str | None,
    typer.Option(
        parser=_span,
        metavar="SPAN|none",
        help="Time after a batch's end until its requests and answers are deleted, such as 7d; "
        "'none' for LOWTIDE_BATCH_RETENTION.",
    ),
]

ZeroRetention = Annotated[
    bool | None,
    typer.Option(
        "--zero-retention/--no-zero-retention",
        help="Encrypt every upload, and destroy its key with it.",
    ),
]


@tenants.command("list")
def list_tenants(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List tenants."""
    with _tenancy(data_dir) as tenancy:
        all_tenants = tenancy.tenants()
    if as_json:
        print_json([_tenant_json(tenant) for tenant in all_tenants])
    else:
        _print_tenants(*all_tenants)


@tenants.command("create")
def create_tenant(
    name: Name,
    weight: Weight = None,
    requests_per_minute: Requests = None,
    active_batches: Active = None,
    queued_requests: Queued = None,
    running_requests: Running = None,
    enqueued_tokens: Enqueued = None,
    tokens_per_day: Daily = None,
    spend_per_month: Monthly = None,
    batch_retention: Retention = None,
    zero_retention: ZeroRetention = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Create a tenant. Limits that are not given default to LOWTIDE_TENANT_*."""
    changes = _changes(
        weight,
        batch_retention,
        zero_retention,
        requests_per_minute,
        active_batches,
        queued_requests,
        running_requests,
        enqueued_tokens,
        tokens_per_day,
        spend_per_month,
    )
    with _tenancy(data_dir) as tenancy:
        tenant = tenancy.create(name, changes)
    print_json(_tenant_json(tenant)) if as_json else _print_tenants(tenant)


@tenants.command("set")
def change_tenant(
    name: Name,
    weight: Weight = None,
    requests_per_minute: Requests = None,
    active_batches: Active = None,
    queued_requests: Queued = None,
    running_requests: Running = None,
    enqueued_tokens: Enqueued = None,
    tokens_per_day: Daily = None,
    spend_per_month: Monthly = None,
    batch_retention: Retention = None,
    zero_retention: ZeroRetention = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Change a tenant's weight, limits and retention. They apply from the next request on."""
    changes = _changes(
        weight,
        batch_retention,
        zero_retention,
        requests_per_minute,
        active_batches,
        queued_requests,
        running_requests,
        enqueued_tokens,
        tokens_per_day,
        spend_per_month,
    )
    with _tenancy(data_dir) as tenancy:
        tenant = tenancy.change(name, changes)
    print_json(_tenant_json(tenant)) if as_json else _print_tenants(tenant)


def rewrap_keys(data_dir: DataDir = None) -> None:
    """Wrap all data keys with LOWTIDE_MASTER_KEY; it needs LOWTIDE_MASTER_KEY_PREVIOUS too."""
    with operating(data_dir) as operator:
        changed = operator.app.data_keys.rewrap()
    say(f"Wrapped {changed:,} data keys with the current master key.")


@keys.command("list")
def list_keys(tenant: Name, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List a tenant's keys. The secrets themselves are not stored."""
    with _tenancy(data_dir) as tenancy:
        tenant_keys = tenancy.keys(tenant)
    if as_json:
        print_json([_key_json(key) for key in tenant_keys])
        return
    print_table(
        ("name", "id", "prefix", "state", "scopes", "created", "last used", "ends"),
        [
            (
                key.name,
                format_key_id(key.id),
                key.prefix,
                _state(key),
                "all" if key.scopes is None else " ".join(key.scopes),
                *map(moment, (key.created_at, key.last_used_at, key.revoked_at or key.expires_at)),
            )
            for key in tenant_keys
        ],
        ids=("id",),
        empty=f"{tenant} has no keys.",
    )


_LONGEST_KEY: Final = 1_000


@keys.command("create")
def create_key(
    tenant: Name,
    name: KeyName = "default",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What the key may do; repeat it for several. Without one: everything."),
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(help="When the key ends, such as 12h or 90d. Without it: never.")
    ] = None,
    key_file: Annotated[
        typer.FileText | None,
        typer.Option(
            help="File with a key that `keys create` printed in another cell, - for standard input: it "
            "opens both."
        ),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Create a key and print it. It is shown only once."""
    from lowtide.tenants.keys import KeyTerms

    with _tenancy(data_dir) as tenancy:
        terms = KeyTerms.parse(scope or (), expires_in)
        given = None if key_file is None else key_file.read(_LONGEST_KEY).strip()
        key = tenancy.create_key(tenant, name, terms, key=given)
    if as_json:
        print_json({"tenant": tenant, "name": name, "key": key, "scopes": terms.scopes})
    else:
        say(key)


@keys.command("rotate")
def rotate_key(
    tenant: Name,
    name: KeyName = "default",
    overlap: Annotated[
        str,
        typer.Option(
            help="How long the old key keeps working, such as 30m, 24h or 7d; 0 ends it at once."
        ),
    ] = "24h",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Replace a key and print the new one, only once. The old key works until the overlap ends."""
    with _tenancy(data_dir) as tenancy:
        rotation = tenancy.rotate_key(tenant, name, overlap)
    if as_json:
        details = {"key": rotation.key, "old_until": rotation.old_until}
        print_json({"tenant": tenant, "name": name, **details})
    else:
        say(rotation.key)


@keys.command("revoke")
def revoke_key(
    tenant: Name,
    name: KeyName = "default",
    key_id: Annotated[
        str | None,
        typer.Option("--id", help="Only the key with this id (key_…), if a rotation left several."),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Revoke a key. Further requests with it are refused, and its portal sessions end."""
    parsed_id = None if key_id is None else parse_key_id(key_id)
    if key_id is not None and parsed_id is None:
        raise typer.BadParameter(f"{key_id!r}: use an id from `lowtide keys list`.")
    with _tenancy(data_dir) as tenancy:
        tenancy.revoke_key(tenant, name, parsed_id)
    if as_json:
        print_json({"tenant": tenant, "name": name, "revoked": True})
    else:
        say(f"Revoked key {name} of {tenant}.")


@contextmanager
def _tenancy(data_dir: Path | None) -> Iterator[Tenancy]:
    """Open the service; errors within become a message and exit code 1."""
    with operating(data_dir) as operator:
        yield operator.app.tenancy(operator.actor)


def _changes(
    weight: int | None, retention: str | None, zero_retention: bool | None, *options: str | None
) -> TenantChanges:
    """Return the changes of options in the order of LIMITS."""
    from lowtide.tenants.service import TenantChanges

    limits = {
        name: None if text == NONE else int(text)
        for name, text in zip(LIMITS, options, strict=True)
        if text is not None
    }
    seconds = None if retention is None else _seconds(retention)
    return TenantChanges(weight, limits, seconds, zero_retention)


def _key_json(key: ApiKey) -> dict[str, object]:
    return {**asdict(key), "id": format_key_id(key.id), "state": _state(key)}


def _state(key: ApiKey) -> str:
    return key.state(datetime.now(UTC)).value


def _limits(tenant: Tenant) -> dict[str, int | None]:
    """Return a tenant's limits under the names of their options."""
    limits = asdict(tenant.limits)
    return {name.replace("_lines", "_requests"): limits[name] for name in LIMITS}


def _tenant_json(tenant: Tenant) -> dict[str, object]:
    return {
        "id": tenant.id,
        "name": tenant.name,
        "weight": tenant.weight,
        **_limits(tenant),
        "batch_retention": tenant.batch_retention,
        "zero_retention": tenant.zero_retention,
        "created_at": tenant.created_at,
    }


def _retention(seconds: int | None) -> str:
    return NONE if seconds is None else format_window(timedelta(seconds=seconds))


def _print_tenants(*rows: Tenant) -> None:
    names = [name.replace("_lines", "_requests").replace("_", " ") for name in LIMITS]
    print_table(
        ("tenant", "weight", *names, "retention", "zero retention"),
        [
            (
                tenant.name,
                tenant.weight,
                *(NONE if limit is None else limit for limit in _limits(tenant).values()),
                _retention(tenant.batch_retention),
                "on" if tenant.zero_retention else "off",
            )
            for tenant in rows
        ],
        ids=("tenant",),
    )
