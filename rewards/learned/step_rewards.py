"""Rewards of single steps that are learnt from outcomes during the run: SPA-RL, LaRe, imitation, perceptual rewards."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import PrivateAttr

from cluster.config import RewardModelSection, RewardSection
from cluster.errors import PluginError
from cluster.plugins import lookup
from cluster.types import Group, Provenance, Scores
from rewards.base import Reward, Services
from rewards.learned.base import RewardModelReward, Versioned
from rewards.learned.caption_labels import Complete
from rewards.learned.episodes import NAMED, STEP, Episode, Step, at_step_ends, episodes_of
from rewards.learned.reward_model import scores_of
from rewards.learned.step_models import increments
from rewards.registry import build_reward


class Told:
    """The labels of a reward model whose reward gives them itself; nothing is ever asked."""

    version = "told"

    async def __call__(self, keys: Sequence[str], /) -> list[float | None]:
        """Answer nothing: no key is submitted."""
        return [None] * len(keys)


class OutcomeReward(RewardModelReward):
    """Base of rewards whose model learns from outcomes: `[reward_models.NAME]` has `judge = ""`."""

    outcome: str = "environment"
    """The reward that says what an episode came to; anything that `rewards.use` takes."""
    outcome_options: dict[str, Any] = {}
    """Options of the reward that `outcome` names."""
    _outcome: Reward | None = PrivateAttr(None)

    def evaluates(self) -> bool:
        return self._verifier().evaluates()

    def declines(self, task: Any) -> str:
        return self._verifier().declines(task)

    async def prepare(self, services: Services) -> None:
        await super().prepare(services)
        await self._verifier().prepare(services)

    def labels_per_group(self, group_size: int) -> int | None:
        return group_size

    def labels_by(self, section: RewardModelSection, complete: Complete | None, *, compares: bool) -> Versioned:
        return Told()

    def _verifier(self) -> Reward:
        if self._outcome is None:
            section = RewardSection(use=self.outcome, options=self.outcome_options)
            self._outcome = build_reward(section, f"outcome '{self.outcome}'")
        return self._outcome


class StepReward(OutcomeReward):
    """Base of rewards that come at the last token of each turn: a model's number for the step, as `paid` has it.

    Every group tells the model what its episodes came to, and is scored by the version published last; until there is
    one it fails, and `missing` says what that means. An episode of a chain of rollouts is learnt and scored as one.
    """

    def key(self, group: Group, episode: Episode) -> str:
        """Return the key under which the model learns an episode; of one key the first outcome stays."""
        return episode.key

    def inputs(self, episode: Episode) -> list[str]:
        """Return what the model reads for each step."""
        return episode.prefixes

    def paid(self, predicted: Float[np.ndarray, " K"], episode: Episode) -> Float[np.ndarray, " K"]:
        """Return the reward of each step from the model's numbers."""
        return predicted

    async def score(self, group: Group, services: Services) -> Scores:
        episodes = [e for e in episodes_of(group) if e.steps]
        if not episodes:
            return Scores.abstained(len(group), "no rollout has turns")
        outcomes = (await self._verifier().score(group, services)).values
        client = services.reward_model(self.model)
        known = {self.key(group, e): float(outcomes[e.rollouts[-1]]) for e in episodes}
        await client.tell({key: value for key, value in known.items() if math.isfinite(value)}, version=Told.version)
        inputs = [self.inputs(e) for e in episodes]
        values, version = await scores_of(client, [text for one in inputs for text in one])
        parts = np.split(values, np.cumsum([len(one) for one in inputs])[:-1])
        tokens = at_step_ends(group, episodes, [self.paid(p, e) for p, e in zip(parts, episodes, strict=True)])
        found = Scores.of([t.sum() for t in tokens], Provenance(model=self.model), version=version)
        return Scores(found.values, found.state, found.provenance, version, tokens)


class SpaRl(StepReward):
    """α ĉ_t + β g_t at the end of turn t: ĉ_t what the model `progress` attributes to it, g_t whether it was executed.

    SPA-RL (arXiv:2505.20732): Σ_t ĉ_t estimates the outcome. g_t is 0 where the turn has an event `not_executed`. The
    paper trains PPO on these alone (α = 1 is unverified, β = 0.5); its released step trainer multiplies step t by
    n − t − 1, so that the last gets 0, and one data file holds outcomes less the others' mean: neither is followed. The
    return of each turn against its group's is ours in the place of a critic.

    Where nearly every turn is executed, β is paid for staying: a policy that can delay the end learns to. `grounding =
    "charge"` subtracts β from each turn, so that only one that was not executed costs, and length is worth nothing.
    """

    model: str = "progress"
    """The section `[reward_models.NAME]`, with `use = "progress"` and `judge = ""`."""
    alpha: float = 1.0
    """α: weight of what the model attributes to a turn."""
    beta: float = 0.5
    """β: weight of a turn that was executed."""
    grounding: Literal["bonus", "charge"] = "bonus"
    """`bonus`: β g_t, the paper's. `charge`: β (g_t − 1)."""
    not_executed: str = "not executed"
    """Text of the event that a turn was no action that could be taken."""

    def paid(self, predicted: Float[np.ndarray, " K"], episode: Episode) -> Float[np.ndarray, " K"]:
        executed = [all(e.text != self.not_executed for e in step.events) for step in episode.steps]
        level = self.beta if self.grounding == "charge" else 0.0
        return fused(predicted, np.array(executed, np.float64), self.alpha, self.beta) - level


def fused(
    contribution: Float[np.ndarray, " K"], executed: Float[np.ndarray, " K"], alpha: float = 1.0, beta: float = 0.5
) -> Float[np.ndarray, " K"]:
    """α ĉ + β g."""
    return alpha * contribution + beta * executed


class LaRe(StepReward):
    """r̂_t = f(z_t) at the end of turn t: z_t are factors of the step, by a function that is written once.

    LaRe (arXiv:2412.11120). There a language model writes five candidates and merges them; here `factors` names a
    Python function of a list of steps that returns one list of B numbers [B, 1] for each factor. `checked_factors` is
    the paper's self-verification of that form. The model is `return_decomposition`, with as many `num_factors`.
    """

    model: str = "return_decomposition"
    """The section `[reward_models.NAME]`, with `use = "return_decomposition"` and `judge = ""`."""
    factors: str = "rewards.learned.step_rewards:step_factors"
    """`package.module:function`, from B steps (`rewards.learned.episodes.Step`) to a list of factors, each [B, 1]."""

    def key(self, group: Group, episode: Episode) -> str:
        return f"{group.id}/{episode.rollouts[0]}{NAMED}{STEP.join(self.inputs(episode))}"

    def inputs(self, episode: Episode) -> list[str]:
        function: Callable[[Sequence[Step]], Any] = lookup({}, self.factors, "factors")
        return [json.dumps(row) for row in checked_factors(function(episode.steps), len(episode.steps)).tolist()]


def checked_factors(found: Any, count: int) -> Float[np.ndarray, "B d"]:
    """Return factors, each [B, 1], as one array. Raises PluginError for what has another form or is not finite."""
    if not isinstance(found, list | tuple) or not found:
        raise PluginError(f"factors are a list of arrays [B, 1], not {found!r:.80}.")
    arrays = [np.asarray(factor, np.float64) for factor in found]
    for i, array in enumerate(arrays):
        if array.shape != (count, 1) or not np.isfinite(array).all():
            raise PluginError(f"factor {i} has shape {array.shape}; finite numbers of shape ({count}, 1) are expected.")
    return np.concatenate(arrays, 1)


def step_factors(steps: Sequence[Step]) -> list[np.ndarray]:
    """Return four factors of any text world: events of sub-goals, whether it was executed, its place, its novelty."""
    seen = [step.seen for step in steps]
    reached = [sum(e.text.startswith("reached ") for e in step.events) for step in steps]
    executed = [all(e.text != "not executed" for e in step.events) for step in steps]
    late = [math.log1p(k) for k in range(len(steps))]
    new = [text not in seen[:k] for k, text in enumerate(seen)]
    return [np.array(column, np.float64)[:, None] for column in (reached, executed, late, new)]


class ImitationReward(StepReward):
    """−log(1 − σ(D) + 10⁻⁸) at the end of each turn, D a discriminator of demonstrated steps from the policy's own.

    Demonstrations are the run's own episodes of outcome 1, own steps those of outcome 0 (adversarial imitation with a
    Lipschitz penalty, arXiv:2006.16785; self-imitation is ours, the paper has an expert's). The model is `imitation`.
    """

    model: str = "imitation"
    """The section `[reward_models.NAME]`, with `use = "imitation"` and `judge = ""`."""

    def inputs(self, episode: Episode) -> list[str]:
        return [step.text for step in episode.steps]


class PerceptualReward(StepReward):
    """What each turn adds to the farthest sub-step that the model `segments` recognises, as a share of all sub-steps.

    Unsupervised perceptual rewards (arXiv:1612.06699), as a component for text: see the model. With `paid_as =
    "probability"` every turn gets its own share, and repeating a late sub-step pays.
    """

    model: str = "segments"
    """The section `[reward_models.NAME]`, with `use = "segments"` and `judge = ""`."""
    paid_as: Literal["increment", "probability"] = "increment"
    """Whether a sub-step pays once, when it is first reached, or in each turn that looks like it."""

    def inputs(self, episode: Episode) -> list[str]:
        return [step.text for step in episode.steps]

    def paid(self, predicted: Float[np.ndarray, " K"], episode: Episode) -> Float[np.ndarray, " K"]:
        return increments(predicted) if self.paid_as == "increment" else predicted
