"""The learner's step on groups whose prompts are computed once, against the step of the same engine on rows.

Packing is part of both. The rate is in tokens of the rollouts, whether the model computed them once or for each, by
processor seconds: both sides do nothing but compute, and a machine in use stretches their wall time at random.
"""

from __future__ import annotations

import time

from cluster.config import LearnerSection
from tests.bench.figures import Figure, alternate
from tests.bench.training import LR, Load, engine_of, joined
from tests.learner.groups import random_groups, random_rewards, record_of, with_common_prompts

LOADS = (
    Load("shared_prefix", "smollm2", groups=1, group_size=8, prompt=60, response=16, at_least=1.7),
    Load("shared_prefix_quickstart", "tiny:addition", groups=16, group_size=16, prompt=6, response=4, at_least=None),
    Load("shared_prefix_long", "tiny:addition", groups=1, group_size=16, prompt=256, response=32, at_least=None),
)


def measure() -> list[Figure]:
    with joined():
        return [_measure(load) for load in LOADS]


def _measure(load: Load) -> Figure:
    from learner.pack import pack
    from learner.train import Objective, optimize

    section = LearnerSection.model_validate({"schedule": {"lr": LR}, "packing": "shared_prefix"})
    engine, _ = engine_of(load, section)
    assert engine.shares_prefixes, f"{load.model} does not compute trees, so nothing would be compared"
    lengths = [[(load.prompt, load.response)] * load.group_size] * load.groups
    groups = with_common_prompts(random_groups(lengths, vocabulary=engine.vocab_size))
    record, objective = record_of(groups, random_rewards(groups)), Objective.of(section)
    num_tokens = sum(len(r.tokens) for g in groups for r in g.rollouts)
    shared_frac = 0.0

    def rate(*, shares: bool) -> float:
        nonlocal shared_frac
        begun = time.process_time()
        metrics = optimize(pack(groups, record, section, shares=shares), objective, engine)
        shared_frac = max(shared_frac, metrics["learner/shared_frac"])
        return num_tokens / (time.process_time() - begun)

    rates = alternate(lambda: rate(shares=True), lambda: rate(shares=False))
    details = {
        "model": load.model, "prompt": load.prompt, "response": load.response, "group_size": load.group_size,
        "groups": load.groups, "dtype": "float32", "shared_frac": shared_frac,
    }  # fmt: skip
    return Figure(load.name, "tokens/CPU s", *rates, load.at_least, details)
