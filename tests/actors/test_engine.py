"""The real engine: weights that change under running generations, and episodes of several turns."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors import episode
from actors.chat import Chat
from actors.engine import VllmEngine
from actors.environments import End, Environment, Observation
from actors.speaker import Speaker
from cluster.config import parse
from cluster.errors import ConfigError
from cluster.types import Message, Publication, Task
from tests.models import random_llama

STOP_TOKENS = list(range(2, 12))
CONFIG = parse({"engine": {"max_model_len": 448, "max_num_seqs": 32, "kv_cache_gib": 0.25}})


def publish(model, path) -> str:
    """Every parameter once: a head that is tied to the embedding is not sent, and must follow all the same."""
    save_file({k: v.detach().contiguous() for k, v in model.named_parameters()}, path)
    return str(path)


def logprobs_under(model, tokens) -> np.ndarray:
    """[T−1] nats: log-prob of every token but the first under `model`."""
    ids = torch.tensor(np.asarray(tokens), dtype=torch.long)[None]
    with torch.no_grad():
        rows = model(ids).logits[0, :-1].log_softmax(-1)
    return rows.gather(1, ids[0, 1:, None])[:, 0].numpy()


async def generations_across_publications(directory, num_publications, pausing):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    engine = VllmEngine(directory, CONFIG, stop_tokens=[2], version="0.0")
    await engine.start()
    weights = {"0.0": {k: v.clone() for k, v in model.state_dict().items()}}
    prompts = [np.random.default_rng(i).integers(3, 40, 300).tolist() for i in range(24)]
    generator = torch.Generator().manual_seed(1)

    async def one(prompt):
        out = []
        while not done:
            out.append((prompt, await engine.sample(prompt, max_tokens=100, temperature=1.0)))
        return out

    done = False
    running = [asyncio.create_task(one(p)) for p in prompts]
    for step in range(1, num_publications + 1):
        await asyncio.sleep(pausing)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
        version = f"1.{step}"
        weights[version] = {k: v.clone() for k, v in model.state_dict().items()}
        await engine.update(Publication("policy", 1, step), publish(model, directory / "new.safetensors"))
    done = True
    samples = [pair for pairs in await asyncio.gather(*running) for pair in pairs]
    await engine.close()
    return model, weights, samples


@pytest.mark.engine
@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.verify)])
async def test_every_version_span_has_the_logprobs_of_its_weights(tmp_path, tied):
    directory = random_llama(tmp_path, tied=tied, scale=2.0)
    model, weights, samples = await generations_across_publications(directory, 20, pausing=0.3)
    apart: dict[str, float] = {}
    changed = 0
    by_version: dict[str, list] = {}
    for prompt, sample in samples:
        changed += len(sample.spans) > 1
        assert [s.start for s in sample.spans[1:]] == [s.end for s in sample.spans[:-1]]
        assert sample.spans[0].start == 0
        assert sample.spans[-1].end == len(sample.tokens)
        for span in sample.spans:
            by_version.setdefault(span.version, []).append((prompt, sample, span))
    for version, found in by_version.items():
        model.load_state_dict(weights[version])
        for prompt, sample, span in found[:12]:
            reference = logprobs_under(model, [*prompt, *sample.tokens])[len(prompt) - 1 :]
            difference = np.abs(reference - sample.logprobs)[span.start : span.end].max()
            apart[version] = max(apart.get(version, 0.0), float(difference))
    assert changed >= 20, "hardly any generation saw an update"
    assert len(apart) >= 18, "hardly any version was sampled with"
    assert max(apart.values()) < 1e-3, apart


class ThreeTurns(Environment):
    async def play(self, task, variant):
        first = yield Observation(task.variants[variant])
        second = yield Observation.of(f"you wrote {len(first)}. again?")
        third = yield Observation.of(f"and {len(second)}. once more!")
        yield End(reward=float(len(third)))


class Recording:
    """The engine, with a memory of what it was asked."""

    exact, version, max_model_len = True, "0.0", 448

    def __init__(self, engine):
        self.engine, self.seen = engine, []

    async def sample(self, prompt, **options):
        sample = await self.engine.sample(prompt, **options)
        self.seen.append((list(prompt), sample.tokens.tolist()))
        return sample


async def answers_carry_the_likeliest_tokens(engine, model, chat):
    """Asked as a judge: greedy, with log-probs at temperature 1, and the same again for the same seed."""
    asked = (Message("user", "what is 2 plus 2?"),)
    speaker, how = Speaker(engine, chat, 4), {"max_tokens": 8, "top_logprobs": 20, "seed": 5}
    answer = await speaker.answer(asked, temperature=0.0, **how)
    prompt = chat.prompt(asked)
    with torch.no_grad():
        reference = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    likeliest = reference.topk(20)
    assert [t for t, _ in answer.tokens[0].top] == [chat.text([i]) for i in likeliest.indices.tolist()]
    assert [p for _, p in answer.tokens[0].top] == pytest.approx(likeliest.values.tolist(), abs=1e-3)
    assert answer.version == engine.version
    one, other = await asyncio.gather(*(speaker.answer(asked, temperature=1.0, **how) for _ in range(2)))
    assert one.text == other.text


async def play_three_turns(engine, model, tokenizer, *, chat: bool) -> None:
    limits = episode.Limits(max_tokens=64, max_turns=3, temperature=1.0)
    long = 0
    for i in range(12):
        recording = Recording(engine)
        task = Task.of(f"t/{i}", f"what is {i} plus {i}?")
        rollout = await episode.play(recording, Chat(tokenizer), ThreeTurns(), task, "orig", limits)
        tokens = rollout.tokens.tolist()
        for prompt, spoken in recording.seen:
            assert tokens[: len(prompt) + len(spoken)] == prompt + spoken
            assert rollout.loss_mask[len(prompt) : len(prompt) + len(spoken)].all()
        assert rollout.loss_mask.sum() == sum(len(spoken) for _, spoken in recording.seen)
        assert (rollout.logprobs[~rollout.loss_mask] == 0).all()
        reference = logprobs_under(model, tokens)
        mask = rollout.loss_mask[1:]
        assert np.abs(reference - rollout.logprobs[1:])[mask].max() < 1e-3
        if len(recording.seen) == 3 and rollout.finish == "stop":
            long += 1
            assert [t.role for t in rollout.turns] == ["user", "assistant"] * 3
            assert rollout.reward == len(rollout.turns[-1].text)
            if chat:
                assert tokenizer.decode(tokens).count("[EOS]\n<user>") == 2
    assert long >= 3, "no episode reached its third turn"


def test_tokens_reported_together_keep_their_order_and_logprobs():
    from vllm.v1.engine import EngineCoreOutput, FinishReason
    from vllm.v1.outputs import LogprobsLists

    from actors.scheduler import HeldTokens

    def reported(token: int, width: int, **fields) -> EngineCoreOutput:
        """One token's report; with a judge's request in the batch, rows are wider than the sampled token's column."""
        ids = np.arange(token, token + width, dtype=np.int32)[None]
        return EngineCoreOutput("a", [token], LogprobsLists(ids, -ids / 10, np.ones(1, np.int32)), **fields)

    first = reported(5, 1)
    held = HeldTokens(first, prefill_stats="how the prompt was read")
    for output in (first, reported(7, 3), reported(9, 1, finish_reason=FinishReason.LENGTH)):
        held.add(output)
    whole = held.merged()
    assert whole.new_token_ids == [5, 7, 9]
    assert whole.new_logprobs.logprob_token_ids.tolist() == [[5], [7], [9]]
    assert whole.new_logprobs.logprobs[:, 0].tolist() == pytest.approx([-0.5, -0.7, -0.9])
    assert whole.finish_reason == FinishReason.LENGTH
    assert whole.prefill_stats == "how the prompt was read"


@pytest.mark.engine
async def test_three_turns_are_token_exact_and_observations_are_masked(tmp_path):
    """With a chat template and without: the weights are the same, so that one engine plays both."""
    directories = {chat: random_llama(tmp_path / str(chat), tied=False, chat=chat, scale=2.0) for chat in (False, True)}
    model = AutoModelForCausalLM.from_pretrained(directories[False], dtype=torch.float32)
    engine = VllmEngine(directories[False], CONFIG, stop_tokens=STOP_TOKENS, version="0.0")
    try:
        await engine.start()
        for chat, directory in directories.items():
            tokenizer = AutoTokenizer.from_pretrained(directory)
            await play_three_turns(engine, model, tokenizer, chat=chat)
            await answers_carry_the_likeliest_tokens(engine, model, Chat(tokenizer))
    finally:
        await engine.close()


def test_options_that_renormalise_the_distribution_are_refused(tmp_path):
    config = parse({"engine": {"options": {"top_p": 0.9}}})
    with pytest.raises(ConfigError, match=r"engine\.options\.top_p"):
        VllmEngine(tmp_path, config, stop_tokens=[2], version="0.0")
