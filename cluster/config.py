"""The recipe: one frozen tree, read from TOML and `section.key=value` overrides, checked before anything starts."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from cluster.errors import ConfigError, nearest


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Use(Section):
    """A plug-in by name, or as `package.module:Class`, with its options."""

    use: str
    options: dict[str, Any] = {}


class RunSection(Section):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    dir: str = "runs"
    """Runs live in `dir/name`. Under a submitted job a relative one is refused, unless $KANABO_RUNS is set."""
    grace_s: PositiveFloat = 60.0
    """After SIGTERM or Ctrl-C: finish the step, checkpoint and leave within this time."""
    silent_s: PositiveFloat = 60.0
    """An actor that does not answer for so long is killed and replaced."""
    stall_s: PositiveFloat = 600.0
    """Without a step for so long the run names what it waits for and ends."""
    max_infrastructure_failures: NonNegativeInt = 8
    """Restarts of dead workers, engines and Redis before the run gives up."""
    max_data_failures: NonNegativeInt = 64
    """Groups dropped because an environment or a plug-in failed on them."""


class ModelSection(Section):
    path: str = "tiny:addition"
    """Directory or Hugging Face id; `tiny:NAME` and `smollm2` are made on the spot and cached."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    options: dict[str, Any] = {}


class TasksSection(Use):
    use: str = "addition"
    shuffle: bool = True


class RolloutSection(Section):
    workers: PositiveInt = 1
    group_size: PositiveInt = 16
    """Rollouts per task (G)."""
    temperature: PositiveFloat = 1.0
    max_tokens: PositiveInt = 256
    """Tokens the policy may write per turn."""
    max_turns: PositiveInt = 1
    concurrent_groups: PositiveInt = 64
    """Groups a worker keeps in flight."""
    lease_s: PositiveFloat = 600.0
    """Without progress for so long a group is dropped and its task claimed again."""
    environment: Use = Use(use="single_turn")


class EngineSection(Section):
    use: str = "vllm"
    """Or `package.module:Class` with the calls of `actors.engine.Engine`."""
    max_model_len: PositiveInt = 2048
    max_num_seqs: PositiveInt = 256
    max_num_batched_tokens: PositiveInt = 8192
    kv_cache_gib: PositiveFloat = 1.0
    tensor_parallel: PositiveInt = 1
    gpu_memory_frac: float = Field(default=0.9, gt=0, le=1)
    threads: NonNegativeInt = 0
    """CPU threads of one engine; 0 shares the cores out evenly among engines and ranks."""
    options: dict[str, Any] = {}
    """Further fields of vLLM's AsyncEngineArgs."""


class RewardSection(Use):
    name: str = ""
    """Name in metrics and records; the plug-in's own by default."""
    weight: float = 1.0
    when: Literal["admit", "late"] = "admit"
    timeout_s: PositiveFloat = 30.0
    """Deadline of one call; what is unanswered by then is `failed`."""
    on_missing: Literal["drop_rollout", "drop_group", "wait"] = "drop_rollout"
    """What an unknown score means, unless `missing` gives it a value."""
    missing: float | None = None
    """A value that the method defines for an unknown score (ONI, SSR-Zero: 0); the stored score stays unknown."""


class RewardWorkersSection(Section):
    workers: PositiveInt = 1
    concurrent_groups: PositiveInt = 64
    deadline_s: PositiveFloat = 60.0
    """A stored group waits so long for its `admit` scores."""
    max_wait_s: PositiveFloat = 600.0
    """The same, where a reward says `on_missing = "wait"`."""
    min_valid: PositiveInt = 2
    """With fewer rollouts of known reward a group is dropped."""


class DistilledSection(Use):
    """A reward model that learns from labels during the run; rewards use `[distilled.NAME]` by `model = "NAME"`."""

    use: str = "classification"
    """`retrieval`, `classification`, `ranking`, or `package.module:Class`."""
    judge: str = "judge"
    """Who labels: the name of its section."""
    goal: str = "default"
    """What counts as good news: `default`, `combat`, `gold`, or a sentence of your own."""
    batch_size: PositiveInt = 100
    """Captions per request to the labeller's judge."""
    max_in_flight: PositiveInt = 4
    """Requests at once."""
    max_attempts: PositiveInt = 2
    """Times that an unreadable caption is asked about."""
    max_backlog: PositiveInt = 10_000
    """Captions that wait to be labelled; the oldest leave first."""
    in_flight_ttl_s: PositiveFloat = 120.0
    """A caption that was sent and not labelled for so long is sent again."""
    held_out_frac: float = Field(default=0.1, gt=0, lt=1)
    """Labels that are never learnt from, by hash of the caption."""
    min_held_out: PositiveInt = 50
    """With fewer held-out labels nothing is published."""
    min_agreement: float = Field(default=0.6, ge=0, le=1)
    """With held-out labels, both classes counting the same; a version that reaches less is not published."""
    publish_every_s: PositiveFloat = 10.0
    """A new version has stored groups scored again, so not more often than this."""


class ScheduleSection(Section):
    lr: PositiveFloat = 1e-6
    warmup_steps: NonNegativeInt = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    min_lr_frac: float = Field(default=0.0, ge=0, le=1)


class CorrectionSection(Section):
    """What importance ratios (learner / behaviour) of some tokens do to their weight in the loss."""

    how: Literal["truncate", "mask"] = "truncate"
    """`truncate` weights by the ratio within the bounds, `mask` leaves out what is outside them."""
    level: Literal["token", "sequence", "geometric"] = "token"
    """The ratio of a token, the product over its rollout, or that product's geometric mean."""
    low: float = Field(default=0.0, ge=0)
    high: PositiveFloat = 2.0

    @model_validator(mode="after")
    def _ordered(self) -> CorrectionSection:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}.")
        return self


class LossSection(Use):
    use: str = "clipped"
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence to `learner.reference`; 0 loads no reference model."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    entropy_coef: float = 0.0
    """Added to the objective: above 0 it keeps the policy from collapsing."""
    aggregate: Literal["token", "sequence", "constant"] = "token"
    """Divide by the step's trained tokens, average rollouts of equal weight, or divide by `constant_tokens` a rollout
    whatever their lengths (Dr. GRPO)."""
    constant_tokens: PositiveInt | None = None
    mismatch: CorrectionSection | None = None
    """For tokens sampled with the current weights, where engine and learner differ by rounding alone."""
    staleness: CorrectionSection | None = None
    """For tokens sampled with older weights."""

    @model_validator(mode="after")
    def _constant(self) -> LossSection:
        if (self.aggregate == "constant") != (self.constant_tokens is not None):
            raise ValueError(
                f"learner.loss.aggregate = '{self.aggregate}' and constant_tokens = {self.constant_tokens}: "
                "'constant' needs a number of tokens, rollout.max_tokens for one, and only 'constant' has a use for it."
            )
        return self


class LearnerSection(Section):
    steps: PositiveInt = 100
    groups_per_step: PositiveInt = 32
    max_staleness: NonNegativeInt = 1
    """Optimiser steps a group may lag behind; 0 is synchronous training."""
    when_late: Literal["wait", "drop"] = "wait"
    max_refills: NonNegativeInt = 2
    """Rounds in which filtered groups are replaced before the step trains on what is there."""
    drop_zero_variance: bool = True
    """Groups whose rewards are all equal have no gradient; they are dropped and replaced."""
    drop_truncated: bool = False
    """Rollouts cut short by their budget are left out: no loss, as in DAPO (arXiv:2503.14476, section 3.4), and no part
    in the baseline, their reward being unknown."""
    ranks: PositiveInt = 1
    zero_stage: Literal[0, 1, 2, 3] = 0
    micro_tokens: PositiveInt = 4096
    """Tokens per forward pass, padding included."""
    row_tokens: PositiveInt = 512
    """Packed rows are at most so long; short sequences get shorter rows, a longer one a row of its own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    optimizer: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(default=0.0, ge=0)
    clip_grad_norm: float = Field(default=1.0, ge=0)
    """0 is off."""
    schedule: ScheduleSection = ScheduleSection()
    advantage: Use = Use(use="group")
    loss: LossSection = LossSection()
    reference: str = "initial"
    collective_timeout_s: PositiveFloat = 300.0
    threads: NonNegativeInt = 0
    """CPU threads of one rank; 0 shares the cores out evenly among engines and ranks."""


class BufferSection(Section):
    url: str | None = None
    """`redis://…` of your own; without it the run starts a server in its directory."""


class WeightsSection(Section):
    transport: Literal["pull", "nccl"] = "pull"
    """`pull`: engines fetch a published version (shared memory on one node, Ray's object store across nodes)."""
    pause_mode: Literal["keep", "wait", "abort"] = "keep"
    probe_every: PositiveInt = 1
    """Every so many publishes the engines' log-probs are compared with the learner's."""
    max_drift_nats: PositiveFloat = 1e-3
    """The run stops when the mean difference exceeds three times its floor plus this, twice running."""


class EvaluationSection(Section):
    every_steps: NonNegativeInt = 0
    """0: only before the first and after the last step."""
    max_tasks: PositiveInt = 1000
    temperature: float = Field(default=0.0, ge=0)


class CheckpointSection(Section):
    every_steps: NonNegativeInt = 0
    """0: only at the end and on a stop."""
    keep_last: PositiveInt = 2
    record_every_steps: NonNegativeInt = 0
    """Every so many steps are kept whole for `cluster.replay`; those with a non-finite gradient are in any case."""


class TrackingSection(Section):
    tensorboard: bool = True
    wandb: Literal["off", "offline", "online"] = "off"
    samples_per_step: NonNegativeInt = 4
    live_table: bool = True


class RunConfig(Section):
    """A whole recipe."""

    seed: NonNegativeInt = 0
    resume: str = "auto"
    """`auto` continues the run's last checkpoint, `off` refuses a used directory, a path continues that checkpoint."""
    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    tasks: TasksSection = TasksSection()
    rollout: RolloutSection = RolloutSection()
    engine: EngineSection = EngineSection()
    rewards: tuple[RewardSection, ...] = (RewardSection(use="exact"),)
    reward_workers: RewardWorkersSection = RewardWorkersSection()
    distilled: dict[str, DistilledSection] = {}
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
        if self.rollout.group_size == 1 and self.learner.drop_zero_variance:
            raise ValueError(
                "rollout.group_size = 1 and learner.drop_zero_variance = true: a single reward has no variance, "
                "and every group would be dropped. Set learner.drop_zero_variance = false."
            )
        return self

    @property
    def reward_names(self) -> list[str]:
        return [r.name or r.use.rsplit(":", 1)[-1] for r in self.rewards]

    @property
    def admit_rewards(self) -> list[str]:
        return [n for n, r in zip(self.reward_names, self.rewards, strict=True) if r.when == "admit"]


FOREIGN_KEYS = {
    "n_samples_per_prompt": "rollout.group_size",
    "num_generations": "rollout.group_size",
    "n": "rollout.group_size",
    "train_batch_size": "learner.groups_per_step",
    "rollout_batch_size": "learner.groups_per_step",
    "micro_batch_size": "learner.micro_tokens",
    "ppo_max_token_len_per_gpu": "learner.micro_tokens",
    "max_response_length": "rollout.max_tokens",
    "max_completion_length": "rollout.max_tokens",
    "max_prompt_length": "engine.max_model_len",
    "tensor_parallel_size": "engine.tensor_parallel",
    "tensor_model_parallel_size": "engine.tensor_parallel",
    "gpu_memory_utilization": "engine.gpu_memory_frac",
    "eval_interval": "evaluation.every_steps",
    "test_freq": "evaluation.every_steps",
    "save_interval": "checkpoint.every_steps",
    "save_freq": "checkpoint.every_steps",
    "advantage_estimator": "learner.advantage.use",
    "adv_estimator": "learner.advantage.use",
    "eps_clip": "learner.loss.options.clip_low",
    "eps_clip_high": "learner.loss.options.clip_high",
    "epsilon": "learner.loss.options.clip_low",
    "kl_coef": "learner.loss.kl_coef",
    "beta": "learner.loss.kl_coef",
    "learning_rate": "learner.schedule.lr",
    "lr": "learner.schedule.lr",
    "max_grad_norm": "learner.clip_grad_norm",
    "reward_funcs": "rewards[0].use",
    "custom_reward_function": "rewards[0].use",
}
"""What users of other tools type, and our name for it."""


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and apply `section.key=value` overrides (values in TOML syntax, bare words are strings).

    Raises ConfigError that says what is wrong, where, and what to do.
    """
    path = Path(recipe)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        here = sorted(p.name for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        raise ConfigError(f"recipe '{path}' does not exist. {nearest(path.name, here)}".strip()) from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"recipe '{path}' is not a text file. A recipe is TOML; see deploy/recipes/.") from error
    if not text.strip():
        raise ConfigError(f"recipe '{path}' is empty. See deploy/recipes/ for ones to start from.")
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe '{path}' is not valid TOML: {error}.") from error
    for override in overrides:
        _override(tree, override)
    return parse(tree, where=str(path))


def parse(tree: Mapping[str, Any], *, where: str = "recipe") -> RunConfig:
    """A checked RunConfig from plain values. Raises ConfigError."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in map(_finding, error.errors()))) from error


def dump(config: RunConfig) -> str:
    """The resolved recipe as TOML; a password in `buffer.url` is left out."""
    tree = config.model_dump(mode="json", exclude_none=True)
    if config.buffer.url:
        tree["buffer"]["url"] = without_password(config.buffer.url)
    return tomli_w.dumps(tree)


def without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://…@{rest.rpartition('@')[2]}" if "@" in rest else url


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override '{override}' is not 'section.key=value'.")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    *parents, leaf = key.strip().split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            raise ConfigError(f"override '{override}': there is nothing below '{part}'.")
    if isinstance(node, list) and leaf.isdigit() and int(leaf) < len(node):
        node[int(leaf)] = value
    elif isinstance(node, dict):
        node[leaf] = value
    else:
        raise ConfigError(f"override '{override}': '{'.'.join(parents)}' has no keys of its own.")


def _finding(error: Any) -> str:
    """One of pydantic's findings as a line that says what to do."""
    loc = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error["loc"]).lstrip(".")
    if error["type"] == "extra_forbidden":
        key = str(error["loc"][-1])
        parents = [p for p in error["loc"][:-1] if isinstance(p, str)]
        known = list(_section(parents).model_fields)
        if key in FOREIGN_KEYS:
            return f"unknown key '{loc}'. Kanabo calls it '{FOREIGN_KEYS[key]}'."
        return f"unknown key '{loc}'. {nearest(key, known)}Known here: {', '.join(sorted(known))}."
    if error["type"] == "missing":
        return f"'{loc}' is missing."
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{loc} = {error['input']!r}: {error['msg']}."


def _section(parents: Iterable[str]) -> type[BaseModel]:
    section: type[BaseModel] = RunConfig
    for name in parents:
        annotation = section.model_fields[name].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return section
