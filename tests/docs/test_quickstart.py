"""docs/quickstart-vllm.md: the overlay of an engine that is running."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from lowtide.local.rendering import render
from tests.docs.pages import ROOT

if TYPE_CHECKING:
    from pathlib import Path

FILES = ("kustomization.yaml", "config.yaml", "scale.yaml", "engine.yaml")


def test_overlay_points_workers_to_engine(tmp_path: Path) -> None:
    page = (ROOT / "docs/quickstart-vllm.md").read_text(encoding="utf-8")
    contents = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    for folder in ("knative", "keda"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    overlay = tmp_path / "knative/overlays/mine"
    overlay.mkdir()
    for name, content in zip(FILES, contents, strict=True):
        (overlay / name).write_text(content)
    objects = {
        (one.document["kind"], one.document["metadata"]["name"]): one.document
        for one in render(overlay)
    }
    settings = objects["ConfigMap", "lowtide-config"]["data"]
    assert settings["LOWTIDE_ENGINE"] == "openai"
    for pool in ("spot", "dedicated"):
        scaler = objects["ScaledObject", f"infer-{pool}"]["spec"]
        assert scaler["maxReplicaCount"] == 1
        assert settings[f"LOWTIDE_{pool.upper()}_REPLICAS"] == "1"
    port = int(settings["LOWTIDE_ENGINE_URL"].rpartition(":")[2])
    policy = objects["NetworkPolicy", "engine"]["spec"]
    assert [one["port"] for rule in policy["egress"] for one in rule["ports"]] == [port]
    workers = objects["Deployment", "infer-spot"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= workers.items()
