"""The recipe: one frozen tree (`models`, `learner`), read from TOML and `section.key=value` overrides (`reading`)."""

from cluster.config.base import Section, Use
from cluster.config.cluster import PlacementSection
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
from cluster.config.models import (
    BufferSection,
    ConsoleSection,
    EvaluationSection,
    RunConfig,
    SelectorSection,
    TrackingSection,
)
from cluster.config.policies import POLICY, PolicySection
from cluster.config.reading import dump, load, overridden, parse, patched, tree_of, without_password
from cluster.config.rewards import DistilledSection, JudgeSection, RewardSection
from cluster.config.steering import ControllerSection

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
