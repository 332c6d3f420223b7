"""`previous@N`, and what it needs: checkpoints are counted by rounds and stay while an alias looks back at them."""

from __future__ import annotations

import asyncio
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.config import dump, parse
from cluster.driver import preflight
from cluster.errors import ConfigError
from cluster.storage import checkpoint
from cluster.storage.model_aliases import INITIAL, Model, Registry, pinned
from cluster.types import Group, GroupReward, Manifest, Message, Scores
from cluster.workers import RunContext, ScorerActor
from rewards.aggregation.selectors.consistency import Consistency
from rewards.builtin.implicit import implied
from rewards.scorers.types import TokenSequence
from tests.cluster.test_members import Weights
from tests.models import random_llama
from tests.rewards.groups import group

TWO_BACK = {"scorers": {"before": {"model": "previous@2"}}, "checkpoint": {"every_steps": 10, "keep_last": 1}}


class Ledger:
    """A buffer that has nothing to trim."""

    def snapshot(self, policy: str, epoch: int, step: int) -> Manifest:
        return Manifest(policy, step, epoch, 0, (), (), ())

    def trim(self, manifest: Manifest) -> None: ...


def registry_of(tmp_path: Path, tree: dict[str, Any]) -> Registry:
    (tmp_path / "model").mkdir(parents=True, exist_ok=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    return Registry(parse(tree), tmp_path / "run", str(tmp_path / "model"))


def save(registry: Registry, step: int, *, scheduled: bool = True) -> None:
    ledger: Any = Ledger()
    checkpoint.save(
        registry.run_dir / "checkpoints", Weights(str(step)), ledger, "policy", 1, step,
        registry.config.checkpoint.keep_last, scheduled=scheduled, needed=registry.retained,
    )  # fmt: skip


def steps_of(registry: Registry) -> list[int]:
    return [checkpoint.read(path).step for path in checkpoint.committed(registry.run_dir / "checkpoints")]


def test_the_round_before_is_kept_and_found_also_behind_the_checkpoint_of_a_stop(tmp_path):
    registry = registry_of(tmp_path, TWO_BACK)
    seen = {}
    for step, scheduled in ((10, True), (20, True), (30, True), (33, False), (40, True), (41, False)):
        save(registry, step, scheduled=scheduled)
        seen[step] = (registry.resolve("previous").step, registry.resolve("previous@2").step, steps_of(registry))
    assert seen == {
        10: (10, 0, [10]),
        20: (20, 10, [10, 20]),
        30: (30, 20, [20, 30]),
        33: (30, 20, [20, 30, 33]),
        40: (40, 30, [30, 40]),
        41: (40, 30, [30, 40, 41]),
    }
    assert registry.resolve("previous@1") == registry.resolve("previous")
    assert registry.resolve("previous@5") == registry.resolve("initial"), "there were only four"
    with pytest.raises(ConfigError, match=r"'previous@3' is the checkpoint number 2 of 4 .* has been removed"):
        registry.resolve("previous@3")
    with pytest.raises(ConfigError, match="there is no model 'previous@0'"):
        registry.resolve("previous@0")


@pytest.mark.parametrize("seed", range(30))
def test_whatever_was_saved_stopped_and_rolled_back_an_alias_is_right_or_says_that_it_is_gone(tmp_path, seed):
    luck = random.Random(seed)
    back, keep = luck.randint(1, 4), luck.randint(1, 3)
    alias = f"previous@{back}"
    registry = registry_of(
        tmp_path,
        {"generators": {"before": {"model": alias}}, "checkpoint": {"every_steps": 10, "keep_last": keep},
         "learner": {"loss": {"coef": 0}, "sequence_losses": [{"use": "nll"}]}},
    )  # fmt: skip
    history: list[int] = []
    step, backwards = 0, 0
    for _ in range(12):
        match luck.choice(["round", "round", "stop", "back"]):
            case "round":
                step = (step // 10 + 1) * 10
                save(registry, step)
                history.append(step)
                backwards = 0
            case "stop" if step % 10 != 9:
                step += 1
                save(registry, step, scheduled=False)
                backwards = 0
            case "back" if len(there := steps_of(registry)) > 1:
                step = luck.choice(there[-keep:])
                checkpoint.abandon_after(registry.run_dir / "checkpoints", step)
                history = [s for s in history if s <= step]
                backwards += 1
        expected = history[-back] if len(history) >= back else 0
        there = steps_of(registry)
        if expected and expected not in there:
            assert backwards > 1, "one step back is provided for"
            with pytest.raises(ConfigError, match="has been removed"):
                registry.resolve(alias)
        else:
            assert registry.resolve(alias).step == expected
        assert len(there) <= keep + back + keep, "what nothing needs is removed"


def test_a_checkpoint_that_an_alias_names_by_its_step_stays(tmp_path):
    registry = registry_of(tmp_path, {"checkpoint": {"every_steps": 1, "keep_last": 1}})
    save(registry, 1)
    learner = registry.config.learner.model_copy(update={"reference": "policy@1"})
    registry = Registry(registry.config.model_copy(update={"learner": learner}), registry.run_dir, registry.model_dir)
    for step in (2, 3, 4):
        save(registry, step)
    assert steps_of(registry) == [1, 4]


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"checkpoint": {"every_steps": 0}}, r"previous@2' looks 2 checkpoints back, and checkpoint\.every_steps = 0"),
        ({"learner": {"lora": {}}}, r"scorers\.before\.model = 'previous@2', .* adapters without their model"),
        ({"scorers": {}, "learner": {"reference": "previous@2"}, "policies": {"second": {}}}, "beside .policies"),
        ({"learner": {"reference": "previous@x"}}, r"learner\.reference = 'previous@x': there is no model"),
    ],
)
def test_an_alias_that_could_not_be_followed_is_refused_before_the_start(tmp_path, tree, says):
    with pytest.raises(ConfigError, match=says):
        preflight.aliases(parse(TWO_BACK | tree), tmp_path)
    preflight.aliases(parse(TWO_BACK | {"learner": {"reference": "previous"}}), tmp_path)


def test_another_runs_newest_checkpoint_is_chosen_once(tmp_path):
    ahead = registry_of(tmp_path / "other", {"checkpoint": {"every_steps": 1, "keep_last": 9}})
    config = parse({"learner": {"reference": f"{ahead.run_dir}@latest"}})
    directory = tmp_path / "mine"
    with pytest.raises(ConfigError, match=r"learner\.reference = .* has no checkpoint"):
        pinned(config, directory)
    save(ahead, 3)
    settings = pinned(config, directory)
    assert settings.learner.reference == f"{ahead.run_dir}@3"
    directory.mkdir()
    (directory / "config.toml").write_text(dump(settings))
    save(ahead, 4)
    assert pinned(config, directory) == settings, "a resumed run has the reference that it had"
    assert pinned(config, tmp_path / "new").learner.reference == f"{ahead.run_dir}@4"
    assert pinned(settings, directory) is settings


def test_what_a_run_began_with_has_an_alias(tmp_path):
    first = random_llama(tmp_path / "first", tied=True)
    registry = registry_of(tmp_path, {})
    run = tmp_path / "runs" / "iteration1"
    run.mkdir(parents=True)
    (run / "config.toml").write_text(dump(parse({"model": {"path": str(first)}})))
    assert registry.resolve(f"{run}@initial") == Model("directory", str(first))
    made = random_llama(tmp_path / "cache" / "tiny-addition-1", tied=True)
    (run / INITIAL).write_text(str(made))  # what the driver leaves of a model that was made for the run
    (run / "config.toml").write_text(dump(parse({"model": {"path": "tiny:addition"}})))
    assert registry.resolve(f"{run}@initial") == Model("directory", str(made))
    shutil.rmtree(made)
    with pytest.raises(ConfigError, match="no directory of a model"):
        registry.resolve(f"{run}@initial")
    with pytest.raises(ConfigError, match="there is no model"):
        registry.resolve(f"{tmp_path}/nowhere@initial")


# ── two scorers, a round apart ──────────────────────────────────────────────────────────────────────────────────

G, GROUPS, LENGTH = 5, 40, 12


def logprob(directory: Path | str, prompt: list[int], tokens: list[int]) -> float:
    """Sum over the tokens, from the model itself."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        given = torch.log_softmax(model(torch.tensor([prompt + tokens])).logits[0].double(), -1)
    return float(sum(given[len(prompt) + i - 1, t] for i, t in enumerate(tokens)))


@pytest.mark.parametrize("alias", ["previous", "previous@2"])
async def test_just_after_a_checkpoint_only_the_round_before_says_how_consistent_the_policy_is(
    alias, redis_url, tmp_path
):
    """CREAM's label: c = (τ + 1) / 2. Two models that have nothing in common agree by chance: a mean of one half."""
    # Near uniform, so that what both subtract is no common ground.
    start = random_llama(tmp_path / "model", tied=True, chat=True, scale=0.5)
    for step in (5, 10):
        target = random_llama(tmp_path / "checkpoints" / f"global_step_{step}", tied=True, seed=step)
        (target / "manifest.json").write_text("{}")
    live = tmp_path / "checkpoints" / "global_step_10"  # the policy of now, a moment after it was saved
    tree = {"scorers": {"now": {"model": str(live)}, "before": {"model": alias}, "first": {"model": "initial"}}}
    context = RunContext(
        parse(tree | {"checkpoint": {"every_steps": 5}}), str(start), redis_url, uuid4().hex, str(tmp_path)
    )
    luck = np.random.default_rng(0)
    prompt = (Message("user", "1+1="),)
    tokens = [[luck.integers(3, 20, LENGTH).astype(np.int32) for _ in range(G)] for _ in range(GROUPS)]
    passages = [TokenSequence(prompt, one) for rollouts in tokens for one in rollouts]
    read = {}
    for name in ("now", "before", "first"):
        actor = ScorerActor(context, f"scorer:{name}-0")
        await actor.ready()
        running = asyncio.create_task(actor.run())
        read[name] = await actor.read(passages, 60)
        await actor.stop()
        await running
    assert {name: readings[0].version for name, readings in read.items()} == {
        "now": str(live), "before": {"previous": "policy@10", "previous@2": "policy@5"}[alias], "first": "initial",
    }  # fmt: skip
    rewards = {
        name: np.array([implied(a.logprobs, b.logprobs) for a, b in zip(read[name], read["first"], strict=True)])
        for name in ("now", "before")
    }
    groups = [_group(i, rollouts) for i, rollouts in enumerate(tokens)]
    scores = [
        {name: Scores.of(list(values[i * G : (i + 1) * G])) for name, values in rewards.items()} for i in range(GROUPS)
    ]
    found = Consistency(first="now", second="before").of_step(
        groups, scores, [GroupReward(np.zeros(G)) for _ in groups]
    )
    (label,) = {pair.label for mixed in found for pair in mixed.pairs or ()}
    by_hand = np.mean([(tau(s["now"].values, s["before"].values) + 1) / 2 for s in scores])
    assert label == pytest.approx(by_hand)
    if alias == "previous":
        assert label == 1.0, "it agrees with itself, whatever it says: the loss is plain DPO"
    else:
        assert label == pytest.approx(0.5, abs=0.15)
    ids = _prompt_ids(start)
    where = tmp_path / "checkpoints" / ("global_step_10" if alias == "previous" else "global_step_5")
    one = logprob(where, ids, tokens[0][0].tolist()) - logprob(start, ids, tokens[0][0].tolist())
    assert rewards["before"][0] == pytest.approx(one, abs=1e-3)


def tau(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's, of values without ties: pairs in the same order minus those in the other, of all pairs."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    return sum(1 if (a[i] - a[j]) * (b[i] - b[j]) > 0 else -1 for i, j in pairs) / len(pairs)


def _prompt_ids(directory: Path) -> list[int]:
    from transformers import AutoTokenizer

    from actors.chat import Chat

    return Chat(AutoTokenizer.from_pretrained(directory)).prompt((Message("user", "1+1="),))


def _group(seq: int, rollouts: list[np.ndarray]) -> Group:
    made = group(*"abcde", seq=seq)
    return replace(made, rollouts=tuple(replace(r, tokens=t) for r, t in zip(made.rollouts, rollouts, strict=True)))


# ── two iterations of Temporal Self-Rewarding ───────────────────────────────────────────────────────────────────


def test_the_second_iteration_anchors_in_the_first_ones_beginning(tmp_path):
    tree = {
        "selectors": [{"use": "temporal"}], "generators": {"initial": {"model": "initial", "rollouts": 7}},
        "learner": {"loss": {"coef": 0}, "sequence_losses": [{"use": "dpo"}]}, "checkpoint": {"every_steps": 5},
    }  # fmt: skip
    first = random_llama(tmp_path / "m0", tied=True)
    run = tmp_path / "runs" / "iteration1"
    iteration1 = parse(tree | {"model": {"path": str(first)}})
    (warning,) = preflight.anchored(iteration1)
    assert "If an iteration before ended there" in warning
    assert preflight.anchored(parse(tree | {"model": {"path": "tiny:translator"}})) == []
    run.mkdir(parents=True)
    (run / "config.toml").write_text(dump(iteration1))
    ended = random_llama(run / "checkpoints" / "global_step_5", tied=True, seed=1)
    checkpoint.commit(ended, Manifest("policy", 5, 1, 0, (), (), ()))
    exported = tmp_path / "m1"
    shutil.copytree(ended, exported)
    (exported / "manifest.json").unlink()

    with pytest.raises(ConfigError, match=rf"Set generators\.initial\.model = '{run}@initial'"):
        preflight.anchored(parse(tree | {"model": {"path": str(ended)}}))
    (warning,) = preflight.anchored(parse(tree | {"model": {"path": str(exported)}}))
    assert "RUN@initial" in warning

    for path in (ended, exported):
        anchored = {"generators": {"initial": {"model": f"{run}@initial", "rollouts": 7}}, "model": {"path": str(path)}}
        iteration2 = parse(tree | anchored)
        assert preflight.anchored(iteration2) == []
        registry = Registry(iteration2, tmp_path / "runs" / "iteration2", str(path))
        assert registry.directory(iteration2.generators["initial"].model).where == str(first), "M_0, and not M_1"
        assert registry.resolve("initial").where == str(path)
        later = tmp_path / "runs" / f"iteration2-{path.name}"
        later.mkdir()
        (later / "config.toml").write_text(dump(iteration2))
        third = random_llama(later / "checkpoints" / "global_step_5", tied=True, seed=2)
        checkpoint.commit(third, Manifest("policy", 5, 1, 0, (), (), ()))
        with pytest.raises(ConfigError, match=rf"Set generators\.initial\.model = '{run}@initial'"):
            preflight.anchored(parse(tree | {"model": {"path": str(third)}}))
