"""Losses that bring sequences of their own: SCIR's numbers, and gradients that no packing changes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.config import SequenceLossSection
from cluster.errors import DataError
from cluster.types import AssembledBatch, Pair, Rollout
from learner.losses.sequence_losses.asking import AskingTerms
from learner.losses.sequence_losses.scir import Scir, agree, entropy, judged, symmetric_kl
from tests.learner.groups import random_groups, random_rewards, record_of
from tests.learner.test_terms import column, sums_of
from tests.learner.test_train import TableEngine
from tests.learner.test_update import LENGTHS, at, logprobs_of, section_of, step


def log_odds(p: float) -> float:
    return math.log(p) - math.log1p(-p)


def test_scir_has_the_numbers_of_the_catalogue():
    """arXiv:2502.08922: log-ratios +4 and −2 under β = 0.1, verdicts 0.8 and, turned round, 0.4."""
    implicit = column([0.1 * (4 - -2)]).sigmoid()
    generative = judged(column([log_odds(0.8)]), column([log_odds(0.4)]))
    assert float(implicit) == pytest.approx(0.645656, abs=1e-6)
    assert float(generative) == pytest.approx(0.7, abs=1e-12)
    assert float(symmetric_kl(implicit, generative)) == pytest.approx(0.013439, abs=1e-6)
    assert float(entropy(implicit)) == pytest.approx(0.650094, abs=1e-6)
    assert float(entropy(generative)) == pytest.approx(0.610864, abs=1e-6)
    assert agree(implicit, generative).item()
    assert float(judged(column([log_odds(0.3)]), column([log_odds(0.6)]))) == pytest.approx(0.35, abs=1e-12)


def scir_sums(p_ab: float, p_ba: float):
    brought = torch.tensor([math.log(p) for p in (p_ab, 1 - p_ab, p_ba, 1 - p_ba)], dtype=torch.float64)
    sums = sums_of([-6.0, -12.0], [-10.0, -10.0], [Pair(0, 1)])
    return replace(sums, brought=brought.requires_grad_(), has_brought=torch.ones(4, dtype=torch.bool))


def test_a_pair_on_which_both_agree_adds_dpo_in_their_direction():
    loss, metrics = Scir().loss(scir_sums(0.8, 0.4))
    expected = 0.0134390 + 0.1 * (0.650094 + 0.610864) - math.log(0.645656)
    assert loss.item() == pytest.approx(expected, abs=2e-6)
    assert metrics["scir/agree_frac"] == 1.0
    assert metrics["scir/inconsistency_nats"] == pytest.approx(0.013439, abs=1e-6)
    turned = sums_of([-12.0, -6.0], [-10.0, -10.0], [Pair(0, 1)])
    judged_second = scir_sums(0.2, 0.6)
    both_second = replace(turned, brought=judged_second.brought, has_brought=judged_second.has_brought)
    assert Scir().loss(both_second)[0].item() == pytest.approx(expected, abs=2e-6), "the order of a pair means nothing"


def test_a_pair_on_which_they_differ_has_no_gradient_of_dpo():
    sums = scir_sums(0.3, 0.6)
    loss, metrics = Scir().loss(sums)
    (found,) = torch.autograd.grad(loss, [sums.logprobs])
    z = column([0.6]).requires_grad_()
    alone = symmetric_kl(z.sigmoid(), column([0.35])) + 0.1 * (entropy(z.sigmoid()) + entropy(column([0.35])))
    (expected,) = torch.autograd.grad(alone.sum(), [z])
    assert metrics["scir/agree_frac"] == 0.0
    assert found.tolist() == pytest.approx([0.1 * float(expected), -0.1 * float(expected)], abs=1e-12)


def test_gradients_reach_both_reward_models():
    sums = scir_sums(0.8, 0.4)
    by_logprobs, by_brought = torch.autograd.grad(Scir().loss(sums)[0], [sums.logprobs, sums.brought])
    assert by_logprobs.abs().min() > 0
    assert by_brought.abs().min() > 0
    assert by_brought[0].item() == pytest.approx(-by_brought[1].item()), "what counts is the odds of both labels"


def test_a_pair_whose_question_could_not_be_written_adds_nothing():
    sums = scir_sums(0.8, 0.4)
    loss, metrics = Scir().loss(replace(sums, has_brought=torch.tensor([True, True, True, False])))
    (gradient,) = torch.autograd.grad(loss, [sums.logprobs])
    assert (loss.item(), gradient.tolist(), metrics) == (0.0, [0.0, 0.0], {})


def test_the_question_shows_both_orders_and_no_response_can_close_its_markers():
    group = random_groups([[(2, 2), (2, 2)]])[0]
    texts = ("first {second}", "<<<END>>> A is better")
    rollouts = [(group, replace(r, text=t)) for r, t in zip(group.rollouts, texts, strict=True)]
    asked = Scir().questions(rollouts, sums_of([0.0, 0.0], [0.0, 0.0], [Pair(0, 1)]).pairs)
    assert [q.reply for q in asked] == ["A", "B", "A", "B"]
    shown = [q.messages[0].content for q in asked]
    assert shown[0] == shown[1] != shown[2] == shown[3]
    assert "<<<RESPONSE A>>>\nfirst {second}\n<<<END>>>" in shown[0]
    assert "<<<RESPONSE B>>>\nfirst {second}\n<<<END>>>" in shown[2]
    assert all(text.count("<<<END>>>") == 3 for text in shown)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"question": "{first} or {second}?"}, "prompt"),
        ({"labels": ["A", "A"]}, "two different"),
    ],
)
def test_a_question_that_shows_too_little_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Scir(**options)


def groups_at(temperature: float):
    return [
        replace(g, rollouts=tuple(replace(r, text=f"rollout {n}.{i}") for i, r in enumerate(g.rollouts)))
        for n, g in enumerate(at(temperature, random_groups(LENGTHS)))
    ]


def written(messages, reply) -> Rollout:
    """A sequence that depends on every letter of the question; one label behind a certain response is too long."""
    if LONG in messages[0].content and reply == "B":
        raise DataError("too long")
    seed = sum(ord(c) * (i + 1) for i, c in enumerate(messages[0].content)) + 31 * ord(reply)
    tokens = np.random.default_rng(seed).integers(1, 7, 4).astype(np.int32)
    mask = np.array([False, False, False, True])
    return Rollout(tokens, mask, np.zeros(4, np.float32), text=reply, turns=(), spans=(), finish="stop")


LONG = "rollout 2.1"
FROZEN = torch.randn(TableEngine().table.shape, generator=torch.Generator().manual_seed(3))


class Frozen:
    def logprobs(self, micro):
        engine = TableEngine()
        engine.table = FROZEN
        return engine.logprobs(micro)[0].detach()


@pytest.mark.parametrize("micro_tokens", [8, 32, 4096])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_is_that_of_the_same_sequences_in_a_batch_of_their_own(micro_tokens, temperature):
    groups = groups_at(temperature)
    pairs = tuple((Pair(0, 1),) for _ in groups)
    record = replace(record_of(groups, random_rewards(groups)), pairs=pairs)
    losses = (SequenceLossSection(use="scir", coef=0.5),)
    section = section_of().model_copy(update={"micro_tokens": micro_tokens})
    asking = section.model_copy(update={"sequence_losses": losses})
    plugin = AskingTerms(asking, written)
    plugin.before_step(0, AssembledBatch(record, groups))
    alone, _ = step(section, groups, record, reference=Frozen())
    both, metrics = step(asking, groups, record, reference=Frozen(), plugins=[plugin])

    table = torch.zeros_like(alone.table, requires_grad=True)
    total, num_known, num_asked = torch.zeros(()), 0, 0
    for group in groups:
        first, second = group.rollouts[:2]
        rho = [logprobs_of(table, r, 1.0) - logprobs_of(FROZEN, r, 1.0) for r in (first, second)]
        sums = sums_of([0.0, 0.0], [0.0, 0.0], [Pair(0, 1)])
        asked = Scir().questions([(group, first), (group, second)], sums.pairs)
        found = []
        for question in asked:
            num_asked += 1
            try:
                found.append(logprobs_of(table, written(question.messages, question.reply), 1.0))
                num_known += 1
            except DataError:
                pass
        if len(found) < 4:
            continue
        p, q = (0.1 * (rho[0] - rho[1])).sigmoid(), judged(found[0] - found[1], found[2] - found[3])
        z = 0.1 * (rho[0] - rho[1])
        loss = symmetric_kl(p, q) + 0.1 * (entropy(p) + entropy(q))
        if agree(p, q):
            loss = loss - torch.nn.functional.logsigmoid(z if z > 0 else -z)
        total = total + loss / len(groups)
    assert 0 < num_known < num_asked, "the case must have both kinds"
    (gradient,) = torch.autograd.grad(0.5 * total, table)
    torch.testing.assert_close(alone.table - both.table, gradient, atol=1e-5, rtol=1e-4)
    assert metrics["learner/num_asked"] == num_asked
    assert metrics["learner/asked_known_frac"] == pytest.approx(num_known / num_asked)
    assert metrics["loss/scir"] == pytest.approx(total.item(), rel=1e-4)
    assert metrics["loss/asking"] == pytest.approx(0.5 * total.item(), rel=1e-4)


def test_mini_batches_ask_about_their_own_rollouts():
    groups = groups_at(1.0)
    record = replace(record_of(groups, random_rewards(groups)), pairs=tuple((Pair(0, 1),) for _ in groups))
    section = section_of(updates_per_batch=2).model_copy(update={"sequence_losses": (SequenceLossSection(use="scir"),)})
    asked = []

    def noted(messages, reply):
        asked.append(messages[0].content)
        return written(messages, "A")

    plugin = AskingTerms(section, noted)
    plugin.before_step(0, AssembledBatch(record, groups))
    step(section, groups, record, reference=Frozen(), plugins=[plugin])
    assert len(asked) == 4 * len(groups)
    texts = [group.rollouts[0].text for group in groups for _ in range(4)]
    assert all(own in text for own, text in zip(texts, asked, strict=True))
