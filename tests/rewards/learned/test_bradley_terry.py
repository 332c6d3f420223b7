"""Bradley-Terry with the options of Secrets II: every formula to the digit, and what each option does to a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from rewards.learned.bradley_terry import BradleyTerry
from rewards.learned.labels import pair, pair_of
from rewards.learned.models import MODELS
from rewards.learned.preferences import ascended, contrastive_loss, corrected_labels, preference_loss, spread, strengths
from tests.models import random_llama
from tests.rewards.learned.judges import captions

FAST = {"batch_size": 16, "lr": 1e-3, "early_steps": 3}


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss(apart: float, label: float = 1.0, **options) -> float:
    return preference_loss(numbers(apart), numbers(0), numbers(label), **options).item()


def test_the_preference_loss_to_the_digit():
    assert loss(2.0, margin=0.5) == pytest.approx(0.201413, abs=1e-6)
    assert loss(0.4, 0.7) == pytest.approx(0.633015, abs=1e-6)
    assert preference_loss(numbers(2), numbers(0.5), numbers(1), centring=0.01).item() == pytest.approx(
        0.263913, abs=1e-6
    )
    smooth = corrected_labels(numbers(1), numbers(1), numbers(0), smoothing=0.1)
    assert loss(1.0, float(smooth)) == pytest.approx(0.413262, abs=1e-6)


def test_strength_is_the_mean_over_reward_models_with_their_population_deviation():
    mean, std = strengths(numbers(1, 3, -1, 1)[None])
    assert (mean.item(), std.item()) == (1.0, pytest.approx(1.414214, abs=1e-6))


def test_labels_are_turned_round_only_where_the_ensemble_contradicts_them():
    better, mean, std = numbers(1, 1, 1, 0, 0.5), numbers(2, -0.5, -2, -2, 0), numbers(1, 1, 1, 1, 1)
    assert corrected_labels(better, mean, std).equal(better)
    assert corrected_labels(better, mean, std, flip="negative").tolist() == [1, 0, 0, 1, 0.5]
    assert corrected_labels(better, mean, std, flip="certain").tolist() == [1, 1, 0, 1, 0.5]
    soft = corrected_labels(better, mean, std, smoothing=0.1, smooth="negative")
    assert soft.tolist() == pytest.approx([1, 0.9, 0.9, 0.1, 0.5])
    strong = corrected_labels(torch.ones(20), torch.arange(20.0), torch.ones(20), smoothing=0.1, smooth="strong")
    assert strong.tolist() == pytest.approx([1.0] * 18 + [0.9] * 2)


def test_the_contrastive_term_to_the_digit():
    found = contrastive_loss(torch.eye(2), torch.tensor([[0.8, 0.6], [0.6, 0.8]]), 0.5)
    assert found.item() == pytest.approx(0.513015, abs=1e-6)


def test_metarm_takes_the_gradient_at_the_shifted_weights_and_applies_it_at_the_old_ones():
    assert spread(numbers(0, 1, 3)).item() == pytest.approx(0.569873, abs=1e-6)
    theta = torch.nn.Parameter(numbers(1)[0])

    def objective() -> torch.Tensor:
        return spread(theta * numbers(0, 1, 3))

    assert torch.autograd.grad(objective(), theta)[0].item() == pytest.approx(0.12047313, abs=1e-8)
    optimiser = torch.optim.SGD([theta], lr=0.5)
    with ascended([theta], objective, 0.1):
        assert theta.item() == pytest.approx(1.01204731, abs=1e-8)
        preference_loss(theta[None] * 2, theta[None], numbers(1)).backward()
    assert theta.item() == 1.0
    assert theta.grad is not None
    assert theta.grad.item() == pytest.approx(-0.26657938, abs=1e-8)
    optimiser.step()
    assert theta.item() == pytest.approx(1.13328969, abs=1e-8)


def compared(num: int, seed: int, *, wrong: int = 0) -> tuple[list[str], np.ndarray]:
    """Pairs of a good and a bad caption, the good one first or second; the first `wrong` labels are turned round."""
    good, bad = captions(num, seed, good_frac=1.0), captions(num, seed + 1, good_frac=0.0)
    labels = (np.arange(num) % 2).astype(np.float64)
    keys = [pair(*((g, b) if label else (b, g))) for g, b, label in zip(good, bad, labels, strict=True)]
    labels[:wrong] = 1 - labels[:wrong]
    return keys, labels


def test_it_learns_to_prefer_and_scores_without_a_bound():
    model = MODELS["bradley_terry"](batch_size=16, lr=2e-3, early_steps=40)
    keys, labels = compared(40, 1)
    model.fit(keys, labels)
    assert model.agreement(keys, labels) > 0.9
    assert model.agreement(*compared(40, 50)) > 0.7
    assert model.agreement(keys, 1 - labels) < 0.1
    assert np.ptp(model.predict(captions(60, 70))) > 2
    assert np.isnan(model.agreement(keys[:2], np.full(2, 0.5))), "ties tell nothing"


def test_the_ensemble_turns_wrong_labels_round_and_asks_for_its_margin():
    keys, labels = compared(24, 3, wrong=4)
    model = BradleyTerry(batch_size=16, lr=2e-3, early_steps=30, members=2, flip="negative", margin=True)
    for member in model._members:
        member.fit(*compared(24, 3))
    better, margin = model._corrected(keys, torch.tensor(labels))
    assert better.tolist() == compared(24, 3)[1].tolist()
    assert isinstance(margin, torch.Tensor)
    strength = np.mean([m.apart(keys) for m in model._members], 0)
    assert margin.numpy() == pytest.approx(strength, abs=1e-5)
    assert (np.sign(strength) == np.sign(better.numpy() - 0.5)).all()


def test_members_differ_in_their_start_and_their_order():
    model = BradleyTerry(**FAST, members=2, flip="certain")
    keys, labels = compared(40, 4)
    model.fit(keys, labels)
    one, other = (m.apart(keys) for m in model._members)
    assert not np.allclose(one, other)


@pytest.mark.parametrize("option", [{"margin": True}, {"flip": "certain"}, {"smoothing": 0.1, "smooth": "strong"}])
def test_what_goes_by_strength_needs_an_ensemble(option):
    with pytest.raises(ValidationError, match="members = 10"):
        BradleyTerry(**option)


ALL = {"members": 1, "flip": "certain", "margin": True, "smoothing": 0.1, "contrast": 0.1, "meta_lr": 0.1}


@pytest.mark.parametrize("option", ["smoothing", "contrast", "meta_lr"])
def test_each_option_changes_what_is_learnt(option):
    keys, labels = compared(20, 5)
    plain, changed = BradleyTerry(**FAST), BradleyTerry(**FAST, **{option: ALL[option]})
    for model in (plain, changed):
        model.see([[t for key in keys[:3] for t in pair_of(key)]])
        model.fit(keys, labels)
    assert not np.allclose(plain.apart(keys), changed.apart(keys), atol=1e-6)


def test_without_groups_metarm_is_plain():
    keys, labels = compared(20, 5)
    plain, meta = BradleyTerry(**FAST), BradleyTerry(**FAST, meta_lr=0.1)
    assert meta.wants_groups
    assert not plain.wants_groups
    for model in (plain, meta):
        model.fit(keys, labels)
    assert np.array_equal(plain.apart(keys), meta.apart(keys))


def test_one_that_loads_a_checkpoint_goes_on_bit_by_bit_its_members_too():
    keys, labels = compared(20, 6)
    model, successor = BradleyTerry(**FAST, **ALL), BradleyTerry(**FAST, **ALL)
    model.fit(keys, labels)
    successor.load(model.state(training=True))
    for one in (model, successor):
        one.see([[*pair_of(keys[0])]])
        one.fit(keys, labels)
    assert np.array_equal(model.apart(keys), successor.apart(keys))
    assert np.array_equal(model._members[0].apart(keys), successor._members[0].apart(keys))
    published = model.state(training=False)
    assert not [name for name in published if name.startswith(("member", "adam"))]
    reader = BradleyTerry(**FAST, **ALL)
    reader.load(published)
    assert np.array_equal(reader.predict(["a wall"]), model.predict(["a wall"]))


def test_a_language_model_learns_with_its_head_or_stays_as_it_was(tmp_path):
    path = random_llama(tmp_path, tied=False)
    keys, labels = compared(10, 7)
    for frozen in (False, True):
        model = BradleyTerry(**FAST, encoder=str(path), frozen=frozen)
        before = model.state(training=False)
        model.fit(keys, labels)
        after = model.state(training=False)
        body = [name for name in after if name.startswith("net/encoder")]
        assert bool(body) is not frozen, "what is frozen is not published"
        assert all(not np.array_equal(before[n], after[n]) for n in body if "proj" in n)
    texts = ["a wall", "you find gold and the old key", ""]
    model = BradleyTerry(**FAST, encoder=str(path))
    alone = [model.predict([text])[0] for text in texts]
    assert model.predict(texts) == pytest.approx(alone, abs=1e-5), "padding changes nothing"


def test_of_a_long_text_the_end_is_read_where_the_response_stands(tmp_path):
    path = str(random_llama(tmp_path, tied=False))
    long = "what is asked " * 80
    for options in ({}, {"encoder": path}, {"encoder": path, "frozen": True}):
        model = BradleyTerry(**FAST, **options)
        one, same, other = model.predict(
            [f"{long}the answer is 85", f"x{long}the answer is 85", f"{long}I do not know it"]
        )
        assert one == pytest.approx(same, abs=1e-6)
        assert one != pytest.approx(other, abs=1e-6)
