from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from lowtide.local.environment import check_user, manifest_environment, merge
from lowtide.local.manifests import Container
from lowtide.local.options import BadManifest, LocalError

MAPS = {"config": {"LOWTIDE_ENGINE": "simulated", "LOWTIDE_TICK": "10"}}
SECRETS = {"database": {"api-url": "postgresql://api"}}


def container(document: dict[str, object]) -> Container:
    return msgspec.convert(document, Container)


def test_environment_merges_all_sources_and_env_overrides_env_from() -> None:
    environment = manifest_environment(
        container(
            {
                "envFrom": [
                    {"configMapRef": {"name": "config"}},
                    {"secretRef": {"name": "absent", "optional": True}},
                ],
                "env": [
                    {"name": "LOWTIDE_TICK", "value": "20"},
                    {
                        "name": "LOWTIDE_DATABASE_URL",
                        "valueFrom": {"secretKeyRef": {"name": "database", "key": "api-url"}},
                    },
                    {
                        "name": "NOT_THERE",
                        "valueFrom": {
                            "configMapKeyRef": {"name": "config", "key": "no", "optional": True}
                        },
                    },
                ],
            }
        ),
        MAPS,
        SECRETS,
    )
    assert environment == {
        "LOWTIDE_ENGINE": "simulated",
        "LOWTIDE_TICK": "20",
        "LOWTIDE_DATABASE_URL": "postgresql://api",
    }


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"envFrom": [{"configMapRef": {"name": "no"}}]}, "No ConfigMap named no"),
        ({"envFrom": [{"secretRef": {"name": "no"}}]}, "No Secret named no"),
        (
            {
                "env": [
                    {
                        "name": "A",
                        "valueFrom": {"secretKeyRef": {"name": "database", "key": "no"}},
                    }
                ]
            },
            "Secret database has no key no",
        ),
        ({"env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]}, "Variable A"),
    ],
    ids=["config-map", "secret", "key", "unknown-source"],
)
def test_error_names_dangling_reference(document: dict[str, object], message: str) -> None:
    with pytest.raises(BadManifest, match=message):
        manifest_environment(container(document), MAPS, SECRETS)


@pytest.mark.parametrize(
    ("user", "manifest", "defaults", "fixed", "expected"),
    [
        ({"A": "user"}, {}, {}, {}, "user"),
        ({"A": "user"}, {"A": "manifest"}, {}, {}, "manifest"),
        ({}, {"LOWTIDE_X": "manifest"}, {"LOWTIDE_X": "default"}, {}, "default"),
        ({"LOWTIDE_X": "user"}, {"LOWTIDE_X": "m"}, {"LOWTIDE_X": "default"}, {}, "user"),
        ({"OTEL_X": "user"}, {"OTEL_X": "m"}, {}, {}, "user"),
        ({"LOWTIDE_X": "user"}, {}, {}, {"LOWTIDE_X": "fixed"}, "fixed"),
        ({"LOWTIDE_DATABASE_URL": "user"}, {"LOWTIDE_DATABASE_URL": "role"}, {}, {}, "role"),
        ({"LOWTIDE_HEALTH_PORT": "1"}, {}, {}, {"LOWTIDE_HEALTH_PORT": "2"}, "2"),
        ({"LOWTIDE_API_KEY_PEPPER": "user"}, {}, {}, {}, None),
    ],
    ids=[
        "user-environment",
        "manifest-over-user",
        "default-over-manifest",
        "user-setting-over-both",
        "user-collector-over-manifest",
        "fixed-over-all",
        "role-is-the-manifest's",
        "port-is-the-runtime's",
        "keys-are-the-runtime's",
    ],
)
def test_variable_comes_from_source_with_precedence(
    user: dict[str, str],
    manifest: dict[str, str],
    defaults: dict[str, str],
    fixed: dict[str, str],
    expected: str | None,
) -> None:
    (name,) = {*user, *manifest, *defaults, *fixed}
    assert merge(user, manifest, defaults, fixed).get(name) == expected


def test_path_starts_with_folder_of_interpreter() -> None:
    path = merge({"PATH": "/somewhere"}, {}, {}, {})["PATH"]
    assert path == f"{Path(sys.executable).parent}{os.pathsep}/somewhere"


def test_mistyped_setting_is_refused() -> None:
    check_user({"LOWTIDE_ENGINE": "noop", "HOME": "/"})
    with pytest.raises(LocalError, match="LOWTIDE_ENGIEN"):
        check_user({"LOWTIDE_ENGIEN": "noop"})
