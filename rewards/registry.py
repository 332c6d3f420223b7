"""Every reward by name. Anything else is `package.module:Class`, `package.module:function` or `file.py:function`."""

from __future__ import annotations

import inspect
from typing import Any

from cluster.config import RewardSection
from cluster.errors import ConfigError
from cluster.plugins import build, lookup
from rewards.base import Signal
from rewards.builtin.agreement import AnswerEntropy, Duplicate
from rewards.builtin.attempts import Attempts
from rewards.builtin.co_reward import CoReward, ViewAgreement
from rewards.builtin.code import Code
from rewards.builtin.comas import CoMasReward
from rewards.builtin.crowd import Crowd, CrowdAgreement, CrowdShare
from rewards.builtin.environment import EnvironmentReward
from rewards.builtin.events import Events
from rewards.builtin.exact import Exact
from rewards.builtin.format import Format
from rewards.builtin.implicit import Implicit
from rewards.builtin.length_penalty import LengthPenalty
from rewards.builtin.majority import Majority
from rewards.builtin.math import Math
from rewards.builtin.numeric import Numeric
from rewards.builtin.reasoning_gym import ReasoningGymScore
from rewards.builtin.self_aligned import SelfAligned
from rewards.builtin.self_certainty import SelfCertainty
from rewards.builtin.ssr_zero import SsrZero
from rewards.builtin.steps import StepScores, Thoughts
from rewards.builtin.token_contrast import TokenContrast
from rewards.function_reward import CALLS_IN_TIME, FunctionSignal, from_file
from rewards.judges.signal import JudgeSignal
from rewards.learned.cooper import Cooper
from rewards.learned.oni import Oni
from rewards.learned.reward_model import LearnedReward

SIGNALS: dict[str, type[Signal]] = {
    "environment": EnvironmentReward,
    "answer_entropy": AnswerEntropy,
    "attempts": Attempts,
    "co_reward": CoReward,
    "code": Code,
    "comas": CoMasReward,
    "crowd": Crowd,
    "crowd_agreement": CrowdAgreement,
    "crowd_share": CrowdShare,
    "cooper": Cooper,
    "duplicate": Duplicate,
    "events": Events,
    "exact": Exact,
    "format": Format,
    "implicit": Implicit,
    "judge": JudgeSignal,
    "length_penalty": LengthPenalty,
    "majority": Majority,
    "math": Math,
    "numeric": Numeric,
    "oni": Oni,
    "reasoning_gym": ReasoningGymScore,
    "ssr_zero": SsrZero,
    "self_aligned": SelfAligned,
    "self_certainty": SelfCertainty,
    "step_scores": StepScores,
    "thoughts": Thoughts,
    "token_contrast": TokenContrast,
    "view_agreement": ViewAgreement,
    "reward_model": LearnedReward,
}


def build_signal(section: RewardSection, where: str) -> Signal:
    """The reward that a section of the recipe names; `where` is that section's place. Raises ConfigError."""
    found: Any = from_file(section.use, where) if ".py:" in section.use else lookup(SIGNALS, section.use, where)
    if inspect.isclass(found) and issubclass(found, Signal):
        if section.untrusted:
            raise ConfigError(
                f"{where}.untrusted = true, but '{section.use}' is a class, which runs in the reward worker. A "
                "function can be run in the sandbox; a class calls services.verify for what evaluates text."
            )
        return build({section.use: found}, section.use, section.options, where)
    if callable(found) and not inspect.isclass(found):
        sandbox_s = section.timeout_s / CALLS_IN_TIME if section.untrusted else None
        return FunctionSignal.of(found, section.use, section.options, where, sandbox_s)
    raise ConfigError(
        f"{where}.use = '{section.use}' is {found!r:.80}. A reward is a subclass of rewards.base.Signal, or a function "
        "(prompt, completion, …) -> float."
    )
