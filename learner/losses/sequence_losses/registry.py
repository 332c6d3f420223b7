"""Every loss term by name: `[[learner.sequence_losses]]`. Yours is `package.module:Class`."""

from cluster.config import LearnerSection
from cluster.plugins import build
from learner.losses.sequence_losses.base import LossTerm
from learner.losses.sequence_losses.laser import LaSeR
from learner.losses.sequence_losses.preference import Dpo, Ipo
from learner.losses.sequence_losses.regularizers import Nll, Selm, TReg, WeightedNll
from learner.losses.sequence_losses.scir import Scir
from learner.losses.sequence_losses.sequence_clip import SequenceClip

TERMS: dict[str, type[LossTerm]] = {
    "dpo": Dpo,
    "ipo": Ipo,
    "laser": LaSeR,
    "nll": Nll,
    "scir": Scir,
    "selm": Selm,
    "sequence_clip": SequenceClip,
    "t_reg": TReg,
    "weighted_nll": WeightedNll,
}


def terms_of(section: LearnerSection) -> list[tuple[str, float, LossTerm]]:
    """Name, weight and term of each that a recipe names. Raises ConfigError."""
    return [
        (t.use.rsplit(":", 1)[-1], t.coef, build(TERMS, t.use, t.options, f"learner.sequence_losses[{i}]"))
        for i, t in enumerate(section.sequence_losses)
    ]
