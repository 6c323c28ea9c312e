"""Panels of GPUs: the exporter's series are joined to the workers whose pods have the GPUs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.monitoring.programs import needs, run
from tests.monitoring.queries import boards, expressions_of, filled

if TYPE_CHECKING:
    from pathlib import Path

WORKERS = {
    f'worker_concurrency{{namespace="lowtide",pod="{pod}",fleet="{fleet}",pool="{pool}"}}': 64
    for pod, fleet, pool in (
        ("infer-spot-a", "h100", "spot"),
        ("infer-spot-b", "h100", "spot"),
        ("infer-dedicated-a", "l4", "dedicated"),
    )
}
# As `serviceMonitor.honorLabels` is true, or false: then the labels of the exporter's own pod win.
HONORED = 'namespace="lowtide",pod="{pod}",container="engine"'
RENAMED = (
    'namespace="gpu-operator",pod="dcgm-exporter-x",container="exporter",'
    'exported_namespace="lowtide",exported_pod="{pod}",exported_container="engine"'
)
PODS = (("infer-spot-a", "0"), ("infer-spot-a", "1"), ("infer-dedicated-a", "0"), ("other", "1"))


def series(metric: str, labels: str, values: tuple[float, ...]) -> dict[str, float]:
    """Return the exporter's series of each GPU; the last one's pod is no worker."""
    rows = zip(PODS, values, strict=True)
    return {
        f'{metric}{{gpu="{gpu}",UUID="GPU-{pod}-{gpu}",{labels.replace("{pod}", pod)}}}': value
        for (pod, gpu), value in rows
    }


def evaluated(folder: Path, expression: str, inputs: dict[str, float], expected: list[Any]) -> None:
    """Fail unless an expression returns these samples."""
    test = {
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {
                        "series": name,
                        "values": f"{value}+{value}x10" if "_total" in name else f"{value}x10",
                    }
                    for name, value in inputs.items()
                ],
                "promql_expr_test": [
                    {"expr": filled(expression), "eval_time": "10m", "exp_samples": expected}
                ],
            }
        ],
    }
    path = folder / "gpus.test.yml"
    path.write_text(json.dumps(test))
    run("promtool", "test", "rules", path)


def expression_of(title: str) -> str:
    (found,) = [
        text for panel, text in expressions_of(boards()["lowtide-engines"]) if panel == title
    ]
    return found


def sample(pod: str, gpu: str, fleet: str, pool: str, value: float) -> dict[str, object]:
    labels = f'{{fleet="{fleet}",gpu="{gpu}",namespace="lowtide",pod="{pod}",pool="{pool}"}}'
    return {"labels": labels, "value": value}


@needs("promtool")
@pytest.mark.parametrize("labels", [HONORED, RENAMED], ids=["honored", "renamed"])
def test_gpus_of_workers_are_shown_with_fleet_and_pool(tmp_path: Path, labels: str) -> None:
    inputs = WORKERS | series("DCGM_FI_DEV_GPU_UTIL", labels, (97, 3, 50, 100))
    expected = [
        sample("infer-spot-a", "0", "h100", "spot", 97),
        sample("infer-spot-a", "1", "h100", "spot", 3),
        sample("infer-dedicated-a", "0", "l4", "dedicated", 50),
    ]
    evaluated(tmp_path, expression_of("GPU utilization"), inputs, expected)


@needs("promtool")
def test_memory_is_the_used_share(tmp_path: Path) -> None:
    inputs = (
        WORKERS
        | series("DCGM_FI_DEV_FB_USED", RENAMED, (75, 50, 10, 1))
        | series("DCGM_FI_DEV_FB_FREE", RENAMED, (25, 50, 30, 1))
    )
    expected = [
        sample("infer-spot-a", "0", "h100", "spot", 0.75),
        sample("infer-spot-a", "1", "h100", "spot", 0.5),
        sample("infer-dedicated-a", "0", "l4", "dedicated", 0.25),
    ]
    evaluated(tmp_path, expression_of("GPU memory"), inputs, expected)


@needs("promtool")
def test_energy_is_power_by_output_tokens(tmp_path: Path) -> None:
    tokens = 'engine_output_tokens_total{{namespace="lowtide",pod="{}",fleet="{}",pool="{}"}}'
    inputs = (
        WORKERS
        | series("DCGM_FI_DEV_POWER_USAGE", RENAMED, (600, 424, 70, 500))
        | {tokens.format("infer-spot-a", "h100", "spot"): 60 * 512.0}
        | {tokens.format("infer-dedicated-a", "l4", "dedicated"): 0.0}
    )
    expected = [{"labels": '{fleet="h100",pool="spot"}', "value": 2.0}]
    evaluated(tmp_path, expression_of("Energy per output token"), inputs, expected)
