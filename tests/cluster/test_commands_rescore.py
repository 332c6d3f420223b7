"""`kanabo rescore`: another reward on stored groups, compared with what is stored; the run stays as it was."""

from __future__ import annotations

import json

import pytest

from cluster.buffer.server import Store
from cluster.types import Scores
from rewards.base import Reward
from tests.cluster.commands import make_run
from tests.cluster.runs import group, keep
from tests.cluster.test_commands_inspect import keys_of, stored  # noqa: F401  # a fixture


class Reversed(Reward):
    """The other way round than `exact` in these groups: [1, 0] becomes [0, 1]."""

    async def score(self, group, services):
        return Scores.of([float(i) for i in range(len(group))])


class Drunk(Reward):
    async def score(self, group, services):
        raise RuntimeError("no idea")


def test_a_reward_that_orders_the_other_way_disagrees_and_flips_all(kanabo, stored, tmp_path):  # noqa: F811
    file = tmp_path / "groups.jsonl"
    told = kanabo("rescore", stored, "--reward", f"{__name__}:Reversed", "--against", "exact", "--to", file, "--json")
    assert told.code == 0, told.err
    result = told.document
    assert (result["num_groups"], result["num_rollouts"], result["num_known"]) == (7, 14, 14)
    assert result["agreement"] == -1.0
    assert result["starc_distance"] == pytest.approx(1.0), "the reverse of what was"
    assert result["flip_frac"] == 1.0
    assert result["sign_flip_frac"] == pytest.approx(6 / 7), "a lone known score has no advantage that could flip"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 7
    assert rows[0]["now"] == [0.0, 1.0]


def test_what_fails_is_counted_and_is_no_number(kanabo, stored):  # noqa: F811
    told = kanabo("rescore", stored, "--reward", f"{__name__}:Drunk", "--against", "exact", "--json", "--limit", 3)
    assert told.code == 1
    result = told.document
    assert (result["num_groups"], result["num_known"], result["mean_now"], result["agreement"]) == (3, 0, None, None)
    assert "no idea" in result["first_failure"]


def test_nothing_of_the_run_is_changed(kanabo, stored):  # noqa: F811
    with Store(stored / "redis") as store:
        before = keys_of(store.url, "a")
        assert kanabo("rescore", stored, "--reward", f"{__name__}:Reversed", "--against", "exact").code == 0
        assert keys_of(store.url, "a") == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--reward is missing"),
        (["--reward", "exat"], "Did you mean 'exact'"),
        (["--reward", "exact", "--against", "nobody"], "no stored group with scores of 'nobody'"),
        (["--reward", "exact", "learner.step=3"], "unknown key 'learner.step'"),
    ],
)
def test_mistakes_are_told(kanabo, stored, arguments, words):  # noqa: F811
    told = kanabo("rescore", stored, *arguments)
    assert (told.code, told.out) == (2, "")
    assert words in told.err


def test_trained_groups_that_left_the_buffer_are_scored_again(kanabo, tmp_path):
    """Of a run that has ended, whose groups are on disk alone; RUN@N takes those of one step."""
    run = make_run(tmp_path, "over", steps=2)
    with Store(run / "redis"):
        pass
    for step in (1, 2):
        keep(run, step, [group(10 * step + i) for i in range(step)], (1.0, 0.0), {"exact": Scores.of([1.0, 0.0])})
    arguments = ["--reward", f"{__name__}:Reversed", "--against", "exact", "--dir", tmp_path, "--json"]
    for name, groups in (("over", 3), ("over@latest", 3), ("over@1", 1), ("over@2", 2)):
        told = kanabo("rescore", name, *arguments)
        assert told.code == 0, told.err
        assert (told.document["num_groups"], told.document["agreement"]) == (groups, -1.0), name
    assert kanabo("rescore", "over@3", *arguments).code == 2
