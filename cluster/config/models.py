"""What a recipe may say: one frozen tree. The docstrings are its documentation (docs/recipes.md is made of them)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Use(Section):
    """A plug-in by name, or as `package.module:Class`, with its options."""

    use: str
    """Its name, or `package.module:Class`."""
    options: dict[str, Any] = {}
    """Its fields."""


class RunSection(Section):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Letters, digits, dots, dashes and underscores."""
    dir: str = "runs"
    """Runs live in `dir/name`. Under a submitted job a relative one is refused, unless $KANABO_RUNS is set."""
    grace_s: PositiveFloat = 60.0
    """After SIGTERM or Ctrl-C: finish the step, checkpoint and leave within this time."""
    stall_s: PositiveFloat = 600.0
    """Without a step for so long the run names what it waits for and ends."""
    max_infrastructure_failures: NonNegativeInt = 8
    """Restarts of dead workers, engines and Redis before the run gives up."""
    max_data_failures: NonNegativeInt = 64
    """Groups that a task's row, an environment or a reward failed on before the run gives up."""


class ModelSection(Section):
    path: str = "tiny:addition"
    """Directory or Hugging Face id; `tiny:NAME` and `smollm2` are made on the spot and cached."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the engines' weights; the learner has its own."""
    options: dict[str, Any] = {}
    """For `tiny:NAME`: the fields of its recipe in actors/tiny.py."""


class TasksSection(Use):
    use: str = "addition"
    """The source: a name below, or `package.module:Class`."""
    shuffle: bool = True
    """Every pass in another order, which depends on seed and pass alone; else in the order of the source."""


class RolloutSection(Section):
    workers: PositiveInt = 1
    """Engines, each in a process of its own."""
    group_size: PositiveInt = 16
    """Rollouts per task (G)."""
    temperature: PositiveFloat = 1.0
    """Of sampling while training."""
    max_tokens: PositiveInt = 256
    """Tokens the policy may write per turn."""
    max_turns: PositiveInt = 1
    """Turns the policy may take in one episode."""
    concurrent_groups: PositiveInt = 64
    """Groups a worker keeps in flight."""
    lease_s: PositiveFloat = 600.0
    """Without progress for so long a group is dropped and its task claimed again."""
    environment: Use = Use(use="single_turn")
    """What answers the policy; by default nothing does."""
    environment_timeout_s: PositiveFloat = 60.0
    """For each answer of the environment; later than that its group is dropped and counted as a data failure."""


class EngineSection(Section):
    use: str = "vllm"
    """Or `package.module:Class` with the calls of `actors.engine.Engine`."""
    max_model_len: PositiveInt = 2048
    """Tokens of prompt and answers together; a longer prompt is a data failure."""
    max_num_seqs: PositiveInt = 256
    """Rollouts that one engine samples at once."""
    max_num_batched_tokens: PositiveInt = 8192
    """Tokens of one forward pass of the engine."""
    kv_cache_gib: PositiveFloat = 1.0
    """Key-value cache of a CPU engine."""
    tensor_parallel: PositiveInt = 1
    """GPUs of one engine."""
    gpu_memory_frac: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that its engine takes."""
    threads: NonNegativeInt = 0
    """CPU threads of one engine; 0 shares the cores out evenly among engines and ranks."""
    options: dict[str, Any] = {}
    """Further fields of vLLM's AsyncEngineArgs."""


class RewardSection(Use):
    name: str = ""
    """Name in metrics and records; the plug-in's own by default."""
    weight: float = 1.0
    """Its share of the reward that is trained on; 0 only records it."""
    when: Literal["admit", "late"] = "admit"
    """`admit`: a group waits for it; `late`: what has arrived by the time the batch is cut counts."""
    timeout_s: PositiveFloat = 30.0
    """Deadline of one call; what is unanswered by then is `failed`."""
    on_missing: Literal["drop_rollout", "drop_group", "wait"] = "drop_rollout"
    """What an unknown score means, unless `missing` gives it a value."""
    missing: float | None = None
    """A value that the method defines for an unknown score (ONI, SSR-Zero: 0); the stored score stays unknown."""


class RewardWorkersSection(Section):
    workers: PositiveInt = 1
    """Processes that score."""
    concurrent_groups: PositiveInt = 64
    """Groups that one has in hand."""
    deadline_s: PositiveFloat = 60.0
    """A stored group waits so long for its `admit` scores."""
    max_wait_s: PositiveFloat = 600.0
    """The same, where a reward says `on_missing = "wait"`."""
    min_valid: PositiveInt = 2
    """With fewer rollouts of known reward a group is dropped."""


class ScheduleSection(Section):
    lr: PositiveFloat = 1e-6
    """Peak learning rate."""
    warmup_steps: NonNegativeInt = 0
    """Steps in which it rises from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Its course from there to the last step."""
    min_lr_frac: float = Field(default=0.0, ge=0, le=1)
    """Where it ends, as a share of `lr`."""


class LossSection(Use):
    use: str = "clipped"
    """The policy loss: a name below, or `package.module:Class`."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence to `learner.reference`; 0 loads no reference model."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """By the names of Schulman, "Approximating KL Divergence" (2020)."""
    entropy_coef: float = 0.0
    """Added to the objective: above 0 it keeps the policy from collapsing."""
    aggregate: Literal["token", "sequence"] = "token"
    """Divide by the step's trained tokens, or average rollouts of equal weight."""


class LearnerSection(Section):
    steps: PositiveInt = 100
    """Optimiser steps in all."""
    groups_per_step: PositiveInt = 32
    """Groups a step trains on."""
    max_staleness: NonNegativeInt = 1
    """Optimiser steps a group may lag behind; 0 is synchronous training."""
    when_late: Literal["wait", "drop"] = "wait"
    """A group that would break the bound: wait for it, or drop it and claim its task again."""
    max_refills: NonNegativeInt = 2
    """Rounds in which filtered groups are replaced before the step trains on what is there."""
    drop_zero_variance: bool = True
    """Groups whose rewards are all equal have no gradient; they are dropped and replaced."""
    ranks: PositiveInt = 1
    """Processes that train together, each with a GPU of its own if there are any."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What the ranks share out: 1 optimiser states, 2 also gradients, 3 also parameters (ZeRO, arXiv:1910.02054)."""
    micro_tokens: PositiveInt = 4096
    """Tokens per forward pass, padding included."""
    row_tokens: PositiveInt = 512
    """Packed rows are at most so long; short sequences get shorter rows, a longer one a row of its own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the forward and backward passes."""
    gradient_checkpointing: bool = False
    """Compute activations again instead of keeping them: less memory, more time."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """`adamw` or plain `sgd`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates."""
    eps: PositiveFloat = 1e-8
    """Adam's guard against division by zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled from the gradient."""
    clip_grad_norm: float = Field(default=1.0, ge=0)
    """Norm to which a longer gradient is shortened; 0 is off."""
    schedule: ScheduleSection = ScheduleSection()
    """Of the learning rate."""
    advantage: Use = Use(use="group")
    """What a reward is worth against the others of its group."""
    loss: LossSection = LossSection()
    """What is minimised."""
    reference: str = "initial"
    """The model that the KL divergence is measured to: `initial`, or a directory."""
    collective_timeout_s: PositiveFloat = 300.0
    """A rank that does not meet the others within this time ends the learner, which is restarted."""
    threads: NonNegativeInt = 0
    """CPU threads of one rank; 0 shares the cores out evenly among engines and ranks."""


class BufferSection(Section):
    url: str | None = None
    """`redis://…` of your own; without it the run starts a server in its directory."""


class WeightsSection(Section):
    transport: Literal["pull", "nccl"] = "pull"
    """`pull`: engines fetch a published version (shared memory on one node, Ray's object store across nodes)."""
    pause_mode: Literal["keep", "wait", "abort"] = "keep"
    """Rollouts under way: go on with the new weights, finish first, or be cut and continued."""
    probe_every: PositiveInt = 1
    """Every so many publishes the engines' log-probs are compared with the learner's."""
    max_drift_nats: PositiveFloat = 1e-3
    """The run stops when the mean difference exceeds three times its floor plus this, twice running."""


class EvaluationSection(Section):
    every_steps: NonNegativeInt = 0
    """0: only before the first and after the last step."""
    max_tasks: PositiveInt = 1000
    """Held-out tasks, one rollout each."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""


class CheckpointSection(Section):
    every_steps: NonNegativeInt = 0
    """0: only at the end and on a stop."""
    keep_last: PositiveInt = 2
    """Older checkpoints are deleted."""


class TrackingSection(Section):
    tensorboard: bool = True
    """Write files for TensorBoard."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases; its package is an extra."""
    samples_per_step: NonNegativeInt = 4
    """Rollouts a step that are written to samples.jsonl with text, scores and advantage."""
    live_table: bool = True
    """Show progress in the terminal."""


class RunConfig(Section):
    """A whole recipe."""

    seed: NonNegativeInt = 0
    """Of the order of tasks, of models made here and of sampling."""
    resume: str = "auto"
    """`auto` continues the run's last checkpoint, `off` refuses a used directory, a path continues that checkpoint."""
    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    tasks: TasksSection = TasksSection()
    rollout: RolloutSection = RolloutSection()
    engine: EngineSection = EngineSection()
    rewards: tuple[RewardSection, ...] = (RewardSection(use="exact"),)
    reward_workers: RewardWorkersSection = RewardWorkersSection()
    learner: LearnerSection = LearnerSection()
    buffer: BufferSection = BufferSection()
    weights: WeightsSection = WeightsSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if not any(r.weight != 0 for r in self.rewards):
            raise ValueError("rewards: at least one needs a weight other than 0, or nothing is learned.")
        names = self.reward_names
        if len(set(names)) < len(names):
            raise ValueError(f"rewards have the names {', '.join(names)}; give each its own with 'name = …'.")
        if self.rollout.group_size == 1 and self.learner.advantage.use in ("group", "leave_one_out"):
            raise ValueError(
                "rollout.group_size = 1, but learner.advantage.use = "
                f"'{self.learner.advantage.use}' compares the rollouts of a group; use at least 2."
            )
        return self

    @property
    def reward_names(self) -> list[str]:
        return [r.name or r.use.rsplit(":", 1)[-1] for r in self.rewards]

    @property
    def admit_rewards(self) -> list[str]:
        return [n for n, r in zip(self.reward_names, self.rewards, strict=True) if r.when == "admit"]
