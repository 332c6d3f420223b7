"""Where the parts meet: Ray actors around plain classes, and what each is built from.

actors/, rewards/ and learner/ never import one another; only this package knows all three.
"""

from cluster.workers.context import POLICY, RunContext, learner_name, policy_of, rollout_role
from cluster.workers.generator import GeneratorActor, place_generator
from cluster.workers.judge import JudgeActor, place_judge
from cluster.workers.learner import LearnerActor, place_learner
from cluster.workers.reward import RewardActor, place_reward
from cluster.workers.reward_model import RewardModelActor, place_reward_model
from cluster.workers.rollout import RolloutActor, place_rollout
from cluster.workers.scorer import ScorerActor, place_scorer

__all__ = [
    "POLICY",
    "GeneratorActor",
    "JudgeActor",
    "LearnerActor",
    "RewardActor",
    "RewardModelActor",
    "RolloutActor",
    "RunContext",
    "ScorerActor",
    "learner_name",
    "place_generator",
    "place_judge",
    "place_learner",
    "place_reward",
    "place_reward_model",
    "place_rollout",
    "place_scorer",
    "policy_of",
    "rollout_role",
]
