"""`kanabo sft` and `kanabo dpo`: what they minimise equals a plain loop, and a killed run goes on as if it was not."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.commands.offline import load
from cluster.config import parse
from cluster.driver import offline, preflight
from cluster.errors import ConfigError
from tests.models import random_llama

STEPS, BATCH, LR, BETA = 4, 5, 0.1, 0.3
RECIPE = """
seed = 3
[run]
name = "{name}"
dir = "{runs}"
[model]
path = "{model}"
[data]
path = "{data}"
batch_size = {batch}
shuffle = false
num_evaluation = 3
[learner]
steps = {steps}
optimizer = "sgd"
clip_grad_norm = 0
schedule = {{ lr = {lr}, decay = "constant", warmup_steps = 0 }}
micro_tokens = 64
[tracking]
tensorboard = false
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("offline")
    random_llama(directory / "model", tied=True, chat=True, scale=1.0)
    rng = random.Random(0)
    with (directory / "chat.jsonl").open("w") as chat, (directory / "pairs.jsonl").open("w") as pairs:
        for _ in range(3 + 2 * BATCH):
            a, b, c = (rng.randrange(20) for _ in range(3))
            talk = [("user", f"{a}+{b}?"), ("assistant", str(a + b)), ("user", f"+{c}?"), ("assistant", str(a + b + c))]
            messages = [{"role": role, "content": content} for role, content in talk]
            chat.write(json.dumps({"messages": messages}) + "\n")
            pairs.write(json.dumps({"prompt": f"{a}+{b}?", "chosen": str(a + b), "rejected": f"no {a}"}) + "\n")
    return directory


def recipe(place: Path, kind: str, name: str, *more: str) -> list[str]:
    path = place / f"{name}.toml"
    data = place / ("chat.jsonl" if kind == "sft" else "pairs.jsonl")
    path.write_text(
        RECIPE.format(name=name, runs=place / "runs", model=place / "model", data=data, batch=BATCH, steps=STEPS, lr=LR)
    )
    if kind == "dpo":
        path.write_text(path.read_text() + f'[[learner.sequence_losses]]\nuse = "dpo"\noptions = {{ beta = {BETA} }}\n')
    return [sys.executable, "-m", f"cluster.commands.{kind}", str(path), *more]


def finished(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def rows(place: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (place / "runs" / name / "metrics.jsonl").read_text().splitlines()]


def losses(place: Path, name: str, metric: str) -> list[float]:
    return [row[metric] for row in rows(place, name) if metric in row]


def marked(text: str, tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of a conversation in which `{…}` stands around what is trained on; `$` ends a turn."""
    ids, mask, trained = [], [], False
    for character in text:
        if character in "{}":
            trained = character == "{"
        else:
            ids.append(tokenizer.eos_token_id if character == "$" else tokenizer.convert_tokens_to_ids(character))
            mask.append(trained)
    return torch.tensor(ids), torch.tensor(mask)


def logprob(model, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    found = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    return found[mask[1:]].sum()


def plain(place: Path, kind: str) -> list[float]:
    """The losses of a plain loop, one sequence at a time."""
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    frozen = AutoModelForCausalLM.from_pretrained(place / "model")
    data = [json.loads(line) for line in (place / ("chat.jsonl" if kind == "sft" else "pairs.jsonl")).open()]
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    found = []
    for step in range(STEPS):
        batch = [data[i % (len(data) - 3)] for i in range(step * BATCH, (step + 1) * BATCH)]
        if kind == "sft":
            texts = [
                "<user>{}$\n<assistant>{{{}$}}\n<user>{}$\n<assistant>{{{}$}}".format(
                    *(m["content"] for m in row["messages"])
                )
                for row in batch
            ]
            sequences = [marked(text, tokenizer) for text in texts]
            total = sum(int(mask.sum()) for _, mask in sequences)
            loss = -torch.stack([logprob(model, *one) for one in sequences]).sum() / total
        else:
            margins = []
            for row in batch:
                better, worse = (
                    marked(f"<user>{row['prompt']}$\n<assistant>{{{row[which]}$}}", tokenizer)
                    for which in ("chosen", "rejected")
                )
                with torch.no_grad():
                    base = logprob(frozen, *better) - logprob(frozen, *worse)
                margins.append(logprob(model, *better) - logprob(model, *worse) - base)
            loss = -torch.nn.functional.logsigmoid(BETA * torch.stack(margins)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@functools.cache
def trained(place: Path, kind: str, ranks: int) -> str:
    """Return the name of a run that was trained to its end."""
    name = f"{kind}-{ranks}"
    done = finished(recipe(place, kind, name, f"learner.ranks={ranks}"))
    assert done.returncode == 0, done.stdout + done.stderr
    return name


@pytest.mark.parametrize(
    ("kind", "metric", "ranks"),
    [
        ("sft", "loss/nll_nats", 1),
        ("dpo", "loss/dpo", 2),
        pytest.param("sft", "loss/nll_nats", 2, marks=pytest.mark.verify),
        pytest.param("dpo", "loss/dpo", 1, marks=pytest.mark.verify),
    ],
)
def test_losses_are_those_of_a_plain_loop(place, kind, metric, ranks):
    name = trained(place, kind, ranks)
    assert losses(place, name, metric) == pytest.approx(plain(place, kind), abs=2e-5)
    checkpoint = place / "runs" / name / "checkpoints" / f"global_step_{STEPS}"
    assert AutoModelForCausalLM.from_pretrained(checkpoint).config.vocab_size > 0
    summary = json.loads((place / "runs" / name / "summary.json").read_text())
    assert summary["steps"] == STEPS
    assert summary[f"eval_{metric.replace('/', '_')}_last"] < summary[f"eval_{metric.replace('/', '_')}_first"]


def test_a_killed_run_goes_on_as_if_it_had_not_been(place, kanabo):
    options = ("learner.steps=12", "checkpoint.every_steps=2", "learner.optimizer=adamw", "learner.schedule.lr=0.01")
    assert finished(recipe(place, "sft", "whole", *options)).returncode == 0
    command = recipe(place, "sft", "killed", *options)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 5/"):
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    again = finished(command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "goes on from step 4" in again.stdout
    assert losses(place, "killed", "loss/nll_nats") == losses(place, "whole", "loss/nll_nats")

    nothing = kanabo("sft", *command[3:])
    assert nothing.code == 0, nothing.err
    assert "nothing left to do" in nothing.out
    with pytest.raises(ConfigError, match="batch_size = 5"):
        offline.plan(load("sft", command[3], [*options, "data.batch_size=3"]), "sft")


def test_a_stop_saves_and_exits_with_0(place):
    command = recipe(place, "sft", "stopped", "learner.steps=100000")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 1/"):
            process.send_signal(signal.SIGINT)
            break
    process.stdout.read()
    assert process.wait(timeout=60) == 0
    assert list((place / "runs" / "stopped" / "checkpoints").glob("global_step_*/manifest.json"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["learner.max_staleness=2"], "learner.max_staleness is about rollouts"),
        (["learner.groups_per_step=8"], "Set data.batch_size"),
        (["data.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["data.batchsize=3"], "unknown key 'data.batchsize'. Did you mean 'batch_size'?"),
        (["data.num_evaluation=13"], "nothing is left to train on"),
        (["data.max_tokens=4"], "none of the first 10 rows can be trained on"),
        (["data.prompt_key=question"], "no 'question'"),
        (["learner.sequence_losses=[{use='dpo'}]"], "are of kanabo dpo"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused(place, change, said):
    path = recipe(place, "sft", "refused")[3]
    with pytest.raises(ConfigError, match=re.escape(said)):
        offline.plan(load("sft", path, change), "sft")
    assert not (place / "runs" / "refused").exists()


def test_a_run_with_rollouts_does_not_go_on_in_its_directory(place):
    name = trained(place, "sft", 1)
    rollouts = parse({"run": {"name": name, "dir": str(place / "runs")}, "model": {"path": str(place / "model")}})
    with pytest.raises(ConfigError, match="kanabo sft or kanabo dpo"):
        preflight.used_directory(rollouts, preflight.run_directory(rollouts))


def test_a_run_that_trains_on_nothing_fails_with_the_cause(place):
    """The rows that are looked at before the start are fine; all others are not."""
    rows = place / "mostly_unusable.jsonl"
    good = (place / "chat.jsonl").read_text().splitlines()[0]
    rows.write_text((good + "\n") * 1000 + '{"text": "no conversation"}\n' * 200)
    options = (f"data.path={rows}", "data.num_evaluation=0", "data.batch_size=50", "learner.steps=40")
    done = finished(recipe(place, "sft", "in_vain", *options))
    assert done.returncode == 1
    assert "3 steps in a row changed nothing; no row could be trained on: " in done.stderr
    assert "no 'messages'" in done.stderr
