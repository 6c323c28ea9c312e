"""Two fleets and three models in one file: what one fleet's trouble costs the other, which is nothing.

    python -m bench.fleets [--requests N] [--seconds N]

A local stack with its defaults runs one file that mixes all models, and batches of each fleet alone.
The engines are servers of `bench.engine_server`, which serve their own models only; their capacity
is the limit. While all batches run, each fleet in turn is paused, or its engine answers 500, hangs
or is gone. The ratio is that of the other engine's tokens per second meanwhile to those just before
and just after, while both fleets work: tokens, as answers vary in length. At the end, each line of
the output names the engine that it came from. Ends with one JSON line; exits with 1 if a ratio
misses its bar, or a request its engine or its deadline.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.batch_files import write_batch_file
from bench.batching import Hardware
from bench.engine_load import SERVER, Engine
from bench.engine_server import MEAN_TOKENS
from lowtide.local.ports import free_port
from tests.e2e.command import lowtide
from tests.e2e.stacks import running
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.e2e.stacks import LocalStack
    from tests.oracle import InputLine

MODELS = {"large": ["llama-70b"], "small": ["qwen-8b", "qwen-14b"]}
MIXED = [*MODELS["small"][:1], *MODELS["large"], *MODELS["small"][1:], *MODELS["large"]]
"""The models of the file's lines in turn: half of its requests are for each fleet."""
FLEETS = """\
fleets:
  large:
    models: {large}
    engine: {{kind: openai, url: "{large_url}"}}
    dedicated: {{rate: 100}}
  small:
    models: {small}
    engine: {{kind: openai, url: "{small_url}"}}
    dedicated: {{rate: 100}}
"""
SIZE = 48
HARDWARE = Hardware(SIZE)
CAPACITY = SIZE / (HARDWARE.step + HARDWARE.sequence * SIZE + HARDWARE.prefill * SIZE / MEAN_TOKENS)
"""Tokens per second of an engine that is never short of requests: about 100 requests per second."""
LINE_BYTES = 600
BAR, HEALTHY, RECENT = 0.98, 0.93, 3.0
PATIENCE = 90.0
SETTLE = 5.0
"""Seconds after a disturbance until the measurement begins; with it, longer than a scheduler's tick."""
OWN = 4000
"""Requests of a batch of one fleet; it gets another one when fewer wait."""
WINDOWS = {"mixed": "30m", "large": "45m", "small": "45m"}
WAITING = "SELECT count(*) FROM queue WHERE fleet = :fleet"
RISKS = "SELECT 'batch_' || replace(id::text, '-', '') AS id FROM batches WHERE at_risk"
LATE = """
SELECT count(*) FILTER (WHERE r.finished_at >= b.deadline) AS late,
  min(extract(epoch FROM b.deadline - r.finished_at))::float AS margin
FROM results r JOIN batches b ON b.id = r.batch_id
"""


class FleetEngine(Engine):
    """The engine of a fleet, in a process of its own that can be broken."""

    def __init__(self, fleet: str) -> None:
        super().__init__(free_port())
        self.fleet = fleet
        self._refused = 0
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", SERVER, "serve", str(SIZE), "0", str(self.port)]
        self.process = subprocess.Popen(  # noqa: S603
            [*command, *MODELS[self.fleet]], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert int(self.process.stdout.readline()) == self.port
        # Its count proves something only if it counts.
        with suppress(urllib.error.HTTPError):
            self.order("v1/chat/completions", b'{"model": "another"}')
        assert self.order("refused") == 1

    def order(self, path: str, body: bytes | None = None) -> Any:
        """Send an order or a question; return the answer."""
        with urllib.request.urlopen(f"{self.url}/{path}", body, timeout=10) as answer:  # noqa: S310
            return json.load(answer)

    @property
    def name(self) -> str:
        """How its answers name it."""
        return f"engine-{self.port}"

    def refused(self) -> int:
        """Return the number of requests for models of others."""
        return self._refused + int(self.order("refused")) - 1

    def rate(self, start: float, end: float) -> float:
        """Return tokens per second."""
        return self.timeline().rate(start, end)

    def fail(self) -> None:
        """Answer 500 to everything."""
        self.order("status/500")

    def hang(self) -> None:
        """Accept connections and never answer."""
        self.process.send_signal(signal.SIGSTOP)

    def stop(self) -> None:
        """Refuse connections; requests that run are cut off."""
        self._refused = self.refused()
        self.kill()

    def kill(self) -> None:
        """End its process."""
        self.process.kill()
        self.process.wait()

    def heal(self) -> None:
        """Work again."""
        self.process.send_signal(signal.SIGCONT)
        if self.process.poll() is not None:
            self._start()
        self.order("status/200")


class Bench:
    """Both fleets on a running stack, and their batches, by id: the mixed one, and those of a fleet."""

    def __init__(self, stack: LocalStack, engines: dict[str, FleetEngine], folder: Path) -> None:
        self.stack, self.engines, self._folder = stack, engines, folder
        self.batches: dict[str, str] = {}
        self.sources: dict[str, bytes] = {}

    def submit(self, name: str, requests: int, models: Sequence[str]) -> None:
        """Create a batch."""
        path = self._folder / f"{name}.jsonl"
        window: Any = WINDOWS[name]
        write_batch_file(path, requests, LINE_BYTES, models)
        source = path.read_bytes()
        batch = self.stack.client.batches.create(
            input_file_id=self.stack.upload(source),
            endpoint="/v1/chat/completions",
            completion_window=window,
        )
        self.batches[batch.id], self.sources[batch.id] = name, source

    def feed(self) -> None:
        """Create another batch for each fleet that is short of requests."""
        for fleet, models in MODELS.items():
            if self.stack.query(WAITING, fleet=fleet)[0][0] < OWN:
                self.submit(fleet, OWN, models)

    def at_risk(self) -> set[str]:
        """Return the names of the batches at risk."""
        return {self.batches[row.id] for row in self.stack.query(RISKS)}

    def both_work(self) -> float:
        """Wait until both engines are busy and no batch is at risk; return the seconds until then."""

        def work() -> bool:
            now = time.time()
            rates = [engine.rate(now - RECENT, now) for engine in self.engines.values()]
            return min(rates) >= HEALTHY * CAPACITY and not self.at_risk()

        began = time.time()
        self.feed()
        time.sleep(RECENT)
        until(work, "both fleets work", within=PATIENCE, every=0.5)
        return time.time() - began - RECENT

    def pause(self, fleet: str, verb: str = "pause") -> None:
        """Pause both pools of a fleet, or resume them."""
        for pool in ("spot", "dedicated"):
            data_dir = str(self.stack.data_dir)
            lowtide("pools", verb, pool, "--fleet", fleet, "--data-dir", data_dir)

    def disturbances(self, fleet: str) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
        """Return what disturbs a fleet and what ends that, by name."""
        engine = self.engines[fleet]
        return {
            "paused": (lambda: self.pause(fleet), lambda: self.pause(fleet, "resume")),
            "answers 500": (engine.fail, engine.heal),
            "hangs": (engine.hang, engine.heal),
            "is gone": (engine.stop, engine.heal),
        }

    def rates(self, seconds: float) -> dict[str, float]:
        """Measure both engines from now on; return their tokens per second."""
        began = time.time()
        time.sleep(seconds)
        ended = time.time()
        rates = {fleet: engine.rate(began, ended) for fleet, engine in self.engines.items()}
        assert min(rates.values()) >= HEALTHY * CAPACITY, f"too few requests: {rates}"
        return rates


def compare(bench: Bench, seconds: float) -> Iterator[dict[str, Any]]:
    """Disturb each fleet in each way, between two measurements of both at work."""
    bench.both_work()
    before = bench.rates(seconds)
    for fleet, other in (("large", "small"), ("small", "large")):
        for name, (disturb, end) in bench.disturbances(fleet).items():
            disturb()
            time.sleep(SETTLE)
            began = time.time()
            time.sleep(seconds)
            ended = time.time()
            risks = bench.at_risk()
            end()
            recovered = bench.both_work()
            after = bench.rates(seconds)
            rate = bench.engines[other].rate(began, ended)
            yield {
                "fleet": fleet,
                "disturbance": name,
                "other": other,
                "ratio": round(rate / statistics.mean([before[other], after[other]]), 3),
                "of_capacity": round(rate / CAPACITY, 3),
                "own_of_capacity": round(bench.engines[fleet].rate(began, ended) / CAPACITY, 3),
                "at_risk": sorted(risks),
                "recovered_s": round(recovered, 1),
            }
            before = after


def finish(bench: Bench) -> dict[str, Any]:
    """Wait for all batches; prove that each line came from an engine of its model, and in time."""
    names = {
        model: bench.engines[fleet].name for fleet, models in MODELS.items() for model in models
    }
    lines: Counter[str] = Counter()

    def check(line: InputLine, body: Any) -> None:
        model = line.body["model"]
        assert body["model"] == model, body
        assert body["system_fingerprint"] == names[model], body
        lines[f"{model} from the engine of {fleet_of(model)}"] += 1

    failed = 0
    for batch, source in bench.sources.items():
        ended = bench.stack.finish(batch, source, answers=check, within=PATIENCE)
        failed += ended["request_counts"]["failed"]
    [row] = bench.stack.query(LATE)
    return {
        "lines": dict(lines),
        "failed": failed,
        "late": row.late,
        "margin_s": round(row.margin),
        "refused": sum(engine.refused() for engine in bench.engines.values()),
    }


def fleet_of(model: str) -> str:
    """Return the fleet that serves a model."""
    return next(fleet for fleet, models in MODELS.items() if model in models)


def missed(pairs: Sequence[dict[str, Any]], end: dict[str, Any]) -> list[str]:
    """Return what misses its bar."""
    return [
        *(sentence(pair) for pair in pairs if pair["ratio"] < BAR),
        *(f"not disturbed: {sentence(pair)}" for pair in pairs if pair["own_of_capacity"] > 0.1),
        *(
            f"the batch of {pair['other']} was at risk while {pair['fleet']} {pair['disturbance']}"
            for pair in pairs
            if pair["other"] in pair["at_risk"]
        ),
        *(f"{name}: {end[name]}" for name in ("failed", "late", "refused") if end[name]),
    ]


def sentence(pair: dict[str, Any]) -> str:
    """Return a pair as a line."""
    return (
        f"{pair['fleet']} {pair['disturbance']}: {pair['other']} at {pair['ratio']:.3f} of its "
        f"throughput, {pair['of_capacity']:.3f} of its engine's; {pair['fleet']} at "
        f"{pair['own_of_capacity']:.3f}; at risk: {', '.join(pair['at_risk']) or 'none'}; both "
        f"worked {pair['recovered_s']} s later"
    )


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=20_000, help="requests of the mixed file")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a measurement")
    given = parser.parse_args()
    with ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="bench-fleets-")))
        engines = {fleet: FleetEngine(fleet) for fleet in MODELS}
        for engine in engines.values():
            exits.callback(engine.kill)
        file = folder / "fleets.yaml"
        urls = {f"{fleet}_url": engine.url for fleet, engine in engines.items()}
        file.write_text(FLEETS.format(**MODELS, **urls))
        bench = Bench(exits.enter_context(running({"LOWTIDE_FLEETS": str(file)})), engines, folder)
        bench.submit("mixed", given.requests, MIXED)
        for fleet, models in MODELS.items():
            bench.submit(fleet, OWN, models)
        pairs = []
        for pair in compare(bench, given.seconds):
            pairs.append(pair)
            print(sentence(pair), flush=True)
        end = finish(bench)
    print(", ".join(f"{number} lines of {name}" for name, number in end["lines"].items()))
    print(f"{end['late']} late, the last {end['margin_s']} s before its deadline")
    problems = missed(pairs, end)
    print(json.dumps({"pairs": pairs, "end": end, "missed": problems}))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
