from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROMOTION = ROOT / ".github/promotion.py"
DIGEST = f"sha256:{'ab' * 32}"
OVERLAYS = ["dev", "stage", "prod"]


def promotion(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, PROMOTION, *words], capture_output=True, text=True, check=False
    )


@pytest.fixture
def overlay(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of one of the overlays."""
    shutil.copytree(ROOT / "knative/overlays" / request.param, tmp_path / "overlay")
    return tmp_path / "overlay"


@pytest.mark.parametrize("overlay", OVERLAYS, indirect=True)
def test_set_replaces_image_and_keeps_the_rest(overlay: Path) -> None:
    path = overlay / "kustomization.yaml"
    before = path.read_text()
    release = f"1.10@{DIGEST}"
    done = promotion("set", overlay, "registry/lowtide", release)
    assert (done.returncode, done.stderr) == (0, "")
    after = yaml.safe_load(path.read_text())
    images = {image["name"]: image for image in after["images"]}
    assert images["lowtide"] == {
        "name": "lowtide",
        "newName": "registry/lowtide",
        "newTag": "1.10",
        "digest": DIGEST,
    }
    assert {**yaml.safe_load(before), "images": 0} == {**after, "images": 0}
    comments = [line for line in before.splitlines() if line.strip().startswith("#")]
    assert [line for line in comments if line not in path.read_text()] == []
    assert promotion("show", overlay).stdout == f"{release}\n"
    assert promotion("set", overlay, "registry/lowtide", release).returncode == 0
    assert yaml.safe_load(path.read_text()) == after


@pytest.mark.parametrize("overlay", ["stage"], indirect=True)
@pytest.mark.parametrize(
    "release",
    ["", "1.0", f"@{DIGEST}", "1.0@sha256:12", f"1.0@{DIGEST}\n    x: y"],
    ids=["empty", "no-digest", "no-tag", "short", "another-line"],
)
def test_malformed_release_changes_nothing(overlay: Path, release: str) -> None:
    path = overlay / "kustomization.yaml"
    before = path.read_text()
    done = promotion("set", overlay, "registry/lowtide", release)
    assert done.returncode == 1
    assert "is no release: name it as tag@sha256:" in done.stderr
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("- name: other\n  newTag: a\n", "No image named lowtide"),
        ("- name: lowtide\n  newTag: dev\n", "'dev@' is no release"),
    ],
    ids=["no-image", "no-digest"],
)
def test_show_reports_overlay_without_release(tmp_path: Path, images: str, message: str) -> None:
    (tmp_path / "kustomization.yaml").write_text(f"images:\n{images}")
    done = promotion("show", tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
