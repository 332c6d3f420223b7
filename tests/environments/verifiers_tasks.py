"""Task classes as users of verifiers 0.4 write them, run by the Python of .environments/verifiers."""

import verifiers.v1 as vf


class Data(vf.TaskData):
    answer: str = ""
    level: int = 0


class Config(vf.TaskConfig):
    bonus: float = 0.0


class Additions(vf.Task[Data, vf.State, Config]):
    @vf.reward(weight=2.0)
    async def correct(self, trace: vf.Trace) -> float:
        return float(int(trace.last_reply) == int(self.data.answer))

    @vf.reward
    async def talks(self, task: Data, trace: vf.Trace) -> dict[str, float]:
        assert trace.num_turns == 1
        assert task.prompt_text == "Be brief.\n\n?", task.prompt_text
        return {"level": task.level / 10, "bonus": self.config.bonus}

    @vf.metric
    async def length(self, trace: vf.Trace) -> float:
        return float(len(trace.transcript))


class LooksAtFiles(vf.Task[Data]):
    @vf.reward
    async def wrote(self, runtime: vf.Runtime) -> float:
        return 1.0


class Plain(vf.Task[Data]):
    pass
