"""Rewards that pass the trial before a run, whose rollouts say what no model of addition says, and fail in the run."""

MADE_UP = ("know", "answer")


def key_error(prompt, completion):
    return 1.0 if _made_up(completion) else {}["verdict"]


def constant(prompt, completion):
    return 0.5


def abstains(prompt, completion):
    return 1.0 if _made_up(completion) else None


def _made_up(completion: str) -> bool:
    return any(word in completion for word in MADE_UP)
