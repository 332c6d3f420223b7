"""ScienceWorld with Gymnasium's interface, run by the Python of .environments/scienceworld. Needs Java."""

from scienceworld import ScienceWorldEnv


class ScienceWorld:
    """One of ScienceWorld's tasks; the seed is its variation. A step's reward is the score that it adds, of 1."""

    def __init__(self, task="find-living-thing", steps=30):
        self.task = task
        self.world = ScienceWorldEnv("", envStepLimit=steps)

    def reset(self, seed=0):
        self.world.load(self.task, seed % self.world.get_max_variations(self.task), "easy", generateGoldPath=True)
        seen, info = self.world.reset()
        return f"{self.world.get_task_description()}\n{seen}", {"gold": self.world.get_gold_action_sequence(), **info}

    def step(self, action):
        seen, reward, over, info = self.world.step(action)
        return seen, reward / 100, over, False, info
