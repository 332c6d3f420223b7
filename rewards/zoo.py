"""Every reward by name. Anything else is `package.module:Class`, `package.module:function` or `file.py:function`."""

from __future__ import annotations

import inspect
from typing import Any

from cluster.config import RewardSection
from cluster.errors import ConfigError
from cluster.plugins import build, lookup
from rewards.base import Signal
from rewards.distilled.cooper import Cooper
from rewards.distilled.learned import LearnedReward
from rewards.distilled.signal import Oni
from rewards.functions import CALLS_IN_TIME, FunctionSignal, from_file
from rewards.judges.signal import JudgeSignal
from rewards.signals.agreement import AnswerEntropy, Duplicate
from rewards.signals.attempts import Attempts
from rewards.signals.co_reward import CoReward, ViewAgreement
from rewards.signals.code import Code
from rewards.signals.comas import CoMasReward
from rewards.signals.crowd import Crowd, CrowdAgreement, CrowdShare
from rewards.signals.environment import EnvironmentReward
from rewards.signals.events import Events
from rewards.signals.exact import Exact
from rewards.signals.format import Format
from rewards.signals.implicit import Implicit
from rewards.signals.length_penalty import LengthPenalty
from rewards.signals.majority import Majority
from rewards.signals.math import Math
from rewards.signals.numeric import Numeric
from rewards.signals.reasoning_gym import ReasoningGymScore
from rewards.signals.self_aligned import SelfAligned
from rewards.signals.self_certainty import SelfCertainty
from rewards.signals.ssr_zero import SsrZero
from rewards.signals.steps import StepScores, Thoughts
from rewards.signals.token_contrast import TokenContrast

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
