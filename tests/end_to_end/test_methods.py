"""Recipes of methods that need no engine of their own: each for a few steps of the real job, and its own effect."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from cluster.storage import group_archive
from cluster.storage.group_archive import ArchivedGroup
from rewards.aggregation.preferences import strength_advantages
from rewards.aggregation.shaping.brevity import concise_rewards
from rewards.aggregation.shaping.par import preference_reward
from rewards.parsing.answers import votes_of
from tests.end_to_end import jobs

pytestmark = [pytest.mark.job, pytest.mark.verify]

SMALL = [
    *jobs.TINY, "model.path=tiny:addition", "model.dtype=float32", "engine.use=tests.fakes:FakeEngine",
    "rollout.max_tokens=6", "evaluation.max_tasks=1", "checkpoint.every_steps=2", "learner.schedule.lr=1e-3",
    "learner.schedule.warmup_steps=0",
]  # fmt: skip
LETTERS = [*string.ascii_lowercase, *string.digits]
JUDGE = f'judges.judge={{kind="keyword",options={{keywords={json.dumps(LETTERS)}}}}}'
"""Counts words of one letter, of which untrained rollouts have some."""
ADDITION = ["tasks.use=addition", "tasks.options={}"]


def pipeline(tmp_path: Path, method: str, *overrides: str, steps: int = 4) -> tuple[list[ArchivedGroup], list[dict]]:
    """The method's recipe made small: trained groups in the order of the steps, and metrics by step."""
    log = tmp_path / "log"
    options = [*SMALL, f"run.dir={tmp_path}", f"learner.steps={steps}", *overrides]
    assert jobs.run(options, recipe=f"methods/{method}.toml", log=log, timeout_s=270) == 0, jobs.tail(log)
    run = tmp_path / method
    summary = jobs.summary(run)
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    rows = [row for row in jobs.rows(run) if "learner/step_s" in row]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    return list(groups_of(run)), rows


def groups_of(run: Path) -> Iterator[ArchivedGroup]:
    for path in sorted(group_archive.files(run / "groups")):
        for entry in group_archive.index(path):
            yield group_archive.read(path, entry)


def centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean()


def first_advantages(one: ArchivedGroup) -> np.ndarray:
    return np.array([a[0] for a in one.advantages])


def hits(text: str) -> int:
    """What the judge counts."""
    return sum(word in LETTERS for word in re.findall(r"\w+", text.casefold()))


def test_the_majority_of_a_group_is_its_reward_and_the_guard_watches(tmp_path):
    """MM-UPT, with one-digit answers: of untrained ones some agree."""
    trained, rows = pipeline(tmp_path, "mm_upt", "rollout.max_tokens=1", "learner.drop_zero_variance=false")
    assert all({"reward/answer_entropy_mean", "reward/majority_mean"} <= row.keys() for row in rows)
    agreed = 0
    for one in trained:
        said = votes_of(one.group.rollouts)
        most = max(said.count(a) for a in said if a is not None)
        chosen = {a for a, s in zip(said, one.scores["majority"].values, strict=True) if s == 1}
        assert len(chosen) == 1
        assert said.count(chosen.pop()) == most
        assert one.rewards.tolist() == one.scores["majority"].values.tolist(), "references are recorded only"
        agreed += 1 < most < len(said)
    assert agreed


def test_of_right_answers_the_short_ones_are_worth_more(tmp_path):
    """Self-Rewarded Efficiency RL; right is what has a low digit in it."""
    rule = "rewards.0.use=tests.end_to_end.rules:LowDigits"
    trained, _ = pipeline(tmp_path, "concise", *ADDITION, rule, "learner.drop_truncated=false")
    spread = 0
    for one in trained:
        [(name, scores)] = one.scores.items()
        right, lengths = scores.values == 1, np.array([r.loss_mask.sum() for r in one.group.rollouts])
        assert one.rewards == pytest.approx(concise_rewards(right, lengths.astype(float), 0.5), abs=1e-6), name
        if len(set(lengths[right])) > 1:
            spread += 1
            assert one.rewards[right].max() == pytest.approx(1.5)
            assert one.rewards[right].min() == pytest.approx(1.0)
        assert not one.rewards[~right].any()
    assert spread, "no group had right answers of two lengths"


def test_a_response_is_worth_the_share_of_its_group_that_it_beats(tmp_path):
    """SPO."""
    trained, rows = pipeline(tmp_path, "spo", *ADDITION, JUDGE, "rollout.group_size=4")
    for one in trained:
        values, counts = one.scores["judge"].values, [hits(r.text) for r in one.group.rollouts]
        assert values.mean() == pytest.approx(0.5, abs=1e-5), "zero-sum"
        for i, j in combinations(range(4), 2):
            if counts[i] != counts[j]:
                assert (values[i] > values[j]) == (counts[i] > counts[j])
        assert first_advantages(one) == pytest.approx(values - 0.5, abs=1e-5)
    assert rows[-1]["reward/judge_known_frac"] == 1


def test_pairs_have_a_large_margin_and_are_regressed_against_what_sampled_them(tmp_path):
    """DNO."""
    selected = "selectors.0.options={floor=0.15,margin=0.33,student_margin=0.15}"
    trained, rows = pipeline(tmp_path, "dno", *ADDITION, JUDGE, selected)
    assert trained, "no pair was found"
    for row in rows:
        assert row["pairs/num_pairs"] > 0
        assert row["pairs/margin_mean"] >= 0.15
    for one in trained:
        values = one.scores["judge"].values
        assert values.max() >= 0.15, "a group without a good answer was trained on"
        assert np.ptp(values) >= 0.15
    # The stand-in samples by other log-probs than the model's, which here are the first policy's still.
    assert abs(rows[0]["pairs/chosen_log_ratio_nats"]) > 1, "they are compared with the first policy"


def test_advantages_are_the_mean_strengths_that_a_judge_saw(tmp_path):
    """Think-RM."""
    trained, _ = pipeline(
        tmp_path, "think_rm", *ADDITION, JUDGE, "rollout.group_size=4", "learner.drop_zero_variance=false"
    )
    ordered = 0
    for one in trained:
        values, counts = one.scores["judge"].values, np.array([hits(r.text) for r in one.group.rollouts])
        assert first_advantages(one) == pytest.approx(centred(values), abs=1e-5), "nothing is divided again"
        if len(set(counts)) > 1:
            ordered += 1
            assert counts[values.argmax()] == counts.max()
            assert values[counts.argmin()] < 0 < values[counts.argmax()]
    assert ordered
    assert strength_advantages(np.zeros((2, 2))).tolist() == [0, 0]


def test_a_level_becomes_the_chance_to_beat_the_references(tmp_path):
    """PAR, on tasks that bring scores of reference responses along."""
    (tmp_path / "sums.jsonl").write_text(
        "\n".join(
            f'{{"prompt": "{a}+{b}=", "reward_model": {{"ground_truth": "{a + b}"}}, '
            f'"extra_info": {{"reference_scores": [1.0, {a % 3}.5]}}}}'
            for a in range(10, 30)
            for b in range(10, 14)
        )
    )
    tasks = f'tasks={{use="jsonl",options={{path="{tmp_path}/sums.jsonl",num_evaluation=1}}}}'
    trained, rows = pipeline(tmp_path, "par", tasks, JUDGE)
    assert all(0 < row["reward/judge_shaped_mean"] < 1 for row in rows)
    for one in trained:
        references = np.array(one.group.task.meta["extra_info"]["reference_scores"])
        assert one.rewards == pytest.approx(preference_reward(one.scores["judge"].values, references, 1.0), abs=1e-6)


def test_levels_are_standardised_by_all_levels_so_far_also_after_a_killed_learner(tmp_path):
    """A rival of PAR. The learner dies between the cut and the step, with a checkpoint two steps old."""
    dead = tmp_path / "dead"
    dead.mkdir()
    log = tmp_path / "log"
    options = [*SMALL, f"run.dir={tmp_path}", "learner.steps=6", "learner.drop_zero_variance=false"]
    failing = {"KANABO_FAILPOINT": "learner.after_assemble@4", "KANABO_FAILPOINT_DIR": str(dead)}
    assert jobs.run(options, recipe="methods/rivals.toml", log=log, timeout_s=270, **failing) == 0, jobs.tail(log)
    assert [p.name for p in dead.iterdir()] == ["learner.after_assemble"], "the learner was not killed"
    rows = {row["step"]: row for row in jobs.rows(tmp_path / "rivals") if "learner/step_s" in row}
    seen: list[float] = []
    for step in range(1, 7):
        groups = [one for one in groups_of(tmp_path / "rivals") if one.step == step]
        assert groups
        if seen:
            assert rows[step]["reward/judge_running_mean"] == pytest.approx(np.mean(seen), abs=1e-6)
            assert rows[step]["reward/judge_running_std"] == pytest.approx(np.std(seen), abs=1e-6)
        seen += [v for one in groups for v in one.scores["judge"].values]
        for one in groups:
            expected = (one.scores["judge"].values - np.mean(seen)) / np.std(seen)
            assert one.rewards == pytest.approx(expected, abs=1e-4)


def test_ipo_pushes_pairs_apart_up_to_a_margin(tmp_path):
    rule = "rewards.0.use=tests.end_to_end.rules:LowDigits"
    _, rows = pipeline(tmp_path, "ipo", rule, "learner.schedule.lr=2e-5", steps=6)
    assert rows[0]["loss/ipo"] == pytest.approx(1, rel=1e-3), "(0 − 1 / 2β)²"
    assert rows[-1]["pairs/chosen_log_ratio_nats"] > rows[-1]["pairs/rejected_log_ratio_nats"]
    assert rows[-1]["loss/ipo"] < rows[0]["loss/ipo"]


def test_what_the_first_policy_finds_good_and_bad_weighs_the_tokens_of_pairs(tmp_path):
    """T-REG. A model of digits cannot be asked for better answers in words; its prompts are sums."""
    prompts = (
        "rewards.1.options={scorer='first',better='{question}',worse='{response}'}",
        "rewards.0.use=tests.end_to_end.rules:LowDigits", "rewards.0.options={}",
    )  # fmt: skip
    trained, rows = pipeline(tmp_path, "t_reg", *ADDITION, *prompts)
    assert all(row["t_reg/known_frac"] == 1 for row in rows)
    assert all(row["loss/t_reg"] != 0 for row in rows)
    for one in trained:
        found = one.scores["contrast"]
        assert {p.model for p in found.provenance} == {"initial"}
        assert found.tokens is not None
        for rollout, tokens, value in zip(one.group.rollouts, found.tokens, found.values, strict=True):
            assert (np.abs(tokens) <= 0.5).all()
            assert not tokens[~rollout.loss_mask].any()
            assert tokens.sum() == pytest.approx(value)
        assert found.tokens[0].any()


def test_the_checkpoint_before_is_asked_and_its_disagreement_softens_the_labels(tmp_path):
    """CREAM. Checkpoints every two steps: the second scorer moves with them."""
    trained, rows = pipeline(tmp_path, "cream", "rollout.group_size=5", "engine.options={delay_s=0.4}", steps=8)
    now = {one.scores["now"].provenance[0].model for one in trained}
    before = {one.scores["before"].provenance[0].model for one in trained}
    assert len(now) > 3, "the policy of now"
    assert "initial" in before, "before the first checkpoint there are the first weights"
    assert before & {"policy@2", "policy@4", "policy@6"}, "an old checkpoint was never asked"
    assert before <= {"initial", "policy@2", "policy@4", "policy@6", "policy@8"}
    for row in rows:
        assert row["pairs/num_pairs"] > 0
        assert 0 <= row["pairs/label_mean"] <= 1
    assert len({round(row["pairs/label_mean"], 6) for row in rows}) > 1
