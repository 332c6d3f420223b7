"""Reward models on features (arXiv:2402.15473), beside references (POLAR) and of judges (SPCT's meta RM)."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rewards.base import Services
from rewards.learned.features import FeatureModel, FeatureReward
from rewards.learned.labels import pair, pair_of
from rewards.learned.meta_rm import Correctness, MetaRm
from rewards.learned.models import MODELS
from rewards.learned.network import order_agreement
from rewards.learned.polar import Polar, prompt_budget, trajectories, triple_loss
from rewards.learned.preferences import preference_loss
from tests.rewards.groups import group

WEIGHTS = [0.5, 0.5, 0.25, 0.25, 0.5, 1, 0.25]
BETTER, WORSE = [4, 4.5, 3, 3.5, 4, 5, 5], [3, 4, 3, 4, 4, 3, 5]


class Client:
    """A reward model's client that notes what it is told and answers from a model."""

    published, version, name = True, "7", "model"

    def __init__(self, predict) -> None:
        self.told: dict[str, float] = {}
        self._predict = predict

    async def tell(self, labels, *, version: str) -> None:
        self.told |= labels

    async def predict(self, texts):
        return type("Predicted", (), {"values": np.array([self._predict(t) for t in texts]), "version": "7"})

    async def refresh(self) -> None: ...

    def snapshot(self) -> dict[str, float]:
        return {}


def services_of(client: Client, name: str) -> Services:
    return Services(reward_models={name: client})  # type: ignore[dict-item]


def test_a_weighted_sum_of_features_has_the_numbers_of_the_catalogue():
    model = FeatureModel(hidden=0, weight_decay=0)
    model.load({"net/layers.0.weight": np.array([WEIGHTS], np.float32)})
    one, other = model.predict([json.dumps(BETTER), json.dumps(WORSE)])
    assert one == pytest.approx(14.125, abs=1e-6)
    assert other == pytest.approx(11.5, abs=1e-6)
    loss = preference_loss(torch.tensor([one]), torch.tensor([other]), torch.tensor([1.0]))
    assert float(loss) == pytest.approx(0.069936, abs=1e-6)


@pytest.mark.parametrize("hidden", [0, 32])
def test_a_few_hundred_labels_teach_what_features_are_worth(hidden):
    rng = np.random.default_rng(0)
    worth = np.array([1.0, -0.5, 0.0])
    rows = rng.uniform(0, 5, (400, 2, 3))
    keys = [pair(*(json.dumps(f.tolist()) for f in both)) for both in rows]
    values = ((rows[:, 0] - rows[:, 1]) @ worth > 0).astype(float)
    model = FeatureModel(num_features=3, hidden=hidden, early_steps=150)
    assert model.agreement(keys[300:], values[300:]) < 0.8
    model.fit(keys[:300], values[:300])
    assert model.agreement(keys[300:], values[300:]) > 0.9


async def test_features_are_cut_and_pairs_are_labelled_by_the_outcome():
    signal = FeatureReward(
        features=[{"use": "length_penalty", "options": {"max_tokens": 4, "cache_tokens": 4}}, {"use": "exact"}],  # type: ignore[arg-type]
        outcome="exact", lowest=-0.5, highest=0.75, pairs=3,
    )  # fmt: skip
    client = Client(lambda text: sum(json.loads(text)))
    made = group("85", "8", "85555555", answer="85")
    services = services_of(client, "features")
    await signal.prepare(services)
    scores = await signal.score(made, services)
    rows = [json.loads(text) for key in client.told for text in pair_of(key)]
    assert all(-0.5 <= value <= 0.75 for row in rows for value in row)
    assert client.told, "a right and a wrong answer are a pair"
    for key, label in client.told.items():
        first, second = (json.loads(text) for text in pair_of(key))
        assert label == float(first[1] > second[1])
    assert scores.values[0] == max(scores.values)
    assert "reward/logged_feature_1" in services.metrics()
    assert (await signal.score(made, services)).values.tolist() == scores.values.tolist()
    before = dict(client.told)
    await signal.score(made, services)
    assert client.told == before, "scored again, a group tells nothing new"


async def test_the_mean_of_features_needs_no_model():
    signal = FeatureReward(features=[{"use": "exact"}, {"use": "exact"}], outcome="exact", mean=True)  # type: ignore[arg-type]
    scores = await signal.score(group("85", "8", answer="85"), Services())
    assert scores.values.tolist() == [1.0, 0.0]


def test_polar_has_the_numbers_of_the_catalogue():
    """arXiv:2507.05197: published outputs, the budget for 100 and 200 tokens, and the text."""
    assert triple_loss(-0.570298, -11.030371) == pytest.approx(2.865773e-05, rel=1e-5)
    assert prompt_budget(100, 200) == 8040
    assert prompt_budget(20_000, 200) == 0
    assert trajectories("P", "R", "C") == "P\nR<|reward|>P\nC<|end|>"


async def test_polar_learns_from_ranked_triples_and_scores_by_the_answer():
    client = Client(lambda text: float(text.rpartition("\n")[2] == "85<|end|>"))
    made = group("8", "85", "9", answer="85")
    services = services_of(client, "polar")
    signal = Polar(pairs=10)
    await signal.prepare(services)
    scores = await signal.score(made, services)
    assert scores.values.tolist() == [0.0, 1.0, 0.0]
    assert len(client.told) == 2, "two wrong answers have the same rank"
    prompt = made.task.prompt
    for key, label in client.told.items():
        first, second = pair_of(key)
        better = trajectories(prompt, "85", "85")
        assert better in (first, second)
        assert label == float(first == better)
    assert services.metrics()["reward/logged_polar_copied"] == pytest.approx(1 / 3)


async def test_polar_cuts_a_long_prompt_at_its_head():
    client = Client(len)
    made = group("85", "8", answer="85")
    message = replace(made.task.variants["orig"][0], content="x" * 90 + "tail")
    long = replace(made, task=replace(made.task, variants={"orig": (message,)}))
    services = services_of(client, "polar")
    signal = Polar(context=60)
    await signal.prepare(services)
    await signal.score(long, services)
    for text in (t for key in client.told for t in pair_of(key)):
        assert text.count("xtail\n") == 2
        assert len(text) < 60 + len("<|reward|><|end|>") + 4


async def test_polar_needs_a_reference():
    scores = await Polar().score(group("85", "8", answer=None), services_of(Client(len), "polar"))
    assert np.isnan(scores.values).all()


async def test_a_meta_reward_model_learns_which_verdicts_were_right():
    client = Client(lambda text: 0.5)
    options = {"labels": ["1", "2"], "tags": ["1", "2"]}
    signal = MetaRm(outcome_options=options)
    services = services_of(client, "meta_rm")
    await signal.prepare(services)
    await signal.score(group("1", "2", "12", answer="1"), services)
    assert sorted(client.told.values()) == [0.0, 0.0, 1.0]
    client.told.clear()
    await signal.score(group("1", answer="1"), services)
    assert not client.told, "a lone rollout is an evaluation's"


def test_correctness_is_learnt_and_is_a_probability():
    keys = [f"question {i}: {'yes' if i % 2 else 'no'}" for i in range(64)]
    values = np.array([float(i % 2) for i in range(64)])
    model = Correctness(early_steps=60, seed=1)
    assert math.isnan(model.agreement(keys[::2], values[::2])), "of one class alone nothing can be told"
    model.fit(keys, values)
    found = model.predict(keys)
    assert ((found > 0) & (found < 1)).all()
    assert model.agreement(keys, values) > 0.9


def test_the_models_have_names():
    assert MODELS["features"] is FeatureModel
    assert MODELS["correctness"] is Correctness
    assert math.isnan(order_agreement(np.zeros(0), np.zeros(0), np.zeros(0)))
