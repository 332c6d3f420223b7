"""A reward that ends its worker costs its own group: suspects are tried alone, and only the guilty are condemned."""

from __future__ import annotations

import random
import time

import pytest
import redis

from cluster.buffer import Buffer, Limits, Suspicion
from tests.cluster.pipeline import RIGHT, Pipeline, group_of, run_of

LIMITS = Limits(groups_per_step=8, max_staleness=1, blocking=("exact", "judge"), non_blocking=("shadow",))


@pytest.fixture
def stored(buffer: Buffer) -> list[str]:
    """Ids of sixteen groups that wait for their scores, sorted."""
    claims = Pipeline(buffer, LIMITS).claim_all()
    for claim in claims:
        buffer.put(group_of(claim))
    return sorted(claim.id for claim in claims)


def taken(buffer: Buffer, worker: str, limit: int = 64) -> list[str]:
    """Ids that a reward worker is handed; groups of one millisecond come in any order."""
    return sorted(group.id for group in buffer.unscored(worker, limit, 0))


def score_all(buffer: Buffer, id: str) -> None:
    buffer.score(id, dict.fromkeys((*LIMITS.blocking, *LIMITS.non_blocking), RIGHT))


def test_suspects_are_tried_alone_one_reward_at_a_time(buffer: Buffer, stored: list[str]):
    assert taken(buffer, "reward-0") == stored
    assert buffer.forsake("policy", "reward-0", blame=True) == set()
    tried = []
    for _ in range(3 * len(stored)):
        (id,) = taken(buffer, "reward-1")
        ((trial, condemned),) = [(s.trial, s.condemned) for s in buffer.suspicions([id])]
        assert not condemned
        assert taken(buffer, "reward-1") == [], "nothing beside a trial"
        buffer.score(id, {trial: RIGHT})
        buffer.tried(id, trial)
        tried.append((id, trial))
    assert set(tried) == {(id, name) for id in stored for name in ("exact", "judge", "shadow")}
    assert taken(buffer, "reward-1") == []


def test_the_pair_that_a_second_worker_dies_over_is_condemned_and_explains_both_deaths(buffer: Buffer, stored):
    guilty = stored[5]
    taken(buffer, "reward-0")
    buffer.forsake("policy", "reward-0", blame=True)
    while (id := taken(buffer, "reward-1")[0]) != guilty or buffer.suspicions([id])[0].trial != "judge":
        trial = buffer.suspicions([id])[0].trial
        buffer.score(id, {trial: RIGHT})
        buffer.tried(id, trial)
    assert buffer.forsake("policy", "reward-1", blame=True) == {"reward-0", "reward-1"}
    (suspicion,) = buffer.suspicions([guilty])
    assert suspicion.condemned == {"judge": "reward-0 and reward-1"}
    assert buffer.status("policy")["counters"]["condemned"] == 1


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_guilty_everything_else_is_scored(buffer: Buffer, stored: list[str], seed: int):
    """Workers that die over some pairs of group and reward, now and then over nothing, until all is answered."""
    draw = random.Random(seed)
    rewards = (*LIMITS.blocking, *LIMITS.non_blocking)
    guilty = {(id, draw.choice(rewards)) for id in draw.sample(stored, draw.randint(1, 4))}
    condemned: set[tuple[str, str]] = set()
    unanswered = {id: list(rewards) for id in stored}
    deaths, explained = [], set()
    for life in range(60):
        worker = f"reward-{life}"
        alive = True
        while alive and (ids := taken(buffer, worker)):
            asked = []
            for id, suspicion in zip(ids, buffer.suspicions(ids), strict=True):
                for name in suspicion.condemned:
                    condemned.add((id, name))
                    buffer.score(id, {name: RIGHT})
                    unanswered[id] = [n for n in unanswered[id] if n != name]
                asked += [(id, n) for n in unanswered[id] if suspicion.trial in ("", n)]
            draw.shuffle(asked)
            for id, name in asked:
                alive = (id, name) not in guilty and not (life == 0 and draw.random() < 0.02)
                if not alive:
                    break
                buffer.score(id, {name: RIGHT})
                unanswered[id].remove(name)
            if alive:
                for id, suspicion in zip(ids, buffer.suspicions(ids), strict=True):
                    if suspicion.trial:
                        buffer.tried(id, suspicion.trial)
        if alive:
            break
        deaths.append(worker)
        explained |= buffer.forsake("policy", worker, blame=True)
    assert condemned == guilty
    assert not any(unanswered.values())
    assert len(set(deaths) - explained) <= 1, "only deaths that no group has caused cost the run's budget"
    assert len(deaths) <= 2 * len(guilty) + 1


def test_what_a_worker_asks_is_known_until_it_has_been_answered_or_its_death_is_settled(buffer: Buffer, stored):
    taken(buffer, "reward-0", 1)
    for id in (stored[0], "policy/9/9"):
        buffer.asks("reward-0", id, ("exact", "judge"), now=True)
    buffer.asks("reward-0", stored[1], ("shadow",), now=True)
    buffer.asks("reward-0", stored[1], ("shadow",), now=False)
    buffer.asks("reward-01", stored[2], ("shadow",), now=True)
    questions = {q.id: (q.rewards, q.left) for q in buffer.questions("reward-0")}
    assert questions == {stored[0]: (("exact", "judge"), False), "policy/9/9": (("exact", "judge"), True)}
    buffer.forsake("policy", "reward-0", blame=True)
    assert buffer.questions("reward-0") == []
    assert [q.id for q in buffer.questions("reward-01")] == [stored[2]]
    buffer.forsake("policy")
    assert buffer.questions("reward-01") == [], "names of workers are used anew"


def test_a_worker_that_leaves_or_frees_its_hand_leaves_no_suspects(buffer: Buffer, stored: list[str]):
    taken(buffer, "reward-0")
    buffer.forsake("policy", "reward-0")
    assert taken(buffer, "reward-1") == stored
    assert buffer.suspicions(stored) == [Suspicion()] * len(stored)


def test_a_worker_that_ended_itself_has_explained_its_death(buffer: Buffer, stored: list[str]):
    taken(buffer, "reward-0")
    buffer.forsake("policy", "reward-0")  # its own last words
    assert buffer.forsake("policy", "reward-0", blame=True) == {"reward-0"}
    assert buffer.forsake("policy", "reward-0", blame=True) == set(), "the next of this name has not"
    assert taken(buffer, "reward-1") == stored


def test_a_death_of_a_worker_with_nothing_in_hand_blames_nothing(buffer: Buffer, stored: list[str]):
    done = taken(buffer, "reward-0", 3)
    for id in done:
        score_all(buffer, id)
    assert buffer.forsake("policy", "reward-0", blame=True) == set()
    assert taken(buffer, "reward-1") == sorted(set(stored) - set(done))


def test_a_new_driver_hands_suspects_out_without_condemning_what_was_on_trial(buffer: Buffer, stored: list[str]):
    taken(buffer, "reward-0")
    buffer.forsake("policy", "reward-0", blame=True)
    (on_trial,) = taken(buffer, "reward-1")
    assert buffer.forsake("policy") == set()
    (again,) = taken(buffer, "reward-0")
    assert buffer.suspicions([on_trial])[0].condemned == {}
    assert buffer.suspicions([again])[0].trial == "exact"


def test_a_group_on_trial_is_not_handed_out_a_second_time_while_its_worker_hangs(buffer: Buffer, redis_url: str):
    """Its lease is as long as its deadline; a worker that hangs has ended by then."""
    pipeline = Pipeline(buffer, Limits(groups_per_step=1, max_staleness=0, blocking=("judge",), score_deadline_s=60))
    (claim,) = pipeline.claim_all()
    buffer.put(group_of(claim))
    taken(buffer, "reward-0")
    buffer.forsake("policy", "reward-0", blame=True)
    assert taken(buffer, "reward-1") == [claim.id]
    client = redis.Redis.from_url(redis_url)
    (key,) = (k for k in client.scan_iter(f"*{run_of(buffer)}*:unscored") if b"bell" not in k)
    now_ms = client.time()[0] * 1000
    assert 50_000 < client.zscore(key, claim.id) - now_ms < 62_000


def test_a_death_gives_groups_that_wait_for_scores_a_fresh_deadline(buffer: Buffer):
    pipeline = Pipeline(buffer, Limits(groups_per_step=2, max_staleness=0, blocking=("judge",), score_deadline_s=2))
    for claim in pipeline.claim_all():
        buffer.put(group_of(claim))
    taken(buffer, "reward-0")
    before = buffer.status("policy")["oldest"]["deadline_s"]
    time.sleep(1.2)
    buffer.forsake("policy", "reward-0", blame=True)
    assert buffer.status("policy")["oldest"]["deadline_s"] > before - 0.3


def test_a_worker_that_dies_again_over_what_is_condemned_is_not_excused(buffer: Buffer):
    """It was not asked, so the cause is elsewhere: in storing scores, or in the machine."""
    pipeline = Pipeline(buffer, Limits(groups_per_step=1, max_staleness=0, blocking=("judge",)))
    (claim,) = pipeline.claim_all()
    buffer.put(group_of(claim))
    explained = []
    for life in range(4):
        assert taken(buffer, f"reward-{life}") == [claim.id]
        explained.append(buffer.forsake("policy", f"reward-{life}", blame=True))
    assert explained == [set(), {"reward-0", "reward-1"}, set(), set()]


def test_the_deadline_of_a_suspect_does_not_pass_before_its_trial(buffer: Buffer):
    """A worker must come up first, which takes longer than some deadlines."""
    pipeline = Pipeline(buffer, Limits(groups_per_step=1, max_staleness=0, blocking=("judge",), score_deadline_s=0.3))
    (claim,) = pipeline.claim_all()
    buffer.put(group_of(claim))
    taken(buffer, "reward-0")
    buffer.forsake("policy", "reward-0", blame=True)
    assert pipeline.ready(timeout_s=1.0) == []
    assert taken(buffer, "reward-1") == [claim.id]
    buffer.score(claim.id, {"judge": RIGHT})
    buffer.tried(claim.id, "judge")
    assert [stored.group.id for stored in pipeline.ready()] == [claim.id]
