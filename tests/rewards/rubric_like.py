"""An object with a rubric's interface, for a Python without verifiers."""


def correct(completion, answer) -> float:
    return float(completion[-1]["content"] == answer)


class Rubric:
    funcs = [correct]

    async def score_group(self, states):
        for state in states:
            state["metrics"] = {f.__name__: await f(state["completion"], state["answer"]) for f in self.funcs}
            state["reward"] = sum(state["metrics"].values())


RUBRIC = Rubric()
