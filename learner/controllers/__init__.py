"""Every controller by name: `[[controllers]]`. Yours is `package.module:Class`."""

from learner.controllers.amft import Amft
from learner.controllers.base import Controller
from learner.controllers.bstar import BStar
from learner.controllers.lagrangian import Lagrangian
from learner.controllers.schedules import Cosine, Stages
from learner.types import Considered

CONTROLLERS: dict[str, type[Controller]] = {
    "amft": Amft,
    "b_star": BStar,
    "cosine": Cosine,
    "lagrangian": Lagrangian,
    "stages": Stages,
}

__all__ = ["CONTROLLERS", "Considered", "Controller"]
