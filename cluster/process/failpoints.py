"""Places where a process kills itself, for tests of what survives.

`KANABO_FAILPOINT="learner.after_assemble learner.mid_publish@3"`: NAME@N is the N-th time that a process passes NAME,
1 by default. With `$KANABO_FAILPOINT_DIR` each acts once, in the process that gets there first, so that a successor
goes on; without it every process that passes dies. `KANABO_FAILPOINT_SIGNAL=SIGSTOP` makes it hang in place of dying.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

FAILPOINTS = (
    "learner.after_assemble", "learner.after_step", "learner.mid_publish", "learner.after_publish",
    "learner.after_release", "learner.after_files", "learner.after_manifest", "learner.after_trim",
    "learner.after_part",
    "rollout.mid_play", "rollout.before_put", "rollout.after_put",
    "rewards.before_score", "actor.mid_update",
    "reward_model.after_fit", "reward_model.after_model", "reward_model.after_checkpoint",
)  # fmt: skip

_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Die here if the environment says so."""
    assert name in FAILPOINTS, name
    wanted = os.environ.get("KANABO_FAILPOINT")
    if wanted is None:
        return
    _passed[name] += 1
    for place in wanted.split():
        at, _, times = place.partition("@")
        if at == name and _passed[name] == int(times or 1) and _first(name):
            os.kill(os.getpid(), signal.Signals[os.environ.get("KANABO_FAILPOINT_SIGNAL", "SIGKILL")])


def _first(name: str) -> bool:
    if "KANABO_FAILPOINT_DIR" not in os.environ:
        return True
    try:
        (Path(os.environ["KANABO_FAILPOINT_DIR"]) / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
