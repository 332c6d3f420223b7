"""TRL's side of `e2e_vs_trl`, in TRL's environment: `python trl_side.py MODEL_DIR LENGTHS STEPS OUT`.

Lengths are drawn as ours are: a logits processor forbids the end before a row's length and forces it there, so that
TRL's own masks are right. A batch is sampled until its longest row ends: transformers cannot refill a row.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from itertools import islice
from pathlib import Path

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

sys.path.insert(0, str(Path(__file__).parent))
from lengths import begins_right, draws, longest

PROMPTS, GROUP_SIZE = 32, 8
BATCH = PROMPTS * GROUP_SIZE
WARM_UP = 1


class EndAt(LogitsProcessor):
    """Row i writes `lengths[i]` tokens, the end of sequence being the last."""

    def __init__(self, lengths: list[int], num_prompt: int, end: int) -> None:
        self.lengths, self.num_prompt, self.end = torch.tensor(lengths), num_prompt, end

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        last = self.lengths - 1 <= ids.shape[1] - self.num_prompt
        scores[last] = -torch.inf
        scores[:, self.end] = torch.where(last, 0.0, -torch.inf)
        return scores


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *arguments: object, **others: object) -> None:
        self.ends.append(time.monotonic())


def main() -> None:
    model_dir, kind, steps, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    plain, lengths, sampling = model.generate, draws(kind), []

    def generate(input_ids: torch.Tensor, **options: object) -> torch.Tensor:
        begun = time.monotonic()
        drawn = list(islice(lengths, len(input_ids)))
        end = LogitsProcessorList([EndAt(drawn, input_ids.shape[1], tokenizer.eos_token_id)])
        found = plain(input_ids=input_ids, logits_processor=end, **options)
        sampling.append(time.monotonic() - begun)
        return found

    model.generate = generate
    clock = Clock()
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=begins_right,
        train_dataset=Dataset.from_list(problems(steps * PROMPTS)),
        callbacks=[clock],
        args=GRPOConfig(
            output_dir=str(out.with_suffix("")),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            num_generations=GROUP_SIZE,
            max_completion_length=longest(kind),
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            beta=0.0,
            temperature=1.0,
            loss_type="dapo",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=steps,
            disable_tqdm=True,
        ),
    )
    trainer.train()
    assert len(clock.ends) == steps
    seconds = clock.ends[-1] - clock.ends[WARM_UP - 1]
    result = {
        "samples_per_s": BATCH * (steps - WARM_UP) / seconds,
        "sampling_frac": sum(sampling[WARM_UP:]) / seconds,
        "version": trl.__version__,
        "trained_mean_tokens": next(
            row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row
        ),
    }
    out.write_text(json.dumps(result))


def problems(count: int) -> list[dict[str, str]]:
    """Two-digit additions, as `actors/tasks/addition.py` writes them."""
    rng = random.Random(0)
    pairs = [(rng.randint(10, 99), rng.randint(10, 99)) for _ in range(count)]
    return [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in pairs]


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()
