"""Generate the monitoring files that derive from others: `make monitoring`.

`prometheusrule.yaml` is `rules/` for the Prometheus operator, `cells/prometheusrule.yaml` the rules of a
cell; the modules in `dashboards/` build `dashboards/json/`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from monitoring.dashboards import ALL

HERE = Path(__file__).resolve().parent
RULES = HERE / "rules" / "lowtide.rules.yml"
CELL_RULES = HERE / "cells" / "cell.rules.yml"


def files() -> dict[Path, str]:
    """Return the content of each generated file by path."""
    found = {
        HERE / "prometheusrule.yaml": prometheus_rule(RULES, "lowtide"),
        HERE / "cells" / "prometheusrule.yaml": prometheus_rule(CELL_RULES, "lowtide-cell"),
    }
    for name, text in dashboards().items():
        found[HERE / "dashboards" / "json" / f"{name}.json"] = text
    return found


def prometheus_rule(rules: Path, name: str) -> str:
    """Return the PrometheusRule with the groups of a plain rules file."""
    found: dict[str, Any] = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": name,
            "namespace": "monitoring",
            "labels": {
                "app.kubernetes.io/name": "lowtide",
                "app.kubernetes.io/part-of": "lowtide",
            },
        },
        "spec": yaml.safe_load(rules.read_text(encoding="utf-8")),
    }
    note = f"# Written by `make monitoring` from {rules.relative_to(HERE)}.\n"
    return note + yaml.safe_dump(found, sort_keys=False, width=100)


def dashboards() -> dict[str, str]:
    """Return each dashboard's JSON by its uid."""
    found = {}
    for build in ALL:
        made = build().build()
        text = json.dumps(made, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False)
        found[str(made.uid)] = text + "\n"
    return found


def main() -> None:
    """Write the generated files."""
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
