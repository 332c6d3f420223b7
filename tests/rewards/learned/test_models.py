"""The formulas to the digit, and what each model learns from a few hundred labels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewards.learned.encoders import CharCNN, Net
from rewards.learned.labels import pair
from rewards.learned.losses import (
    Moments,
    above_threshold,
    class_weights,
    classification_loss,
    normalised,
    ranking_loss,
)
from rewards.learned.models import MODELS, Classification, Ranking, Retrieval
from tests.rewards.learned.judges import captions, is_good

FAST = {"batch_size": 32, "lr": 1e-3, "early_steps": 40}


def values(keys):
    return np.array([is_good(key) for key in keys])


def pairs(num: int, seed: int):
    """Compared by their labels: the good one is better, equal ones tie."""
    texts = captions(2 * num, seed)
    keys = [pair(a, b) for a, b in zip(texts[::2], texts[1::2], strict=True)]
    better = (values(texts[::2]) - values(texts[1::2]) + 1) / 2
    return keys, better


def test_bradley_terry_to_the_digit():
    f = torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64)
    assert ranking_loss(*f, torch.tensor([1.0])).item() == pytest.approx(0.3132617, abs=5e-8)
    assert ranking_loss(*f, torch.tensor([0.5])).item() == pytest.approx(0.8132617, abs=5e-8)
    assert ranking_loss(*f, torch.tensor([0.0])).item() == pytest.approx(1.3132617, abs=5e-8)


def test_moments_to_the_digit():
    moments = Moments()
    moments.add(np.arange(4.0))
    assert moments.mean == pytest.approx(1.4999625, abs=5e-8)
    assert moments.variance == pytest.approx(1.6667062, abs=5e-8)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.integers(1, 19))
def test_merged_moments_are_those_of_all_values_but_for_the_start_and_the_ddof(found, at):
    array = np.array(found)
    merged, at = Moments(count=0.0), min(at, len(found) - 1)
    for part in (array[:at], array[at:]):
        merged.add(part)
    assert merged.count == len(array)
    assert merged.mean == pytest.approx(array.mean(), abs=1e-9)
    inflated = sum(p.var() * len(p) ** 2 / (len(p) - 1) if len(p) > 1 else 0.0 for p in (array[:at], array[at:]))
    between = sum(len(p) * (p.mean() - array.mean()) ** 2 for p in (array[:at], array[at:]))
    assert merged.variance == pytest.approx((inflated + between) / len(array), abs=1e-6)


def test_the_threshold_is_exceeded_not_reached():
    logits = torch.tensor([[0.0, 0.2]], dtype=torch.float64)
    assert logits.softmax(1)[0, 1].item() == pytest.approx(0.5498340, abs=5e-8)
    assert above_threshold(logits, 0.5).tolist() == [1.0]
    assert above_threshold(logits, 0.6).tolist() == [0.0]
    assert above_threshold(torch.zeros(1, 2), 0.5).tolist() == [0.0]


def test_normalisation_is_applied_and_small_values_are_cut_off():
    assert normalised(np.array([3.0, 1.0, 0.5, -2.0]), 1.0, 2.0, cut=-0.5).tolist() == [1.0, 0.0, -0.25, 0.0]
    assert normalised(np.array([0.0]), 1.0, 2.0, cut=-0.5).tolist() == [0.0], "−0.5 is not above −0.5"


def test_both_classes_weigh_the_same_and_a_class_without_labels_nothing():
    labels = np.array([1.0, 0.0, 0.0, 0.0])
    weights = class_weights(labels)
    assert weights.tolist() == pytest.approx([2 / 3, 2.0])
    assert (weights[1] * labels).sum() == pytest.approx((weights[0] * (1 - labels)).sum())
    assert class_weights(np.zeros(3)).tolist() == [1.0, 0.0]
    uninformed = classification_loss(torch.zeros(4, 2), torch.tensor(labels), torch.tensor(weights))
    assert uninformed.item() == pytest.approx(np.log(2))
    always_bad = torch.tensor([[2.0, 0.0]]).repeat(4, 1)  # log p is -0.1269280 and -2.1269280
    loss = classification_loss(always_bad, torch.tensor(labels), torch.tensor(weights))
    assert loss.item() == pytest.approx((2 * 2.1269280 + 3 * (2 / 3) * 0.1269280) / 4, abs=1e-6)


def test_the_network_has_the_published_sizes():
    encoder = CharCNN()
    assert encoder.convolutions(torch.zeros(1, 32, 256)).shape == (1, 64, 5)  # 320 features
    assert Net(encoder, 2)(["", "x" * 1000, "ünïcode"]).shape == (3, 2)
    assert Net(encoder, 2)([]).shape == (0, 2)


def test_retrieval_knows_its_labels_and_nothing_else():
    model = Retrieval()
    model.fit(["gold", "", "wåll"], np.array([1.0, 0.0, 0.0]))
    assert np.array_equal(model.predict(["wåll", "gold", "", "unseen"]), [0.0, 1.0, 0.0, np.nan], equal_nan=True)
    again = Retrieval()
    again.load(model.state(training=False))
    assert np.array_equal(again.predict(["wåll", "gold", "", "x"]), [0.0, 1.0, 0.0, np.nan], equal_nan=True)


def test_the_classifier_learns_rare_good_news():
    model, train, unseen = Classification(**FAST), captions(300, 0, good_frac=0.2), captions(200, 1, good_frac=0.2)
    before = model.agreement(unseen, values(unseen))
    for _ in range(5):
        model.fit(train, values(train))
    after = model.agreement(unseen, values(unseen))
    assert before < 0.7
    assert after > 0.75
    assert set(model.predict(unseen)) == {0.0, 1.0}


def test_the_ranking_learns_which_caption_is_better():
    model, (train, better), (unseen, truth) = Ranking(**FAST), pairs(250, 2), pairs(150, 3)
    for _ in range(4):
        model.fit(train, better)
    assert model.agreement(unseen, truth) > 0.9
    texts = captions(200, 5)
    found = model.predict(texts)
    good = values(texts) == 1
    assert found[good].mean() > found[~good].mean() + 0.5
    assert ((found == 0) | (found > -0.5)).all()


def test_ranking_scores_have_the_scale_of_a_standard_deviation():
    keys, better = pairs(60, 4)
    model = Ranking(**FAST | {"cut": -1e9})
    model.fit(keys, better)
    shown = list(dict.fromkeys(c for key in keys for c in key.split("\x1f")))
    assert model.predict(shown).mean() == pytest.approx(0.0, abs=1e-3)
    assert model.predict(shown).std() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("name", ["classification", "ranking"])
def test_training_is_a_function_of_its_seed_and_goes_on_exactly(name):
    keys, labels = pairs(40, 6) if name == "ranking" else (captions(40, 6), values(captions(40, 6)))

    def made(**options):
        return MODELS[name](**{"batch_size": 16, "early_steps": 3, **options})

    whole, first, other = made(), made(), made(seed=1)
    whole.fit(keys, labels)
    whole.fit(keys, labels)
    first.fit(keys, labels)
    second = made(seed=7)
    second.load(first.state(training=True))
    second.fit(keys, labels)
    other.fit(keys, labels)
    left, right = whole.state(training=True), second.state(training=True)
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[k], right[k]) for k in left)
    assert any(not np.array_equal(left[k], other.state(training=True)[k]) for k in left)
    published = made(seed=3)
    published.load(whole.state(training=False))
    texts = captions(20, 8)
    assert np.array_equal(published.predict(texts), whole.predict(texts))


def test_many_labels_take_one_step_and_none_take_none():
    texts = captions(30, 9)
    for early_labels, steps in ((31, 5), (30, 1)):
        model = Classification(early_steps=5, early_labels=early_labels, batch_size=4)
        model.fit(texts, values(texts))
        assert model.state(training=True)["adam/0/step"] == steps
    untouched = Classification()
    assert np.isnan(untouched.fit([], np.array([])))


def test_saying_bad_of_everything_agrees_by_half_and_one_class_tells_nothing():
    model = Retrieval()
    model.fit(["a", "b", "c", "d"], np.zeros(4))
    assert model.agreement(["a", "b", "c", "d"], np.array([1.0, 0, 0, 0])) == 0.5
    assert np.isnan(model.agreement(["a", "b"], np.zeros(2)))
    ranking = Ranking(early_steps=1)
    assert np.isnan(ranking.agreement([pair("a", "b")], np.array([0.5])))


def test_a_head_on_a_transformer_learns_and_publishes_the_head_alone(tmp_path):
    path = small_transformer(tmp_path)
    texts = captions(120, 10)
    model = Classification(encoder=path, **FAST)
    for _ in range(3):
        model.fit(texts, values(texts))
    assert model.agreement(texts, values(texts)) > 0.9
    assert all(name.startswith("net/head") for name in model.state(training=False))
    assert model.predict(["", "gold"]).shape == (2,)


def small_transformer(directory) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    words = sorted({w for c in captions(400, 11) for w in c.split()})
    vocabulary = {"[UNK]": 0} | {w: i + 1 for i, w in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(directory)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaModel(LlamaConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(directory)
    return str(directory)
