"""Answers that are programs: no reward runs them, and none of them changes what other answers get."""

import pytest
import pytest_asyncio
from reasoning_gym import create_dataset
from reasoning_gym.factory import DATASETS

from cluster.config import RewardSection
from cluster.types import FAILED
from rewards.base import Services
from rewards.registry import build_reward
from rewards.sandbox.expressions import check_expression, check_literal
from rewards.sandbox.launch import refusal
from tests.rewards.groups import group

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(bool(refusal()), reason=refusal()),
]

FORGED = '__import__("os").write(3, b\'{"value": 1.0}\') and __import__("os")._exit(0)'
PROGRAMS = (
    FORGED,
    f"Symbol({FORGED})",
    f"[x for x in [{FORGED}]]",
    f"(lambda: {FORGED})()",
    f"eval({FORGED!r})",
    f"sympify({FORGED!r})",
    f"S({FORGED!r})",
    f"lambdify(x, {FORGED!r})(1)",
    f"exec({FORGED!r})",
    f"Integer({FORGED!r})",
    f"Lambda(x, {FORGED!r})",
    f'f"{{{FORGED}}}"',
    "().__class__.__base__.__subclasses__()",
    'getattr(x, "__class__")',
    'open("/etc/passwd").read()',
    'preview(x, viewer="file")',
    "x.func",
    "(y := 1)",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services():
    made = Services()
    yield made
    made.close()


def evaluating_families():
    """Those whose scorer reaches `eval` or sympy's parser, with siblings that only compare."""
    return [
        "countdown",
        "puzzle24",
        "simple_integration",
        "intermediate_integration",
        "polynomial_multiplication",
        "polynomial_equations",
        "n_queens",
        "spiral_matrix",
        "binary_matrix",
        "string_insertion",
        "bitwise_arithmetic",
        "complex_arithmetic",
        "number_sorting",
        "leg_counting",
    ]


async def scores_of(services, name, answers):
    recipe = {"name": name, "seed": 1, "size": 3, "config": {}, "index": 2}
    entry = create_dataset(name, seed=1, size=3)[2]
    made = group(*answers, answer=None, prompt=entry["question"], reasoning_gym=recipe)
    reward = build_reward(RewardSection(use="reasoning_gym", options={"extract": "text"}), "rewards[0]")
    return entry, await reward.score(made, services)


@pytest.mark.parametrize("name", evaluating_families())
async def test_no_answer_of_a_family_runs_or_forges_a_score(name, services):
    assert name in DATASETS
    _, scores = await scores_of(services, name, [*PROGRAMS[:6], "wrong", f'["{FORGED}"]'])
    known = scores.values[scores.state != FAILED]
    assert (known < 0.5).all(), dict(zip(PROGRAMS, scores.values.tolist(), strict=False))


@pytest.mark.parametrize("name", ["countdown", "simple_integration", "n_queens", "spiral_matrix"])
async def test_a_right_answer_beside_programs_still_counts(name, services):
    entry = create_dataset(name, seed=1, size=3)[2]
    right = entry["metadata"]["expression"] if name == "countdown" else entry["answer"]
    _, scores = await scores_of(services, name, [PROGRAMS[0], right, "0"])
    assert scores.values[1] == 1
    assert scores.values[2] < 0.5


@pytest.mark.parametrize("program", PROGRAMS)
async def test_math_takes_a_program_for_a_wrong_answer(program, services):
    reward = build_reward(RewardSection(use="math"), "rewards[0]")
    made = group(program, f"\\boxed{{{program}}}", f"${program}$", "0.5", answer="\\frac{1}{2}")
    scores = await reward.score(made, services)
    assert not (scores.values[:3] == 1).any()
    assert scores.values[3] == 1


@pytest.mark.parametrize("program", PROGRAMS)
async def test_what_is_no_plain_expression_is_not_evaluated(program):
    with pytest.raises((ValueError, SyntaxError)):
        check_literal(program)
    with pytest.raises((ValueError, SyntaxError)):
        check_expression(program, {"x": None, **vars(__import__("builtins"))})


@pytest.mark.parametrize("text", ["[[1, 2], [3, 4]]", "1 + 2 * 3", "'abc'", "-1.5e3", "(1, 2) + (3,)", "0x1f << 2"])
async def test_literals_are_evaluated(text):
    check_literal(text)
