"""From a judge's words on single steps to the advantages that a cut records, without processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from cluster.config import RunConfig, parse
from cluster.types import Group, ScoredGroup, Scores, Turn
from learner.advantages.estimators import advantages_of
from learner.advantages.registry import ADVANTAGES
from rewards.aggregation.mixer import Mixer
from rewards.aggregation.selectors import Selection
from rewards.base import Services
from rewards.judges.factory import open_judges
from rewards.judges.pool.archive import MemoryArchive
from rewards.registry import build_reward
from tests.rewards.groups import group

JUDGE = {"judge": {"kind": "keyword", "options": {"keywords": ["ok", "7"]}}}
TEXTS = ["ok\n\nok\n\n7", "ok\n\nno\n\n7", "no\n\nok\n\n8", "8"]


def spoken(*texts: str) -> Group:
    """One token a character, behind a prompt of two."""
    made = group(*texts, answer="7")
    rollouts = []
    for r in made.rollouts:
        tokens = np.array([0, 0, *map(ord, r.text)], np.int32)
        turns = (Turn("user", 0, 2, "?"), Turn("assistant", 2, len(tokens), r.text))
        rollouts.append(replace(r, tokens=tokens, turns=turns))
    return replace(made, rollouts=tuple(rollouts))


async def credited(recipe: RunConfig, made: Group) -> tuple[Mapping[str, Scores], list[np.ndarray]]:
    """Scores, and what a cut would record of this group."""
    services = Services(
        judges=open_judges(recipe.judges, MemoryArchive()), text=lambda tokens: "".join(map(chr, tokens))
    )
    scores = {}
    for i, (name, section) in enumerate(zip(recipe.reward_names, recipe.rewards, strict=True)):
        reward = build_reward(section, f"rewards[{i}]")
        await reward.prepare(services)
        scores[name] = await reward.score(made, services)
    mixed = Mixer(recipe.rewards, recipe.reward_names, 2).of_step([made], [scores])
    selected = Selection(recipe.selectors)([made], [scores], mixed)
    chosen = recipe.learner.advantage
    estimator = ADVANTAGES[chosen.use](**chosen.options)
    [credit] = advantages_of(estimator, chosen.use, [ScoredGroup(made, scores, reward=selected[0])])
    return scores, list(credit)


async def test_clip_and_delta_credits_every_token_with_its_steps_worth_and_the_success_to_come():
    options = {"template_options": {"highest": 1}}
    steps = {"use": "step_scores", "weight": 0.1, "shape": {"use": "clip_delta"}, "options": options}
    recipe = parse(
        {
            "rewards": [{"use": "exact", "options": {"extract": "last_number"}}, steps],
            "judges": JUDGE,
            "learner": {"advantage": {"use": "token_returns", "options": {"normalize_std": False}}},
        }
    )
    made = spoken(*TEXTS)
    scores, credit = await credited(recipe, made)
    assert scores["exact"].values.tolist() == [1, 1, 0, 0]
    # u: [0, 0], [0, −½], [−½, 0] and a single step, the last of each not counting; in tenths beside the success.
    totals = np.array([1, 1, -0.05, 0])
    worth = [[1, 1, 1], [1, 1 - 0.05, 1], [-0.05, 0, 0], [0]]
    ends = [[4, 8, 9], [4, 8, 9], [4, 8, 9], [1]]
    for values, of_steps, stops in zip(credit, worth, ends, strict=True):
        expected = np.repeat(of_steps, np.diff([0, *stops])) - totals.mean()
        assert values[2:] == pytest.approx(expected, abs=1e-6)


async def test_thoughts_that_a_right_solution_takes_back_lose_credit_and_a_wrong_ones_other_ways_keep_none():
    recipe = parse(
        {
            "rewards": [
                {"use": "exact", "options": {"extract": "last_number"}},
                {"use": "thoughts", "weight": 0.0, "options": {"verifier_options": {"extract": "last_number"}}},
            ],
            "judges": JUDGE,
            "selectors": [{"use": "token_weights", "options": {"reward": "thoughts", "bound": 1.0}}],
            "learner": {"advantage": {"use": "tp_grpo"}},
        }
    )
    _, credit = await credited(recipe, spoken(*TEXTS))
    r = 0.866024  # (1 − ½) / std; acc = ½
    expected = [[r, r, r], [r, r - 0.5, r], [0, -r, -r], [-r]]
    ends = [[4, 8, 9], [4, 8, 9], [4, 8, 9], [1]]
    for values, of_steps, stops in zip(credit, expected, ends, strict=True):
        assert values[2:] == pytest.approx(np.repeat(of_steps, np.diff([0, *stops])), abs=1e-5)
