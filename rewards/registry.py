"""Every reward by name. Anything else is `package.module:Class`, `package.module:function` or `file.py:function`."""

from __future__ import annotations

import inspect
from typing import Any

from cluster.config import RewardSection
from cluster.errors import ConfigError
from cluster.plugins import build
from rewards.base import Reward
from rewards.function_reward import CALLS_IN_TIME, FunctionReward, loaded

REWARDS: dict[str, str] = {
    "environment": "rewards.builtin.environment:EnvironmentReward",
    "answer_entropy": "rewards.builtin.agreement:AnswerEntropy",
    "attempts": "rewards.builtin.attempts:Attempts",
    "co_reward": "rewards.builtin.co_reward:CoReward",
    "code": "rewards.builtin.code:Code",
    "comas": "rewards.builtin.comas:CoMasReward",
    "crowd": "rewards.builtin.crowd:Crowd",
    "crowd_agreement": "rewards.builtin.crowd:CrowdAgreement",
    "crowd_share": "rewards.builtin.crowd:CrowdShare",
    "cooper": "rewards.learned.cooper:Cooper",
    "duplicate": "rewards.builtin.agreement:Duplicate",
    "events": "rewards.builtin.events:Events",
    "exact": "rewards.builtin.exact:Exact",
    "features": "rewards.learned.features:FeatureReward",
    "follow_up": "rewards.builtin.follow_up:FollowUp",
    "format": "rewards.builtin.format:Format",
    "heron": "rewards.learned.heron:Heron",
    "heron_model": "rewards.learned.heron:HeronModel",
    "imitation": "rewards.learned.step_rewards:ImitationReward",
    "implicit": "rewards.builtin.implicit:Implicit",
    "judge": "rewards.judges.judge_reward:JudgeReward",
    "lare": "rewards.learned.step_rewards:LaRe",
    "length_penalty": "rewards.builtin.length_penalty:LengthPenalty",
    "majority": "rewards.builtin.majority:Majority",
    "math": "rewards.builtin.math:Math",
    "meta_rm": "rewards.learned.meta_rm:MetaRm",
    "numeric": "rewards.builtin.numeric:Numeric",
    "oni": "rewards.learned.oni:Oni",
    "oprl": "rewards.learned.implicit_steps:Oprl",
    "perceptual": "rewards.learned.step_rewards:PerceptualReward",
    "polar": "rewards.learned.polar:Polar",
    "reasoning_gym": "rewards.builtin.reasoning_gym:ReasoningGymScore",
    "rest_mcts": "rewards.learned.quality_values:ReStMcts",
    "rlsp": "rewards.builtin.rlsp:Rlsp",
    "ssr_zero": "rewards.builtin.ssr_zero:SsrZero",
    "self_aligned": "rewards.builtin.self_aligned:SelfAligned",
    "self_certainty": "rewards.builtin.self_certainty:SelfCertainty",
    "spa_rl": "rewards.learned.step_rewards:SpaRl",
    "spc": "rewards.builtin.spc:Spc",
    "self_prm": "rewards.builtin.self_prm:SelfPrm",
    "step_scores": "rewards.builtin.steps:StepScores",
    "subgoals": "rewards.builtin.subgoals:Subgoals",
    "teacher": "rewards.builtin.teacher:Teacher",
    "thoughts": "rewards.builtin.steps:Thoughts",
    "token_contrast": "rewards.builtin.token_contrast:TokenContrast",
    "verdict": "rewards.builtin.verdict:VerdictReward",
    "verifiers": "rewards.builtin.verifiers_objects:VerifiersReward",
    "tree_reward_model": "rewards.learned.reward_model:TreeReward",
    "tree_value": "rewards.learned.quality_values:TreeValue",
    "variant_agreement": "rewards.builtin.co_reward:VariantAgreement",
    "reward_model": "rewards.learned.reward_model:LearnedReward",
}


def build_reward(section: RewardSection, where: str) -> Reward:
    """The reward that a section of the recipe names; `where` is that section's place. Raises ConfigError."""
    found: Any = _loaded(section.use, where)
    if inspect.isclass(found) and issubclass(found, Reward):
        if section.untrusted:
            raise ConfigError(
                f"{where}.untrusted = true, but '{section.use}' is a class, which runs in the reward worker. A "
                "function can be run in the sandbox; a class calls services.verify for what evaluates text."
            )
        return build({section.use: found}, section.use, section.options, where)
    if hasattr(found, "score_group") or (hasattr(found, "data_type") and hasattr(found, "hooks")):
        raise ConfigError(f"{where}.use = '{section.use}' is an object of verifiers. {_with_verifiers(section.use)}")
    if callable(found) and not inspect.isclass(found):
        sandbox_s = section.timeout_s / CALLS_IN_TIME if section.untrusted else None
        return FunctionReward.of(found, section.use, section.options, where, sandbox_s)
    raise ConfigError(
        f"{where}.use = '{section.use}' is {found!r:.80}. A reward is a subclass of rewards.base.Reward, or a function "
        "(prompt, completion, …) -> float."
    )


def _loaded(use: str, where: str) -> Any:
    try:
        return loaded(use, REWARDS, where)
    except ConfigError as error:
        if "No module named 'verifiers" in str(error):
            raise ConfigError(f"{error} {_with_verifiers(use)}") from error
        raise


def _with_verifiers(use: str) -> str:
    return (
        f"Write use = 'verifiers' with options = {{ object = '{use}', python = '…/bin/python' }}, where python is one "
        "that has verifiers."
    )
