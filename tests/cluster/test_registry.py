"""Models by alias: what each stands for now, and an error that lists what there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.config import JudgeSection, parse
from cluster.driver import preflight
from cluster.errors import ConfigError
from cluster.storage.model_aliases import Model, Registry, is_alias
from cluster.workers import RunContext, judge
from learner.reference import resolved

LOSS = {"loss": {"coef": 0}, "sequence_losses": [{"use": "nll"}]}


def saved(run: Path, *steps: int) -> None:
    for step in steps:
        place = run / "checkpoints" / f"global_step_{step}"
        place.mkdir(parents=True)
        (place / "manifest.json").write_text("{}")
        (place / "config.json").write_text("{}")


@pytest.fixture
def registry(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    tree = {"judges": {"self": {"kind": "policy"}}, "reward_models": {"oni": {"judge": "self"}}}
    return Registry(parse(tree), tmp_path / "run", str(tmp_path / "model"))


def test_every_alias_stands_for_what_is_there(registry, tmp_path):
    run = registry.run_dir / "checkpoints"
    assert registry.resolve("previous") == registry.resolve("initial") == Model("directory", registry.model_dir)
    saved(registry.run_dir, 2, 10)
    saved(tmp_path / "ahead", 3)
    assert registry.resolve("policy@latest") == Model("live", "policy")
    assert registry.resolve("policy@2") == Model("directory", str(run / "global_step_2"), 2)
    assert registry.resolve("previous") == Model("directory", str(run / "global_step_10"), 10), "by number, not by name"
    assert registry.resolve("initial") == registry.resolve("reference") == Model("directory", registry.model_dir)
    ahead = Model("directory", str(tmp_path / "ahead" / "checkpoints" / "global_step_3"), 3)
    assert registry.resolve(f"{tmp_path}/ahead@3") == registry.resolve(f"{tmp_path}/ahead@latest") == ahead
    assert registry.resolve("ahead@3") == registry.resolve("ahead@latest") == ahead, "a run beside this one, by name"
    assert registry.resolve(ahead.where) == Model("directory", ahead.where)
    assert registry.resolve("judge:self") == Model("judge", "self")
    assert registry.resolve("reward_model:oni") == Model("reward_model", "oni")
    assert [is_alias(a) for a in ("policy@2", "previous", "smollm2", "org/model", "tiny:addition")] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_a_reference_may_be_an_alias_itself(registry):
    saved(registry.run_dir, 4)
    learner = registry.config.learner.model_copy(update={"reference": "policy@4"})
    other = Registry(registry.config.model_copy(update={"learner": learner}), registry.run_dir, registry.model_dir)
    assert other.resolve("reference").step == 4


@pytest.mark.parametrize(
    ("alias", "says"),
    [
        ("policy@5", r"policy@latest, policy@4, initial, previous, reference, judge:self, reward_model:oni; RUN@N"),
        ("previos", "Did you mean 'previous'"),
        ("judge:other", "judge:self"),
        ("reward_model:x", "reward_model:oni"),
        ("smollm3", "There are: "),
    ],
)
def test_an_unknown_one_is_told_what_there_is(registry, alias, says):
    saved(registry.run_dir, 4)
    with pytest.raises(ConfigError, match=says):
        registry.resolve(alias)


def test_another_run_without_that_checkpoint_says_which_it_has(registry, tmp_path):
    saved(tmp_path / "ahead", 3)
    with pytest.raises(ConfigError, match=r"ahead' has checkpoints of steps 3\."):
        registry.resolve(f"{tmp_path}/ahead@4")
    with pytest.raises(ConfigError, match=r"has no checkpoint: checkpoint\.every_steps"):
        registry.resolve(f"{tmp_path}/nowhere@latest")


def test_a_reference_and_a_judge_may_be_an_old_checkpoint(registry):
    saved(registry.run_dir, 4)
    learner = registry.config.learner.model_copy(update={"reference": "policy@4"})
    config = registry.config.model_copy(update={"learner": learner})
    where = str(registry.run_dir / "checkpoints" / "global_step_4")
    assert resolved(config, registry.run_dir, registry.model_dir).reference == where
    assert resolved(registry.config, registry.run_dir, registry.model_dir) is registry.config.learner
    context = RunContext(config, registry.model_dir, "redis://", "id", str(registry.run_dir))
    assert judge._model(context, JudgeSection(kind="vllm", model="policy@4")) == where
    assert judge._model(context, JudgeSection(kind="vllm", model="initial")) == registry.model_dir


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (
            {"generators": {"past": {"model": "policy@3"}}, "learner": LOSS},
            r"generators\.past\.model = \'policy@3\': there is no model",
        ),
        ({"generators": {"now": {"model": "policy@latest"}}, "learner": LOSS}, "it is the live policy"),
        (
            {"judges": {"old": {"kind": "vllm", "model": "policy@9"}}},
            r"judges\.old\.model = .*There are: policy@latest",
        ),
        (
            {"scorers": {"old": {"model": "previous"}}, "learner": {"lora": {}}},
            r"scorers\.old\.model = 'previous', .* adapters without their model",
        ),
        ({"learner": {"reference": "/nowhere"}}, r"learner\.reference = '/nowhere': there is no model"),
    ],
)
def test_a_run_is_told_before_it_starts_which_checkpoint_is_missing(section, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        preflight.aliases(parse(section), tmp_path)
    preflight.aliases(parse({"generators": {"past": {"model": "initial"}}, "learner": LOSS}), tmp_path)


def test_who_needs_weights_is_not_given_a_name(registry):
    with pytest.raises(ConfigError, match="the live policy"):
        registry.directory("policy@latest")
    with pytest.raises(ConfigError, match=r"it is \[judges.self\]"):
        registry.directory("judge:self")
    saved(registry.run_dir, 4)
    (registry.run_dir / "checkpoints" / "global_step_4" / "config.json").unlink()
    with pytest.raises(ConfigError, match="adapter without its model"):
        registry.directory("policy@4")


def test_a_model_that_reads_the_policys_tokens_has_its_tokenizer(tmp_path):
    from actors.tiny.character import character_tokenizer

    for name, change in (("same", None), ("other", "swap"), ("short", "drop")):
        place = tmp_path / name
        character_tokenizer().save_pretrained(place)
        (place / "config.json").write_text('{"model_type": "llama"}')
        file = place / "tokenizer.json"
        tree = json.loads(file.read_text())
        vocabulary = tree["model"]["vocab"]
        if change == "swap":
            vocabulary["4"], vocabulary["7"] = vocabulary["7"], vocabulary["4"]
        elif change == "drop":
            del vocabulary[max(vocabulary, key=lambda token: vocabulary[token])]
        file.write_text(json.dumps(tree))
    preflight.aliases(parse({"scorers": {"teacher": {"model": str(tmp_path / "same")}}}), tmp_path)
    for section in ("scorers", "generators"):
        tree = {section: {"teacher": {"model": str(tmp_path / "other")}}, "learner": LOSS}
        with pytest.raises(ConfigError, match=r"teacher\.model = .* token \d+, '4', is '7' there"):
            preflight.aliases(parse(tree), tmp_path)
    with pytest.raises(ConfigError, match=r"token \d+, .* does not exist there"):
        preflight.aliases(parse({"learner": {"reference": str(tmp_path / "short")}}), tmp_path)
