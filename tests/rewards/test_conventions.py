"""Reward functions of other trainers, called as their authors meant: stand-ins with the published signatures."""

import json
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest

from actors.environments.single_turn import SingleTurn
from actors.episode import Limits, play
from actors.tasks import TASKS
from cluster.config import RewardSection
from cluster.errors import ConfigError
from cluster.plugins import build
from cluster.types import ABSTAINED, FAILED, SCORED, Message, Turn
from rewards.base import Services
from rewards.function_reward import FunctionReward
from rewards.registry import build_reward
from tests.actors.typist import Letters, Typist
from tests.rewards.groups import group

HERE = "tests.rewards.test_conventions"


@pytest.fixture
def services():
    made = Services()
    yield made
    made.close()


def reward(function, **options):
    return build_reward(RewardSection(use=f"{HERE}:{function}", options=options), "rewards[0]")


def talk(*texts, **columns):
    """A group of a task whose prompt is a list of messages."""
    made = group(*texts, **columns)
    return replace(
        made, task=replace(made.task, variants={"orig": (Message("system", "Be brief."), Message("user", "?"))})
    )


# ── TRL ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def accuracy_reward(completions, solution, log_extra=None, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    if log_extra:
        log_extra("parsed", contents)
    return [None if s is None else float(c == s) for c, s in zip(contents, solution, strict=True)]


def reasoning_accuracy_reward(completions, solution, reasoning_delimiters=None, log_extra=None, **kwargs):
    assert reasoning_delimiters is None or isinstance(reasoning_delimiters, list)
    return accuracy_reward(completions, solution, log_extra)


def think_format_reward(completions, **kwargs):
    return [1.0 if completion[0]["content"].startswith("<think>") else 0.0 for completion in completions]


@pytest.mark.parametrize("use", ["accuracy_reward", "reasoning_accuracy_reward"])
async def test_trls_accuracy_reads_the_solution_column_of_a_conversation(use, services):
    scores = await reward(use).score(talk("72", "7", answer="long way to 72", solution="72"), services)
    assert scores.values.tolist() == [1, 0]
    assert scores.provenance[0].note == "parsed='72'"


async def test_trls_format_reads_the_first_message(services):
    scores = await reward("think_format_reward").score(talk("<think>a</think>b", "b"), services)
    assert scores.values.tolist() == [1, 0]


async def test_a_missing_solution_abstains(services):
    scores = await reward("accuracy_reward").score(talk("72", answer=None), services)
    assert scores.state.tolist() == [ABSTAINED]


SEEN = {}


async def everything(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **columns):
    SEEN.clear()
    SEEN.update(prompts=prompts, completions=completions, ids=completion_ids, step=trainer_state.global_step, **columns)
    log_metric("share of 7", 0.25)
    log_metric("share of 7", 0.75)
    return [1, True]


def equation_reward(completions, target, nums, **kwargs):
    """As TRL's example of Countdown has it: columns by name, and texts that hold an answer in tags."""
    found = []
    for completion, goal, numbers in zip(completions, target, nums, strict=True):
        written = completion.partition("<answer>")[2].partition("</answer>")[0]
        uses = sorted(map(int, re.findall(r"\d+", written))) == sorted(numbers)
        found.append(float(uses and written == "44+19+35" and goal == 98))
    return found


async def test_rows_of_countdown_reach_trls_reward_functions(tmp_path, services):
    rows = tmp_path / "countdown.jsonl"
    rows.write_text('{"target": 98, "nums": [44, 19, 35]}\n')
    [task] = build(TASKS, "dataset", {"path": str(rows), "prompt_template": "Reach {target} with {nums}."}, "t").train()
    made = replace(group("<answer>44+19+35</answer>", "<answer>98</answer>"), task=task)
    made_reward = reward("equation_reward")
    made_reward.check(task)
    assert (await made_reward.score(made, services)).values.tolist() == [1, 0]


async def test_text_prompts_stay_text_and_columns_come_as_lists_with_their_types(services):
    made = group("a", "b", target=24, nums=[1, 2], weight=float("nan"), cases={"in": ["1"]})
    scores = await reward("everything").score(made, services)
    assert scores.values.tolist() == [1, 1]
    assert SEEN["prompts"] == ["47+38="] * 2
    assert SEEN["completions"] == ["a", "b"]
    assert SEEN["ids"] == [r.tokens[r.loss_mask].tolist() for r in made.rollouts]
    assert (SEEN["target"], SEEN["nums"], SEEN["cases"]) == ([24, 24], [[1, 2]] * 2, [{"in": ["1"]}] * 2)
    assert SEEN["weight"] == [None, None]
    assert SEEN["step"] == 0
    assert services.metrics() == {"reward/logged_share_of_7": 0.5}
    assert not services.metrics()


async def test_message_prompts_and_all_turns_arrive_as_messages(services):
    made = talk("a", "b")
    turns = (Turn("assistant", 2, 3, "call"), Turn("tool", 3, 3, "result"), Turn("assistant", 3, 3, "a"))
    made = replace(made, rollouts=(replace(made.rollouts[0], turns=turns), made.rollouts[1]))
    await reward("everything").score(made, services)
    assert SEEN["prompts"][0] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}]
    assert [m["role"] for m in SEEN["completions"][0]] == ["assistant", "tool", "assistant"]
    assert SEEN["completions"][1] == [{"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(("use", "expected"), [("accuracy_reward", [1, 0]), ("says_the_answer", [1, 0])])
async def test_what_an_episode_leaves_is_judged_without_its_prompt(use, expected, services):
    task = talk("", answer="72", solution="72").task
    limits = Limits(max_tokens=20, max_turns=1, temperature=1.0)
    played = [
        await play(Typist(lambda _, text=text: text), Letters(), SingleTurn(), task, "orig", limits)  # type: ignore[arg-type]
        for text in ("72", "7")
    ]
    assert [turn.role for turn in played[0].turns] == ["user", "assistant"]
    scores = await reward(use).score(replace(talk("", ""), task=task, rollouts=tuple(played)), services)
    assert scores.values.tolist() == expected


# ── verl ────────────────────────────────────────────────────────────────────────────────────────────────────────


def gsm8k(solution_str, ground_truth, method="strict", format_score=0.0, score=1.0):
    return score if int(solution_str) == ground_truth else format_score


def math_verify(model_output: str, ground_truth: str, timeout_score: float = 0) -> bool:
    return model_output == ground_truth


def geo3k(predict_str: str, ground_truth: str, use_boxed: bool = True, format_score: float = 0.0) -> float:
    return float(predict_str == ground_truth)


def math_dapo(solution_str, ground_truth, strict_box_verify=False, pause_tokens_index=None):
    right = solution_str == ground_truth
    return {"score": 1.0 if right else -1.0, "acc": right, "pred": solution_str}


def search_em(solution_str, ground_truth, method="strict", format_score=0.0, score=1.0):
    return score if solution_str in ground_truth["target"] else format_score


def prime_code(completion, test_cases, continuous=False):
    cases = json.loads(test_cases) if isinstance(test_cases, str) else test_cases
    return completion == cases["outputs"][0], cases


def sandbox_fusion(sandbox_fusion_url, concurrent_semaphore, memory_limit_mb, completion, test_cases):
    return 0.0


def math_batch(data_sources, solution_strs, ground_truths, extra_infos):
    assert data_sources == ["sums"] * len(solution_strs)
    assert all(e["split"] == "train" for e in extra_infos)
    return [{"score": float(s == g)} for s, g in zip(solution_strs, ground_truths, strict=True)]


@pytest.mark.parametrize(
    ("use", "reference", "values"),
    [
        ("gsm8k", 85, [1, 0]),
        ("math_verify", "85", [1, 0]),
        ("geo3k", "85", [1, 0]),
        ("math_dapo", "85", [1, -1]),
        ("search_em", {"target": ["85", "eighty-five"]}, [1, 0]),
        ("math_batch", "85", [1, 0]),
    ],
)
async def test_verls_functions_run_with_a_reference_of_its_type(use, reference, values, services):
    made = group("85", "86", answer=str(reference), reference=reference, extra_info={"split": "train"})
    reward(use).check(made.task)
    assert (await reward(use).score(made, services)).values.tolist() == values


async def test_what_a_function_says_beside_its_score_is_kept(services):
    scores = await reward("math_dapo").score(group("85", "86"), services)
    assert [p.note for p in scores.provenance] == ["acc=True, pred='85'", "acc=False, pred='86'"]


def test_a_parameter_that_nothing_fills_is_refused_before_the_run_with_the_remedy():
    with pytest.raises(ConfigError, match=r"nothing fills its parameter 'test_cases'.*Columns.*: cases.*Add a column"):
        reward("prime_code").check(group("x", cases=1).task)
    with pytest.raises(ConfigError, match=r"nothing fills its parameter 'sandbox_fusion_url'"):
        reward("sandbox_fusion").check(group("x", test_cases=1).task)
    reward("prime_code").check(group("x", test_cases={}).task)


async def test_a_tuple_is_no_score_and_the_message_says_what_is_expected(services):
    made = group("x", test_cases={"outputs": ["x"]})
    scores = await reward("prime_code").score(made, services)
    assert scores.state.tolist() == [FAILED]
    assert 'a number, {"score": number}, or None to abstain is expected' in scores.provenance[0].note


# ── functions that make rewards, and files of packages ──────────────────────────────────────────────────────────


def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int = 2):
    def punishment(completion_ids, **kwargs):
        return [-1.0 if len(ids) > max_completion_len - soft_punish_cache else 0.0 for ids in completion_ids]

    return punishment


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, completions, **kwargs):
        return [self.factor * len(text) for text in completions]


def get_scaled(factor=2.0):
    return Scaled(factor)


@pytest.mark.parametrize("again", [False, True])
async def test_a_function_that_makes_the_reward_is_called_with_the_options(again, services):
    made = reward("get_soft_overlong_punishment", max_completion_len=5)
    made = pickle.loads(pickle.dumps(made)) if again else made
    made.check(group("abc").task)
    assert (await made.score(group("abc", "abcd"), services)).values.tolist() == [0, -1]
    assert (await reward("get_scaled").score(group("abc"), services)).values.tolist() == [6]
    assert (await reward("get_scaled", factor=1.0).score(group("abc"), services)).values.tolist() == [3]


def test_one_that_lacks_an_option_is_refused_before_the_run():
    with pytest.raises(ConfigError, match=r"does not look at the rollout.*needs all its parameters as options"):
        reward("get_soft_overlong_punishment", soft_punish_cache=2)


async def test_a_file_may_import_the_files_beside_it(tmp_path, services):
    (tmp_path / "grading").mkdir()
    (tmp_path / "grading" / "__init__.py").write_text("raise RuntimeError('not asked for')")
    (tmp_path / "grading" / "part.py").write_text("def same(a, b):\n    return float(a == b)\n")
    mine = tmp_path / "grading" / "mine.py"
    mine.write_text(
        "from .part import same\n\ndef f(solution_str, ground_truth):\n    return same(solution_str, ground_truth)\n"
    )
    (tmp_path / "whole").mkdir()
    whole = tmp_path / "whole" / "__init__.py"
    whole.write_text("from .part import same\n\ndef f(completion, answer):\n    return same(completion, answer)\n")
    (tmp_path / "whole" / "part.py").write_text("def same(a, b):\n    return 2 * float(a == b)\n")
    for file, right in ((mine, 1), (whole, 2)):
        made = build_reward(RewardSection(use=f"{file}:f"), "rewards[0]")
        assert (await made.score(group("85", "86"), services)).values.tolist() == [right, 0]


def test_a_file_that_starts_processes_is_refused_with_the_remedy(tmp_path):
    file = tmp_path / "pool.py"
    file.write_text("from concurrent.futures import ProcessPoolExecutor\n\ndef f(completion):\n    return 1.0\n")
    with pytest.raises(ConfigError, match=r"starts processes of its own.*name it as 'package.module:f'"):
        build_reward(RewardSection(use=f"{file}:f"), "rewards[0]")


# ── OpenRLHF ────────────────────────────────────────────────────────────────────────────────────────────────────


class Tensor:
    """As much of a tensor as is looked at."""

    def __init__(self, values):
        self._values = values

    def tolist(self):
        return self._values


def openrlhf(queries, prompts, labels):
    rewards = [float(q == p + str(label)) for q, p, label in zip(queries, prompts, labels, strict=True)]
    return {"rewards": Tensor(rewards), "scores": Tensor(rewards), "extra_logs": {}}


async def test_openrlhfs_functions_see_prompt_and_response_together(services):
    assert (await reward("openrlhf").score(group("85", "86"), services)).values.tolist() == [1, 0]


# ── shapes and types ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("returned", "state"),
    [
        (1, SCORED),
        (True, SCORED),
        (np.float32(0.5), SCORED),
        (np.int64(2), SCORED),
        (np.array(3.0), SCORED),
        ({"score": 1}, SCORED),
        (None, ABSTAINED),
        ({"score": None}, ABSTAINED),
        ({"reward": 1.0}, FAILED),
        ({}, FAILED),
        ("1.0", FAILED),
        ([1.0], FAILED),
        ((1.0, "why"), FAILED),
        (np.array([1.0]), FAILED),
        (float("nan"), FAILED),
        (float("inf"), FAILED),
        (1j, FAILED),
        ((x for x in (1.0,)), FAILED),
        (object(), FAILED),
    ],
)
async def test_a_wrong_shape_is_a_failure_and_none_an_abstention(returned, state, services):
    def gives(completion):
        return returned

    scores = await FunctionReward.of(gives, "gives", {}, "rewards[0]").score(group("a"), services)
    assert scores.state.tolist() == [state]
    assert state != FAILED or "is expected" in scores.provenance[0].note


@pytest.mark.parametrize(
    "returned", [1.0, None, "ab", {"score": [1, 1]}, [1.0], [1.0] * 3, (x for x in (1.0, 1.0)), {1, 2}]
)
async def test_a_group_needs_a_list_with_a_value_for_each(returned, services):
    def gives(completions):
        return returned

    with pytest.raises(ValueError, match="for 2 completions; a list of 2 is expected"):
        await FunctionReward.of(gives, "gives", {}, "rewards[0]").score(group("a", "b"), services)


async def test_nested_lists_fail_one_by_one(services):
    def gives(completions):
        return [[1.0], 1.0]

    scores = await FunctionReward.of(gives, "gives", {}, "rewards[0]").score(group("a", "b"), services)
    assert scores.state.tolist() == [FAILED, SCORED]


async def test_a_reference_of_nan_is_missing_and_a_float_equals_the_integer(services):
    def same(completion, ground_truth):
        return None if ground_truth is None else int(completion) == ground_truth

    made = FunctionReward.of(same, "same", {}, "rewards[0]")
    assert (await made.score(group("72", reference=72.0), services)).values.tolist() == [1]
    assert (await made.score(group("72", reference=float("nan")), services)).state.tolist() == [ABSTAINED]


async def test_positional_parameters_are_filled(services):
    def narrow(prompt, completion, /, scale):
        return scale * len(completion)

    made = FunctionReward.of(narrow, "narrow", {"scale": 2}, "rewards[0]")
    assert (await made.score(group("abc"), services)).values.tolist() == [6]


async def test_a_function_cannot_change_what_the_next_call_is_given(services):
    def spoils(completion, extra_info, nums, task):
        assert (extra_info, nums, task.meta["nums"]) == ({"a": [1]}, [1, 2], [1, 2])
        extra_info["a"].clear()
        nums.clear()
        task.meta.clear()
        return 1.0

    made = group("a", "b", extra_info={"a": [1]}, nums=[1, 2])
    scores = await FunctionReward.of(spoils, "spoils", {}, "rewards[0]").score(made, services)
    assert scores.values.tolist() == [1, 1]
    assert made.task.meta == {"extra_info": {"a": [1]}, "nums": [1, 2]}


# ── verifiers ───────────────────────────────────────────────────────────────────────────────────────────────────
def says_the_answer(completion: list[dict], answer: str) -> float:
    return float(completion[-1]["content"] == answer)


async def knows_its_state(prompt, completion, answer, state, **kwargs) -> float:
    asked = prompt[-1]["content"] == state["prompt"][-1]["content"] == "?"
    level = kwargs["info"]["level"] == state["info"]["level"] == 2
    return float(asked and level and kwargs["task"] == state["task"] and completion[-1]["content"] == answer)


def parses(completion, state, parser) -> float:
    return 1.0


@pytest.mark.parametrize("function", ["says_the_answer", "knows_its_state"])
async def test_a_function_of_a_rubric_gets_messages(services, function):
    scored = await reward(function).score(talk("85", "86", answer="85", level=2), services)
    assert scored.values.tolist() == [1.0, 0.0], scored.details


async def test_a_rubric_s_parser_is_refused_by_name(services):
    made = talk("85", "86", answer="85")
    with pytest.raises(ConfigError, match="nothing fills its parameter 'parser'"):
        reward("parses").check(made.task)
