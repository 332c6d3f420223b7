"""Kanabo from Python: `kanabo.train("quickstart", rewards=[my_function])`, and the classes that a plug-in is made of.

Importing `kanabo` imports nothing else: a name brings its module when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors.environments.base import Environment
    from actors.tasks.base import TaskSource
    from cluster.config import RunConfig
    from cluster.errors import ConfigError, KanaboError
    from cluster.storage.group_archive import ArchivedGroup
    from cluster.types import Group, GroupReward, Message, Pair, Provenance, Rollout, Scores, Task, Turn
    from kanabo.runs import Run, RunFailed, load, run, train
    from learner.advantages.estimators import Advantage
    from learner.controllers.base import Controller
    from learner.losses.policy_losses import PolicyLoss
    from learner.losses.sequence_losses.base import LossTerm
    from rewards.aggregation.selectors.base import Selector
    from rewards.aggregation.shaping.base import Shaper
    from rewards.base import Reward, Services
    from rewards.monitors.base import Monitor

    __version__: str

MODULES = {
    "Advantage": "learner.advantages.estimators",
    "ArchivedGroup": "cluster.storage.group_archive",
    "ConfigError": "cluster.errors",
    "Controller": "learner.controllers.base",
    "Environment": "actors.environments.base",
    "Group": "cluster.types",
    "GroupReward": "cluster.types",
    "KanaboError": "cluster.errors",
    "LossTerm": "learner.losses.sequence_losses.base",
    "Message": "cluster.types",
    "Monitor": "rewards.monitors.base",
    "Pair": "cluster.types",
    "PolicyLoss": "learner.losses.policy_losses",
    "Provenance": "cluster.types",
    "Reward": "rewards.base",
    "Rollout": "cluster.types",
    "Run": "kanabo.runs",
    "RunConfig": "cluster.config",
    "RunFailed": "kanabo.runs",
    "Scores": "cluster.types",
    "Selector": "rewards.aggregation.selectors.base",
    "Services": "rewards.base",
    "Shaper": "rewards.aggregation.shaping.base",
    "Task": "cluster.types",
    "TaskSource": "actors.tasks.base",
    "Turn": "cluster.types",
    "load": "kanabo.runs",
    "run": "kanabo.runs",
    "train": "kanabo.runs",
}
"""The module that has each public name."""

__all__ = [
    "Advantage",
    "ArchivedGroup",
    "ConfigError",
    "Controller",
    "Environment",
    "Group",
    "GroupReward",
    "KanaboError",
    "LossTerm",
    "Message",
    "Monitor",
    "Pair",
    "PolicyLoss",
    "Provenance",
    "Reward",
    "Rollout",
    "Run",
    "RunConfig",
    "RunFailed",
    "Scores",
    "Selector",
    "Services",
    "Shaper",
    "Task",
    "TaskSource",
    "Turn",
    "load",
    "run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("kanabo")
    if name not in MODULES:
        raise AttributeError(f"module 'kanabo' has no attribute '{name}'")
    from importlib import import_module

    _import_packages()
    value = globals()[name] = getattr(import_module(MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def _import_packages() -> None:
    """Import Kanabo's packages from beside this one, and leave sys.path as the caller has it.

    Raises ImportError if the process has imported another module under the name of one of them.
    """
    import os
    import sys
    from importlib import import_module

    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    path = list(sys.path)
    try:
        sys.path.insert(0, root)
        for name in ("cluster", "actors", "learner", "rewards"):
            file = import_module(name).__file__
            if file is None or os.path.dirname(os.path.dirname(os.path.realpath(file))) != root:
                raise ImportError(
                    f"this process has imported a module '{name}' from '{file}', and Kanabo has a package of that "
                    "name. Rename the module, or import kanabo's classes in a process that does not import it."
                )
    finally:
        sys.path[:] = path
