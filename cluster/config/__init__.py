"""The recipe: one frozen tree (`models`), read from TOML and `section.key=value` overrides (`reading`)."""

from cluster.config.models import (
    LearnerSection,
    LossSection,
    ModelSection,
    RewardSection,
    RunConfig,
    ScheduleSection,
    Section,
    TrackingSection,
    Use,
)
from cluster.config.reading import dump, load, parse, without_password

__all__ = [
    "LearnerSection",
    "LossSection",
    "ModelSection",
    "RewardSection",
    "RunConfig",
    "ScheduleSection",
    "Section",
    "TrackingSection",
    "Use",
    "dump",
    "load",
    "parse",
    "without_password",
]
