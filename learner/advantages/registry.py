"""Every advantage estimator by name; yours is `package.module:Class`."""

from learner.advantages.estimators import (
    Advantage,
    DrGrpo,
    GroupAdvantage,
    LeaveOneOut,
    MultiAdvantage,
    ReinforcePlusPlus,
    RoleBaseline,
    ThoughtCredit,
    TokenReturns,
    TokenRewards,
)
from learner.advantages.steps import EpisodeAndStep, ExploRS
from learner.advantages.trees import TreeAdvantage

ADVANTAGES: dict[str, type[Advantage]] = {
    "group": GroupAdvantage,
    "grpo": GroupAdvantage,
    "dr_grpo": DrGrpo,
    "leave_one_out": LeaveOneOut,
    "rloo": LeaveOneOut,
    "reinforce_plus_plus": ReinforcePlusPlus,
    "reinforce++": ReinforcePlusPlus,
    "role_baseline": RoleBaseline,
    "explors": ExploRS,
    "multi": MultiAdvantage,
    "oprl": EpisodeAndStep,
    "token_returns": TokenReturns,
    "token_rewards": TokenRewards,
    "tp_grpo": ThoughtCredit,
    "tree": TreeAdvantage,
}
