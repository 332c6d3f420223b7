"""Every shaper by name: `[rewards.shape]` below a `[[rewards]]`. Yours is `package.module:Class`."""

from rewards.shaping.base import Shaper
from rewards.shaping.brevity import Concise, LengthSwitch, StepLengthSwitch
from rewards.shaping.par import Par
from rewards.shaping.progress import Progress
from rewards.shaping.rivals import Centred, LogSigmoidCentred
from rewards.shaping.running import RunningScores
from rewards.shaping.steps import ClipDelta

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

__all__ = ["SHAPERS", "Shaper"]
