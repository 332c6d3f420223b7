"""Every shaper by name: `[rewards.shape]` below a `[[rewards]]`. Yours is `package.module:Class`."""

from rewards.aggregation.shaping.base import Shaper, StepShaper, TokenShaper
from rewards.aggregation.shaping.brevity import Concise, LengthSwitch, StepLengthSwitch
from rewards.aggregation.shaping.par import Par
from rewards.aggregation.shaping.progress import Progress
from rewards.aggregation.shaping.rivals import Centred, LogSigmoidCentred
from rewards.aggregation.shaping.running import RunningScores
from rewards.aggregation.shaping.steps import ClipDelta

SHAPERS: dict[str, type[Shaper]] = {
    "centred": Centred,
    "clip_delta": ClipDelta,
    "concise": Concise,
    "length_switch": LengthSwitch,
    "log_sigmoid_centred": LogSigmoidCentred,
    "par": Par,
    "progress": Progress,
    "running": RunningScores,
    "step_length_switch": StepLengthSwitch,
}

__all__ = ["SHAPERS", "Shaper", "StepShaper", "TokenShaper"]
