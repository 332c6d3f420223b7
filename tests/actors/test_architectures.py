"""Models of many architectures: each is sampled from, handed new weights and compared, or refused with the reason."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from actors.engine import VllmEngine
from cluster.config import parse
from cluster.errors import StartFailed
from cluster.types import Publication
from learner.engine.forward import (
    as_saved,
    attach_row_selection,
    has_fused_experts,
    logprobs_of,
    tied_head,
    token_statistics,
)
from learner.publish.logprob_probe import Probe
from tests.architectures import ARCHITECTURES, build

pytestmark = [pytest.mark.engine, pytest.mark.verify]
CONFIG = parse({"engine": {"max_model_len": 320, "max_num_seqs": 8, "kv_cache_gib": 0.25}})


class Learner:
    """The learner's forward pass and what it publishes, without DeepSpeed."""

    def __init__(self, directory: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self._select, self._tied = attach_row_selection(self.model), tied_head(self.model)

    def logprobs(self, micro):
        return logprobs_of(
            self.model, self._select, micro, torch.device("cpu"), partial(token_statistics, entropy_grad=False)
        )

    def publish(self, path: Path) -> str:
        weights = {k: v.detach().clone().contiguous() for k, v in self.model.named_parameters()}
        if has_fused_experts(self.model):
            weights = {k: v.contiguous() for k, v in as_saved(self.model, weights).items()}
        if self._tied:
            weights[self._tied[0]] = weights[self._tied[1]].clone()
        save_file(weights, path)
        return str(path)

    def change(self) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))


async def apart(engine: VllmEngine, learner: Learner) -> float:
    """Largest difference (nats) between the engine's log-probs and the learner's on the probe."""
    probe = Probe(learner.model.config.vocab_size, 320).measure(learner)
    prompts = [list(probe.tokens[:cut]) for cut in probe.cuts]
    ours = await engine.next_logprobs(prompts, [probe.tokens[cut] for cut in probe.cuts])
    return float(np.abs(ours - np.array(probe.logprobs)).max())


@pytest.mark.parametrize("name", ARCHITECTURES)
async def test_a_model_samples_from_the_weights_that_it_was_handed(tmp_path: Path, name: str):
    directory = build(name, tmp_path / "model")
    learner = Learner(directory)
    engine = VllmEngine(directory, CONFIG, stop_tokens=[2], version="0.0")
    try:
        await engine.start()
        before = await apart(engine, learner)
        after = moved = 0.0
        for step in (1, 2):
            learner.change()
            moved = await apart(engine, learner)
            await engine.update(Publication("policy", 1, step), learner.publish(tmp_path / f"{step}.safetensors"))
            after = max(after, await apart(engine, learner))
    finally:
        await engine.close()
    print(f"TABLE {name}: before {before:.2g}, stale {moved:.2g}, after {after:.2g}")
    assert before < 0.01
    assert moved > 0.2, "the change is too small to be seen"
    assert after < 0.02


async def test_a_head_size_that_the_kernels_lack_is_refused_with_its_reason(tmp_path: Path):
    directory = build("qwen2", tmp_path / "model", hidden_size=64)

    async def start() -> None:
        await VllmEngine(directory, CONFIG, stop_tokens=[2], version="0.0").start()

    with pytest.raises(StartFailed, match=r"vLLM cannot run it: .*[Hh]ead") as refused:
        await start()
    print("REFUSED", refused.value)
    assert "\n" not in str(refused.value)
    assert "See root cause" not in str(refused.value)
