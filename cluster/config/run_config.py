"""What a recipe may say: one frozen tree. The docstrings are its documentation (docs/recipes.md is made of them)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cluster.config.base import Section, Use
from cluster.config.controllers import ControllerSection, check_steering
from cluster.config.engines import EndpointSection, EngineSection, ModelSection
from cluster.config.evaluations import EvaluationSection, NamedEvaluationSection, check_evaluations, named
from cluster.config.learner import COMPARED_IN_GROUPS, LearnerSection
from cluster.config.placement import AutoscalingSection, PlacementSection, check_autoscaling, check_colocated
from cluster.config.policies import POLICY, PolicySection, check_policies, of_policy
from cluster.config.rewards import (
    GeneratorSection,
    JudgeSection,
    RewardModelSection,
    RewardSection,
    RewardWorkersSection,
    ScorerSection,
)
from cluster.errors import ConfigError, nearest


class RunSection(Section):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Letters, digits, dots, dashes and underscores."""
    dir: str = "runs"
    """Runs live in `dir/name`; where the key is not set, in $KANABO_RUNS if there is one. Under a submitted job a
    relative one is refused, unless $KANABO_RUNS is set."""
    shutdown_timeout_s: PositiveFloat = 60.0
    """After SIGTERM or Ctrl-C: finish the step, checkpoint and leave within this time."""
    heartbeat_timeout_s: PositiveFloat = 60.0
    """An actor that does not answer for so long is killed and replaced."""
    progress_timeout_s: PositiveFloat = 600.0
    """Without a step for so long the run names what it waits for and ends."""
    max_infrastructure_failures: NonNegativeInt = 8
    """Restarts of dead workers, engines and Redis before the run gives up."""
    max_data_failures: NonNegativeInt = 64
    """Groups that a task's row, an environment or a reward may fail on, however short the run is."""
    max_data_failure_frac: float = Field(default=0.05, ge=0, le=1)
    """A long run may lose this share of its groups, where that is more than `max_data_failures`."""
    max_empty_steps: PositiveInt = 3
    """Steps in a row that train on nothing (all their groups dropped) before the run fails with the cause."""


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
    prompt_variants: tuple[str, ...] = Field(default=("orig",), min_length=1)
    """Which of a task's prompts are sampled, such as a rewording's: a group then has `group_size` rollouts of each.
    Advantages are taken among rollouts of one variant."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature during training."""
    max_tokens: PositiveInt = 256
    """Tokens the policy may write per turn."""
    max_turns: PositiveInt = 1
    """Turns the policy may take in one episode."""
    stop: tuple[str | int, ...] = ()
    """Further tokens, by text or id, and strings that end a turn, beside the end-of-turn tokens of the model. The text
    keeps them, and the tokens stay as sampled up to the one that completes the string."""
    tool_parser: str = Field(default="auto", min_length=1)
    """How the model is shown tools and calls them, in environments that have some. `auto`: the chat template shows
    them and tells the model's family. The name of a parser of vLLM, such as `hermes` or `llama3_json`: calls are read
    by that one. `prompt`: Kanabo writes the tools into the prompt, for a model whose chat template knows none."""
    concurrent_groups: PositiveInt = 64
    """Groups a worker keeps in flight."""
    lease_s: PositiveFloat = 600.0
    """Without progress for so long a group is dropped and its task claimed again."""
    environment: Use = Use(use="single_turn")
    """What answers the policy; by default nothing does."""
    environment_timeout_s: PositiveFloat = 60.0
    """For each answer of the environment, also where it blocks; later than that its group is dropped and counted as a
    data failure."""


class SelectorSection(Use):
    """`[[selectors]]`: which rollouts and pairs are trained on, decided when a batch is assembled; each sees what those
    above it left."""


class MonitorSection(Use):
    """`[[monitors]]`: what watches the metrics."""

    on_alarm: Literal["warn", "stop", "rollback"] = "warn"
    """Say so and go on; or end the run as failed, with a report; or that, and go back to the last checkpoint from
    before the trouble, which `kanabo export` and a resume then take."""


class BufferSection(Section):
    url: str | None = None
    """`redis://…` of your own, or `env:NAME` for a variable of the driver that holds it, so that the password is on no
    command line and in no file; without it the run starts a server in its directory."""

    def resolved(self) -> str | None:
        """The URL itself, password included: not for logs or dumps. Raises ConfigError if `env:NAME` names nothing."""
        if self.url is None or not self.url.startswith("env:"):
            return self.url
        name = self.url.removeprefix("env:")
        if not os.environ.get(name):
            raise ConfigError(
                f"buffer.url = '{self.url}', but the driver's environment has no {name}. Set it where the driver runs "
                "(the Ray head's container, or env_vars of the runtime environment) to redis://:PASSWORD@HOST:6379/0."
            )
        return os.environ[name]


class WeightsSection(Section):
    transport: Literal["pull", "nccl"] = "pull"
    """`pull`: engines fetch a published version (shared memory on one node, Ray's object store across nodes)."""
    pause_mode: Literal["keep", "wait", "abort"] = "keep"
    """Rollouts under way: go on with the new weights, finish first, or be cut and continued."""
    probe_every: PositiveInt = 1
    """Every so many publishes the engines' log-probs are compared with the learner's."""
    max_logprob_diff_nats: PositiveFloat = 1e-3
    """The run stops when the mean difference exceeds three times its floor plus this, twice running."""


class CheckpointSection(Section):
    every_steps: NonNegativeInt = 50
    """Redis holds the groups of all steps since the last checkpoint, which a learner that dies trains on again. 0: only
    at the end and on a stop; Redis holds the groups of the last 50 steps, and a learner that dies later than that
    begins again at the first step with groups that are sampled anew."""
    keep_last: PositiveInt = 2
    """Older checkpoints are deleted, except those that an alias of the recipe (`previous@2`, `policy@N`) names."""
    record_every_steps: NonNegativeInt = 0
    """Every this many steps, one step is stored for `kanabo replay`; a step with a non-finite gradient always is."""


class TrackingSection(Section):
    tensorboard: bool = True
    """Write files for TensorBoard."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases; its package is an extra."""
    trackers: tuple[Use, ...] = ()
    """Further ones: `mlflow`, `trackio`, or a class of your own (`cluster.observability.trackers:Tracker`)."""
    samples_per_step: NonNegativeInt = 4
    """Rollouts a step that are written to samples.jsonl with text, scores and advantage."""
    archived_groups: NonNegativeInt = 2000
    """The last so many trained groups stay in the run's directory, tokens and scores included, for the console."""
    archived_answers: NonNegativeInt = 20_000
    """The last so many raw answers of judges stay in Redis; a judge with `cached` answers a request from them."""
    trace: bool = True
    """Write what every worker does, and when, to `trace.jsonl` for `kanabo trace`; its last 64 to 128 MB stay."""
    engine_stats: bool = True
    """Export vLLM's own metrics with the run's, labelled `model_name` = `run.name`."""
    live_table: bool = True
    """Show progress in the terminal."""


class ConsoleSection(Section):
    """The run's web page."""

    enabled: bool = True
    """Serve it while the run goes on."""
    host: str = "127.0.0.1"
    """Where it listens. Anything but a loopback address demands a token: $KANABO_CONSOLE_TOKEN, or one made up and
    printed."""
    port: int = Field(default=8266, ge=1, le=65535)
    """Port; the next free one where it is taken."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which browsers may open it, besides loopback names and `host`: that of a proxy, for example.
    `*.domain` stands for all names below a domain."""


class RunConfig(Section):
    """A whole recipe."""

    seed: NonNegativeInt = 0
    """Seed of the order of tasks, of models that Kanabo makes, and of sampling."""
    resume: str = "auto"
    """`auto` continues the run's last checkpoint, `off` refuses a used directory, a path continues that checkpoint."""
    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    tasks: TasksSection = TasksSection()
    rollout: RolloutSection = RolloutSection()
    engine: EngineSection = EngineSection()
    endpoint: EndpointSection = EndpointSection()
    rewards: tuple[RewardSection, ...] = (RewardSection(use="exact"),)
    selectors: tuple[SelectorSection, ...] = ()
    reward_workers: RewardWorkersSection = RewardWorkersSection()
    judges: dict[str, JudgeSection] = {}
    scorers: dict[str, ScorerSection] = {}
    reward_models: dict[str, RewardModelSection] = {}
    generators: dict[str, GeneratorSection] = {}
    monitors: tuple[MonitorSection, ...] = ()
    controllers: tuple[ControllerSection, ...] = ()
    learner: LearnerSection = LearnerSection()
    policies: dict[str, PolicySection] = {}
    placement: PlacementSection = PlacementSection()
    autoscaling: AutoscalingSection = AutoscalingSection()
    buffer: BufferSection = BufferSection()
    weights: WeightsSection = WeightsSection()
    evaluation: EvaluationSection = EvaluationSection()
    evaluations: tuple[NamedEvaluationSection, ...] = ()
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()
    console: ConsoleSection = ConsoleSection()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if not any(r.weight != 0 for r in self.rewards):
            raise ValueError("rewards: at least one needs a weight other than 0, or nothing is learned.")
        names = self.reward_names
        if len(set(names)) < len(names):
            raise ValueError(f"rewards have the names {', '.join(names)}; give each its own with 'name = …'.")
        if self.evaluation.reward and self.evaluation.reward not in names:
            raise ValueError(
                f"evaluation.reward = '{self.evaluation.reward}' is none of the rewards. "
                f"{nearest(self.evaluation.reward, names)}There are: {', '.join(names)}."
            )
        check_evaluations(self.evaluations, self.evaluation, self.rewards)
        for where, reward in self.placed_rewards:
            for name in _asked(reward):
                if name not in self.judges:
                    near = nearest(name, self.judges)
                    raise ValueError(f"{where} asks the judge '{name}'. {near}Add a section [judges.{name}].")
        if self.learner.lora and self.weights.transport == "nccl":
            raise ValueError(
                "weights.transport = 'nccl' broadcasts whole models, and [learner.lora] publishes adapters: a small "
                'file each. Set weights.transport = "pull".'
            )
        _check_budgets(self)
        _check_teachers(self)
        check_steering(self)
        live = next((name for name, scorer in self.scorers.items() if scorer.model == "policy"), None)
        if live is not None and (self.learner.lora or self.weights.transport != "pull"):
            raise ValueError(
                f"scorers.{live} reads with the live policy's weights, which it can fetch only where whole models are "
                'published as files: use weights.transport = "pull" without [learner.lora], or model = "initial".'
            )
        share = sum(j.engine_share for j in self.judges.values() if j.kind == "policy")
        if share >= 1:
            raise ValueError(f"judges of kind 'policy' have engine_share = {share:g} together; leave some to rollouts.")
        for i, reward in enumerate(self.rewards):
            model = str(reward.options.get("model", "oni"))
            if reward.use == "oni" and model not in self.reward_models:
                near = nearest(model, self.reward_models)
                raise ValueError(f"rewards[{i}] uses the model '{model}'. {near}Add a section [reward_models.{model}].")
        for name, section in self.reward_models.items():
            if section.judge and section.judge not in self.judges:
                near = nearest(section.judge, self.judges)
                raise ValueError(
                    f"reward_models.{name} asks the judge '{section.judge}'. {near}"
                    f"Add a section [judges.{section.judge}]."
                )
        compared = self.learner.value is None and self.learner.advantage.use in COMPARED_IN_GROUPS
        if self.rollout.group_size == 1 and compared:
            raise ValueError(
                "rollout.group_size = 1, but learner.advantage.use = "
                f"'{self.learner.advantage.use}' compares the rollouts of a group; use at least 2."
            )
        if self.rollout.group_size == 1 and self.learner.drop_zero_variance:
            raise ValueError(
                "rollout.group_size = 1 and learner.drop_zero_variance = true: a single reward has no variance, "
                "and every group would be dropped. Set learner.drop_zero_variance = false."
            )
        if len(set(self.rollout.prompt_variants)) < len(self.rollout.prompt_variants):
            raise ValueError(f"rollout.prompt_variants = {list(self.rollout.prompt_variants)} names a variant twice.")
        if len(self.rollout.prompt_variants) > 1 and self.policies:
            raise ValueError(
                f"rollout.prompt_variants = {list(self.rollout.prompt_variants)} beside [policies.…]: only one policy "
                "would answer all of them. Use one variant, or one policy."
            )
        if len(self.rollout.prompt_variants) > 1 and self.selectors:
            raise ValueError(
                "[[selectors]] choose among rollouts of one prompt, and rollout.prompt_variants = "
                f"{list(self.rollout.prompt_variants)} makes groups of several. Use one variant, or no selector."
            )
        check_colocated(self)
        check_autoscaling(self)
        if self.learner.loss.coef == 0 and not self.learner.sequence_losses:
            raise ValueError(
                "learner.loss.coef = 0 and there are no [[learner.sequence_losses]]: nothing is minimised."
            )
        check_policies(self)
        return self

    @property
    def policy_names(self) -> tuple[str, ...]:
        """All policies; the first is the one that every recipe has, and its workers claim."""
        return (POLICY, *self.policies)

    def of_policy(self, name: str) -> RunConfig:
        """The recipe as this policy has it, in which it is the only one: its model, engine, learner and workers."""
        return of_policy(self, name)

    @property
    def reward_names(self) -> list[str]:
        return [named(r) for r in self.rewards]

    @property
    def placed_rewards(self) -> list[tuple[str, RewardSection]]:
        """Every reward behind its key, those of `[[evaluations]]` last."""
        rewards = [(f"rewards[{i}]", reward) for i, reward in enumerate(self.rewards)]
        for i, section in enumerate(self.evaluations):
            rewards += [(f"evaluations[{i}].rewards[{j}]", reward) for j, reward in enumerate(section.rewards)]
        return rewards

    @property
    def blocking_rewards(self) -> list[str]:
        return [n for n, r in zip(self.reward_names, self.rewards, strict=True) if r.blocking]

    @property
    def blocking_judges(self) -> list[str]:
        """Judges that a blocking reward asks."""
        return sorted({name for reward in self.rewards if reward.blocking for name in _asked(reward)})


def _check_budgets(config: RunConfig) -> None:
    """Raises ValueError for an answer that no engine's context has room for."""
    for name in config.policy_names:
        section = f"policies.{name}.engine" if name in config.policies else "engine"
        length = config.policies[name].engine if name in config.policies else config.engine
        if name in config.policies and "max_model_len" not in length.model_fields_set:
            continue
        if config.rollout.max_tokens >= length.max_model_len:
            raise ValueError(
                f"rollout.max_tokens = {config.rollout.max_tokens} leaves no room for a prompt in {section}."
                f"max_model_len = {length.max_model_len}, which holds prompt and answers together. Lower the first, or "
                "raise the second."
            )


def _check_teachers(config: RunConfig) -> None:
    """Raises ValueError for a teacher that is compared with log-probs of another temperature than it reads at."""
    for i, reward in enumerate(config.rewards):
        if reward.use == "teacher" and not reward.options.get("student") and config.rollout.temperature != 1:
            raise ValueError(
                f"rewards[{i}] = 'teacher' compares a teacher, which reads at temperature 1, with the log-probs that "
                f"rollouts were sampled with, at rollout.temperature = {config.rollout.temperature:g}. Set it to 1, or "
                f"rewards[{i}].options.student to a scorer of model 'policy'."
            )


ASKING = ("judge", "self_prm", "ssr_zero", "step_scores", "thoughts")
"""Rewards whose option `judge` names who they ask."""


def _asked(reward: RewardSection) -> Sequence[str]:
    """Judges that a reward asks."""
    asked = reward.options.get("judge", "judge") if reward.use in ASKING else []
    return [str(name) for name in (asked if isinstance(asked, list | tuple) else [asked])]
