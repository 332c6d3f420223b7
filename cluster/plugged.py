"""Every plug-in of a recipe, built once before anything starts: a wrong name or option ends here."""

from __future__ import annotations

from cluster.config import RunConfig
from cluster.errors import ConfigError, nearest
from cluster.plugins import build, lookup


def plugins(settings: RunConfig) -> None:
    """Build every plug-in once, so that a wrong name or option is known before an engine starts."""
    from actors.engine import ENGINES
    from actors.environments import ENVIRONMENTS
    from learner.advantages import ADVANTAGES
    from learner.losses import LOSSES
    from rewards.monitors import build_monitors
    from rewards.shaping import SHAPERS
    from rewards.zoo import build_signal

    environment = settings.rollout.environment
    build(ENVIRONMENTS, environment.use, environment.options, "rollout.environment")
    lookup(ENGINES, settings.engine.use, "engine")
    for i, reward in enumerate(settings.rewards):
        build_signal(reward, f"rewards[{i}]")
        if reward.shape is not None:
            build(SHAPERS, reward.shape.use, reward.shape.options, f"rewards[{i}].shape")
    build_monitors(settings)
    build(ADVANTAGES, settings.learner.advantage.use, settings.learner.advantage.options, "learner.advantage")
    build(LOSSES, settings.learner.loss.use, settings.learner.loss.options, "learner.loss")
    _selection(settings)


def _selection(settings: RunConfig) -> None:
    """Selectors name rewards that there are, and make the pairs that loss terms train on. Raises ConfigError."""
    from learner.terms import build_terms
    from rewards.selectors import SELECTORS

    names = settings.reward_names
    for i, section in enumerate(settings.selectors):
        selector = build(SELECTORS, section.use, section.options, f"selectors[{i}]")
        for field in selector.signal_fields:
            name = getattr(selector, field)
            if name and name not in names:
                raise ConfigError(
                    f"selectors[{i}].options.{field} = '{name}' is none of the rewards. {nearest(name, names)}"
                    f"There are: {', '.join(names)}."
                )
    if build_terms(settings.learner).need_pairs and not settings.selectors:
        raise ConfigError(
            'learner.terms holds a loss on pairs, and nothing makes pairs. Add [[selectors]], use = "best_worst".'
        )
