"""`lowtide buckets`: registration of the buckets that a tenant's batches may use.

The commands connect as those of `lowtide tenants` do.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lowtide.buckets.model import DEFAULT_CREDENTIALS
from lowtide.cli.options import DataDir, Json
from lowtide.cli.output import moment, print_json, print_table, say
from lowtide.cli.stack import operating

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowtide.buckets.model import Bucket
    from lowtide.buckets.service import Buckets


buckets = typer.Typer(no_args_is_help=True, help="Manage the buckets that batches may use.")

Tenant = Annotated[str, typer.Option(help="Name of the tenant.")]
Address = Annotated[
    str, typer.Argument(metavar="URL", help="Bucket or folder, such as s3://bucket/folder/.")
]


@buckets.command("list")
def list_buckets(tenant: Tenant, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List a tenant's buckets."""
    with _registry(data_dir) as registry:
        registered = registry.of(tenant)
    if as_json:
        print_json([_bucket_json(bucket) for bucket in registered])
    else:
        _print_buckets(*registered, empty=f"{tenant} has no buckets.")


@buckets.command("add")
def add_bucket(
    url: Address,
    tenant: Tenant,
    read: Annotated[bool, typer.Option("--read", help="Batches may read inputs.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Batches may write results.")] = False,
    credentials: Annotated[
        str, typer.Option(help="Name of the credentials in LOWTIDE_BUCKET_CREDENTIALS.")
    ] = DEFAULT_CREDENTIALS,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Register a bucket, or a folder in it, for a tenant."""
    with _registry(data_dir) as registry:
        bucket = registry.add(tenant, url, may_read=read, may_write=write, credentials=credentials)
    print_json(_bucket_json(bucket)) if as_json else _print_buckets(bucket)


@buckets.command("remove")
def remove_bucket(
    url: Address, tenant: Tenant, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Remove a registration. Imports and exports that have not started fail."""
    with _registry(data_dir) as registry:
        registry.remove(tenant, url)
    if as_json:
        print_json({"tenant": tenant, "url": url, "removed": True})
    else:
        say(f"Removed {url} of {tenant}.")


@contextmanager
def _registry(data_dir: Path | None) -> Iterator[Buckets]:
    """Open the service; errors within become a message and exit code 1."""
    with operating(data_dir) as operator:
        yield operator.app.buckets(operator.actor)


def _bucket_json(bucket: Bucket) -> dict[str, object]:
    return {**asdict(bucket), "url": str(bucket.url)}


def _print_buckets(*registered: Bucket, empty: str = "") -> None:
    print_table(
        ("url", "read", "write", "credentials", "created", "by"),
        [
            (
                str(bucket.url),
                "yes" if bucket.may_read else "no",
                "yes" if bucket.may_write else "no",
                bucket.credentials,
                moment(bucket.created_at),
                bucket.created_by,
            )
            for bucket in registered
        ],
        ids=("url",),
        empty=empty,
    )
