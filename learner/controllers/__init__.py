"""Every controller by name: `[[controllers]]`. Yours is `package.module:Class`."""

from learner.controllers.base import Controller
from learner.controllers.bstar import BStar
from learner.controllers.schedules import Cosine, Stages
from learner.types import Considered

CONTROLLERS: dict[str, type[Controller]] = {
    "b_star": BStar,
    "cosine": Cosine,
    "stages": Stages,
}

__all__ = ["CONTROLLERS", "Considered", "Controller"]
