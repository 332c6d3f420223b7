"""`[placement]` and `[autoscaling]`: which nodes hold which role, and how many of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cluster.config.base import Section

if TYPE_CHECKING:
    from cluster.config.run_config import RunConfig

ROLES = ("rollout", "learner", "reward", "judge", "scorer", "reward_model")


class PlacementSection(Section):
    """Where the workers go."""

    layout: Literal["any", "separated", "colocated"] = "any"
    """`any`: wherever there is room. `separated`: every role on nodes with its label `kanabo-role` (`learner`,
    `rollout`, `judge`, where scorers are too, `reward`, where reward models are too), with room for all ranks of the
    learner reserved while the run lasts. `colocated`: each rank of the learner shares a node, and on GPUs one GPU, with
    `rollout.workers / learner.ranks` engines; who joins later goes wherever there is room."""
    nodes: dict[str, dict[str, str]] = {}
    """By role, or `judge:NAME`, `scorer:NAME`, further Ray labels its nodes must have, as Ray's label selectors say it:
    `nodes.rollout = { "ray.io/accelerator-type" = "in(H100, H200)" }`."""

    @model_validator(mode="after")
    def _roles(self) -> PlacementSection:
        for role in self.nodes:
            if role.partition(":")[0] not in ROLES:
                raise ValueError(
                    f"placement.nodes.{role} is no role. There are: {', '.join(ROLES)}, judge:NAME, scorer:NAME."
                )
        return self


class AutoscalingRolloutSection(Section):
    """Engines follow the share of its steps that the learner waits for groups."""

    max_workers: NonNegativeInt = 0
    """One more joins, up to so many, while the learner waits; 0: their number is left alone."""
    min_workers: PositiveInt = 1
    """One leaves, down to so many, while the learner hardly waits."""
    grow_above_frac: float = Field(default=0.4, gt=0, lt=1)
    """Add an engine if the learner waits for more than this share of its steps."""
    shrink_below_frac: float = Field(default=0.05, gt=0, lt=1)
    """With a smaller one there may be an engine too many."""
    times: PositiveInt = 5
    """Steps in a row before one joins or leaves. If one is missed as soon as it has left, the next may leave after
    twice as many."""

    @model_validator(mode="after")
    def _ordered(self) -> AutoscalingRolloutSection:
        _in_order("rollout", self.min_workers, self.max_workers or self.min_workers)
        _in_order("rollout", self.shrink_below_frac, self.grow_above_frac)
        return self


class AutoscalingJudgeSection(Section):
    """`[autoscaling.judges.NAME]`: replicas of a judge of kind `vllm` follow the longest wait of a question."""

    max_replicas: PositiveInt
    """One more joins, up to so many, while questions wait."""
    min_replicas: PositiveInt = 1
    """One leaves, down to so many, while hardly any waits."""
    grow_above_s: PositiveFloat = 5.0
    """Add a replica if a question waits for longer. Less than the judge's `deadline_s`."""
    shrink_below_s: NonNegativeFloat = 0.1
    """With less there may be one too many."""
    times: PositiveInt = 6
    """Reports in a row before one joins or leaves; each reward worker makes one every 5 s."""

    @model_validator(mode="after")
    def _ordered(self) -> AutoscalingJudgeSection:
        _in_order("judges.NAME", self.min_replicas, self.max_replicas)
        _in_order("judges.NAME", self.shrink_below_s, self.grow_above_s)
        return self


def _in_order(what: str, low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"autoscaling.{what}: a lower bound, {low:g}, is above its upper one, {high:g}.")


class AutoscalingSection(Section):
    """More or fewer workers as the run needs them; off unless set. Ray's autoscaler is asked for their room by
    `request_resources`; a cluster holds one such request, the last. What `kanabo scale` says holds until the load
    changes it."""

    rollout: AutoscalingRolloutSection = AutoscalingRolloutSection()
    judges: dict[str, AutoscalingJudgeSection] = {}


def check_autoscaling(config: RunConfig) -> None:
    """Raises ValueError for a judge whose replicas are not the run's to add."""
    for name in config.autoscaling.judges:
        if name not in config.judges or config.judges[name].kind != "vllm":
            raise ValueError(
                f"autoscaling.judges.{name}: replicas can be added to judges of kind 'vllm' only. "
                f"Add [judges.{name}] with kind = 'vllm', or remove this."
            )


def check_colocated(config: RunConfig) -> None:
    """Raises ValueError for what cannot share a GPU."""
    workers, ranks = config.rollout.workers, config.learner.ranks
    if config.placement.layout != "colocated":
        return
    if workers % ranks:
        raise ValueError(
            f"placement.layout = 'colocated' gives each of learner.ranks = {ranks} the same number of engines, but "
            f"rollout.workers = {workers}. Make it a multiple."
        )
    if config.weights.transport == "nccl" or config.engine.tensor_parallel > 1:
        raise ValueError(
            "placement.layout = 'colocated' shares each GPU between a rank and its engines: NCCL has one rank a GPU, "
            "and a split engine has several. Set weights.transport = 'pull' and engine.tensor_parallel = 1."
        )
