"""Loss terms: the numbers of each method, and that their gradient is the same however a step is cut up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.config import LearnerSection, LossSection, SequenceLossSection
from cluster.errors import ConfigError
from cluster.types import BatchRecord, Group, Pair
from learner.losses.sequence_losses import build_sequence_losses
from learner.losses.sequence_losses.laser import LaSeR, standardised_in_group, verification_loss
from learner.losses.sequence_losses.preference import Dpo, Ipo, preference_loss
from learner.losses.sequence_losses.regularizers import Nll, Selm, TReg, WeightedNll
from learner.losses.sequence_sums import Pairs, SequenceStats
from learner.pack import pack
from learner.train import Objective, optimize
from tests.learner.groups import VOCABULARY, bigram_logprobs, random_groups, random_rewards, record_of
from tests.learner.test_train import TableEngine

LENGTHS = [[(3, 9), (3, 2), (4, 14)], [(2, 5), (9, 1)], [(1, 12), (6, 6), (6, 3), (2, 2)]]
PAIRS = (
    (Pair(0, 2, margin=0.5, third=1), Pair(2, 1, weight=0.5, label=0.8, third=1)),
    (),
    (Pair(3, 0, margin=0.2, third=3), Pair(1, 2, label=0.4)),
)
NAN = float("nan")


# ── the methods' own numbers ────────────────────────────────────────────────────────────────────────────────


def column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sums_of(policy: Sequence[float], reference: Sequence[float], pairs: Sequence[Pair] = (), **fields) -> SequenceStats:
    n = len(policy)
    zeros = torch.zeros(n, dtype=torch.float64)
    defaults = {
        "weighted": zeros, "appended": zeros, "behaviour": column(reference), "reference_appended": None, "step": 0,
        "num_tokens": zeros + 1, "rewards": zeros, "truncated": zeros.bool(), "group": zeros.long(),
        "has_weights": ~zeros.bool(),
    }  # fmt: skip
    logprobs = column(policy).requires_grad_()
    return SequenceStats(
        logprobs=logprobs, sampled=logprobs, reference=column(reference), pairs=Pairs.of(pairs),
        **{**defaults, **fields},
    )  # fmt: skip


def test_dno_regresses_the_difference_of_win_rates():
    """arXiv:2404.03715: η = 0.1, win rates 0.75 and 0.25, log-ratios 1 and −0.5 to the weights that sampled."""
    sums = sums_of([1.0, -0.5], [0.0, 0.0], [Pair(0, 1, margin=0.75 - 0.25)])
    exact = Dpo(beta=0.1, against="behaviour", label="margin")
    assert not exact.needs_reference
    assert exact.loss(replace(sums, reference=None))[0].item() == pytest.approx(0.677588, abs=1e-6)
    assert float(Dpo(beta=0.1).loss(sums)[0]) == pytest.approx(0.620957, abs=1e-6)
    assert float(column([0.5]).sigmoid()) == pytest.approx(0.622459, abs=1e-6)


def test_ipo_has_a_margin_to_reach():
    sums = sums_of([1.0, -0.5], [0.0, 0.0], [Pair(0, 1)])
    assert float(Ipo(beta=0.1).loss(sums)[0]) == pytest.approx((1.5 - 5) ** 2)
    at_the_margin = sums_of([5.0, 0.0], [0.0, 0.0], [Pair(0, 1)])
    (gradient,) = torch.autograd.grad(Ipo(beta=0.1).loss(at_the_margin)[0], [at_the_margin.logprobs])
    assert gradient.tolist() == [0.0, 0.0]


def test_selm_presses_the_third():
    """arXiv:2405.19332: β = 0.1, α = 0.001; (chosen, rejected, third) under the policy and the reference."""
    sums = sums_of([-10.0, -14, -9], [-11.0, -13, -12], [Pair(0, 1, third=2)])
    dpo, explore = Dpo(beta=0.1).loss(sums)[0], 0.001 * Selm(beta=0.1).loss(sums)[0]
    assert float(dpo) == pytest.approx(0.598139, abs=1e-6)
    assert float(explore) == pytest.approx(0.0003, abs=1e-9)
    assert float(dpo + explore) == pytest.approx(0.598439, abs=1e-6)
    (gradient,) = torch.autograd.grad(explore, [sums.logprobs])
    assert gradient.tolist() == pytest.approx([0, 0, 0.1 * 0.001]), "the constant αβ, on the third alone"


def test_selm_may_spare_a_third_that_is_the_chosen_one():
    sums = sums_of([-10.0, -14], [-11.0, -13], [Pair(0, 1, third=0), Pair(0, 1)])
    assert float(Selm(beta=0.1).loss(sums)[0]) == pytest.approx(0.1 / 2)
    assert float(Selm(beta=0.1, even_if_chosen=False).loss(sums)[0]) == 0
    assert Selm().loss(sums)[1]["selm/third_frac"] == 0.5


def test_t_reg_says_which_tokens_deserve_it():
    """arXiv:2412.02685: β = 0.1, α = 0.25."""
    better, worse = column([1, -1]).sigmoid() - 0.5, column([-1, 0.5]).sigmoid() - 0.5
    assert better.tolist() == pytest.approx([0.231059, -0.231059], abs=1e-6)
    assert worse.tolist() == pytest.approx([-0.231059, 0.122459], abs=1e-6)
    weighted = torch.stack([(better * column([-0.5, -1.5])).sum(), (worse * column([-1, -2])).sum()]).requires_grad_()
    sums = sums_of([-2.0, -3.0], [-2.1, -2.6], [Pair(0, 1)], weighted=weighted)
    assert (-0.1 * weighted).tolist() == pytest.approx([-0.02310586, 0.00138601], abs=1e-8)
    regulariser, dpo = TReg(beta=0.1).loss(sums)[0], Dpo(beta=0.1).loss(sums)[0]
    assert float(regulariser) == pytest.approx(0.48750260 * (-0.02310586 + 0.00138601), abs=1e-8)
    assert float(dpo) == pytest.approx(0.66845965, abs=1e-8)
    assert float(dpo + 0.25 * regulariser) == pytest.approx(0.66581253, abs=1e-8)
    by_sum, by_weighted = torch.autograd.grad(regulariser, [sums.logprobs, weighted], materialize_grads=True)
    assert by_sum.tolist() == [0, 0], "the weight of a pair has no gradient"
    assert by_weighted.tolist() == pytest.approx([-0.1 * 0.4875026] * 2)


def test_t_reg_leaves_out_pairs_with_unknown_token_rewards():
    sums = sums_of([-2.0, -3.0], [-2.0, -3.0], [Pair(0, 1)], weighted=column([1, 1]))
    loss, metrics = TReg().loss(replace(sums, has_weights=torch.tensor([True, False])))
    assert (float(loss), metrics["t_reg/known_frac"]) == (0.0, 0.0)


def test_cream_softens_a_label():
    """arXiv:2410.12735: z = 0.5 under agreement 0.9, and no preference at all under ½."""
    z = column([0.5])
    assert float(preference_loss(z, column([0.9]))) == pytest.approx(0.524077, abs=1e-6)
    assert float(preference_loss(z, column([1.0]))) == pytest.approx(0.474077, abs=1e-6)
    zero = column([0.0]).requires_grad_()
    (gradient,) = torch.autograd.grad(preference_loss(zero, column([0.5])).sum(), [zero])
    assert gradient.tolist() == [0.0]
    labelled = sums_of([5.0, 0.0], [0.0, 0.0], [Pair(0, 1, label=0.9)])
    assert float(Dpo(beta=0.1).loss(labelled)[0]) == pytest.approx(0.524077, abs=1e-6)


def test_laser_judges_with_one_token():
    """arXiv:2510.14943."""
    term = LaSeR(token=7, mix_after_steps=0)
    grpo = column([0.866024, -0.866024, -0.866024, 0.866024])
    sums = sums_of([0.0] * 4, [0.0] * 4, appended=column([-15, -21, -23, -13]), rewards=column([1, 0, 0, 1]))
    loss, metrics = term.loss(sums)
    assert float(loss) == pytest.approx(0.02)
    assert 0.1 * float(loss) == pytest.approx(0.002)
    assert metrics == {"laser/accuracy_right": 1.0, "laser/accuracy_wrong": 1.0}
    scores = column([0.8, 0.2, 0.0, 1.0])
    assert float(scores.std()) == pytest.approx(0.476095, abs=1e-6)
    own = standardised_in_group(scores, sums.group, 0.1)
    assert own.tolist() == pytest.approx([0.630126, -0.630126, -1.050210, 1.050210], abs=1e-6)
    factor, addend = term.advantages(sums) or (NAN, NAN)
    assert (grpo * factor + addend).tolist() == pytest.approx([0.842434, -0.842434, -0.884443, 0.884443], abs=1e-6)


def test_laser_balances_right_and_wrong_and_leaves_truncated_ones_out():
    rewards, right = column([0.8, 0.6, 1.0, 0.4]), torch.tensor([True, True, True, False])
    everything = torch.ones(4, dtype=torch.bool)
    assert float(verification_loss(rewards, right, everything, balance=True)) == pytest.approx(0.113333, abs=1e-6)
    assert float(verification_loss(rewards, right, everything, balance=False)) == pytest.approx(0.09)
    whole = torch.tensor([True, True, False, False])
    assert float(verification_loss(rewards, right, whole, balance=True)) == pytest.approx((0.04 + 0.16) / 4)
    assert float(verification_loss(rewards, right, ~everything, balance=True)) == 0


def test_laser_mixes_in_its_rewards_200_steps_after_their_loss_has_begun():
    sums = sums_of(
        [0.0] * 2, [0.0] * 2, appended=column([-23, -13]), rewards=column([0, 1]), group=torch.tensor([0, 0])
    )
    for from_step in (0, 200):
        term = LaSeR(token=7, from_step=from_step)
        assert term.advantages(replace(sums, step=from_step + 199)) is None
        assert term.advantages(replace(sums, step=from_step + 200)) is not None


def test_laser_warms_up_and_keeps_the_advantages_of_groups_it_cannot_tell_apart():
    term = LaSeR(token=7, from_step=5, mix_after_steps=10)
    sums = sums_of(
        [0.0] * 4, [0.0] * 4, appended=column([-23, -22.9, -23, -13]), rewards=column([1, 0, 0, 1]),
        group=torch.tensor([0, 0, 1, 1]),
    )  # fmt: skip
    assert float(term.loss(sums)[0]) == 0
    assert float(term.loss(replace(sums, step=5))[0]) > 0
    assert term.advantages(replace(sums, step=9)) is None
    factor, addend = term.advantages(replace(sums, step=10)) or (torch.empty(0), torch.empty(0))
    assert factor.tolist() == pytest.approx([1, 1, 0.9, 0.9])
    assert addend.tolist() == pytest.approx([0, 0, -0.1 / 2**0.5, 0.1 / 2**0.5])


def test_terms_that_want_different_tokens_cannot_be_together():
    section = LearnerSection(
        sequence_losses=tuple(SequenceLossSection(use="laser", options={"token": t}) for t in (3, 4))
    )
    with pytest.raises(ConfigError, match="can end in one token"):
        build_sequence_losses(section)


# ── the gradient, whatever the micro-batches ────────────────────────────────────────────────────────────────


class Frozen:
    """A reference model: another table."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def logprobs(self, micro) -> Tensor:
        return bigram_logprobs(self.table)(micro)[0]


def tables() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(VOCABULARY, VOCABULARY, generator=generator) for _ in range(2))  # pyright: ignore


def made(*, pairs: bool = True, weights: bool = False) -> tuple[list[Group], BatchRecord]:
    groups = random_groups(LENGTHS, finish="stop")
    record = record_of(groups, random_rewards(groups))
    rng = np.random.default_rng(3)
    if pairs:
        record = replace(record, pairs=PAIRS)
    if weights:
        given = tuple(tuple(rng.random(len(r.tokens)) - 0.5 for r in g.rollouts) for g in groups)
        record = replace(record, token_weights=given)
    return groups, record


def step(
    section: LearnerSection, groups: list[Group], record: BatchRecord, *, world: int = 1
) -> tuple[Tensor, dict[str, float]]:
    """Gradient of one step on the table, the ranks one after the other, and rank 0's metrics."""
    start, frozen = tables()
    terms = build_sequence_losses(section)
    batches = [pack(groups, record, section, r, world, append=terms.appended_token) for r in range(world)]
    if world > 1:
        # The first pass of all ranks first: their totals are what each of them would have been told.
        told: list[dict[str, float]] = []
        for batch in batches:
            listener = Rank(start, world)
            terms.credits(batch, listener, [Frozen(frozen).logprobs(m) for m in batch.micros])
            told.append(listener.said)
        totals = {name: sum(t[name] for t in told) for name in told[0]}
    else:
        totals = None
    gradient, metrics = torch.zeros_like(start), {}
    for batch in reversed(batches):
        engine = Rank(start, world, totals)
        metrics = optimize(batch, Objective.of(section), engine, Frozen(frozen))
        gradient += start - engine.table.detach()
    return gradient, metrics


class Rank(TableEngine):
    """One of several ranks; what `total` answers first is known beforehand."""

    def __init__(self, table: Tensor, world: int, totals: dict[str, float] | None = None) -> None:
        super().__init__(lr=1.0)
        with torch.no_grad():
            self.table += table
        self.world, self.totals, self.said = world, totals, {}

    def total(self, values) -> dict[str, float]:
        self.said = self.said or dict(values)
        if self.totals is not None and self.totals.keys() == values.keys():
            return self.totals
        return dict(values)


def section_of(
    *terms: SequenceLossSection, coef: float = 0.0, row_tokens: int = 24, micro_tokens: int = 48
) -> LearnerSection:
    return LearnerSection(
        loss=LossSection(coef=coef), sequence_losses=terms, row_tokens=row_tokens, micro_tokens=micro_tokens
    )  # fmt: skip


def logprobs_by_hand(table: Tensor, tokens: np.ndarray) -> Tensor:
    """[T−1] of each token after the first."""
    given = torch.tensor(tokens.astype(np.int64))
    return table[given[:-1]].log_softmax(-1).gather(-1, given[1:, None])[:, 0]


def summed(table: Tensor, groups: list[Group], weights: Sequence[Sequence[np.ndarray]] | None = None) -> list[Tensor]:
    """[G] per group: sums over the trained tokens, one sequence at a time."""
    found = []
    for g, group in enumerate(groups):
        values = []
        for i, r in enumerate(group.rollouts):
            weight = torch.tensor(r.loss_mask[1:].astype(float) if weights is None else weights[g][i][1:])
            mask = torch.tensor(r.loss_mask[1:])
            values.append((logprobs_by_hand(table, r.tokens).double() * weight * mask).sum())
        found.append(torch.stack(values))
    return found


def by_hand(use: str, groups: list[Group], record: BatchRecord) -> Tensor:
    """Gradient of a term, pair by pair from its formula (β = 0.1)."""
    start, frozen = tables()
    table = start.clone().requires_grad_()
    policy, reference = summed(table, groups), summed(frozen, groups)
    weighted = summed(table, groups, record.token_weights) if record.token_weights else policy
    total, count = torch.zeros((), dtype=torch.float64), 0
    for g, pairs in enumerate(record.pairs):
        rho = policy[g] - reference[g]
        for p in pairs:
            count += 1
            margin = rho[p.chosen] - rho[p.rejected]
            if use == "dpo":
                sigma = torch.sigmoid(0.1 * margin)
                loss = -p.label * sigma.log() - (1 - p.label) * (1 - sigma).log()
            elif use == "ipo":
                loss = (margin - 5) ** 2
            elif use == "selm":
                loss = 0.1 * rho[p.third] if p.third is not None else 0 * margin
            else:
                w = torch.sigmoid(-0.1 * margin).detach()
                loss = -0.1 * w * (weighted[g][p.chosen] + weighted[g][p.rejected])
            total = total + p.weight * loss
    (total / count).backward()
    assert table.grad is not None
    return table.grad


@pytest.mark.parametrize("use", ["dpo", "ipo", "selm", "t_reg"])
@pytest.mark.parametrize(
    ("row_tokens", "micro_tokens", "world"), [(512, 4096, 1), (24, 48, 1), (12, 1, 1), (12, 24, 2)]
)
def test_a_pair_loss_has_the_gradient_of_its_formula_wherever_a_pair_lies(use, row_tokens, micro_tokens, world):
    groups, record = made(weights=use == "t_reg")
    term = SequenceLossSection(use=use, options={"beta": 0.1})
    section = section_of(term, row_tokens=row_tokens, micro_tokens=micro_tokens)
    gradient, metrics = step(section, groups, record, world=world)
    expected = by_hand(use, groups, record)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)
    assert np.isfinite(metrics[f"loss/{use}"])


@pytest.mark.parametrize("world", [1, 2])
def test_policy_gradient_and_terms_add_up_with_their_weights(world):
    groups, record = made()
    dpo = SequenceLossSection(use="dpo", coef=0.3)
    both, _ = step(section_of(dpo, coef=2.0, row_tokens=12, micro_tokens=24), groups, record, world=world)
    gradient, _ = step(section_of(coef=1.0), groups, replace(record, pairs=()))
    torch.testing.assert_close(both, 2 * gradient + 0.3 * by_hand("dpo", groups, record), atol=1e-5, rtol=1e-5)
    assert gradient.abs().max() > 1e-3


def test_without_a_policy_loss_only_rollouts_of_pairs_are_run():
    groups, record = made()
    terms = (SequenceLossSection(use="dpo"),)
    assert pack(groups, record, section_of(*terms)).num_rollouts == 7, "the second group has no pair"
    assert pack(groups, record, section_of(*terms, coef=1.0)).num_rollouts == 9


def test_a_pair_with_a_rollout_that_is_left_out_compares_with_nothing():
    groups, record = made()
    rewards = [r.copy() for r in record.rewards]
    rewards[0][2] = NAN
    trained = pack(groups, replace(record, rewards=tuple(rewards)), section_of(SequenceLossSection(use="dpo"))).trained
    assert [(p.chosen, p.rejected, p.third) for p in trained.pairs] == [(3, 0, 3), (1, 2, None)]
    rewards[0][2], rewards[0][1] = 0.5, NAN
    trained = pack(groups, replace(record, rewards=tuple(rewards)), section_of(SequenceLossSection(use="dpo"))).trained
    assert trained.pairs[0].third is None, "a pair can do without its third"


def test_a_step_without_pairs_moves_nothing():
    groups, record = made(pairs=False)
    gradient, metrics = step(section_of(SequenceLossSection(use="dpo")), groups, record)
    assert not gradient.any()
    assert metrics["loss/dpo"] == 0
    assert "pairs/accuracy" not in metrics


@pytest.mark.parametrize(("row_tokens", "micro_tokens", "world"), [(512, 4096, 1), (12, 1, 1), (12, 24, 2)])
def test_laser_trains_one_token_behind_the_end(row_tokens, micro_tokens, world):
    groups, record = made(pairs=False)
    rewards = tuple((r > 0.5).astype(float) for r in record.rewards)
    record = replace(record, rewards=rewards)
    options = {"token": 7, "reference_logprob": -3.0}
    term = SequenceLossSection(use="laser", options=options)
    section = section_of(term, row_tokens=row_tokens, micro_tokens=micro_tokens)
    gradient, metrics = step(section, groups, record, world=world)
    table = tables()[0].requires_grad_()
    last = torch.tensor([int(r.tokens[-1]) for g in groups for r in g.rollouts])
    own = 0.1 * (table[last].log_softmax(-1)[:, 7].double() + 3.0)
    right = torch.tensor(np.concatenate(rewards) > 0)
    loss = sum(((own[k] - v) ** 2).sum() / (2 * k.sum()) for k, v in ((right, 1.0), (~right, 0.0)))
    assert isinstance(loss, Tensor)
    loss.backward()
    assert metrics["loss/laser"] == pytest.approx(float(loss), abs=1e-6)
    torch.testing.assert_close(gradient, table.grad, atol=1e-6, rtol=1e-5)
    assert table.grad is not None
    assert table.grad.abs().max() > 1e-4


def test_an_appended_token_changes_no_other_loss():
    groups, record = made(pairs=False)
    plain, _ = step(section_of(coef=1.0), groups, record)
    silent = SequenceLossSection(use="laser", coef=0.0, options={"token": 7, "mix": 0.0})
    appended, metrics = step(section_of(silent, coef=1.0), groups, record)
    torch.testing.assert_close(appended, plain, atol=1e-6, rtol=1e-5)
    assert metrics["learner/tokens"] == sum(r.num_tokens for g in groups for r in g.rollouts)


def test_advantages_are_those_that_a_term_makes_of_them():
    groups, record = made(pairs=False)
    options = {"token": 7, "mix_after_steps": 0, "mix": 1.0, "reference_logprob": -6.0, "min_std": 1e-6}
    mixing = SequenceLossSection(use="laser", coef=0.0, options=options)
    changed, _ = step(section_of(mixing, coef=1.0), groups, record)
    start = tables()[0]
    advantages = []
    for group in groups:
        scores = torch.stack([0.1 * (start[int(r.tokens[-1])].log_softmax(-1)[7] + 6) for r in group.rollouts])
        scores = scores.clamp(0, 1)
        advantages.append(tuple(np.array([a], np.float32) for a in (scores - scores.mean()) / scores.std()))
    expected, _ = step(section_of(coef=1.0), groups, replace(record, advantages=tuple(advantages)))
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=1e-4)


def test_nll_raises_every_trained_token_alike():
    sums = sums_of([-4.0, -6.0], [0.0, 0.0], num_tokens=column([2, 3]))
    (gradient,) = torch.autograd.grad(Nll().loss(sums)[0], [sums.logprobs])
    assert gradient.tolist() == pytest.approx([-0.2, -0.2])


def test_weighted_likelihood_is_a_mean_over_all_tokens():
    """Two rollouts of two tokens; one of them has an unknown weight and adds nothing but its tokens."""
    weighted = column([0.5 * -1.0 + 0.675 * -2.0, -9.0])
    sums = sums_of([-3.0, -4.0], [0.0, 0.0], weighted=weighted, num_tokens=column([2, 2]))
    loss, metrics = WeightedNll().loss(replace(sums, has_weights=torch.tensor([True, False])))
    assert loss.item() == pytest.approx(1.85 / 4)
    assert metrics == {"weighted_nll/known_frac": 0.5}
