"""Every plug-in of a recipe, built once before anything starts: a wrong name or option ends here."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from actors.engine import ENGINES, check_options
from cluster.config import RunConfig, Use
from cluster.errors import ConfigError, nearest
from cluster.plugins import build, lookup
from learner.advantages.registry import ADVANTAGES
from rewards.aggregation.selectors import SELECTORS
from rewards.aggregation.shaping import SHAPERS
from rewards.monitors import build_monitors
from rewards.registry import build_reward
from rewards.sandbox.launch import require

T = TypeVar("T")

EARLIER = {
    "advantages": (
        ("of_step", "of_group", "of_groups", "token_level"),
        "An advantage estimator has one method, advantages(groups), from a step's ScoredGroups to the advantages of "
        "each. One that says each token's derives from learner.advantages.estimators.TokenAdvantage",
    ),
    "shape": (
        ("of_step", "shape_group", "shape_tokens", "memory", "recalling", "token_level"),
        "A shaper has one method, shape(values, group). One that compares groups derives from "
        "rewards.aggregation.shaping.StepShaper, one of token scores from TokenShaper, one that remembers also from "
        "cluster.plugins.StatefulPlugin",
    ),
}
"""The one method of a kind of plug-in → what stood beside it in version 0.1, and what takes its place."""


def plugins(settings: RunConfig) -> None:
    """Build every plug-in once, so that a wrong name or option is known before an engine starts."""
    from actors.environments import ENVIRONMENTS
    from actors.environments.search import SearchEnvironment
    from actors.tasks import TASKS
    from learner.controllers.apply import memory_of
    from learner.losses.loss_trial import try_loss
    from learner.losses.policy_losses import LOSSES
    from rewards.judges.backends.http import key_from
    from rewards.learned.factory import can_begin

    environment = settings.rollout.environment
    built = _in_time(
        lambda: _checked(build_kind(ENVIRONMENTS, environment, "rollout.environment", "play")),
        settings.rollout.environment_timeout_s,
        f"rollout.environment.use = '{environment.use}': the constructor did not return within "
        "rollout.environment_timeout_s",
    )
    if inspect.iscoroutinefunction(built.play) or inspect.isgeneratorfunction(built.play):
        raise ConfigError(
            f"rollout.environment.use = '{environment.use}': {type(built).__name__}.play is no asynchronous generator. "
            "Write it as `async def play(self, task, variant)` and `yield` an Observation for each turn, then an End."
        )
    if isinstance(built, SearchEnvironment):
        _check_search(settings)
    agents = len(built.agents)
    if settings.rollout.group_size % agents:
        raise ConfigError(
            f"rollout.group_size = {settings.rollout.group_size} is no multiple of the {agents} agents of "
            f"rollout.environment.use = '{environment.use}', each of which leaves a rollout. Use {8 * agents} or so."
        )
    for own in map(settings.of_policy, settings.policy_names):
        lookup(ENGINES, own.engine.use, "engine")
        check_options(own.engine)
        loss = build_kind(LOSSES, own.learner.loss, "learner.loss", "loss")
        if type(loss) not in LOSSES.values():
            try_loss(loss, own.learner.loss)
    for where, section in settings.placed_rewards:
        reward = build_reward(section, where)
        if len(settings.rollout.prompt_variants) < reward.min_variants:
            raise ConfigError(
                f"{where} = '{section.use}' compares {reward.min_variants} variants of a task, and "
                f"rollout.prompt_variants = {list(settings.rollout.prompt_variants)}. Name another, such as a "
                "rewording."
            )
        for name in reward.scorers():
            if name not in settings.scorers:
                raise ConfigError(
                    f"{where} = '{section.use}' reads with the scorer '{name}'. {nearest(name, settings.scorers)}"
                    f"Add a section [scorers.{name}]."
                )
        if reward.evaluates():
            require(f"{where} = '{section.use}' evaluates what the policy writes")
        if section.shape is not None:
            build_kind(SHAPERS, section.shape, f"{where}.shape", "shape")
    for i, section in enumerate(settings.evaluations):
        if section.environment is not None:
            where = f"evaluations[{i}].environment"
            _in_time(
                partial(build_kind, ENVIRONMENTS, section.environment, where, "play"),
                settings.rollout.environment_timeout_s,
                f"{where}.use = '{section.environment.use}': the constructor did not return within "
                "rollout.environment_timeout_s",
            )
        if section.tasks is not None:
            source = build(TASKS, section.tasks.use, section.tasks.options, f"evaluations[{i}].tasks")
            if not len(source.evaluation()) and not len(source.train()):
                raise ConfigError(f"evaluations[{i}].tasks.use = '{section.tasks.use}' gives no task.")
    build_monitors(settings)
    advantage = build_kind(ADVANTAGES, settings.learner.advantage, "learner.advantage", "advantages")
    for name in getattr(advantage, "named_rewards", ()):
        trained = [n for n, r in zip(settings.reward_names, settings.rewards, strict=True) if r.weight != 0]
        if name not in trained:
            raise ConfigError(
                f"learner.advantage.options.weights.{name}: there is no such trained reward. "
                f"{nearest(name, trained)}There are: {', '.join(trained)}."
            )
    if memory_of(settings, {}).remembering and settings.policies:
        raise ConfigError(
            "[[controllers]], learner.experience_replay and the advantages 'role_baseline' and 'explors' remember what "
            "one policy did, and this recipe has several. Leave them out, or [policies]."
        )
    can_begin(settings)
    for name, judge in settings.judges.items():
        key_from(judge.key_env, f"judges.{name}")
    _selection(settings)


def _check_search(settings: RunConfig) -> None:
    """Raises ConfigError where a recipe adds rollouts to groups that a search makes."""
    use = settings.rollout.environment.use
    for key, there in (
        ("[policies.…]", settings.policies),
        ("[generators.…]", settings.generators),
        ("rollout.prompt_variants", len(settings.rollout.prompt_variants) > 1),
    ):
        if there:
            raise ConfigError(
                f"rollout.environment.use = '{use}' makes whole groups by a search of one policy on one prompt; "
                f"{key} has no place in them. Leave it out."
            )


def _checked(environment: Any) -> Any:
    """The environment, after its own check."""
    if (check := getattr(environment, "check", None)) is not None:
        check()
    return environment


def _in_time(make: Callable[[], T], timeout_s: float, late: str) -> T:
    """Return what `make` gives, called on a thread as the worker calls it. Raises ConfigError past the deadline."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return future.result(timeout_s)
    except TimeoutError as error:
        if future.done():  # the constructor's own
            raise
        raise ConfigError(f"{late} = {timeout_s:g} s.") from error


def build_kind(known: Mapping[str, Any], section: Use, where: str, method: str) -> Any:
    """The plug-in, which has the method that its kind is asked for. Raises ConfigError."""
    built = build(known, section.use, section.options, where)
    if not callable(getattr(built, method, None)):
        raise ConfigError(
            f"{where}.use = '{section.use}' has no method '{method}', so it is a plug-in of another kind. "
            f"Known here: {', '.join(sorted(known))}."
        )
    if method in EARLIER:
        _refuse_earlier(built, method, f"{where}.use = '{section.use}'")
    return built


def _refuse_earlier(built: Any, method: str, what: str) -> None:
    """Raises ConfigError for a plug-in with the methods that version 0.1 asked for: nothing would call them."""
    names, now = EARLIER[method]
    if earlier := [name for name in names if hasattr(type(built), name)]:
        raise ConfigError(f"{what} has '{earlier[0]}', which is of version 0.1 and never called. {now}: move it there.")
    first = next(iter(inspect.signature(getattr(built, method)).parameters), "")
    if method == "advantages" and first.startswith("rewards"):
        raise ConfigError(
            f"{what} has advantages({first}), which is of version 0.1: it would be given groups. {now}. The rewards of "
            "a group are its `rewards`."
        )


def _selection(settings: RunConfig) -> None:
    """Selectors name rewards that there are, and make the pairs that loss terms train on. Raises ConfigError."""
    from learner.losses.sequence_losses import build_sequence_losses

    names = settings.reward_names
    for i, section in enumerate(settings.selectors):
        selector = build_kind(SELECTORS, section, f"selectors[{i}]", "of_step")
        for field in selector.reward_fields:
            name = getattr(selector, field)
            if name and name not in names:
                raise ConfigError(
                    f"selectors[{i}].options.{field} = '{name}' is none of the rewards. {nearest(name, names)}"
                    f"There are: {', '.join(names)}."
                )
    if build_sequence_losses(settings.learner).need_pairs and not settings.selectors:
        raise ConfigError(
            "learner.sequence_losses holds a loss on pairs, and nothing makes pairs. Add [[selectors]], "
            'use = "best_worst".'
        )
