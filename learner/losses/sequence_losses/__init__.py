"""Losses of whole rollouts and pairs: `[[learner.sequence_losses]]`."""

from cluster.config import LearnerSection
from learner.losses.sequence_losses.base import LossTerm, Question, Terms
from learner.losses.sequence_losses.registry import TERMS, terms_of

__all__ = ["TERMS", "LossTerm", "Question", "Terms", "build_sequence_losses", "terms_of"]


def build_sequence_losses(section: LearnerSection) -> Terms:
    """The terms that a recipe names. Raises ConfigError."""
    return Terms(terms_of(section))
