"""Every metric of a run, declared once: how parts of a step are reduced, unit, meaning, and what to do when it is off.

docs/metrics.md, the descriptions that Prometheus serves and the console's texts are made of these declarations. In
capitals is what is filled in: NAME of a reward, judge, scorer, monitor, evaluation, reward model or policy, REASON,
ROLE.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

Reduction = Literal["mean", "sum", "last", "max"]
Kind = Literal["gauge", "counter"]
FILLED = re.compile(r"NAME|REASON|ROLE")


@dataclass(frozen=True)
class Metric:
    """One metric, or a family of them whose names differ in what is filled in."""

    name: str
    """`area/quantity_unit`."""
    reduce: Reduction
    """How values of the parts of one step (groups, updates) become the step's."""
    unit: str
    help: str
    advice: str = ""
    """What it means when the metric is off, and what to do."""
    kind: Kind = "gauge"
    """Prometheus' type. `counter`: each step's value is what happened in it, at least 0, and Prometheus adds them up;
    `gauge`: Prometheus has the last value."""

    def __post_init__(self) -> None:
        if self.kind == "counter" and self.reduce != "sum":
            raise ValueError(f"the metric '{self.name}' is a counter and reduced by '{self.reduce}': say sum.")

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile("[A-Za-z0-9_.:-]+".join(map(re.escape, FILLED.split(self.name))))

    def reduced(self, values: Iterable[float]) -> float:
        """Return one value for those of a step's parts, in their order; NaN is unknown and left out."""
        known = [value for value in values if np.isfinite(value)]
        if not known:
            return float("nan")
        if self.reduce == "last":
            return float(known[-1])
        return float({"mean": np.mean, "sum": np.sum, "max": np.max}[self.reduce](known))


METRICS: dict[str, Metric] = {}
"""By name, in the order of docs/metrics.md."""
SECTIONS: dict[str, list[Metric]] = {}
"""By section of docs/metrics.md."""


def declare(*metrics: Metric, section: str = "Plug-ins") -> None:
    """Declare metrics of your own, where the plug-in that emits them is defined. An undeclared one is averaged.

    Raises ValueError for a name that is declared with another meaning.
    """
    for metric in metrics:
        if METRICS.get(metric.name, metric) != metric:
            raise ValueError(f"the metric '{metric.name}' is declared twice: {METRICS[metric.name]} and {metric}.")
        if metric.name not in METRICS:
            METRICS[metric.name] = metric
            SECTIONS.setdefault(section, []).append(metric)
    metric_of.cache_clear()


@lru_cache(maxsize=4096)
def metric_of(name: str) -> Metric:
    """Return the declaration of a metric, by its name or by the family that it fills in; a mean where there is none."""
    if name in METRICS:
        return METRICS[name]
    found = [metric for metric in METRICS.values() if FILLED.search(metric.name) and metric.pattern.fullmatch(name)]
    # The most specific family: `reward/NAME_known_frac` before `reward/logged_NAME`, where both fit.
    return max(found, key=lambda metric: len(FILLED.sub("", metric.name)), default=Metric(name, "mean", "", ""))


def _declare(section: str, *metrics: Metric) -> None:
    declare(*metrics, section=section)


_declare(
    "Reward",
    Metric(
        "reward/mean", "mean", "reward",
        "mean of the rewards that are known, all weighted and added",
        "flat: look at `reward/zero_variance_frac` and at samples.jsonl; up while `eval/accuracy` falls: the reward "
        "is gamed, add a monitor",
    ),
    Metric("reward/std", "mean", "reward", "their standard deviation", "near 0: nothing distinguishes rollouts"),
    Metric(
        "reward/known_frac", "mean", "share",
        "rollouts with a known mixed reward",
        "below 1: see `reward/NAME_known_frac`",
    ),
    Metric(
        "reward/num_hung_threads", "sum", "count",
        "calls of reward functions that were given up and have not returned",
        "above 0: a function of a reward hangs; give it a time-out of its own",
    ),
    Metric(
        "reward/num_replaced_threads", "sum", "count",
        "threads started in place of those that hang",
        "as above; from 64 hung calls on the reward worker is replaced",
    ),
    Metric(
        "reward/logged_NAME", "mean", "as logged",
        "mean of what a reward function reported with `log_metric(NAME, value)` since the last report",
    ),
    Metric(
        "reward/zero_variance_frac", "mean", "share",
        "groups whose rewards are all equal, hence without gradient",
        "high: tasks too easy or too hard, or `rollout.group_size` too small",
    ),
    Metric(
        "reward/outdated_frac", "mean", "share",
        "trained groups whose scores are of an older version of the reward",
        "high: reward workers do not keep up with re-labelling; add some",
    ),
    Metric(
        "reward/failed_scores", "sum", "count",
        "scores with the state `failed`",
        "above 0: the note of the score says why, `cluster.commands.inspect` shows it",
        kind="counter",
    ),
    Metric(
        "reward/of_NAME_mean", "mean", "reward",
        "with `[policies.…]`: `reward/mean` of the rollouts of one policy, of `policy` too",
        "one far below the others: it does not keep up with them",
    ),
    Metric("reward/NAME_mean", "mean", "score", "mean of one reward's known scores, before shaping"),
    Metric("reward/NAME_shaped_mean", "mean", "score", "the same after its shaper"),
    Metric(
        "reward/NAME_running_mean", "mean", "score",
        "mean that the shaper `running` remembers, of all steps before",
        "still moves after dozens of steps: what a score is worth moves with it",
    ),
    Metric("reward/NAME_running_std", "mean", "score", "the deviation that it remembers", "as above"),
    Metric(
        "reward/NAME_known_frac", "mean", "share",
        "its known scores",
        'low with `blocking = false`: it arrives too late; low for a blocking reward: it fails or abstains',
    ),
    Metric(
        "reward/NAME_agreement", "mean", "−1 to 1",
        "of a reward with `weight = 0`: does it order a group's rollouts as the trained reward does (Somers' D)?",
        "near 0 or below: not a substitute for what is trained on",
    ),
    Metric(
        "reward/NAME_sign_flip_frac", "mean", "share",
        "of such a reward: rollouts whose advantage would change its sign",
        "as above, when high",
    ),
    Metric("reward/NAME_failed_frac", "mean", "share", "its failed scores", "above 0: as `reward/failed_scores`"),
)  # fmt: skip
_declare(
    "Rollout and buffer",
    Metric(
        "rollout/length_tokens", "mean", "tokens",
        "mean number of tokens the policy wrote in a rollout",
        "rising without reward: add `length_penalty`",
    ),
    Metric(
        "rollout/truncated_frac", "mean", "share",
        "rollouts cut short by their budget of tokens or turns",
        "high: raise `rollout.max_tokens` or `max_turns`, or set `learner.drop_truncated`",
    ),
    Metric(
        "rollout/num_invalid_tool_calls", "sum", "count",
        "calls of tools in the step's rollouts that could not be read, or named no tool or wrong arguments; the policy "
        "sees why. Of an agent's rollouts: turns with a call that could not be read, which the agent gets as text",
        "steadily high: `rollout.tool_parser` is not the model's family",
        kind="counter",
    ),
    Metric(
        "rollout/num_cut_observations", "sum", "count",
        "observations of the step's rollouts that were cut to fit the context, or left out; the policy sees a mark",
        "above 0: raise `engine.max_model_len`, or let the environment answer in fewer words",
        kind="counter",
    ),
    Metric(
        "rollout/tokens_per_s", "mean", "tokens/s",
        "sampled tokens per second of sampling, all engines",
        "low beside a high `learner/wait_s`: add `rollout.workers` or `rollout.concurrent_groups`",
    ),
    Metric(
        "rollout/tokens_per_s_per_device", "mean", "tokens/s",
        "the same, per device: engines times `engine.tensor_parallel`",
        "as above",
    ),
    Metric(
        "rollout/prefix_cache_hit_frac", "mean", "share",
        "tokens given to the engines to continue that their prefix cache held, since the last step",
        "0 although groups share long prompts or a search extends prefixes: the shared part is shorter than a cache "
        "block (`engine.options.block_size`, 128 tokens on CPUs), or the cache is off",
    ),
    Metric(
        "rollout/num_agent_turns", "sum", "count",
        "turns of the policy that agents asked for since the last step",
        kind="counter",
    ),
    Metric(
        "rollout/num_failed_agents", "sum", "count",
        "episodes whose agent failed, or never asked the policy for anything",
        "above 0: the log says what the agent raised or wrote last",
        kind="counter",
    ),
    Metric(
        "rollout/num_cut_episodes", "sum", "count",
        "episodes of agents that were cut short: past their deadline, out of turns, or with a full context",
        "high: raise `timeout_s`, `rollout.max_turns` or `engine.max_model_len`",
        kind="counter",
    ),
    Metric(
        "rollout/num_refused_requests", "sum", "count",
        "requests of agents that the endpoint refused",
        "above 0: the agent's log has the endpoint's answer",
        kind="counter",
    ),
    Metric(
        "rollout/num_hung_threads", "sum", "count",
        "threads of the environment that were given up and have not returned",
        "above 0: the environment blocks; put what blocks into `asyncio.to_thread`",
    ),
    Metric(
        "rollout/num_replaced_threads", "sum", "count",
        "threads started in place of those that hang",
        "as above; from 32 hung threads on the rollout worker is replaced",
    ),
    Metric(
        "buffer/outstanding_groups", "mean", "count",
        "groups being sampled, waiting for scores, or ready",
        "at its bound, (max_staleness + 1) × groups_per_step: the learner is the slow part; near 0: the rollouts are",
    ),
    Metric(
        "buffer/num_dropped_REASON", "sum", "count",
        "groups that the step dropped: `zero_variance`, `truncated`, `too_few_scores`, `missing:NAME`, `waited:NAME`",
        "`missing:` or `waited:`: that reward is down or slow",
        kind="counter",
    ),
)  # fmt: skip
_declare(
    "Policy",
    Metric(
        "policy/staleness_steps", "mean", "steps",
        "mean of optimiser steps between a trained group's claim and this step",
        "at its bound all the time: rollouts or rewards are slow",
    ),
    Metric("policy/staleness_max_steps", "mean", "steps", "the largest", "never above `learner.max_staleness`"),
    Metric("policy/stale_frac", "mean", "share", "trained tokens sampled with older weights"),
    Metric(
        "policy/behaviour_kl_nats", "mean", "nats",
        "mean of log π_behaviour − log π_learner over trained tokens",
        "above some 0.05: lower `learner.max_staleness` or the learning rate, or set `[learner.loss.staleness]`",
    ),
    Metric(
        "policy/mismatch_kl_nats", "mean", "nats",
        "the same, of tokens sampled with the current weights: engine against learner",
        "far above `policy/logprob_diff_floor_nats`: the engine does not sample what it reports",
    ),
    Metric("policy/staleness_kl_nats", "mean", "nats", "the same, of tokens sampled with older weights"),
    Metric(
        "policy/logprob_diff_floor_nats", "mean", "nats",
        "mean difference of engine and learner on the probe with the initial weights: the rounding of the precision",
        "above 0.1: `model.dtype` or `learner.dtype` is too coarse",
    ),
    Metric(
        "policy/logprob_diff_mean_nats", "mean", "nats",
        "the same after an update",
        "the run ends when it exceeds 3 × floor + `weights.max_logprob_diff_nats` twice running: check "
        "`weights.transport`, `engine.options`",
    ),
    Metric("policy/logprob_diff_max_nats", "mean", "nats", "the largest difference on the probe"),
)  # fmt: skip
_declare(
    "Learner",
    Metric(
        "learner/step_s", "mean", "s",
        "a step: assemble, pack, optimise, publish and release; saving a checkpoint is not in it",
    ),
    Metric("learner/assemble_s", "mean", "s", "of that, assembling the batch: waiting for groups included"),
    Metric(
        "learner/wait_s", "mean", "s",
        "of that, waiting for groups",
        "most of the step: sampling or scoring is the slow part",
    ),
    Metric("learner/pack_s", "mean", "s", "packing rollouts into rows"),
    Metric(
        "learner/optimize_s", "mean", "s",
        "forward, backward and optimiser",
        "most of the step: more `learner.ranks`, `learner.threads`",
    ),
    Metric("learner/publish_s", "mean", "s", "handing over weights, and release"),
    Metric(
        "learner/groups", "mean", "count",
        "groups trained on",
        "below `learner.groups_per_step`: groups were filtered, raise `learner.max_refills`",
    ),
    Metric("learner/rollouts", "mean", "count", "rollouts trained on"),
    Metric("learner/tokens", "mean", "count", "tokens trained on"),
    Metric(
        "learner/tokens_per_s_per_device", "mean", "tokens/s",
        "tokens of sequences, prompts included, that a rank's device trains on per second of optimizer steps",
        "falls: look at `learner/padding_frac`, `learner/num_micros` and at what else runs on the machine",
    ),
    Metric(
        "learner/mfu_frac", "mean", "share",
        "model FLOPs utilization: 6 operations per parameter and token, as a share of the rate at which the rank's "
        "device multiplied matrices when the learner began",
        "low: rows too short or too few for the device; raise `learner.micro_tokens`",
    ),
    Metric("learner/num_micros", "last", "count", "forward passes of a rank"),
    Metric(
        "learner/num_updates", "last", "count",
        "optimizer steps of one training iteration (`learner.updates_per_batch`, `learner.passes_per_batch`)",
    ),
    Metric(
        "learner/padding_frac", "mean", "share",
        "slots of the rows that are padding",
        "high: lower `learner.row_tokens`",
    ),
    Metric(
        "learner/shared_frac", "mean", "share",
        "tokens that the model did not compute, because rollouts of a group have them in common (`learner.packing`)",
    ),
    Metric(
        "learner/grad_norm", "mean", "norm",
        "of the gradient, before it is clipped",
        "spikes: lower the learning rate or `learner.clip_grad_norm`",
    ),
    Metric("learner/steps", "mean", "count", "in Prometheus only: the step of the last row"),
    Metric("learner/lr", "mean", "rate", "learning rate of the step"),
    Metric(
        "learner/num_skipped", "last", "count",
        "updates skipped so far because of a gradient that is not finite",
        "rising: `python -m cluster.commands.replay RUN --step N`; three in a row end the run",
    ),
    Metric(
        "learner/num_overlong_rollouts", "last", "count",
        "rollouts of a step that were left out because they are longer than the model has positions",
        "above 0: groups were stored by an earlier version, or lower `engine.max_model_len`",
    ),
    Metric(
        "learner/num_empty_steps", "last", "count",
        "1 where all groups of a step were filtered, so that it trained on nothing",
        "often: see `buffer/num_dropped_REASON`",
    ),
)  # fmt: skip
_declare(
    "Loss",
    Metric(
        "loss/total", "mean", "loss",
        "what is minimised: `learner.loss` with its coefficients, `loss/sequence` and `loss/asking`; not `loss/value`",
        "it is no measure of progress",
    ),
    Metric("loss/policy", "mean", "loss", "the policy loss before `coef`", "it is no measure of progress"),
    Metric("loss/sequence", "mean", "loss", "`learner.sequence_losses`, each times its `coef`"),
    Metric("loss/asking", "mean", "loss", "those of them that ask the policy something, such as `scir`"),
    Metric("t_reg/known_frac", "mean", "share", "with `t_reg`: pairs whose tokens the evaluator has weighted"),
    Metric("weighted_nll/known_frac", "mean", "share", "rollouts whose token weights are known"),
    Metric("learner/num_asked", "sum", "count", "sequences that such losses wrote from the step's rollouts"),
    Metric(
        "learner/asked_known_frac", "mean", "share",
        "of these, those that fit into `engine.max_model_len`",
        "below 1: shorter rollouts or a longer context, or their pairs train nothing",
    ),
    Metric(
        "scir/inconsistency_nats", "mean", "nats",
        "symmetric divergence of the policy's implicit preference from what it answers",
        "falls as both come to agree",
    ),
    Metric("scir/agree_frac", "mean", "share", "pairs about which both agree; DPO trains on these alone"),
    Metric("scir/implicit_entropy_nats", "mean", "nats", "entropy of the implicit preference"),
    Metric(
        "scir/generative_entropy_nats", "mean", "nats",
        "entropy of what it answers",
        "at 0.693 it has no opinion, or goes by place",
    ),
    Metric(
        "loss/entropy_nats", "mean", "nats",
        "entropy of the next token",
        "falling to 0: the policy collapses, raise `learner.loss.entropy_coef` or `kl_coef`",
    ),
    Metric(
        "loss/kl_nats", "mean", "nats",
        "estimate of the KL divergence to `learner.reference`; with `kl_coef` above 0",
        "growing without bound: raise `learner.loss.kl_coef`",
    ),
    Metric(
        "loss/ratio_mean", "mean", "ratio",
        "learner / behaviour probability",
        "far from 1: as `policy/behaviour_kl_nats`",
    ),
    Metric(
        "loss/effective_samples_frac", "mean", "share",
        "of the tokens, what a sum of importance-weighted ones is worth; 1 on policy",
        "below 0.5: as above",
    ),
    Metric(
        "loss/clipped_frac", "mean", "share",
        "tokens at a bound of the loss, hence without gradient in a clipped one",
        "above 0.2: the update is too large for one batch",
    ),
    Metric("loss/capped_frac", "mean", "share", "with `decoupled`: tokens at its cap"),
    Metric(
        "loss/mismatch_bound_frac", "mean", "share",
        "tokens outside the bounds of `[learner.loss.mismatch]`",
        "above a few percent: see `policy/mismatch_kl_nats`",
    ),
    Metric("loss/staleness_bound_frac", "mean", "share", "tokens outside the bounds of `[learner.loss.staleness]`"),
    Metric(
        "loss/covariance_clip_frac", "mean", "share",
        "with `clipped_covariance`: tokens left out because advantage and log-prob move together",
        "0 for long: none lies within its bounds",
    ),
    Metric("loss/sequence_clip_frac", "mean", "share", "with `sequence_clip`: rollouts of a ratio out of bounds"),
    Metric(
        "loss/turn_kl_nats", "mean", "nats",
        "with `turnwise_reinforce`: mean distance of a token's turn from `learner.reference`",
        "growing: raise `betas`",
    ),
)  # fmt: skip
_declare(
    "What is remembered",
    Metric(
        "advantage/num_states", "mean", "count",
        "observations in the tables of `explors`",
        "grows as fast as rollouts come: no observation is seen twice, and the bonus tells nothing",
    ),
    Metric(
        "advantage/baseline_NAME", "mean", "reward",
        "running mean of a game's agent",
        "equal for all agents: none has an advantage",
    ),
    Metric(
        "replay/num_kept", "sum", "count",
        "rollouts in the buffer of `learner.experience_replay`",
        "0 for long: no rollout is better than its group, or none uses the tool",
    ),
    Metric(
        "replay/baseline", "mean", "reward",
        "median of the last groups' mean rewards: what a replayed rollout is better than",
    ),
    Metric(
        "replay/num_rollouts", "sum", "count",
        "rollouts trained on once more in this step",
        "always 0: lower `buffer_size`",
        kind="counter",
    ),
    Metric("settings/NAME", "mean", "its own", "a number of the recipe that a controller has set, by its key"),
    Metric(
        "settings/balance", "mean", "0 to 1",
        "B-STaR's balance score of the best temperature and threshold",
        "falling: the policy explores no more",
    ),
)  # fmt: skip
_declare(
    "Value head",
    Metric(
        "loss/value", "mean", "loss",
        "the value head's part of the loss, its coefficient included",
        "rising: lower the learning rate",
    ),
    Metric(
        "value/mean", "mean", "reward",
        "mean value under the weights at assembly",
        "far from `value/return_mean`: the head lags behind",
    ),
    Metric("value/return_mean", "mean", "reward", "mean of what it is to predict"),
    Metric(
        "value/explained_variance", "mean", "share",
        "of the returns' variance, what the values explain",
        "at or below 0: the head knows nothing yet, advantages are returns",
    ),
    Metric("value/clipped_frac", "mean", "share", "tokens whose value is held at its clip", "high: raise the clip"),
)  # fmt: skip
_declare(
    "Weights and evaluation",
    Metric("weights/published", "mean", "count", "1 per version that was handed over"),
    Metric(
        "weights/fetch_s", "mean", "s",
        "getting a published version to an engine's node",
        "high: the network between the nodes",
    ),
    Metric(
        "weights/pause_s", "mean", "s",
        "how long its generations stood still for the update",
        'high: fewer sequences in flight, or `weights.pause_mode = "abort"`',
    ),
    Metric(
        "eval/accuracy", "mean", "score",
        "mean of `evaluation.reward` over evaluation tasks",
        "falling while `reward/mean` rises: the reward is gamed",
    ),
    Metric(
        "eval/anchor_agreement", "mean", "share",
        "of the evaluation tasks that the initial policy was surest of, those still answered as then",
        "falling while nothing else rises: the policy drifts, see the monitor `collapse`",
    ),
    Metric("eval/seconds_s", "mean", "s", "one evaluation", "high: lower `evaluation.max_tasks`"),
    Metric("eval/NAME/accuracy", "mean", "score", "of one of `[[evaluations]]`: mean reward over tasks and samples"),
    Metric("eval/NAME/pass_at_k", "mean", "share", "its tasks with a reward above 0.5 among their samples"),
    Metric(
        "eval/NAME/vote_accuracy", "mean", "score",
        "mean reward of the one sample of each task that its vote chooses",
        "below `eval/NAME/accuracy`: what the vote goes by prefers wrong answers",
    ),
    Metric(
        "eval/NAME/num_without_vote", "mean", "count",
        "its tasks in which nobody votes; their first sample counts",
        "near all: the reward `by` is unknown, see the log",
    ),
    Metric(
        "eval/NAME/verdict_precision", "mean", "share",
        "`vote = \"self_prm\"`: samples that the policy calls right, and are",
    ),
    Metric(
        "eval/NAME/verdict_precision_hard", "mean", "share",
        "the same where fewer than half of a task's samples are right",
        "low: these verdicts are no reward; it calls wrong solutions right",
    ),
    Metric("eval/NAME/verdict_recall", "mean", "share", "right samples that it calls right"),
    Metric(
        "eval/NAME/verdict_f1", "mean", "share",
        "harmonic mean of the shares of wrong and of right samples that it tells",
    ),
    Metric("eval/NAME/seconds_s", "mean", "s", "one such evaluation", "high: fewer tasks or samples"),
)  # fmt: skip
_declare(
    "Demonstrations",
    Metric("loss/demonstrations_nats", "mean", "nats", "−log-prob of a token of `[learner.demonstrations]`"),
    Metric("loss/nll_nats", "mean", "nats", "`kanabo sft`: −log-prob of a token that is trained on, before the step"),
    Metric("eval/loss_nll_nats", "mean", "nats", "the same on held-out rows", "rising: fewer passes"),
    Metric("eval/loss_NAME", "mean", "loss", "`kanabo dpo`: a loss of `learner.sequence_losses` on held-out pairs"),
    Metric("eval/pairs_accuracy", "mean", "share", "held-out pairs whose chosen completion gained more log-prob"),
    Metric("eval/pairs_chosen_log_ratio_nats", "mean", "nats", "what held-out chosen completions gained in log-prob"),
    Metric("eval/pairs_rejected_log_ratio_nats", "mean", "nats", "what held-out rejected ones gained"),
    Metric(
        "learner/num_left_out_rows", "sum", "count",
        "rows of the step that cannot be read or are too long",
        "above 0: the output names the first three",
        kind="counter",
    ),
)  # fmt: skip
_declare(
    "Workers and failures",
    Metric(
        "workers/num_ROLE", "last", "count",
        "workers of this role that are there: `rollout`, `reward`, …",
        "below what the recipe or `cluster.commands.scale` asks for: one is being replaced, or there is no room",
    ),
    Metric(
        "failures/num_infrastructure", "last", "count",
        "deaths of workers, engines and Redis so far, without those that a group's reward has caused",
        "near `run.max_infrastructure_failures`: the log names each process and its cause",
    ),
    Metric(
        "failures/num_data", "last", "count",
        "groups that a task, an environment or a reward failed on so far",
        "near `run.max_data_failures`: fix what the log names",
    ),
    Metric(
        "failures/num_unreadable", "last", "count",
        "groups so far whose stored bytes could not be read; their tasks are claimed again",
        "above 0 after an update: an earlier version left them; else look at `Buffer.quarantine()`",
    ),
    Metric(
        "failures/num_condemned", "last", "count",
        "rewards of single groups that two reward workers died over; each is `failed` for its group",
        "above 0: the reward ends its process, or holds the interpreter lock; the log names both",
    ),
    Metric(
        "failures/num_leases_lost", "last", "count",
        "groups whose lease ran out while they were sampled",
        "rising: raise `rollout.lease_s` above an episode's time",
    ),
)  # fmt: skip
_declare(
    "Judges, reward models, monitors",
    Metric(
        "judge/NAME_queue_depth", "mean", "count",
        "requests that wait",
        "growing: more replicas, or `max_in_flight`",
    ),
    Metric(
        "judge/NAME_queue_age_s", "mean", "s",
        "the longest wait of a request since the last report",
        "near `judges.NAME.deadline_s`: add replicas, or let `[autoscaling.judges.NAME]` do it",
    ),
    Metric(
        "judge/NAME_open_circuits", "mean", "count",
        "replicas that are not asked at present because they fail",
        "above 0: look at that server",
    ),
    Metric("judge/NAME_latency_p50_s", "mean", "s", "median time of an answer"),
    Metric(
        "judge/NAME_latency_p95_s", "mean", "s",
        "95th percentile",
        "near `judges.NAME.deadline_s`: raise that, or add replicas",
    ),
    Metric("judge/NAME_hit_frac", "mean", "share", "requests answered from the archive or with an equal one"),
    Metric(
        "judge/NAME_invalid_frac", "mean", "share",
        "verdicts that failed",
        "above 0.05: another template, `structured`, or another judge",
    ),
    Metric("judge/NAME_abstained_frac", "mean", "share", "verdicts that it declined"),
    Metric(
        "judge/NAME_consistency_frac", "mean", "share",
        "pairs with the same winner in both orders",
        "below 0.7 it guesses",
    ),
    Metric(
        "judge/NAME_first_position_frac", "mean", "share",
        "decided comparisons won by what was shown first",
        "far from 0.5: it goes by place; keep `swap = true`",
    ),
    Metric("judge/NAME_agreement_frac", "mean", "share", "equal answers among several judges, or votes"),
    Metric(
        "judge/NAME_canary_frac", "mean", "share",
        "questions with known answers it gets right",
        "below 0.8: it can be talked into scores",
    ),
    Metric(
        "judge/NAME_num_asked", "last", "count",
        "requests to the judge, canaries included; the sum of the next four",
    ),
    Metric(
        "judge/NAME_num_answered", "last", "count",
        "of these scored, or declined by the judge",
        "0 while requests fail: the judge never answered",
    ),
    Metric(
        "judge/NAME_num_failed", "last", "count",
        "of these without a verdict; the sum of `num_failed_REASON`",
        "rising: the reasons below say why",
    ),
    Metric(
        "judge/NAME_num_cancelled", "last", "count",
        "of these given up by the reward that asked, as at its `timeout_s`",
        "above 0: `judges.NAME.deadline_s` should be shorter than the reward's `timeout_s`",
    ),
    Metric("judge/NAME_num_in_flight", "last", "count", "of these without an end yet"),
    Metric(
        "judge/NAME_num_failed_REASON", "last", "count",
        "failed requests by reason: `timeout`, `unavailable`, `unreadable`, `rejected`, `unauthorised`, `busy`, "
        "`server_error`, `protocol_error`, `answer_too_long`, `absent`, `unreachable`, `overflow`",
        "the note of a failed score has the server's words",
    ),
    Metric("judge/NAME_num_calls", "last", "count", "completions asked of servers"),
    Metric("judge/NAME_num_unreadable", "last", "count", "answers without a verdict, retries included"),
    Metric("judge/NAME_cost_tokens", "mean", "tokens", "of prompts and completions"),
    Metric("scorer/NAME_num_passages", "last", "count", "texts read so far by this worker's requests"),
    Metric(
        "scorer/NAME_num_failed", "last", "count",
        "texts that no replica read by the deadline",
        "above 0: more replicas, or a larger `deadline_s`",
    ),
    Metric("scorer/NAME_latency_s", "mean", "s", "of the last answer", "near `scorers.NAME.deadline_s`: more replicas"),
    Metric(
        "reward_model/NAME_known_frac", "mean", "share",
        "captions that the reward model knew",
        "low: the labeller does not keep up",
    ),
    Metric("reward_model/NAME_num_seen", "last", "count", "captions scored"),
    Metric("reward_model/NAME_num_labels", "last", "count", "labels in the table"),
    Metric(
        "reward_model/NAME_num_waiting", "last", "count",
        "captions that wait to be labelled",
        "growing: raise `reward_models.NAME.max_in_flight`, or a faster judge",
    ),
    Metric("reward_model/NAME_num_in_flight", "last", "count", "captions a judge is asked about now"),
    Metric(
        "reward_model/NAME_num_pushed_out", "last", "count",
        "captions that left the full backlog unasked",
        "growing: as `reward_model/NAME_num_waiting`",
    ),
    Metric(
        "reward_model/NAME_coverage_frac", "mean", "share",
        "look-ups of a label that found one",
        "low: captions hardly repeat",
    ),
    Metric(
        "reward_model/NAME_version", "mean", "number",
        "the version published last",
        "0 for long: see `reward_model/NAME_agreement_frac`",
    ),
    Metric(
        "reward_model/NAME_good_frac", "mean", "share",
        "labels that are good news",
        "near 0 or 1: the goal tells nothing apart",
    ),
    Metric(
        "reward_model/NAME_num_refused", "last", "count",
        "versions that were not published, for they agreed less with held-out labels",
        "rising: more labels, or a lower `min_agreement`",
    ),
    Metric(
        "reward_model/NAME_agreement_frac", "mean", "share",
        "agreement with held-out labels",
        "near 0.5: the model has learnt nothing",
    ),
    Metric("reward_model/NAME_loss", "mean", "loss", "of the last fit"),
    Metric("reward_model/NAME_num_asked", "last", "count", "requests to the judge"),
    Metric(
        "reward_model/NAME_num_unreadable", "last", "count",
        "captions in answers that could not be read",
        "high: another judge",
    ),
    Metric(
        "reward_model/NAME_num_outages", "last", "count",
        "requests that the judge did not answer",
        "rising: look at the judge",
    ),
    Metric(
        "reward_model/NAME_starc_distance", "mean", "0 to 1",
        "STARC distance between the last two published versions, on the groups scored last: 0 where they could not "
        "lead to different policies",
        "stays high: the model does not settle, more labels or a lower learning rate",
    ),
    Metric(
        "reward_model/NAME_flip_frac", "mean", "share",
        "of those groups, whose best rollout is another under the newer version",
        "as above",
    ),
    Metric(
        "monitor/over_optimisation_distance", "mean", "√nats",
        "√KL between policy and reference at the last measurement of quality",
        "beyond `monitor/over_optimisation_peak_distance`: more training costs quality",
    ),
    Metric(
        "monitor/over_optimisation_alpha", "mean", "quality/√nats",
        "α of the fitted law R(d) = d (α − β log d), from six distances on",
    ),
    Metric("monitor/over_optimisation_beta", "mean", "quality/√nats", "its β; 0 or less: no hump"),
    Metric(
        "monitor/over_optimisation_peak_distance", "mean", "√nats",
        "where the fitted law is highest, if it has a hump",
    ),
    Metric(
        "monitor/cliff_flip_frac", "mean", "share",
        "monitor `policy_cliff`: groups whose best rollout is another when one reward's weight changes a little",
        "high: the policy can jump; more votes, `learner.loss.entropy_coef`",
    ),
    Metric(
        "monitor/cliff_distance", "mean", "0 to 1",
        "mean over groups of how far a softmax policy moves then (total variation)",
        "as above",
    ),
    Metric(
        "monitor/cliff_fragile_frac", "mean", "share",
        "groups whose best rollout could be another if every reward is off by the judge's noise",
        "high: more votes",
    ),
    Metric(
        "monitor/cliff_degenerate_frac", "mean", "share",
        "groups whose rewards are all equal",
        "as `reward/zero_variance_frac`",
    ),
    Metric(
        "monitor/cliff_top_gap", "mean", "reward",
        "best reward minus second best, mean over groups",
        "near 0: ties decide",
    ),
    Metric(
        "reward/NAME_starc_distance", "mean", "0 to 1",
        "monitor `starc`: distance of a reward from what is trained on, or from another, over the step's groups",
        "rising: the two come apart, as when a reward is gamed",
    ),
    Metric(
        "reward/NAME_one_to_many_accuracy", "mean", "share",
        "monitor `one_to_many`: right rollouts that the reward puts above all wrong ones of their group",
        "falling: the reward no longer knows right from wrong",
    ),
    Metric(
        "reward/NAME_one_to_many_mrr", "mean", "share",
        "mean of 1 / rank of the right ones among the wrong ones",
        "as above",
    ),
    Metric("monitor/NAME_alarms", "mean", "count", "1 where a monitor raised its alarm", "its message is in the log"),
)  # fmt: skip
