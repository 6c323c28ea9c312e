"""The example of a job in the cluster: its manifest, and its script against a real stack."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trustme
import yaml

from lowtide.identity.parsing import parse
from lowtide.local.rendering import documents
from manifests.overlays import ROOT
from tests.e2e.command import clean_environment, lowtide
from tests.e2e.conftest import SETTINGS
from tests.e2e.waiting import until
from tests.identity.provider import Provider, providing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import StackFactory
    from tests.e2e.stacks import LocalStack

ACCOUNT, JOB = documents(ROOT / "knative/examples/job.yaml")
(CONTAINER,) = JOB["spec"]["template"]["spec"]["containers"]
VOLUMES = {one["name"]: one for one in JOB["spec"]["template"]["spec"]["volumes"]}
MOUNTS = {one["name"]: one["mountPath"] for one in CONTAINER["volumeMounts"]}
ENVIRONMENT = {one["name"]: one["value"] for one in CONTAINER["env"]}
(PROJECTED,) = VOLUMES["lowtide-token"]["projected"]["sources"]
TOKEN = PROJECTED["serviceAccountToken"]
SUBJECT = f"system:serviceaccount:{ACCOUNT['metadata']['namespace']}:{ACCOUNT['metadata']['name']}"
QUESTIONS = (ROOT / "examples/questions.jsonl").read_bytes()
LEEWAY = 30
# The first token is valid for this long, so that the job starts with it.
SECONDS = 20


def cluster() -> dict[str, Any]:
    """Return the cluster's entry in the file of providers."""
    (file,) = documents(ROOT / "knative/components/identity/configmap.yaml")
    entry: dict[str, Any] = yaml.safe_load(file["data"]["identity.yaml"])["issuers"][1]
    return entry


def claims(**changes: Any) -> dict[str, Any]:
    """Return what Kubernetes writes into a token of the job's account."""
    account = ACCOUNT["metadata"]
    return {
        "iss": cluster()["issuer"],
        "aud": [TOKEN["audience"]],
        "sub": SUBJECT,
        "kubernetes.io": {
            "namespace": account["namespace"],
            "pod": {"name": "nightly-x7l2p", "uid": "5d4b1c1e-0000-4000-8000-000000000001"},
            "serviceaccount": {"name": account["name"], "uid": "5d4b1c1e-0000-4000-8000-000000000002"},
        },
        "tenant": None,
        "scope": None,
    } | changes  # fmt: skip


@pytest.fixture(scope="module")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Provider, Path]]:
    """A server of the cluster's keys, and the file of providers that names it."""
    folder = tmp_path_factory.mktemp("cluster")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.crt")
    (folder / "token").write_text("of a pod of Lowtide\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with providing(bearer="of a pod of Lowtide", certificate=context) as provider:
        entry = cluster() | {
            "jwks_url": f"{provider.url}/openid/v1/jwks",
            "ca_file": str(folder / "ca.crt"),
            "token_file": str(folder / "token"),
        }
        path = folder / "identity.yaml"
        path.write_text(json.dumps({"issuers": [entry]}))
        yield provider, path


@pytest.fixture(scope="module")
def trusting(make_stack: StackFactory, api_server: tuple[Provider, Path]) -> LocalStack:
    """A stack that trusts the cluster, with the job's tenant."""
    stack = make_stack(SETTINGS | {"LOWTIDE_IDENTITY": str(api_server[1])})
    lowtide("tenants", "create", "search", "--data-dir", stack.data_dir)
    return stack


def test_manifest_and_the_file_of_providers_agree() -> None:
    identity = parse(json.dumps({"issuers": [cluster()]})).all[0].identity(claims())
    assert TOKEN["audience"] == cluster()["audience"]
    assert identity.tenant == ACCOUNT["metadata"]["namespace"]
    assert identity.role is not None
    assert JOB["spec"]["template"]["spec"]["serviceAccountName"] == ACCOUNT["metadata"]["name"]
    assert ENVIRONMENT["TOKEN_FILE"] == f"{MOUNTS['lowtide-token']}/{TOKEN['path']}"


def test_documented_command_creates_what_the_job_mounts() -> None:
    comment = (ROOT / "knative/examples/job.yaml").read_text().partition("\napiVersion")[0]
    (name,) = re.findall(r"create configmap (\S+)", comment)
    files = {path: (ROOT / path).name for path in re.findall(r"--from-file=(\S+)", comment)}
    assert VOLUMES["job"]["configMap"]["name"] == name
    assert all((ROOT / path).is_file() for path in files)
    assert [f"{MOUNTS['job']}/{one}" for one in files.values()] == CONTAINER["args"][1:]


def test_job_runs_a_batch_while_its_token_is_renewed(
    trusting: LocalStack, api_server: tuple[Provider, Path], tmp_path: Path
) -> None:
    provider, _ = api_server
    file = tmp_path / TOKEN["path"]
    data = ("--data-dir", trusting.data_dir)
    lowtide("pools", "pause", "spot", *data)
    lowtide("pools", "pause", "dedicated", *data)
    arguments = [ROOT / "examples/nightly.py", ROOT / "examples/questions.jsonl"]
    variables = {"TOKEN_FILE": str(file), "OPENAI_BASE_URL": f"{trusting.base_url}/v1"}
    assert set(variables) == set(ENVIRONMENT)
    now = int(provider.claims()["iat"])
    first = provider.token(**claims(exp=now - LEEWAY + SECONDS, iat=now - 3600))
    file.write_text(first)
    with subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=clean_environment(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            until(lambda: waiting(trusting), "the job's batch waits")
            # The kubelet renews a token before it expires.
            file.write_text(provider.token(**claims()))
            until(lambda: status(trusting, first) == 401, "the first token has expired")
            lowtide("pools", "resume", "spot", *data)
            lowtide("pools", "resume", "dedicated", *data)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert len(output.splitlines()) == len(QUESTIONS.splitlines())
    assert " is completed: " in errors


def waiting(stack: LocalStack) -> bool:
    """Return whether a batch of the job's account waits."""
    rows = stack.query(
        """SELECT 1 FROM batches b JOIN tenants t ON t.id = b.tenant_id
           WHERE t.name = 'search' AND b.user_id = :user AND b.status = 'in_progress'""",
        user=SUBJECT,
    )
    return bool(rows)


def status(stack: LocalStack, token: str) -> int:
    """Return the status of a request with a token."""
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.get(f"{stack.base_url}/v1/batches", headers=headers).status_code
