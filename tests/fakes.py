"""A policy without vLLM: fast enough for tests of everything that is not the engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from actors.engine import Sample, VllmEngine
from actors.environments import End, Environment, Observation
from actors.tiny.character import EOS, encode
from cluster.config import RunConfig
from cluster.process.failpoints import failpoint
from cluster.types import Publication, ScoredGroup, VersionSpan
from learner.advantages.estimators import Advantage


class FakeEngine:
    """A bigram policy: the model's embedding times its output head, read from the published file.

    `engine.options`: `delay_s` (mean of a random delay per sample), `straggler_frac` and `straggler_s`.
    """

    exact = False

    def __init__(self, model_dir: str | Path, config: RunConfig, *, stop_tokens: Sequence[int], version: str) -> None:
        options = config.engine.options
        self._delay_s = options.get("delay_s", 0.0)
        self._straggler_frac, self._straggler_s = options.get("straggler_frac", 0.0), options.get("straggler_s", 0.0)
        self._stop = set(stop_tokens)
        self._rng = np.random.default_rng(config.seed)
        self._load(str(Path(model_dir) / "model.safetensors"))
        self.version, self.max_model_len = version, config.engine.max_model_len
        self.updates = 0

    def _load(self, path: str) -> None:
        from safetensors.numpy import load_file

        weights = load_file(path)
        embedding = weights["model.embed_tokens.weight"].astype(np.float64)
        head = weights.get("lm_head.weight", embedding).astype(np.float64)
        logits = embedding @ head.T * np.sqrt(embedding.shape[1])
        shifted = logits - logits.max(1, keepdims=True)
        self._logprobs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    async def start(self) -> None: ...

    async def sample(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        top_logprobs: int = 0,
        seed: int | None = None,
    ) -> Sample:
        slow = random.random() < self._straggler_frac
        await asyncio.sleep(self._straggler_s if slow else random.random() * 2 * self._delay_s)
        tokens: list[int] = []
        logprobs: list[float] = []
        spans: list[VersionSpan] = []
        top: list[tuple[tuple[int, float], ...]] = []
        last = prompt[-1]
        while len(tokens) < max_tokens and last not in self._stop:
            row = self._logprobs[last] if temperature in (0, 1) else tempered(self._logprobs[last], temperature)
            last = int(row.argmax() if temperature == 0 else self._rng.choice(len(row), p=np.exp(row)))
            if not spans or spans[-1].version != self.version:
                spans.append(VersionSpan(self.version, len(tokens), len(tokens)))
            tokens.append(last)
            logprobs.append(float(row[last]))
            likeliest = np.argsort(-row)[:top_logprobs]
            top.append(tuple(zip(likeliest.tolist(), row[likeliest].tolist(), strict=True)))
            spans[-1] = VersionSpan(self.version, spans[-1].start, len(tokens))
        finish = "stop" if last in self._stop else "length"
        return Sample(np.array(tokens, np.int32), np.array(logprobs, np.float32), tuple(spans), finish, tuple(top))

    async def next_logprobs(self, prompts: Sequence[Sequence[int]], next_tokens: Sequence[int]) -> np.ndarray:
        return np.array([self._logprobs[p[-1], t] for p, t in zip(prompts, next_tokens, strict=True)], np.float32)

    async def update(self, publication: Publication, path: str) -> float:
        if "KANABO_TEST_MARKER" not in os.environ:  # where one engine is real, it is the one that dies
            failpoint("actor.mid_update")
        self._load(path)
        self.version = publication.version
        self.updates += 1
        return 0.0

    async def close(self) -> None: ...


def tempered(logprobs: np.ndarray, temperature: float) -> np.ndarray:
    """[V] nats of the same distribution at another temperature."""
    scaled = logprobs / temperature - (logprobs / temperature).max()
    return scaled - np.log(np.exp(scaled).sum())


def one_real_engine(model_dir: str | Path, config: RunConfig, *, stop_tokens: Sequence[int], version: str):
    """One engine at a time is vLLM's, the others are fakes; when its process has died the next one made takes over."""
    marker = Path(os.environ["KANABO_TEST_MARKER"])
    with contextlib.suppress(FileNotFoundError):
        if psutil.pid_exists(int(marker.read_text())):
            return FakeEngine(model_dir, config, stop_tokens=stop_tokens, version=version)
    marker.write_text(str(os.getpid()))
    return VllmEngine(model_dir, config, stop_tokens=stop_tokens, version=version)


class MoodyEngine(FakeEngine):
    """Slow for as long as the file `engine.options.while_there` is there."""

    def __init__(self, model_dir: str | Path, config: RunConfig, *, stop_tokens: Sequence[int], version: str) -> None:
        super().__init__(model_dir, config, stop_tokens=stop_tokens, version=version)
        self._while_there = Path(config.engine.options["while_there"])

    async def sample(self, prompt: Sequence[int], **how) -> Sample:
        if self._while_there.exists():
            await asyncio.sleep(1.0)
        return await super().sample(prompt, **how)


class Marking(FakeEngine):
    """Answers with one digit wherever its likeliest answer is asked for: a verdict that a judge's template can read."""

    async def sample(self, prompt: Sequence[int], *, temperature: float, **how) -> Sample:
        if temperature != 0:
            return await super().sample(prompt, temperature=temperature, **how)
        tokens = np.array([*encode("7"), EOS], np.int32)
        logprobs = np.array([-0.1, -0.1], np.float32)
        top = tuple(((int(token), -0.1),) for token in tokens) if how.get("top_logprobs") else ()
        return Sample(tokens, logprobs, (VersionSpan(self.version, 0, 2),), "stop", top)


class DeafEngine(VllmEngine):
    """Says that it has new weights, and goes on with the old ones."""

    async def update(self, publication: Publication, path: str) -> float:
        self.version = publication.version
        return 0.0


class UnmakeableEngine(FakeEngine):
    """Fails while it is made, in a way that would repeat."""

    def _load(self, path: str) -> None:
        raise KeyError("the weights have no such name")


class Forgetful(Advantage):
    """Has forgotten what the last rollout of every group is worth."""

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[np.ndarray]:
        return [np.append(scored.rewards[:-1], np.nan) for scored in groups]


class Overflowing(Advantage):
    """Rewards minus their mean, times a number that no gradient survives in the given steps (from 0)."""

    groups_per_step: int
    at_steps: list[int]

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[np.ndarray]:
        return [self._of_group(scored.rewards) for scored in groups]

    def _of_group(self, rewards: np.ndarray) -> np.ndarray:
        global _calls
        step, _calls = _calls // self.groups_per_step, _calls + 1
        return (rewards - rewards.mean() + 0.1) * (1e38 if step in self.at_steps else 1.0)


_calls = 0


def deadly(prompt: str, completion: str) -> float:
    """A reward that ends its process over one prompt, and never lets go of the interpreter over another.

    The sixth and the twelfth prompt that it is asked about are those, whichever process asks.
    """
    seen = Path(os.environ["KANABO_TEST_MARKER"])
    (seen / prompt.replace("/", "")).touch()
    for number, name in ((6, "exits"), (12, "hangs")):
        if len(list(seen.iterdir())) >= number:
            with contextlib.suppress(FileExistsError), (seen.parent / name).open("x") as file:
                file.write(prompt)
    match [name for name in ("exits", "hangs") if _text(seen.parent / name) == prompt]:
        case ["exits"]:
            os._exit(1)
        case ["hangs"]:
            re.match(r"(a+)+$", "a" * 60 + "b")
    return 0.0


class Clutching(Environment):
    """Never lets go of the interpreter over the prompt of the 20th episode that any process plays."""

    async def play(self, task, variant):
        seen = Path(os.environ["KANABO_TEST_MARKER"])
        prompt = task.variants[variant][-1].content
        with (seen / "played").open("a") as file:
            file.write("x")
        if (seen / "played").stat().st_size >= 20:
            with contextlib.suppress(FileExistsError), (seen / "holds").open("x") as file:
                file.write(prompt)
        if _text(seen / "holds") == prompt:
            re.match(r"(a+)+$", "a" * 60 + "b")
        text = yield Observation(task.variants[variant])
        yield End(answer=text)


def deadly_late(prompt: str, completion: str) -> float:
    """A reward that ends its process over two prompts, ten seconds after it was asked: their groups are assembled."""
    seen = Path(os.environ["KANABO_TEST_MARKER"])
    (seen / prompt.replace("/", "")).touch()
    first, second = seen.parent / "first", seen.parent / "second"
    due = len(list(seen.iterdir())) > 12
    if first.exists():  # what its worker had in hand has been tried by then
        due = time.time() - first.stat().st_mtime > 30.0
    chosen = second if first.exists() else first
    with contextlib.suppress(FileExistsError):
        if due:
            with chosen.open("x") as file:
                file.write(prompt)
    if prompt in (_text(first), _text(second)):
        time.sleep(10.0)
        os._exit(1)
    return 0.0


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
