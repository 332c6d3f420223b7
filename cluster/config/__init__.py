"""The recipe: one frozen tree (`models`, `learner`), read from TOML and `section.key=value` overrides (`reading`)."""

from cluster.config.base import Section, Use
from cluster.config.controllers import ControllerSection
from cluster.config.engines import EngineSection, ModelSection
from cluster.config.learner import (
    CorrectionSection,
    LearnerSection,
    LoraSection,
    LossSection,
    ScheduleSection,
    TermSection,
    ValueSection,
)
from cluster.config.loader import dump, load, overridden, parse, patched, tree_of, without_password
from cluster.config.placement import PlacementSection
from cluster.config.policies import POLICY, PolicySection
from cluster.config.rewards import DistilledSection, JudgeSection, RewardSection
from cluster.config.run_config import (
    BufferSection,
    ConsoleSection,
    EvaluationSection,
    RunConfig,
    SelectorSection,
    TrackingSection,
)

__all__ = [
    "POLICY",
    "BufferSection",
    "ConsoleSection",
    "ControllerSection",
    "CorrectionSection",
    "DistilledSection",
    "EngineSection",
    "EvaluationSection",
    "JudgeSection",
    "LearnerSection",
    "LoraSection",
    "LossSection",
    "ModelSection",
    "PlacementSection",
    "PolicySection",
    "RewardSection",
    "RunConfig",
    "ScheduleSection",
    "Section",
    "SelectorSection",
    "TermSection",
    "TrackingSection",
    "Use",
    "ValueSection",
    "dump",
    "load",
    "overridden",
    "parse",
    "patched",
    "tree_of",
    "without_password",
]
