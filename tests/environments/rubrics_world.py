"""Rubrics as users of verifiers 0.1 to 0.3 write them, run by the Python of .environments/rubrics."""

import verifiers as vf

PARSER = vf.XMLParser(["think", "answer"], answer_field="answer")


def correct(parser, completion, answer) -> float:
    return 1.0 if parser.parse_answer(completion) == answer else 0.0


async def level(info, state, **kwargs) -> float:
    assert state["info"] == info
    assert kwargs["task"] == "sums"
    assert state["turn"] == len(state["trajectory"]) == 1
    return info["level"] / 10


def shortest(completions) -> list[float]:
    lengths = [len(completion[-1]["content"]) for completion in completions]
    return [float(n == min(lengths)) for n in lengths]


def raises(completion) -> float:
    if "<answer>" not in completion[-1]["content"]:
        raise KeyError("no answer")
    return 0.0


class Lengths:
    """A function object, which has no name of its own."""

    def __call__(self, completion, **_) -> float:
        return len(completion[-1]["content"]) * 0.0


WEIGHED = vf.Rubric(funcs=[correct, level], weights=[2.0, 0.5], parser=PARSER)
GROUP = vf.RubricGroup(rubrics=[WEIGHED, vf.Rubric(funcs=[shortest], weights=[0.1])])
FAILS = vf.Rubric(funcs=[correct, raises, Lengths()], parser=PARSER)
EMPTY = vf.Rubric()
NOTHING = "a text"


def short_lists(completions) -> list[float]:
    return [1.0]


SHORT = vf.Rubric(funcs=[short_lists])


def load_environment(weight: float = 1.0):
    """What a module of an environment offers; its rubric is all that a reward needs."""

    class Environment:
        rubric = vf.Rubric(funcs=[correct], weights=[weight], parser=PARSER)

    return Environment()
