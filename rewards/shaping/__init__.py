"""Every shaper by name: `[rewards.shape]` below a `[[rewards]]`. Yours is `package.module:Class`."""

from rewards.shaping.base import Shaper
from rewards.shaping.par import Par
from rewards.shaping.rivals import Centred, LogSigmoidCentred

SHAPERS: dict[str, type[Shaper]] = {
    "centred": Centred,
    "log_sigmoid_centred": LogSigmoidCentred,
    "par": Par,
}

__all__ = ["SHAPERS", "Shaper"]
