"""Engines that leave state for one another: one rank, then two, then one again."""

import pytest

from tests.learner.test_engine import Results, run_jobs

LEFT_BY_ONE = ["sgd:0", "adamw:0", "adamw:3"]
LEFT_BY_TWO = ["sgd:3", "adamw:2", "adamw:3"]
ALONE = [f"leave:{left}" for left in LEFT_BY_ONE] + [
    "arrive:adamw:3:1:0", "arrive:adamw:0:1:3",
    "lora:sgd:0", "lora:adamw:0", "lora:adamw:2", "lora_saved:0", "lora_recomputed",
    "lora_misfit:lm_head", "lora_misfit:no_proj",
]  # fmt: skip
PAIR = [f"leave:{left}" for left in LEFT_BY_TWO] + [
    "arrive:sgd:3:1:0", "arrive:adamw:3:1:0", "arrive:adamw:1:1:3", "arrive:adamw:0:1:0",
    "lora:sgd:3", "lora:adamw:2", "lora:adamw:3", "lora_saved:3",
]  # fmt: skip
ALONE_AGAIN = ["arrive:sgd:0:2:3", "arrive:adamw:0:2:3", "arrive:adamw:3:2:2", "arrive:adamw:1:2:2"]


@pytest.fixture(scope="session")
def alone(tmp_path_factory) -> Results:
    return Results(run_jobs(tmp_path_factory.mktemp("alone"), 1, ALONE, module="jobs_saved"))


@pytest.fixture(scope="session")
def pair(tmp_path_factory, alone) -> Results:
    return Results(run_jobs(tmp_path_factory.mktemp("pair"), 2, PAIR, module="jobs_saved"))


@pytest.fixture(scope="session")
def alone_again(tmp_path_factory, pair) -> Results:
    return Results(run_jobs(tmp_path_factory.mktemp("alone-again"), 1, ALONE_AGAIN, module="jobs_saved"))
