"""Every loss term by name: `[[learner.sequence_losses]]`. Yours is `package.module:Class`."""

from cluster.config import LearnerSection
from cluster.plugins import build
from learner.losses.sequence_losses.base import LossTerm, Terms
from learner.losses.sequence_losses.laser import LaSeR
from learner.losses.sequence_losses.preference import Dpo, Ipo
from learner.losses.sequence_losses.regularizers import Nll, Selm, TReg
from learner.losses.sequence_losses.sequence_clip import SequenceClip

TERMS: dict[str, type[LossTerm]] = {
    "dpo": Dpo,
    "ipo": Ipo,
    "laser": LaSeR,
    "nll": Nll,
    "selm": Selm,
    "sequence_clip": SequenceClip,
    "t_reg": TReg,
}

__all__ = ["TERMS", "LossTerm", "Terms", "build_sequence_losses"]


def build_sequence_losses(section: LearnerSection) -> Terms:
    """The terms that a recipe names. Raises ConfigError."""
    return Terms(
        [
            (t.use.rsplit(":", 1)[-1], t.coef, build(TERMS, t.use, t.options, f"learner.sequence_losses[{i}]"))
            for i, t in enumerate(section.sequence_losses)
        ]
    )
