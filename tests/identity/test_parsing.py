"""The file of identity providers: what it may say, and every problem with its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lowtide.core.scopes import EVERY_SCOPE, READING, Role, Scope
from lowtide.core.yaml_files import InvalidFile
from lowtide.identity.parsing import parse

ROOT = Path(__file__).parents[2]
FILE = """\
issuers:
  - issuer: https://login.example.com/realms/acme
    audience: [lowtide, lowtide-cli]
    tenant:
      claim: groups
      names: {/team/search: search, /team/ads: ads}
    user: email
    roles:
      claim: [realm_access, roles]
      viewer: [reader]
      operator: [oncall]
      admin: [boss]
  - issuer: https://kubernetes.default.svc.cluster.local
    audience: lowtide
    ca_file: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
    token_file: /var/run/secrets/kubernetes.io/serviceaccount/token
    tenant: {claim: [kubernetes.io, namespace]}
"""
ACME, CLUSTER = parse(FILE).all


def test_claims_say_tenant_user_role_and_scopes() -> None:
    identity = ACME.identity(
        {
            "sub": "7",
            "email": "ada@example.com",
            "groups": ["/team/other", "/team/ads"],
            "realm_access": {"roles": ["reader", "oncall"]},
            "scope": "openid admin:nothing",
        }
    )
    assert (identity.tenant, identity.user) == ("ads", "ada@example.com")
    assert (identity.role, identity.scopes) == (Role.OPERATOR, EVERY_SCOPE - {Scope.ADMIN})


def test_service_account_is_of_the_tenant_of_its_namespace() -> None:
    identity = CLUSTER.identity(
        {
            "sub": "system:serviceaccount:search:nightly",
            "kubernetes.io": {"namespace": "search"},
            "scope": ["files:read", "batches:read"],
        }
    )
    assert (identity.tenant, identity.user) == ("search", "system:serviceaccount:search:nightly")
    assert (identity.role, identity.scopes) == (None, READING)


@pytest.mark.parametrize(
    "groups",
    [[], ["/team/other"], ["/team/ads", "/team/search"], "none", 5, None, {"/team/ads": 1}],
)
def test_token_without_one_tenant_has_none(groups: Any) -> None:
    assert ACME.identity({"sub": "7", "groups": groups}).tenant is None


@pytest.mark.parametrize(
    ("values", "role"),
    [
        (["reader"], Role.VIEWER),
        (["boss", "reader"], Role.ADMIN),
        (["root"], None),
        ("boss", Role.ADMIN),
    ],
)
def test_highest_role_counts(values: Any, role: Role | None) -> None:
    assert ACME.identity({"realm_access": {"roles": values}}).role is role


@pytest.mark.parametrize(
    ("roles", "scope", "scopes"),
    [
        (["reader"], "openid", READING),
        (["reader"], "files:read", {Scope.FILES_READ}),
        (["reader"], "admin", READING),
        (["reader"], ["files:read", "files:write"], {Scope.FILES_READ}),
        (["reader"], "files:write", frozenset()),
        (["oncall"], "admin", EVERY_SCOPE - {Scope.ADMIN}),
        (["boss"], "batches:read openid", {Scope.BATCHES_READ}),
        ([], "files:read batches:read", READING),
        ([], ["files:read batches:read"], READING),
        ([], "admin", EVERY_SCOPE),
    ],
)
def test_token_never_does_more_than_its_role(
    roles: list[str], scope: Any, scopes: frozenset[Scope]
) -> None:
    claims = {"realm_access": {"roles": roles}, "scope": scope}
    assert ACME.identity(claims).scopes == scopes


def test_text_is_one_value() -> None:
    identity = ACME.identity(
        {"email": "Ada  Lovelace", "groups": "x /team/ads", "realm_access": {"roles": "not boss"}}
    )
    assert (identity.user, identity.tenant, identity.role) == ("Ada  Lovelace", None, None)
    assert CLUSTER.identity({"kubernetes.io": {"namespace": "a b"}}).tenant == "a b"


def test_token_without_role_and_scopes_may_do_nothing() -> None:
    assert ACME.identity({"sub": "7", "groups": ["/team/ads"]}).scopes == frozenset()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("issuers: []", "identity.yaml:1: issuers: must not be empty"),
        ("isuers: []", "identity.yaml:1: isuers: is an unknown key; did you mean issuers?"),
        (
            FILE.replace("https://login", "http://login"),
            "identity.yaml:2: issuer 1: issuer: must start with https://",
        ),
        (
            FILE.replace("user: email", "usr: email"),
            "identity.yaml:7: issuer 1: usr: is an unknown key; did you mean user?",
        ),
        (
            FILE.replace("user: email", "client_secret: s3cret"),
            "identity.yaml:7: issuer 1: client_secret: is an unknown key; secrets do not belong in this",
        ),
        (
            FILE.replace("ads: ads}", "ads: A D S}"),
            "identity.yaml:6: issuer 1: tenant.names./team/ads: must be the name of a tenant",
        ),
        (
            FILE.replace("      claim: groups\n", "      name: acme\n"),
            "identity.yaml:4: issuer 1: tenant: has a name, so that claim and names say nothing",
        ),
        (
            FILE.replace("    user: email\n", "    algorithms: [HS256]\n"),
            "identity.yaml:7: issuer 1: algorithms.0: must be one of RS256,",
        ),
        (
            FILE.replace("kubernetes.default.svc.cluster.local", "login.example.com/realms/acme"),
            "identity.yaml:13: issuer 2: issuer: is listed twice: remove one",
        ),
        (
            FILE.replace("[lowtide, lowtide-cli]", "''"),
            "identity.yaml:3: issuer 1: audience: must not",
        ),
        (
            FILE.replace("    user: email\n", "    user: sub\n    user: email\n"),
            "identity.yaml:8: user is",
        ),
        ("issuers: [", "identity.yaml: "),
        ("- 1", "identity.yaml:1: must be a mapping"),
    ],
)
def test_problem_has_its_line_and_its_fix(text: str, problem: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        parse(text)
    problems = caught.value.problems
    assert any(each.startswith(problem) for each in problems), problems
    assert "s3cret" not in str(caught.value)


def test_plain_http_is_for_this_machine_alone() -> None:
    for host in ("localhost:9400", "127.0.0.1", "[::1]:8080"):
        assert parse(FILE.replace("https://login.example.com", f"http://{host}")).all


def test_examples_of_the_docs_are_valid() -> None:
    text = (ROOT / "docs/identity.md").read_text()
    blocks = re.findall(r"```yaml\n(issuers:.*?)```", text, flags=re.DOTALL)
    issuers = [issuer for block in blocks for issuer in parse(block).all]
    assert len(issuers) == 2
    cluster = issuers[1].identity(
        {
            "sub": "system:serviceaccount:search:nightly",
            "kubernetes.io": {"namespace": "search"},
        }
    )
    assert (cluster.tenant, cluster.role) == ("search", Role.OPERATOR)
