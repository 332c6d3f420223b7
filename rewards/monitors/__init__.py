"""Every monitor by name: `[[monitors]]`. Yours is `package.module:Class`."""

from collections.abc import Sequence

from cluster.config import RunConfig
from cluster.errors import ConfigError
from cluster.plugins import build
from rewards.monitors.band import Band
from rewards.monitors.base import Alarm, Judged, Monitor
from rewards.monitors.cliff import PolicyCliff
from rewards.monitors.collapse import CollapseGuard
from rewards.monitors.overoptimisation import OverOptimisation
from rewards.monitors.rewardmath import OneToMany
from rewards.monitors.starc import Starc

MONITORS: dict[str, type[Monitor]] = {
    "band": Band,
    "collapse": CollapseGuard,
    "one_to_many": OneToMany,
    "over_optimisation": OverOptimisation,
    "policy_cliff": PolicyCliff,
    "starc": Starc,
}

__all__ = ["MONITORS", "Alarm", "Judged", "Monitor"]


def build_monitors(settings: RunConfig) -> list[Monitor]:
    """Those of the recipe, in its order. Raises ConfigError, also for one that would be blind."""
    monitors = [build(MONITORS, m.use, m.options, f"monitors[{i}]") for i, m in enumerate(settings.monitors)]
    for i, monitor in enumerate(monitors):
        if not isinstance(monitor, Monitor):
            raise ConfigError(
                f"monitors[{i}].use = '{settings.monitors[i].use}' is a plug-in of another kind. "
                f"Known here: {', '.join(sorted(MONITORS))}; your own derives from rewards.monitors.Monitor."
            )
        _sees(f"monitors[{i}]", monitor.reads, settings)
    return monitors


def _sees(where: str, reads: Sequence[str], settings: RunConfig) -> None:
    several = [f"of_{name}" for name in settings.policy_names] if settings.policies else []
    of_rewards = [f"reward/{name}_mean" for name in (*settings.reward_names, *several)]
    for metric in reads:
        if metric.startswith("reward/") and metric.endswith("_mean") and metric not in of_rewards:
            name = metric.removeprefix("reward/").removesuffix("_mean")
            raise ConfigError(
                f"{where} reads '{metric}', but no reward is called '{name}'. "
                f"Add [[rewards]] use = '{name}' with weight = 0, which records it only."
            )
        if metric == "loss/kl_nats" and not settings.learner.loss.kl_coef:
            raise ConfigError(
                f"{where} reads '{metric}', but learner.loss.kl_coef = 0 measures none. Set it, for example to 1e-6."
            )
