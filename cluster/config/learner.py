"""`[learner]`: steps, losses, optimiser and the engine that takes them."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from cluster.config.base import Section, Use

BASELINE = "reinforce_plus_plus_baseline"
"""REINFORCE++ with the option `group_baseline`, as verl calls it."""
COMPARED_IN_GROUPS = ("group", "grpo", "dr_grpo", "leave_one_out", "rloo")
"""Advantage estimators that compare a rollout with the others of its group: one alone is worth nothing."""


FIELD = {
    "grpo": "grpo", "drgrpo": "dr_grpo", "rloo": "rloo", "leaveoneout": "leave_one_out", "group": "group",
    "reinforceplusplus": "reinforce_plus_plus", "reinforceplusplusbaseline": BASELINE, "gae": "gae", "ppo": "ppo",
    "dapo": "dapo", "gspo": "gspo", "cispo": "cispo",
}  # fmt: skip
"""What papers and other trainers call estimators and losses, without case and punctuation, and its name here."""
LOSSES_ALONE = ("dapo", "gspo", "cispo")
ESTIMATORS_ALONE = ("rloo", "leave_one_out", "reinforce_plus_plus", BASELINE, "group", "gae")


def spelled(use: str) -> str:
    """The name here of an estimator or loss, however papers and other trainers spell it; other names as they are."""
    plain = re.sub(r"[^a-z0-9]", "", use.casefold().replace("++", "plusplus"))
    return use if ":" in use else FIELD.get(plain, use)


class ScheduleSection(Section):
    lr: PositiveFloat = 1e-6
    """Peak learning rate."""
    warmup_steps: NonNegativeInt = 0
    """Steps in which it rises from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Its course from there to the last step."""
    min_lr_frac: float = Field(default=0.0, ge=0, le=1)
    """Where it ends, as a share of `lr`."""


class CorrectionSection(Section):
    """What importance ratios (learner / behaviour) of some tokens do to their weight in the loss."""

    how: Literal["truncate", "mask"] = "truncate"
    """`truncate` weights by the ratio within the bounds, `mask` leaves out what is outside them."""
    level: Literal["token", "sequence", "geometric"] = "token"
    """The ratio of a token, the product over its rollout, or that product's geometric mean."""
    low: float = Field(default=0.0, ge=0)
    """Lower bound of the ratio."""
    high: PositiveFloat = 2.0
    """Upper bound of the ratio."""

    @model_validator(mode="after")
    def _ordered(self) -> CorrectionSection:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}.")
        return self


class LossSection(Use):
    use: str = "clipped"
    """The policy loss: a name below, or `package.module:Class`."""
    coef: float = Field(default=1.0, ge=0)
    """Weight of the policy loss. 0 trains on `[[learner.sequence_losses]]` alone: where selectors make pairs, on their
    rollouts only, and groups without a pair are dropped."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence to `learner.reference`; 0 loads no reference model."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """By the names of Schulman, "Approximating KL Divergence" (2020)."""
    entropy_coef: float = 0.0
    """Added to the objective: above 0 it keeps the policy from collapsing."""
    aggregate: Literal["token", "sequence", "constant"] = "token"
    """Divide by the step's trained tokens, average rollouts of equal weight, or divide by `constant_tokens` a rollout
    whatever their lengths (Dr. GRPO)."""
    constant_tokens: PositiveInt | None = None
    """With `aggregate = "constant"`: tokens that every rollout counts for, as a rule `rollout.max_tokens`."""
    mismatch: CorrectionSection | None = None
    """For tokens sampled with the current weights, where engine and learner differ by rounding alone."""
    staleness: CorrectionSection | None = None
    """For tokens sampled with older weights."""

    @field_validator("use")
    @classmethod
    def _spelled(cls, use: str) -> str:
        name = spelled(use)
        if name in ESTIMATORS_ALONE:
            raise ValueError(
                f"learner.loss.use = '{use}' is an advantage estimator. Set learner.advantage.use = '{name}', and as "
                "the loss 'ppo', or 'truncated_is' for a plain policy gradient."
            )
        return name

    @model_validator(mode="after")
    def _constant(self) -> LossSection:
        if self.use == "dr_grpo" and self.aggregate != "constant":
            raise ValueError(
                "learner.loss.use = 'dr_grpo' divides every rollout by the same number of tokens: set "
                "learner.loss.aggregate = 'constant' and learner.loss.constant_tokens, as a rule rollout.max_tokens."
            )
        if (self.aggregate == "constant") != (self.constant_tokens is not None):
            raise ValueError(
                f"learner.loss.aggregate = '{self.aggregate}' and constant_tokens = {self.constant_tokens}: "
                "'constant' needs a number of tokens, for example rollout.max_tokens; only 'constant' uses it."
            )
        return self


class LoraSection(Section):
    """`[learner.lora]`: frozen weights, and beside them matrices B·A of low rank that are trained (LoRA,
    arXiv:2106.09685). Only these are published and checkpointed."""

    rank: int = Field(default=16, ge=1, le=512)
    """Inner dimension of B·A; vLLM carries up to 512."""
    alpha: PositiveInt = 32
    """B·A counts `alpha / rank` times."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the adapters' inputs while training. Engines sample without, so it adds to what the loss corrects
    for."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Last parts of the names of the layers that get one, as in peft, such as `q_proj`; `all-linear` is every linear
    layer but the output head."""


class SequenceLossSection(Use):
    """`[[learner.sequence_losses]]`: what is added to the policy loss."""

    coef: float = 1.0
    """Weight of the term in the loss."""


class RowsSection(Section):
    """Rows of files that a learner imitates."""

    path: str
    """A file, a directory or a glob, in every format that `tasks.use = "files"` reads."""
    split: str = "train"
    """The split to read, of a data set that has several."""
    prompt_key: str = ""
    """Column of the prompt, or of the whole conversation; by default `messages`, `conversations` or `prompt`."""
    completion_key: str = ""
    """Column of what the assistant says to the prompt; by default `completion`, `response` or `answer`, of pairs
    `chosen`."""
    system: str = ""
    """A system message before every conversation that has none."""
    train_on: Literal["all", "last"] = "all"
    """Which turns of the assistant are trained on: all of them, or the last one alone."""
    max_tokens: PositiveInt = 2048
    """Rows with more tokens are left out and counted."""
    batch_size: PositiveInt = 32
    """Rows, or pairs, of one optimizer step."""
    shuffle: bool = True
    """Every pass in another order, which depends on the seed and the pass alone."""


class DemonstrationsSection(RowsSection):
    """`[learner.demonstrations]`: conversations that are trained on beside the rollouts, with −log π(token) at
    temperature 1, mean over their trained tokens. They are there if the section is."""

    coef: PositiveFloat = 0.1
    """Weight of their loss beside the policy loss."""


class ValueSection(Section):
    """PPO's critic: a linear value head on the policy's last hidden states. It is there if the section is; `{}` takes
    all defaults. Generalised advantages of each token then take the place of `learner.advantage`. They are computed
    after the batch is assembled, on the ranks, from its record and the weights, and are the same whenever those are;
    what a record and samples.jsonl hold as advantage is the undivided reward."""

    coef: PositiveFloat = 0.1
    """Weight of the value loss beside the policy loss; its gradient goes into the policy's layers too."""
    clip: float | None = Field(default=0.2, gt=0)
    """Furthest that a value may usefully move from the one before the first update, in units of the return. With one
    update per batch nothing is clipped."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token that the policy chose; tokens of the environment do not count."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE's λ, per token too: 1 is the return minus the value, 0 the one-step error."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the value head, on the course of `learner.schedule`; by default the policy's."""
    whiten: bool = True
    """Advantages from their mean over the step's tokens, in units of their standard deviation."""
    reward_kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the divergence from `learner.reference` that is taken off each token's reward (k1, under the weights at
    its batch's step begins with); 0 is off. `learner.loss.kl_coef` has it in the loss instead."""
    bootstrap_truncated: bool = False
    """A rollout cut short by its budget goes on with the value after its last token. By default it ends there, worth
    nothing more: the budget belongs to the task, and a rollout that is cut short pays for it. With `gamma = 1` and a
    reward that is given to a truncated rollout all the same, going on has no end: values run away."""


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
    updates_per_batch: PositiveInt = 1
    """Mini-batches of an assembled batch: each holds whole groups and has an optimizer step of its own. Weights are
    published after the last one."""
    passes_per_batch: PositiveInt = 1
    """Times that a step goes through its mini-batches. Reference log-probs, the critic's targets and the proximal
    policy of the loss `decoupled` are those before the first update."""
    drop_zero_variance: bool | None = None
    """Whether groups whose rewards are all equal are dropped and replaced. By default they are where such a group has
    no gradient: no KL or entropy term, critic or loss term acts on it, and `learner.advantage` gives it nothing."""
    drop_truncated: bool = False
    """Rollouts cut short by their budget are left out: no loss, as in DAPO (arXiv:2503.14476, section 3.4), and no part
    in the baseline, their reward being unknown."""
    ranks: PositiveInt = 1
    """Processes that train together, each with a GPU of its own if there are any."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What the ranks share out: 1 optimiser states, 2 also gradients, 3 also parameters (ZeRO, arXiv:1910.02054)."""
    micro_tokens: PositiveInt = 4096
    """Tokens per forward pass, padding included."""
    row_tokens: NonNegativeInt = 0
    """Packed rows are at most so long; short sequences get shorter rows, a longer one a row of its own. 0 means 512,
    but one sequence a row for sequences of 32 tokens and more on a CPU, whose attention needs no mask then."""
    packing: Literal["auto", "rows", "shared_prefix"] = "auto"
    """`shared_prefix` computes once what the rollouts of a group begin with, `rows` computes every rollout whole.
    `auto` shares on a CPU, in batches where that costs less. A model whose attention cannot take such a mask has rows,
    and the log says so."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward passes."""
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
    """Course of the learning rate."""
    advantage: Use = Use(use="group")
    """What a reward is worth against the others of its group."""
    value: ValueSection | None = None
    """PPO's critic, if there is one."""
    experience_replay: Use | None = None
    """Which rollouts of earlier steps are trained on again, beside a step's own groups; by default none."""
    turn_discount: float = Field(default=1.0, ge=0, le=1)
    """γ per turn of the policy, for rewards that come at a turn: what they are worth to the turns before; 0 leaves each
    turn its own. Rewards of whole rollouts are not discounted."""
    loss: LossSection = LossSection()
    """What is minimised."""
    sequence_losses: tuple[SequenceLossSection, ...] = ()
    """What is minimised beside it."""
    demonstrations: DemonstrationsSection | None = None
    """Conversations that are trained on beside the rollouts, if any are."""
    reference: str = "initial"
    """The model that the KL divergence is measured to, and that loss terms compare with: `initial`, `policy@N`, `RUN@N`
    (a checkpoint in another run's directory; `RUN@latest` is the newest when this run begins), `RUN@initial`, or a
    directory. `previous` is the newest checkpoint of `checkpoint.every_steps`, `previous@2` the one before: such a
    reference moves with every checkpoint, and a resumed run has the one that it had."""
    lora: LoraSection | None = None
    """Train adapters instead of the weights themselves; `initial` is then the model without them, kept only once."""
    collective_timeout_s: PositiveFloat = 300.0
    """A rank that does not meet the others within this time ends the learner, which is restarted."""
    dropout: bool = False
    """Keep the model's own dropout on while training. Engines sample without it, so it adds noise to every ratio.
    `learner.lora.dropout` is a key of its own."""
    threads: NonNegativeInt = 0
    """CPU threads of one rank; 0 shares the cores out evenly among engines and ranks."""

    @field_validator("advantage")
    @classmethod
    def _spelled(cls, advantage: Use) -> Use:
        name, options = spelled(advantage.use), advantage.options
        if name in LOSSES_ALONE:
            raise ValueError(
                f"learner.advantage.use = '{advantage.use}' is a policy loss. Set learner.loss.use = '{name}', and as "
                "the estimator 'grpo'."
            )
        if name == BASELINE:
            name, options = "reinforce_plus_plus", {"group_baseline": True, **options}
        return advantage if name == advantage.use else Use(use=name, options=options)

    @property
    def reads_reference(self) -> bool:
        """Whether anything asks the reference model."""
        return self.loss.kl_coef > 0 or (self.value is not None and self.value.reward_kl_coef > 0)

    @model_validator(mode="after")
    def _one_credit(self) -> LearnerSection:
        if self.advantage.use in ("gae", "ppo"):
            raise ValueError(
                f"learner.advantage.use = '{self.advantage.use}': generalised advantages need a critic. "
                "Remove the key and add a section [learner.value]."
            )
        if self.value is not None and self.advantage != Use(use="group"):
            raise ValueError(
                f"learner.advantage.use = '{self.advantage.use}' beside learner.value: the critic's generalised "
                "advantages take its place. Remove one of the two."
            )
        return self
