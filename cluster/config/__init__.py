"""The recipe: one frozen tree (`run_config`), read from TOML and `section.key=value` overrides (`loader`)."""

from cluster.config.base import Section, Use
from cluster.config.controllers import ControllerSection
from cluster.config.engines import EndpointSection, EngineSection, ModelSection
from cluster.config.evaluations import VOTES, EvaluationSection, NamedEvaluationSection
from cluster.config.foreign_keys import with_new_names
from cluster.config.learner import (
    CorrectionSection,
    DemonstrationsSection,
    LearnerSection,
    LoraSection,
    LossSection,
    RowsSection,
    ScheduleSection,
    SequenceLossSection,
    ValueSection,
)
from cluster.config.loader import (
    dump,
    load,
    merged,
    overridden,
    parse,
    parse_as,
    patched,
    stored,
    tree,
    tree_of,
    without_password,
)
from cluster.config.offline import DataSection, OfflineConfig
from cluster.config.placement import PlacementSection
from cluster.config.policies import POLICY, PolicySection
from cluster.config.rewards import JudgeSection, RewardModelSection, RewardSection
from cluster.config.run_config import (
    BufferSection,
    ConsoleSection,
    RunConfig,
    SelectorSection,
    TrackingSection,
)

__all__ = [
    "POLICY",
    "VOTES",
    "BufferSection",
    "ConsoleSection",
    "ControllerSection",
    "CorrectionSection",
    "DataSection",
    "DemonstrationsSection",
    "EndpointSection",
    "EngineSection",
    "EvaluationSection",
    "JudgeSection",
    "LearnerSection",
    "LoraSection",
    "LossSection",
    "ModelSection",
    "NamedEvaluationSection",
    "OfflineConfig",
    "PlacementSection",
    "PolicySection",
    "RewardModelSection",
    "RewardSection",
    "RowsSection",
    "RunConfig",
    "ScheduleSection",
    "Section",
    "SelectorSection",
    "SequenceLossSection",
    "TrackingSection",
    "Use",
    "ValueSection",
    "dump",
    "load",
    "merged",
    "overridden",
    "parse",
    "parse_as",
    "patched",
    "stored",
    "tree",
    "tree_of",
    "with_new_names",
    "without_password",
]
