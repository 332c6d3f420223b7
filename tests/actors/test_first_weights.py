"""Before anything is sampled for training, an engine proves that it has the learner's weights, or the run ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actors import rollout
from actors.chat import Chat
from actors.environments.single_turn import SingleTurn
from actors.rollout import RolloutWorker
from cluster.buffer import Buffer, Limits
from cluster.config import parse
from cluster.errors import InfrastructureError, StartFailed
from cluster.process.causes import overheard, unless_logged
from cluster.types import LogprobProbe, Message, Publication, Task, WeightFile
from tests.fakes import FakeEngine
from tests.models import random_llama

TASK = Task("0", {"orig": (Message("user", "fine"),)})
CUTS = [3, 5, 6]
TOKENS = [1, 4, 3, 2, 5, 6, 3]


class Probed(FakeEngine):
    """A fake whose answers to the probe are off by `loaded` nats, and by `handed` once it was handed weights."""

    exact = True
    loaded = handed = 0.0

    async def next_logprobs(self, prompts, next_tokens) -> np.ndarray:
        off = self.handed if self.updates else self.loaded
        return await super().next_logprobs(prompts, next_tokens) + off


class Stuck(Probed):
    async def update(self, publication: Publication, path: str) -> float:
        await asyncio.Event().wait()
        return 0.0


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture
def receive(model: Path, buffer: Buffer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Hands one publication to a worker whose engine is off by so much, and returns the worker."""
    from transformers import AutoTokenizer

    async def run(
        loaded: float = 0.0,
        handed: float = 0.0,
        *,
        step: int = 0,
        dtype: str = "float32",
        learner: str = "float32",
        kind: type = Probed,
    ) -> RolloutWorker:
        settings = parse(
            {
                "engine": {"max_model_len": 64},
                "model": {"dtype": dtype},
                "learner": {"dtype": learner},
                "rollout": {"max_tokens": 4},
            }
        )
        buffer.configure(Limits(2, 1))
        epoch = buffer.resume("policy", None)
        engine = kind(model, settings, stop_tokens=[2], version=rollout.INITIAL)
        engine.loaded, engine.handed = loaded, handed
        true = await FakeEngine.next_logprobs(engine, [TOKENS[:c] for c in CUTS], [TOKENS[c] for c in CUTS])

        async def fetch(publication: Publication) -> str:
            return publication.file.path

        worker = RolloutWorker(
            "policy-0",
            policy="policy",
            engine=engine,
            chat=Chat(AutoTokenizer.from_pretrained(model)),
            environment=SingleTurn(),
            task_at=lambda _: TASK,
            buffer=buffer,
            config=settings,
            fetch=fetch,
        )
        probe = LogprobProbe(tuple(TOKENS), tuple(CUTS), tuple(true.tolist()))
        for later in (step, step + 1):
            file = WeightFile(str(model / "model.safetensors"))
            await worker.receive(Publication("policy", epoch, later, file, probe))
        return worker

    return run


@pytest.mark.parametrize(
    "off",
    [
        {"loaded": 0.2},
        {"loaded": 5.0, "handed": 5.0},
        {"handed": 0.03},
        {"handed": 2.0},
        {"handed": float("nan")},
        {"handed": 0.2, "step": 7},
        {"loaded": 2.0, "dtype": "bfloat16"},
        {"loaded": 0.02, "handed": 0.5, "dtype": "bfloat16"},
    ],
    ids=str,
)
async def test_an_engine_that_runs_another_model_ends_the_run_before_anything_is_sampled(receive, off):
    with pytest.raises(StartFailed, match=r"model\.path = .*engine and learner differ by \S+ nats") as ended:
        await receive(**off)
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize(
    "off",
    [
        {},
        {"loaded": 1e-5, "handed": 3e-5},
        {"loaded": 0.002, "handed": 0.008},
        {"handed": 0.03, "step": 7},
        {"loaded": 0.1, "handed": 0.3, "dtype": "bfloat16"},
        {"loaded": 0.1, "handed": 0.3, "learner": "bfloat16"},
    ],
    ids=str,
)
async def test_the_floor_of_the_precision_does_not_end_it(receive, off):
    assert (await receive(**off)).engine.updates == 2


async def test_a_first_hand_over_that_hangs_ends_by_its_deadline(receive, monkeypatch):
    monkeypatch.setattr(rollout, "FIRST_WEIGHTS_S", 0.2)
    with pytest.raises(InfrastructureError, match=r"first weights, version .* the engine hangs"):
        await asyncio.wait_for(receive(kind=Stuck), 10)


HANGING = """
import asyncio, sys
from cluster.process import causes

async def hangs():
    print("(Worker pid=7) KeyError: 'lm_head.weight'", file=sys.stderr, flush=True)
    await asyncio.Event().wait()

async def main():
    with causes.overheard() as said:
        try:
            await causes.unless_logged(hangs(), said, 0.5)
        except causes.Hangs as error:
            hung = error
    print(causes.failure("it", hung, said.text))

asyncio.run(main())
"""


async def test_a_call_that_hangs_after_its_process_logged_an_error_ends_with_that_error(tmp_path: Path):
    with (tmp_path / "log").open("w") as log:
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", HANGING], stdout=subprocess.PIPE, stderr=log, text=True, timeout=60
        )
    assert done.stdout.strip() == "it: KeyError: 'lm_head.weight'."


async def test_a_call_that_returns_is_not_given_up_for_what_was_logged():
    async def late() -> int:
        await asyncio.sleep(0.05)
        return 3

    with overheard() as said:
        assert await unless_logged(late(), said, 0.0) == 3
