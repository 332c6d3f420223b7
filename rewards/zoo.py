from cluster.plugins import build
from cluster.types import Scores
from rewards.base import Signal
class Exact(Signal):
    async def score(self, group, services):
        return Scores.of([float(r.text.strip()==group.task.answer) for r in group.rollouts])
SIGNALS={"exact":Exact}
def build_signal(section, where): return build(SIGNALS, section.use, section.options, where)
