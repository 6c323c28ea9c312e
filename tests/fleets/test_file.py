from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lowtide.core.yaml_files import InvalidFile
from lowtide.fleets.file import read_fleets
from lowtide.fleets.model import EngineSpec, Fleet, PoolSpec
from lowtide.fleets.parsing import parse
from lowtide.services import capacity
from lowtide.settings import EngineKind, Settings

if TYPE_CHECKING:
    from lowtide.fleets.model import Fleets

ROOT = Path(__file__).resolve().parents[2]

TWO = """\
fleets:
  large:
    models: [qwen-72b, qwen-72b-*]
    aliases: {chat: qwen-72b}
    endpoints: [/v1/chat/completions]
    gpu: H100
    engine:
      kind: openai
      url: http://127.0.0.1:8000/
      api_key_env: LARGE_KEY
      concurrency: 64
      longest_context: 32768
      share: spare
    spot: {min_replicas: 1, max_replicas: 8, price: 4, rows_per_replica: 7, cold_start: 15m, rate: 9}
    dedicated: {max_replicas: 3}
    fallback: any
  any:
    models: ["*"]
"""


def test_file_is_read_with_defaults_of_the_settings() -> None:
    settings = Settings(dedicated_price=5, cold_start=60, engine=EngineKind.NOOP, spot_replicas=6)
    fleets = parse(TWO, settings).fleets
    dedicated = PoolSpec(0, 3, 5.0, 10, 60.0, 2.0)
    assert fleets.names == ("any", "large")
    assert fleets.get("large") == Fleet(
        name="large",
        models=("qwen-72b", "qwen-72b-*"),
        aliases={"chat": "qwen-72b"},
        endpoints=("/v1/chat/completions",),
        engine=EngineSpec("openai", "http://127.0.0.1:8000", "LARGE_KEY", 64, 32768, "spare"),
        spot=PoolSpec(1, 8, 4.0, 7, 900.0, 9.0),
        dedicated=dedicated,
        gpu="H100",
        fallback="any",
    )
    rest = fleets.get("any")
    assert rest is not None
    assert rest.engine.kind == "noop"
    assert rest.spot.max_replicas == 6
    assert rest.endpoints == settings.endpoints


def test_without_a_file_one_fleet_serves_any_model_with_the_settings() -> None:
    settings = Settings(
        dedicated_replicas=9,
        spot_price=0.5,
        dedicated_rate=4,
        worker_concurrency=12,
        engine_url="http://gpu:1",
    )
    fleets = read_fleets(settings)
    (only,) = fleets
    assert (only.name, only.models, fleets.route("anything")) == ("default", ("*",), only)
    assert only.dedicated == PoolSpec(0, 9, 3.0, 10, 180.0, 4.0)
    assert only.spot == PoolSpec(0, 4, 0.5, 5, 180.0, 4.0)
    assert only.engine == EngineSpec("simulated", "http://gpu:1", "LOWTIDE_ENGINE_API_KEY", 12)


def test_auto_concurrency_overrides_the_setting() -> None:
    text = (
        "fleets: {a: {models: [x], engine: {concurrency: auto, kind: openai}}, b: {models: [y]}, "
        "c: {models: [z], engine: {concurrency: auto}}}"
    )
    settings = Settings(worker_concurrency=12)
    fleets = parse(text, settings).fleets
    assert [fleet.engine.concurrency for fleet in fleets] == [None, 12, None]
    # The simulated engine has a fixed number.
    assert [capacity(settings, fleet).searches for fleet in fleets] == [True, False, False]


def test_file_is_read_once_per_process(tmp_path: Path) -> None:
    file = tmp_path / "fleets.yaml"
    file.write_text(TWO)
    settings = Settings(fleets=str(file))
    first = read_fleets(settings)
    file.write_text("changed")
    assert read_fleets(settings) is first


def test_functions_without_a_file_do_not_import_yaml() -> None:
    code = (
        "import sys; from lowtide.settings import Settings; from lowtide.fleets.file import read_fleets; "
        "read_fleets(Settings()); print('yaml' in sys.modules, 'lowtide.fleets.parsing' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert output.stdout.split() == ["False", "False"]


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match=r"gone\.yaml cannot be read"):
        read_fleets(Settings(fleets=str(tmp_path / "gone.yaml")))


def test_example_and_documented_file_are_valid() -> None:
    example = (ROOT / "knative/fleets/fleets.yaml").read_text()
    assert parse(example, Settings()).fleets.names == ("embeddings", "llama-70b", "qwen-8b")
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/fleets.md").read_text(), re.DOTALL)
    assert parse(block, Settings()).fleets.names == ("cpu", "qwen-8b")


A = "fleets:\n  a:\n    models: [x]\n"
OTHER = "  b:\n    models: [y]\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "f:1: must be a mapping"),
        ("fleets: {}", "f:1: fleets: must not be empty"),
        ("fleet: {}", "f:1: fleet: is an unknown key; did you mean fleets?"),
        ("fleets: [", "f: while parsing"),
        (A + "    gpus: H100", "f:4: fleet a: gpus: is an unknown key; did you mean gpu?"),
        (A + "    spot:\n      max: 3", "f:5: fleet a: spot.max: is an unknown key; known are min_r"),
        (A + "    engine: {api_key: s3cret}", "f:4: fleet a: engine.api_key: is an unknown key; secrets"),
        (A + "    engine: {api_key_env: sk-s3cret}", "f:4: fleet a: engine.api_key_env: must be the name"),
        (A + "    engine: {url: 'http://me:s3cret@h'}", "f:4: fleet a: engine.url: must hold no user"),
        (A + "    engine: {url: h:8000}", "f:4: fleet a: engine.url: must start with http"),
        (A + "    engine: {kind: vllm}", "f:4: fleet a: engine.kind: must be 'simulated', 'openai'"),
        (A + "    engine: {concurrency: 0}", "f:4: fleet a: engine.concurrency: must be auto or"),
        (A + "    engine: {share: some}", "f:4: fleet a: engine.share: must be 'all' or 'spare'"),
        (A + "    spot: {cold_start: soon}", "f:4: fleet a: spot.cold_start: must be a duration"),
        (A + "    spot: {price: .inf}", "f:4: fleet a: spot.price: must be a finite number"),
        (A + "    spot: {rate: 0}", "f:4: fleet a: spot.rate: must be greater than 0"),
        (A + "    spot: [1]", "f:4: fleet a: spot: must be a mapping"),
        (A + "    gpu: H 100", "f:4: fleet a: gpu: must be usable as the value of a Kubernetes label"),
        (A + "    gpu: a\n    gpu: b", "f:5: gpu is repeated, after line 4: remove one"),
        (A + OTHER + A.removeprefix("fleets:\n"), "f:6: a is repeated, after line 2: remove one"),
        ("fleets:\n  a: {}", "f:2: fleet a: models: is missing"),
        ("fleets:\n  a: {models: []}", "f:2: fleet a: models: must not be empty"),
        ("fleets:\n  a: {models: [7]}", "f:2: fleet a: models.0: must be text: put it in quotes"),
        ("fleets:\n  a:\n    models:\n    - x\n    - 'a*b'", "f:5: fleet a: models.1: must be a model's"),
        ("fleets:\n  a: {models: [x, x]}", "f:2: fleet a: models.1: x is listed twice: remove one"),
        ("fleets:\n  Big: {models: [x]}", "f:2: fleet Big: a fleet's name becomes part"),
        (f"fleets:\n  {'a' * 41}: {{models: [x]}}", f"f:2: fleet {'a' * 41}: a fleet's name becomes part"),
        ("fleets:\n  a-: {models: [x]}", "f:2: fleet a-: a fleet's name becomes part"),
        ("fleets:\n  \"a'--\": {models: [x]}", "f:2: fleet a'--: a fleet's name becomes part"),
        (A + "    aliases: {x: x}", "f:4: fleet a: aliases.x: x is also listed in models"),
        (A + "    aliases: {y: z}", "f:4: fleet a: aliases.y: the fleet does not serve z: add it"),
        (A + "    aliases: {y: z, z: y}", "f:4: fleet a: aliases.y: z is itself an alias"),
        (A + "    aliases: {y: y}", "f:4: fleet a: aliases.y: y is itself an alias"),
        (A + "    aliases: {'y*': x}", "f:4: fleet a: aliases.y*: must be the exact name of a model"),
        (A + "    endpoints: [/v1/x]", "f:4: fleet a: endpoints.0: /v1/x is not one of LOWTIDE_ENDPOINTS"),
        (A + "    spot: {min_replicas: 5}", "f:4: fleet a: spot.min_replicas: 5 is more than max_replicas, which is 4"),
        (A + OTHER + "    aliases: {x: y}", "f:6: fleet b: aliases.x: the fleet a has x, too"),
        (A + "  b:\n    models: [y, x]", "f:5: fleet b: models.1: the fleet a has x, too"),
        ("fleets:\n  a: {models: ['*']}\n  b: {models: ['*']}", "f:3: fleet b: models.0: the fleet a has *, too"),
        (A + "    fallback: a", "f:4: fleet a: fallback: a fleet cannot be its own fallback"),
        (A + "    fallback: c\n" + OTHER, "f:4: fleet a: fallback: there is no fleet c: the other fleets are b"),
        (A + "    fallback: b\n" + OTHER, "f:4: fleet a: fallback: b does not serve x: add it to its models"),
        (
            "fleets:\n  a: {models: [x], fallback: b}\n  b: {models: [x], fallback: c}\n  c: {models: [x], fallback: a}",
            "f:2: fleet a: fallback: a -> b -> c -> a goes round in a circle",
        ),
        (
            A + "    fallback: b\n  b: {models: [x], endpoints: [/v1/embeddings]}",
            "f:4: fleet a: fallback: b lacks /v1/chat/completions",
        ),
        (
            A + "    fallback: b\n    engine: {longest_context: 9}\n  b: {models: [x], engine: {longest_context: 8}}",
            "f:4: fleet a: fallback: b has a longest_context of 8, less than 9",
        ),
    ],
)  # fmt: skip
def test_problem_names_line_fleet_key_and_fix(text: str, problem: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        parse(text, Settings(), "f")
    assert any(one.startswith(problem) for one in caught.value.problems), caught.value.problems
    assert "s3cret" not in str(caught.value)


def test_all_problems_are_reported_by_line() -> None:
    text = A + "    gpus: 1\n  b:\n    models: []\n    spot: {rate: -1}\n"
    with pytest.raises(InvalidFile) as caught:
        parse(text, Settings(), "f")
    assert [one.split(": ")[0] for one in caught.value.problems] == ["f:4", "f:6", "f:7"]


@pytest.mark.parametrize(
    ("models", "route"),
    [("[x]", "a"), ("['*']", "a"), ("[x, y]", "a"), ("['x-*', x]", "a")],
)
def test_fallback_may_list_the_models_that_it_stands_in_for(models: str, route: str) -> None:
    """Only the fleet that falls back is routed to."""
    fleets: Fleets = parse(
        "fleets:\n  a: {models: [x], fallback: b}\n  b: {models: " + models + "}", Settings()
    ).fleets
    found = fleets.route("x")
    assert found is not None
    assert found.name == route
