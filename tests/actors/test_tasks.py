"""Tasks: disjoint sets, and an endless order that resumes anywhere."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.tasks import TASKS, addition_problems, order
from cluster.errors import ConfigError
from cluster.plugins import build
from cluster.types import Task, decode, encode


def source(use, **options):
    return build(TASKS, use, options, "tasks")


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 60))
def test_every_pass_visits_every_task_once(seed, size):
    place = order(seed, size, True)
    for number in range(3):
        visited = [place(number * size + i) for i in range(size)]
        assert {p for p, _ in visited} == {number}
        assert sorted(i for _, i in visited) == list(range(size))


def test_passes_and_seeds_differ_in_order():
    def indices(seed, number):
        return [order(seed, 100, True)(number * 100 + i)[1] for i in range(100)]

    assert indices(0, 0) != indices(0, 1)
    assert indices(0, 0) != indices(1, 0)


def test_a_resumed_run_goes_on_in_the_same_order():
    place, again = order(7, 13, True), order(7, 13, True)
    whole = [place(i) for i in range(100)]
    assert [again(i) for i in range(57, 100)] == whole[57:]
    assert [again(i) for i in reversed(range(100))] == whole[::-1]


def test_without_shuffling_the_order_is_the_sources():
    place = order(7, 3, False)
    assert [place(i) for i in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_no_sum_is_in_two_sets_not_even_with_its_operands_swapped():
    sets = [{frozenset(p) for p in problems} for problems in addition_problems()]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    assert sum(map(len, addition_problems())) == 90 * 90
    assert len(addition_problems()[2]) >= 1000


def test_addition_tasks_have_the_answer_that_arithmetic_gives():
    addition = source("addition")
    for task in (*addition.train(), *addition.evaluation()):
        a, b = task.prompt.removesuffix("=").split("+")
        assert task.answer == str(int(a) + int(b))
    assert len(source("addition", num_evaluation=10).evaluation()) == 10


def test_reasoning_gym_tasks_travel_and_their_evaluation_questions_are_new():
    gym = source("reasoning_gym", name="leg_counting", size=20, num_evaluation=10, seed=3)
    train, evaluation = gym.train(), gym.evaluation()
    assert len(train) == 20
    assert 0 < len(evaluation) <= 10
    assert not {t.prompt for t in train} & {t.prompt for t in evaluation}
    assert train[5] == gym.train()[5] == decode(encode(train[5]), Task)
    assert train[5].meta["reasoning_gym"]["index"] == 5
    assert [t.id for t in evaluation[:2]] == [evaluation[0].id, evaluation[1].id]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "leg_countin"}, "Did you mean 'leg_counting'"),
        ({"name": "leg_counting", "config": {"legs": 3}}, "does not fit 'leg_counting'"),
    ],
)
def test_a_generator_that_does_not_exist_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        source("reasoning_gym", **options).train()


def test_an_option_nobody_knows_is_refused():
    with pytest.raises(ConfigError, match=r"tasks\.options of 'addition': unknown option 'digits'"):
        source("addition", digits=3)


def test_a_system_message_stands_before_every_question_of_a_generator():
    options = {"name": "chain_sum", "size": 3, "num_evaluation": 2, "system": "Think first."}
    source = build(TASKS, "reasoning_gym", options, "tasks")
    plain = build(TASKS, "reasoning_gym", {k: v for k, v in options.items() if k != "system"}, "tasks")
    for told, bare in zip([*source.train(), *source.evaluation()], [*plain.train(), *plain.evaluation()], strict=True):
        system, *others = told.variants["orig"]
        assert (system.role, system.content) == ("system", "Think first.")
        assert tuple(others) == bare.variants["orig"]
        assert (told.id, told.meta) == (bare.id, bare.meta)
