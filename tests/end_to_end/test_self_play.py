"""Policies that are their own judge, opponent, past and corrector: what each method does to a real run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actors.models import prepare
from cluster.commands.export import export
from cluster.commands.replay import replay
from cluster.config import ModelSection, RunConfig
from cluster.errors import ConfigError
from cluster.storage import checkpoint, group_archive
from cluster.storage.group_archive import ArchivedGroup
from cluster.types import SCORED, Rollout
from learner.step_replay import load
from rewards.aggregation.selectors.temporal import temporal_pair
from rewards.aggregation.shaping.progress import progress
from tests.end_to_end import jobs
from tests.fakes import FakeEngine

pytestmark = pytest.mark.job

FAKE = ["engine.use=tests.fakes:FakeEngine", "tracking.live_table=false", "evaluation.max_tasks=1"]


def pipeline(
    tmp_path: Path, recipe: str, overrides: list[str], *, steps: int, name: str = "", **environment: str
) -> Path:
    """A run of a method's recipe to its last step; its directory."""
    name = name or recipe
    options = [f"run.dir={tmp_path}", f"run.name={name}", f"learner.steps={steps}", "tracking.live_table=false"]
    log = tmp_path / "log"
    code = jobs.run([*options, *overrides], recipe=f"methods/{recipe}.toml", log=log, timeout_s=580, **environment)
    assert code == 0, jobs.tail(log)
    summary = jobs.summary(tmp_path / name)
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    return tmp_path / name


def groups_of(run: Path) -> list[ArchivedGroup]:
    """Trained groups, in the order of the steps."""
    return [
        group_archive.read(path, entry)
        for path in sorted(group_archive.files(run / "groups"))
        for entry in group_archive.index(path)
    ]


def steps_of(run: Path) -> list[dict]:
    return [row for row in jobs.rows(run) if "learner/step_s" in row]


@pytest.mark.verify
@pytest.mark.timeout(700)
def test_a_policy_learns_from_the_marks_that_it_gives_itself(tmp_path):
    """SSR-Zero: no reference reaches the reward, and accuracy by references rises."""
    run = pipeline(tmp_path, "ssr_zero", [], steps=20)
    # Of what is sampled: greedy answers are right or wrong about one digit as a whole, whose turn may come later.
    right = [row["reward/exact_mean"] for row in steps_of(run)]
    assert np.mean(right[:3]) < 0.5
    assert np.mean(right[-3:]) > np.mean(right[:3]) + 0.2
    versions = []
    for group in groups_of(run):
        scores, texts = group.scores["ssr_zero"], [r.text for r in group.group.rollouts]
        laid_out = np.array([len(t) == 3 and set(t) <= set("abcdefghij") for t in texts])
        assert (scores.values[~laid_out] == 0).all()
        for provenance in np.array(scores.provenance, object)[laid_out & (scores.state == SCORED)]:
            assert provenance.model.startswith("policy@1.")
            versions.append(int(provenance.model.rpartition(".")[2].partition("-")[0]))
    assert versions[-1] >= versions[0] + 15, "the judge must be the policy of now"


@pytest.mark.verify
@pytest.mark.timeout(700)
def test_both_agents_learn_from_one_policy_and_baselines_outlive_a_killed_learner(tmp_path):
    """SPIRAL: a policy that plays both agents learns not to fold, and each agent keeps a baseline of its own."""
    dead = tmp_path / "dead"
    dead.mkdir()
    run = pipeline(
        tmp_path, "spiral",
        ["checkpoint.every_steps=5", "evaluation.max_tasks=200", "tracking.archived_groups=2560"], steps=20,
        KANABO_FAILPOINT="learner.after_assemble@12", KANABO_FAILPOINT_DIR=str(dead),
    )  # fmt: skip
    assert [p.name for p in dead.iterdir()] == ["learner.after_assemble"], "the learner was not killed"
    trained, rows = groups_of(run), steps_of(run)
    assert [row["step"] for row in rows] == list(range(1, 21))
    baselines: dict[str, float] = {}
    for row in rows:
        for agent in "01":
            told = row.get(f"advantage/baseline_KuhnPoker-v0-short_{agent}", 0.0)
            assert told == pytest.approx(baselines.get(agent, 0.0), abs=1e-6), f"step {row['step']}"
        for group in (g for g in trained if g.step == row["step"]):
            assert {r.agent for r in group.group.rollouts} <= {"0", "1"}
            for rollout, reward, advantage in zip(group.group.rollouts, group.rewards, group.advantages, strict=True):
                before = baselines.get(rollout.agent, 0.0)
                assert advantage[0] == pytest.approx(reward - before, abs=1e-5)
                baselines[rollout.agent] = 0.95 * before + 0.05 * reward
    assert baselines["0"] != pytest.approx(baselines["1"], abs=1e-3)
    assert folds(trained, range(16, 21)) < 0.6 * folds(trained, range(1, 4))
    accuracy = [row["eval/accuracy"] for row in jobs.rows(run) if "eval/accuracy" in row]
    assert accuracy[-1] > accuracy[0]


def folds(groups: list[ArchivedGroup], steps: range) -> float:
    """Share of the answers to a bet that are folds."""
    rollouts = [r for g in groups if g.step in steps for r in g.group.rollouts]
    answers = [
        said.text
        for r in rollouts
        for asked, said in zip(r.turns[::2], r.turns[1::2], strict=True)
        if asked.text.endswith("b>")
    ]
    assert len(answers) > 20
    return sum("[fold]" in a for a in answers) / len(answers)


ONES = """
def ones(prompt, completion, ground_truth):
    return completion.count("1") / (1 + len(completion))
"""


@pytest.mark.verify
@pytest.mark.timeout(700)
def test_good_rollouts_are_trained_on_again_also_after_the_learner_was_killed(tmp_path):
    """SPEAR: what is replayed is what an independent reading of the trained groups says."""
    dead = tmp_path / "dead"
    dead.mkdir()
    overrides = [
        "learner.groups_per_step=8", "checkpoint.every_steps=2", "evaluation.max_tasks=16",
        "learner.experience_replay.options={buffer_size=8, tolerate_steps=2, ramp_steps=4, event='call'}",
        "learner.loss.options.low=0.01",
    ]  # fmt: skip
    run = pipeline(
        tmp_path,
        "spear",
        overrides,
        steps=8,
        KANABO_FAILPOINT="learner.after_assemble@5",
        KANABO_FAILPOINT_DIR=str(dead),
    )
    assert [p.name for p in dead.iterdir()] == ["learner.after_assemble"], "the learner was not killed"
    trained, rows = groups_of(run), steps_of(run)
    means: list[float] = []
    buffer: list[tuple[int, float]] = []
    weights = [row["settings/rewards.1.weight"] for row in rows]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == 1 > weights[-1], "the bonus for tools must fade"
    for row in rows:
        assert row.get("replay/num_kept", 0.0) == len(buffer), f"before step {row['step']}"
        now = [g for g in trained if g.step == row["step"]]
        means += [float(np.nanmean(g.rewards)) for g in now]
        buffer = [(step, r) for step, r in buffer if row["step"] - step <= 2]
        whole = [(g, i) for g in now for i, r in enumerate(g.group.rollouts) if r.finish == "stop" and called(r)]
        buffer += [(row["step"], float(g.rewards[i])) for g, i in whole if g.advantages[i].mean() > 0]
        good = sum(r > np.median(means) for _, r in buffer)
        expected = min(8, 2 ** int(np.log2(good))) if good > 12 else 0
        assert row["replay/num_rollouts"] == expected, f"step {row['step']}"
        assert row["learner/rollouts"] == sum(np.isfinite(g.rewards).sum() for g in now) + expected
        buffer = [] if expected else buffer
    assert sum(row["replay/num_rollouts"] for row in rows) > 0
    assert any(row["loss/covariance_clip_frac"] > 0 for row in rows)


def called(rollout: Rollout) -> bool:
    return any(event.text == "call" for event in rollout.events)


@pytest.mark.verify
@pytest.mark.timeout(500)
def test_the_past_and_a_future_are_asked_and_give_the_sides_of_pairs(tmp_path):
    """Temporal Self-Rewarding: whose weights wrote a rollout is told by its log-probs."""
    (tmp_path / "reward.py").write_text(ONES)
    overrides = [
        *FAKE, f"rewards.0={{use='{tmp_path}/reward.py:ones'}}", "evaluation.reward=ones", "learner.groups_per_step=4",
        "learner.schedule.lr=3e-3", "checkpoint.every_steps=1", "checkpoint.keep_last=9",
        "generators.initial.rollouts=3",
    ]  # fmt: skip
    ahead = pipeline(tmp_path, "temporal", overrides, steps=3, name="ahead")
    asked = [f"generators.future={{model='{ahead}@3',rollouts=2}}", "generators.before={model='previous'}"]
    slowly = "engine.options={delay_s=0.4}"  # so that checkpoints come and go while it samples
    run = pipeline(tmp_path, "temporal", [*overrides, *asked, slowly], steps=8, name="temporal")
    initial = prepare(ModelSection(path="tiny:translator"), seed=0)
    weights = {"initial": initial, "future": ahead / "checkpoints" / "global_step_3"}
    steps_before: set[int] = set()
    pairs = dict.fromkeys(range(1, 9), 0)
    apart: list[bool] = []
    for group in groups_of(run):
        names = [r.policy for r in group.group.rollouts]
        assert [names.count(n) for n in ("policy", "initial", "future", "before")] == [7, 3, 2, 1]
        for rollout in group.group.rollouts:
            if rollout.policy == "before":
                (step,) = {int(span.version.partition(".")[2]) for span in rollout.spans}
                steps_before.add(step)
                place = run / "checkpoints" / f"global_step_{step}" if step else initial
                assert written_by(place, rollout), f"step {group.step}"
            elif rollout.policy != "policy":
                (other,) = (w for name, w in weights.items() if name != rollout.policy)
                assert written_by(weights[rollout.policy], rollout)
                apart.append(not written_by(other, rollout))
        values = group.scores["ones"].values
        of = [np.where([n == name for n in names], values, np.nan) for name in ("initial", "future")]
        now = np.where([n in ("policy", "before") for n in names], values, np.nan)
        pairs[group.step] += temporal_pair(now, *of) is not None
    first = groups_of(run)[0].group.rollouts  # of the initial weights all, but for one's future
    assert {r.text for r in first if r.policy == "policy"} != {r.text for r in first if r.policy == "initial"}
    assert np.mean(apart) > 0.9, "past and future must differ for the test to tell them apart"
    assert len(steps_before) > 1, "the alias 'previous' must move with the checkpoints"
    assert {row["step"]: row["pairs/num_pairs"] for row in steps_of(run)} == pairs
    assert sum(pairs.values()) > 10


@pytest.mark.verify
@pytest.mark.timeout(900)
def test_the_past_of_a_second_iteration_is_the_model_of_the_first(tmp_path):
    """Temporal Self-Rewarding: M_1 is trained on, exported or not, and what is rejected is still M_0's."""
    (tmp_path / "reward.py").write_text(ONES)
    overrides = [
        *FAKE, f"rewards.0={{use='{tmp_path}/reward.py:ones'}}", "evaluation.reward=ones", "learner.groups_per_step=4",
        "learner.schedule.lr=3e-3", "checkpoint.every_steps=2", "generators.initial.rollouts=3",
    ]  # fmt: skip
    first = pipeline(tmp_path, "temporal", overrides, steps=4, name="first")
    export(first / "checkpoints" / "global_step_4", tmp_path / "m1")
    again = [*overrides, f"model.path={tmp_path}/m1"]
    second = pipeline(
        tmp_path, "temporal", [*again, f"generators.initial.model='{first}@initial'"], steps=2, name="second"
    )
    initial = prepare(ModelSection(path="tiny:translator"), seed=0)
    past = [r for g in groups_of(second) for r in g.group.rollouts if r.policy == "initial"]
    assert len(past) == 2 * 4 * 3
    assert all(written_by(initial, rollout) for rollout in past), "M_0"
    assert np.mean([written_by(tmp_path / "m1", rollout) for rollout in past]) < 0.1, "and not M_1"
    log = tmp_path / "warned"
    assert (
        jobs.run([*again, f"run.dir={tmp_path}", "--dry-run"], recipe="methods/temporal.toml", log=log, timeout_s=120)
        == 0
    )
    assert "If an iteration before ended there" in " ".join(log.read_text().split())


@pytest.mark.verify
@pytest.mark.timeout(700)
def test_creams_reference_is_where_its_round_began_also_after_a_killed_learner(tmp_path):
    """Rounds of three steps; the learner dies in the third one and repeats it from its beginning."""
    dead = tmp_path / "dead"
    dead.mkdir()
    run = pipeline(
        tmp_path, "cream",
        [*FAKE, "learner.groups_per_step=4", "checkpoint.every_steps=3", "checkpoint.keep_last=1",
         "checkpoint.record_every_steps=1"],
        steps=9, KANABO_FAILPOINT="learner.after_assemble@8", KANABO_FAILPOINT_DIR=str(dead),
    )  # fmt: skip
    assert [p.name for p in dead.iterdir()] == ["learner.after_assemble"], "the learner was not killed"
    references = [Path(load(run / "replay" / f"step_{step}")[0].reference).name for step in range(1, 10)]
    initial = Path((run / "initial_model.txt").read_text()).name
    assert references == [initial] * 3 + ["global_step_3"] * 3 + ["global_step_6"] * 3
    there = [path.name for path in checkpoint.committed(run / "checkpoints")]
    assert there == ["global_step_6", "global_step_9"], "previous@2 keeps the round before, whatever keep_last says"
    before, after = replay(run, 8)
    assert before["weights_sha256"] == after["weights_sha256"], "a recorded step knows its reference"
    with pytest.raises(ConfigError, match=r"global_step_3.* has been removed"):
        replay(run, 5)
    assert {row["step"] for row in steps_of(run) if row["learner/tokens"]} == set(range(1, 10))


def written_by(model: Path, rollout: Rollout) -> bool:
    """Whether the fake engine's bigrams with these weights give the rollout's log-probs."""
    engine = FakeEngine(model, RunConfig(), stop_tokens=(), version="0.0")
    places = np.flatnonzero(rollout.loss_mask)
    found = engine._logprobs[rollout.tokens[places - 1], rollout.tokens[places]]
    return bool(np.allclose(found, rollout.logprobs[places], atol=1e-3))


@pytest.mark.verify
@pytest.mark.timeout(400)
def test_temperature_and_threshold_follow_the_balance_score_also_after_a_resume(tmp_path):
    """B-STaR: what rollouts were sampled at is what the controller said, and what it says follows from the groups."""
    dead = tmp_path / "dead"
    dead.mkdir()
    (tmp_path / "reward.py").write_text(
        "def ones(prompt, completion, ground_truth):\n    return float(completion.count('1') > 0)\n"
    )
    overrides = [
        *FAKE, f"rewards.0.use={tmp_path}/reward.py:ones", "learner.groups_per_step=6", "learner.max_staleness=0",
        "controllers.0.options.correct=ones", "controllers.0.options.iteration_steps=6", "checkpoint.every_steps=1",
    ]  # fmt: skip
    run = pipeline(
        tmp_path,
        "b_star",
        overrides,
        steps=12,
        KANABO_FAILPOINT="learner.after_assemble@5",
        KANABO_FAILPOINT_DIR=str(dead),
    )
    assert [p.name for p in dead.iterdir()] == ["learner.after_assemble"], "the learner was not killed"
    rows, trained = steps_of(run), groups_of(run)
    told = [row["settings/rollout.temperature"] for row in rows]
    assert told[:4] == told[6:10] == [0.5, 0.7, 0.9, 1.1], "every iteration tries them all"
    for row in rows:
        threshold = row["settings/selectors.0.options.threshold"]
        for group in (g for g in trained if g.step == row["step"]):
            assert {r.temperature for r in group.group.rollouts} == {row["settings/rollout.temperature"]}
            assert (group.scores["ones"].values[np.isfinite(group.rewards)] > threshold).all()
    balances = [row["settings/balance"] for row in rows]
    assert 0 < max(balances[4:6]) <= 1, "after the trials the best balance of them is told"


@pytest.mark.verify
@pytest.mark.timeout(400)
def test_each_attempt_is_credited_by_the_stage_that_holds(tmp_path):
    """SCoRe: in stage I the first attempt earns nothing; from the third step on a correction is worth ten more."""
    (tmp_path / "reward.py").write_text(
        "def ones(prompt, completion, ground_truth):\n    return float(completion.count('1') > 0)\n"
    )
    verifier = f"{tmp_path}/reward.py:ones"
    overrides = [*FAKE, "learner.groups_per_step=6", "controllers.0.options.at=3", "learner.max_staleness=0"]
    overrides += [f"rewards.{i}.options.verifier={verifier}" for i in range(4)]
    run = pipeline(tmp_path, "score", [*overrides, "rollout.max_tokens=6", "learner.schedule.lr=3e-3"], steps=6)
    rows = {row["step"]: row for row in steps_of(run)}
    assert [rows[s]["settings/rewards.0.shape.options.stage"] for s in rows] == [1, 1, 1, 2, 2, 2]
    for group in groups_of(run):
        stage = 1 if group.step <= 3 else 2
        whole = np.isfinite(group.rewards)
        rights = np.array([["1" in t.text for t in r.turns if t.role == "assistant"] for r in group.group.rollouts])
        worth = np.array([progress(*map(float, pair), stage) for pair in rights])
        for i in np.flatnonzero(whole):
            assert group.rewards[i] == pytest.approx(sum(worth[i]))
            others = whole & (np.arange(len(whole)) != i)
            for k, turn in enumerate(t for t in group.group.rollouts[i].turns if t.role == "assistant"):
                expected = worth[i, k] - worth[others, k].mean() if others.any() else 0.0
                assert group.advantages[i][turn.start : turn.end] == pytest.approx(expected, abs=1e-5)
                assert stage == 2 or k == 1 or expected == 0
    assert rows[1]["loss/turn_kl_nats"] == pytest.approx(0, abs=1e-4), "at first the policy is the reference"
    assert abs(rows[6]["loss/turn_kl_nats"]) > 1e-3, "of what the fake engine writes k1 may be below 0"
