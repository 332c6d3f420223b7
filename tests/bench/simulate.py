"""`python -m tests.bench.simulate`: which part of a run is full first, by costs measured here, up to 10,000 GPUs.

Stand-in engines, each with a connection of its own, claim, put and report to a real Redis; a reward worker scores, a
learner records, and the driver's consumer reads their events. The processor time of Redis and of the driver for each
group and each report is what the simulation scales. It is measured with 1, 10, 100 and 500 engines: what 10 predict is
compared with what the others cost. A GPU's own speed and the size of its rollouts are assumptions, given as `Shape`.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import redis

from cluster import config
from cluster.buffer import Buffer
from cluster.buffer.server import Store
from cluster.driver.event_consumer import EventConsumer
from cluster.observability.metrics import Recorder
from cluster.types import Group, Task
from cluster.types.events import RolloutReport, Span
from tests.bench.steady import POLICY, Steady, own_s

ENGINES = (1, 10, 100, 500)
GPUS = (8, 100, 500, 1000, 2000, 5000, 10_000)
SPANS = 4
"""Spans in a report: a group with its parts, and a claim."""
REPORTS_PER_S = 1.0
"""`actors.rollout.REPORT_S`."""
BYTES_PER_TOKEN = 9
"""A token, its log-prob and its mask, as a group stores them."""


@dataclass(frozen=True)
class Costs:
    """Seconds of one core, for each group and for each report of an engine."""

    engines: int
    redis_group_s: float
    redis_report_s: float
    driver_report_s: float


@dataclass(frozen=True)
class Shape:
    """What a run asks of a GPU; assumptions, not measurements."""

    tokens_per_s: float = 2500.0
    """Sampled by one GPU, an engine each."""
    sampling_share: float = 0.75
    """GPUs that sample; the others train."""
    tokens: int = 2000
    group_size: int = 8
    network_bytes_per_s: float = 1.25e9
    """Of the node of Redis: 10 Gbit/s."""

    def groups_per_s(self, gpus: float) -> float:
        return gpus * self.sampling_share * self.tokens_per_s / (self.tokens * self.group_size)


def loads(costs: Costs, shape: Shape, gpus: float) -> dict[str, float]:
    """Return what share of one core, or of the network, each part needs; above 1 it is full."""
    groups, reports = shape.groups_per_s(gpus), gpus * shape.sampling_share * REPORTS_PER_S
    size = shape.group_size * shape.tokens * BYTES_PER_TOKEN
    return {
        "redis": groups * costs.redis_group_s + reports * costs.redis_report_s,
        "driver": reports * costs.driver_report_s,
        # A group goes in once, and out to a reward worker and to the learner.
        "network of redis": groups * size * 3 / shape.network_bytes_per_s,
    }


def bottleneck(costs: Costs, shape: Shape) -> tuple[str, float]:
    """Return the part that is full first, and with how many GPUs."""
    part, load = max(loads(costs, shape, 1.0).items(), key=lambda item: item[1])
    return part, 1.0 / load


class Fleet(Steady):
    """Stand-in engines beside a `Steady` run: each claims, puts and reports on its own connection."""

    def __init__(self, url: str, directory: Path, engines: int) -> None:
        self._engines, self._calls = [Buffer(url, f"fleet-{engines}") for _ in range(engines)], 0
        super().__init__(url, f"fleet-{engines}", outstanding=2 * max(engines, 64), groups=64)
        settings = config.RunConfig()
        recorder = Recorder(directory / str(engines), settings.tracking, "fleet", {})
        self._consumer = EventConsumer(
            self.buffer, settings, recorder, SimpleNamespace(), lambda step: None,  # type: ignore[arg-type]
            lambda: {"workers/num_rollout": float(engines)},
        )  # fmt: skip

    def claim(self) -> Any:
        engine = self._next()
        claim = engine.claim(
            POLICY, worker=f"rollout-{self._calls % len(self._engines)}", engine=self.version, timeout_s=10.0
        )
        assert claim is not None
        return claim

    def put(self, claim: Any) -> None:
        self._next().put(Group(claim, Task.of("task", "?"), self.rollouts))

    def report(self, count: int) -> None:
        """Reports of `count` engines, with the spans that they have."""
        now_s = time.time()
        spans = tuple(Span("sample", now_s - 1.0, now_s, f"{POLICY}/1/{i}") for i in range(SPANS))
        for i in range(count):
            event = RolloutReport(worker=f"rollout-{i}", claims=True, seconds=1.0, groups=1, tokens=2000, spans=spans)
            self._next().emit(event)

    def read_reports(self) -> None:
        """The driver takes in what there is."""
        asyncio.run(self._consumer.drain())

    def _next(self) -> Buffer:
        self._calls += 1
        return self._engines[self._calls % len(self._engines)]

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
        super().close()


def measure(url: str, directory: Path, engines: int, repetitions: int = 5) -> Costs:
    """Medians of the processor time of a step of 64 groups and of 512 reports, per group and report."""
    fleet, rows = Fleet(url, directory, engines), []
    fleet.step()
    fleet.report(engines)
    fleet.read_reports()
    for _ in range(repetitions):
        begun = fleet.server_s()
        fleet.step()
        stepped = fleet.server_s()
        fleet.report(512)
        reported, mine = fleet.server_s(), own_s()
        fleet.read_reports()
        rows.append(((stepped - begun) / 64, (reported - stepped) / 512, (own_s() - mine) / 512))
    fleet.close()
    return Costs(engines, *(statistics.median(column) for column in zip(*rows, strict=True)))


def main(arguments: Sequence[str]) -> int:
    shape = Shape()
    with tempfile.TemporaryDirectory() as place, Store(Path(place)) as store:
        redis.Redis.from_url(store.url).config_set("appendfsync", "everysec")
        found = [measure(store.url, Path(place), engines) for engines in ENGINES]
    chosen = next(costs for costs in found if costs.engines == 10)
    print("µs of a core, measured      redis a group  redis a report  driver a report")
    for costs in found:
        numbers = [1e6 * value for value in (costs.redis_group_s, costs.redis_report_s, costs.driver_report_s)]
        print(f"{costs.engines:>6} engines      " + "".join(f"{number:>16.0f}" for number in numbers))
    print(f"{'GPUs':>6}  share of a core, or of the network ({shape})")
    for gpus in GPUS:
        print(f"{gpus:>6}  " + ", ".join(f"{part} {load:.3f}" for part, load in loads(chosen, shape, gpus).items()))
    part, at = bottleneck(chosen, shape)
    print(f"The first bottleneck is {part}, with {at:,.0f} GPUs.")
    if arguments:
        Path(arguments[0]).write_text(json.dumps([asdict(costs) for costs in found], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
