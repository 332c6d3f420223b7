"""What a model that reads says of a text, against a plain softmax in fp64."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
import torch

from cluster.errors import DataError
from cluster.types import Message
from rewards.scorers.forward import Forward, statistics
from rewards.scorers.pool import LogprobScorer
from rewards.scorers.server import ScoringServer
from rewards.scorers.types import ScorerUnavailable, TokenSequence
from tests.models import random_llama

ENTROPY, SUM = "entropy", "sum_logprobs"


def encode(messages) -> list[int]:
    return [3 + ord(c) % 40 for m in messages for c in m.content]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return random_llama(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(scope="module")
def forward(directory):
    return Forward(directory, encode, batch_tokens=40, version="initial")


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def plain(directory, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """[N + 1, V] log-probs, one row at a time through a model of its own."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 :]
    weights = logits.double().exp()
    return (weights / weights.sum(-1, keepdim=True)).log()


def test_statistics_are_those_of_the_whole_softmax_whatever_the_chunks():
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)) * 5
    tokens, choices = torch.arange(6), torch.tensor([3, 41])
    p = logits.double().softmax(-1)
    expected = {
        "logprobs": p[:6].gather(1, tokens[:, None]).squeeze(1).log(),
        ENTROPY: -(p * p.log()).sum(-1),
        SUM: p.log().sum(-1),
        "choices": p.log()[:, choices],
    }
    for chunk in (1, 150, 10**6):
        found = statistics(logits, tokens, choices, chunk_numbers=chunk)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-6)


def test_a_large_vocabulary_keeps_its_sum_to_2e_5_per_word():
    logits = (torch.randn(1, 150_000, generator=torch.Generator().manual_seed(0)) * 3).bfloat16()
    found = statistics(logits, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    exact = logits.double().log_softmax(-1).sum(-1)
    # In fp32 the error depends on how the processor's vector units add up: 1.3e-5 a word has been seen.
    assert float((found[SUM] - exact).abs()) / 150_000 < 2e-5


def test_a_token_that_cannot_come_takes_nothing_from_the_entropy():
    nothing = torch.zeros(0, dtype=torch.int64)
    found = statistics(torch.tensor([[0.0, 0.0, -torch.inf]]), nothing, nothing)
    assert float(found[ENTROPY]) == pytest.approx(np.log(2))
    assert float(found[SUM]) == -np.inf


def test_passages_of_every_length_are_read_as_if_each_were_alone(directory, forward):
    pairs = [([5], [7, 8]), (list(range(3, 23)), [9]), ([4, 4, 4], list(range(5, 25))), ([6, 7], [])]
    passages = [TokenSequence(ids(*prompt), ids(*tokens), (7, 11)) for prompt, tokens in pairs]
    readings = forward.read(passages, forward.rows(passages))
    for (prompt, tokens), found in zip(pairs, readings, strict=True):
        p = plain(directory, prompt, tokens)
        chosen = p[: len(tokens)].gather(1, torch.tensor(tokens, dtype=torch.int64)[:, None]).squeeze(1)
        np.testing.assert_allclose(found.logprobs, chosen, atol=1e-5)
        np.testing.assert_allclose(found.entropy, -(p.exp() * p).sum(-1), atol=1e-5)
        np.testing.assert_allclose(found.sum_logprobs / found.vocabulary, p.mean(-1), atol=1e-5)
        np.testing.assert_allclose(found.choices, p[:, [7, 11]], atol=1e-5)
        assert (found.vocabulary, found.version) == (p.shape[1], "initial")


def test_messages_become_a_prompt_and_nothing_becomes_the_first_token_of_a_sequence(directory, forward):
    passages = [TokenSequence((Message("user", "12"),), ids(9, 9)), TokenSequence((Message("user", ""),), ids(9, 9))]
    said, empty = forward.read(passages, forward.rows(passages))
    for found, prompt in ((said, encode([Message("user", "12")])), (empty, [1])):
        p = plain(directory, prompt, [9, 9])
        np.testing.assert_allclose(found.logprobs, p[:2, 9], atol=1e-5)


def test_published_weights_change_what_is_read_and_its_version(directory, tmp_path):
    reader = Forward(directory, encode, version="1.0")
    passage = [TokenSequence(ids(5, 6), ids(7))]
    before = reader.read(passage, reader.rows(passage))[0]
    other = Forward(random_llama(tmp_path, tied=True, seed=1), encode, version="")
    expected = other.read(passage, other.rows(passage))[0]
    reader.load(((n, t.clone()) for n, t in other._model.state_dict().items()), "1.7")
    after = reader.read(passage, reader.rows(passage))[0]
    assert after.version == "1.7"
    assert after.logprobs == pytest.approx(expected.logprobs, abs=1e-6)
    assert abs(after.logprobs - before.logprobs)[0] > 1e-3
    with pytest.raises(AssertionError, match=r"1\.8 lacks"):
        reader.load([], "1.8")


def test_what_is_longer_than_the_model_reads_is_refused(forward):
    with pytest.raises(DataError, match="513 tokens"):
        forward.rows([TokenSequence(ids(*[5] * 500), ids(*[5] * 13))])


class Slow:
    """A model that takes its time, and says who was read together."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s, self.version, self.batches = delay_s, "1.0", []

    def rows(self, passages):
        return [(p.tokens.tolist(), 1) for p in passages]

    def read(self, passages, rows):
        time.sleep(self.delay_s)
        self.batches.append([p.tokens.tolist() for p in passages])
        return [(p.tokens.tolist(), self.version) for p in passages]


async def served(server: ScoringServer):
    return asyncio.create_task(server.run())


async def test_a_server_reads_requests_together_under_one_version_and_refuses_what_it_cannot_hold():
    slow = Slow(0.05)
    server = ScoringServer(slow, batch_tokens=4, max_queue=5)
    running = await served(server)
    first = asyncio.create_task(server.read([TokenSequence(ids(), ids(1, 1))], 5))
    await asyncio.sleep(0.02)
    others = [asyncio.create_task(server.read([TokenSequence(ids(), ids(i))] * 2, 5)) for i in (2, 3)]
    await asyncio.sleep(0)
    with pytest.raises(ScorerUnavailable, match=r"max_queue = 5"):
        await server.read([TokenSequence(ids(), ids(4))] * 2, 5)
    changing = asyncio.create_task(server.load(lambda f: setattr(f, "version", "1.1")))
    assert await first == [([1, 1], "1.0")]
    await changing
    assert [await o for o in others] == [[([i], "1.1")] * 2 for i in (2, 3)]
    assert slow.batches == [[[1, 1]], [[2], [2], [3], [3]]]
    running.cancel()


async def test_who_waits_too_long_is_told_so_and_nobody_reads_for_it():
    slow = Slow(0.2)
    server = ScoringServer(slow, batch_tokens=1, max_queue=9)
    running = await served(server)
    first = asyncio.create_task(server.read([TokenSequence(ids(), ids(1))], 5))
    await asyncio.sleep(0.02)
    with pytest.raises(ScorerUnavailable, match=r"within 0\.05 s"):
        await server.read([TokenSequence(ids(), ids(2))], 0.05)
    await first
    await server.read([TokenSequence(ids(), ids(3))], 5)
    assert slow.batches == [[[1]], [[3]]], "nobody waited for the second any more"
    assert server.num_waiting == 0
    running.cancel()


class Replica:
    def __init__(self, name: str, fails: bool = False) -> None:
        self.name, self.fails, self.num_asked = name, fails, 0

    async def read(self, passages, timeout_s):
        self.num_asked += 1
        await asyncio.sleep(0.01)
        if self.fails:
            raise ScorerUnavailable("it has ended")
        return [self.name] * len(passages)


async def test_a_replica_that_ended_leaves_the_request_to_another_and_the_idle_one_reads():
    scorer = LogprobScorer("live", deadline_s=2)
    dead, alive = Replica("dead", fails=True), Replica("alive")
    waiting = asyncio.create_task(scorer.read([TokenSequence(ids(), ids(1))]))
    await asyncio.sleep(0.01)
    assert "no replica" in scorer.trouble()
    scorer.set({"dead": dead, "alive": alive})
    assert await waiting == ["alive"]
    assert dead.num_asked == 1
    other = Replica("other")
    scorer.set({"alive": alive, "other": other})
    read = await asyncio.gather(*(scorer.read([TokenSequence(ids(), ids(1))]) for _ in range(4)))
    assert sorted(name for names in read for name in names) == ["alive", "alive", "other", "other"]
    assert scorer.snapshot()["scorer/live_num_passages"] == 5


async def test_without_anybody_who_reads_the_deadline_ends_the_wait():
    scorer = LogprobScorer("live", deadline_s=0.05)
    with pytest.raises(ScorerUnavailable, match=r"scorer 'live': nothing within deadline_s = 0\.05 s; no replica"):
        await scorer.read([TokenSequence(ids(), ids(1))])
    scorer.set({"dead": Replica("dead", fails=True)})
    with pytest.raises(ScorerUnavailable, match="dead: it has ended"):
        await scorer.read([TokenSequence(ids(), ids(1))])
    assert scorer.snapshot()["scorer/live_num_failed"] == 2
