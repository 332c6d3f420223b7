"""Exactly once, in any order of moves (design: the twelve rules), and proof that the machine would notice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import redis
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from cluster.buffer import connection
from cluster.buffer.server import Store
from tests.cluster.expected import Broken
from tests.cluster.mutants import MUTANTS, ORIGINAL, RARE, SAMPLE, SEEDS, source
from tests.cluster.pipeline_machine import PipelineMachine


@pytest.fixture(scope="module")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A server that can be restarted and emptied."""
    with Store(tmp_path_factory.mktemp("redis")) as store:
        redis.Redis.from_url(store.url).config_set("appendfsync", "everysec")
        yield store


def search(
    machine: type[PipelineMachine], store: Store, *, seeds: Iterable[int], steps: int, phases: tuple[Phase, ...]
) -> None:
    """The same examples every time. Raises Broken with the moves that led there.

    Each seed is used for ten examples only: after those hypothesis mostly varies what it has, and what is wanted here
    is a fresh order of moves.
    """
    machine.store = store
    options = settings(
        max_examples=10,
        stateful_step_count=steps,
        database=None,
        report_multiple_bugs=False,
        deadline=None,
        phases=phases,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    for number in seeds:
        seeded = type(machine.__name__, (machine,), {})
        run_state_machine_as_test(seed(number)(seeded), settings=options)


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 12), marks=pytest.mark.verify)])
def test_no_order_of_moves_breaks_an_invariant(own_store: Store, seeds: range):
    search(PipelineMachine, own_store, seeds=seeds, steps=60, phases=(Phase.generate, Phase.shrink))


def with_few_lines(script: str) -> str:
    """The scripts with a ledger that keeps the two newest final lines, so that sums begin at once."""
    return ORIGINAL(script).replace("LINES_KEPT = 20000", "LINES_KEPT = 2")


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 4), marks=pytest.mark.verify)])
def test_sums_of_old_lines_tell_what_the_lines_told(own_store: Store, seeds: range, monkeypatch: pytest.MonkeyPatch):
    assert with_few_lines("prelude") != ORIGINAL("prelude")
    monkeypatch.setattr(connection, "_source", with_few_lines)
    search(PipelineMachine, own_store, seeds=seeds, steps=60, phases=(Phase.generate,))


@pytest.mark.parametrize(
    "name",
    [pytest.param(m, marks=() if m in SAMPLE else pytest.mark.verify) for m in MUTANTS if m not in RARE],
)
def test_with_a_rule_switched_off_its_seed_replays_the_trace(
    own_store: Store, name: str, monkeypatch: pytest.MonkeyPatch
):
    """A seed that finds nothing any more is stale: `make verify` searches, and `SEEDS` takes what it finds."""
    monkeypatch.setattr(connection, "_source", lambda script: source(name, script))
    with pytest.raises(Broken):
        search(
            PipelineMachine,
            own_store,
            seeds=[SEEDS[name]] if name in SEEDS else range(60),
            steps=60,
            phases=(Phase.generate,),
        )


def test_the_sample_is_of_mutants_with_a_seed():
    assert SEEDS.keys() >= SAMPLE


@pytest.mark.verify
@pytest.mark.parametrize("name", MUTANTS)
def test_with_a_rule_switched_off_a_search_finds_the_trace(
    own_store: Store, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connection, "_source", lambda script: source(name, script))
    with pytest.raises(Broken):
        search(PipelineMachine, own_store, seeds=range(60), steps=60, phases=(Phase.generate,))


class ManifestBeforeFiles(PipelineMachine):
    first_saved, then_saved = "manifest", "files"


class FilterBeforeRecord(PipelineMachine):
    filters_with_record = False


@pytest.mark.parametrize("machine", [ManifestBeforeFiles, FilterBeforeRecord])
def test_with_two_moves_exchanged_the_machine_finds_the_trace(own_store: Store, machine: type[PipelineMachine]):
    """Rules that live in the order of a learner's calls."""
    with pytest.raises(Broken):
        search(machine, own_store, seeds=range(12), steps=60, phases=(Phase.generate,))
