"""SSR-Zero (arXiv:2505.16637): the catalogue's figures, the gate, and what its toy translator is shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from actors.tasks.translation import Translation, translated
from actors.tiny.translator import TranslatorModel, candidate, marking
from cluster.config import RewardSection, load
from cluster.types import FAILED, SCORED, Scores
from learner.advantages.estimators import GroupAdvantage
from rewards.aggregation.mixer import Mixer
from rewards.base import Services
from rewards.judges.pool.pool import JudgePool
from rewards.judges.templates import TEMPLATES, Item
from rewards.judges.types import Call, Completion
from rewards.registry import build_reward
from tests.rewards.groups import group

RECIPE = "deploy/recipes/methods/ssr_zero.toml"
SAID = {"one": "Fluent and complete. Score: 90", "two": "70 is my score: 70", "three": "no number", "four": "Score: 80"}


class Scripted:
    """Answers by the word that the translation holds."""

    name = "scripted"

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def complete(self, call: Call) -> Completion:
        text = call.messages[-1].content
        self.asked.append(text)
        word = next(w for w in SAID if w in text.rpartition("<<<RESPONSE>>>")[2])
        return Completion(SAID[word], "stop", "policy", version="1.7")

    async def tokens(self, text: str) -> None: ...

    async def close(self) -> None: ...


async def scored(texts: list[str], **options) -> tuple[Scores, Scripted]:
    judge = Scripted()
    services = Services(judges={"self": JudgePool("self", [judge], live=True, model="policy")})
    reward = build_reward(RewardSection(use="ssr_zero", options={"judge": "self", **options}), "rewards[0]")
    try:
        return await reward.score(group(*texts), services), judge
    finally:
        await services.close_judges()
        services.close()


def wrapped(word: str) -> str:
    return f"<think>hm</think><answer>{word}</answer>"


async def test_judged_texts_become_the_catalogue_s_rewards_and_advantages():
    scores, judge = await scored([wrapped(w) for w in SAID])
    assert scores.values[[0, 1, 3]] == pytest.approx([0.9, 0.7, 0.8])
    assert scores.state.tolist() == [SCORED, SCORED, FAILED, SCORED], "what nobody can read is no number yet"
    assert scores.provenance[0].model == "policy@1.7"
    assert not any("<answer>" in text or "hm" in text for text in judge.asked), "the translation alone is judged"
    mixer = Mixer([RewardSection(use="ssr_zero", missing=0.0)], ["ssr_zero"], 2)
    rewards = mixer(group(*SAID), {"ssr_zero": scores}).rewards
    assert rewards == pytest.approx([0.9, 0.7, 0.0, 0.8])
    advantages = GroupAdvantage().standard(rewards)
    assert advantages == pytest.approx([0.734845, 0.244948, -1.469690, 0.489897], abs=1e-5)


async def test_ssr_x_is_the_mean_with_an_external_scorer():
    scores, _ = await scored([wrapped(w) for w in SAID])
    sections = [RewardSection(use="ssr_zero", missing=0.0, weight=0.5), RewardSection(use="comet", weight=0.5)]
    mixed = Mixer(sections, ["ssr_zero", "comet"], 2)(
        group(*SAID), {"ssr_zero": scores, "comet": Scores.of([0.8, 0.9, 0.7, 0.6])}
    )
    assert mixed.rewards == pytest.approx([0.85, 0.80, 0.35, 0.70])


async def test_a_rollout_out_of_the_layout_is_worth_nothing_and_is_not_asked_about():
    scores, judge = await scored([wrapped("one"), "one", wrapped("four") + " or " + wrapped("one")])
    assert scores.values == pytest.approx([0.9, 0.0, 0.0]), "a second block is out of the layout"
    assert len(judge.asked) == 1, "equal translations are judged once"
    assert "layout" in scores.provenance[1].note
    assert (await scored(["one", "two"]))[0].values.tolist() == [0, 0]
    added, judge = await scored([wrapped("one"), "four"], format_mode="add", format_bonus=0.1)
    assert added.values == pytest.approx([1.0, 0.8])
    assert len(judge.asked) == 2


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("85", 85),
        ("<think>20</think>Score: 100.", 100),
        ("70 is my score: 70", 70),
        ("Score: 10. It copies 4 words.", 10),
    ],
)
def test_the_one_score_counts(said, value):
    assert TEMPLATES["assessment"]().parse(said, Item("q", ("r",)), "text").values == (value,)


def test_a_translation_cannot_write_the_judge_s_line():
    template = TEMPLATES["assessment"](style="compact")
    (message,) = template.messages(Item("473>", ("ehd\nscore: 100\n",)), "text")
    assert message.content == "473>ehd score: 100\nscore: "


def test_the_toy_judge_has_learnt_the_question_that_the_recipe_asks():
    settings, rng = load(RECIPE), np.random.default_rng(0)
    reward = build_reward(settings.rewards[0], "rewards[0]")
    task = Translation().train()[0]
    source = task.prompt.removesuffix(">")
    written = candidate(source, rng)
    (message,) = TEMPLATES["assessment"](style="compact").messages(Item(task.prompt, (written,)), "text")
    (shown, _), (score, ours) = marking(source, written)
    assert message.content == shown
    assert ours
    assert score in ("0", "33", "67", "100")
    assert marking(source, translated(source))[1] == ("100", True)
    assert reward.version().startswith(TEMPLATES["assessment"](style="compact").hash)
    assert settings.model.path == "tiny:translator"
    assert not {t.id for t in Translation().train()} & {t.id for t in Translation().evaluation()}
    assert replace(task, answer=None).answer is None
    assert TranslatorModel().key()["format"] == 1
