"""The data model: what actors, rewards and learner hand to one another. numpy only, no ray, no torch.

Everything here is frozen and travels as MessagePack (`encode`, `decode`), in Redis as on the wire.
Log-probs are in nats. An unknown number is NaN, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

SCORED, FAILED, ABSTAINED = 0, 1, 2
"""States of one score. Only SCORED has a value."""

INVALID_TOOL_CALL = "invalid tool call"
"""Text of the event that a policy's call of a tool could not be read, or named no tool or wrong arguments."""

Finish = Literal["stop", "length"]
"""`length`: cut short by its budget of tokens or turns."""


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt in one or several variants, perhaps with a reference answer."""

    id: str
    variants: dict[str, tuple[Message, ...]]
    """Named renderings of the same task: `orig`, `paraphrase`, …"""
    answer: str | None = None
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(id: str, prompt: str, answer: str | None = None, *, source: str = "", **meta: Any) -> Task:
        return Task(id, {"orig": (Message("user", prompt),)}, answer, source, meta)

    @property
    def prompt(self) -> str:
        """The text of the original variant, messages joined by newlines."""
        return "\n".join(m.content for m in self.variants["orig"])


@dataclass(frozen=True, slots=True)
class SkippedTasks:
    """Places of rows that are longer than the context, among the training and among the evaluation tasks."""

    train: tuple[int, ...] = ()
    evaluation: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens [start, end) of a rollout were sampled under weights `version` (`epoch.step`)."""

    version: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Turn:
    """Tokens [start, end) of a rollout, spoken by `role`."""

    role: str
    start: int
    end: int
    text: str
    opened: str = ""
    """What the prompt opened for a turn of the policy, such as `<think>\\n`: the turn begins inside it."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something the environment noticed in a turn; `count` is how often so far in this episode, this time included.

    `turn` counts the policy's turns from 0: its answer brought the event about. `reward` is what the environment gave
    for that, if it gives any per turn.
    """

    text: str
    turn: int
    count: int = 1
    reward: float = 0.0


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One step of a search tree, on the way to the last token of a rollout."""

    id: int
    """Number of the node in its group's tree: rollouts that have a node in common share all tokens up to its end."""
    end: int
    """Place in the rollout behind the last token that the policy chose in this step."""
    text: str
    """What the policy wrote in this step, and what the environment answered to it."""
    value: float = float("nan")
    """What the search held the node to be worth when it ended; NaN if it gave no value."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled trajectory, prompt included, as flat tokens."""

    tokens: np.ndarray
    """[T] int32: prompt, then turns, exactly as the engine saw them."""
    loss_mask: np.ndarray
    """[T] bool: true where the policy chose the token."""
    logprobs: np.ndarray
    """[T] float32, nats: behaviour log-probs at `temperature`; 0 where the mask is false."""
    text: str
    """What the policy wrote, all its turns joined by newlines."""
    turns: tuple[Turn, ...]
    spans: tuple[VersionSpan, ...]
    finish: Finish
    temperature: float = 1.0
    answer: str | None = None
    variant: str = "orig"
    policy: str = "policy"
    attempt: int = 0
    parent: int | None = None
    events: tuple[Event, ...] = ()
    reward: float = float("nan")
    """The environment's own reward; NaN if it gives none."""
    agent: str = ""
    """The agent that acted, in an episode of several agents; each agent has a rollout of its own."""
    episode: int | None = None
    """Which episode of the group it comes from, where an episode leaves several: an agent that opens a conversation
    anew, or several at once. They share what the episode is worth; None: it is an episode of its own."""
    chained: bool = False
    """Whether the rollouts of its episode, in their order, are one conversation whose context was rewritten between
    them: rewards at tokens count for the rollouts before them too, and all are left out where one is."""
    opened: str = ""
    """What the prompt opened before the policy's first turn, such as `<think>\\n`: `text` begins inside it."""
    num_cut_observations: int = 0
    """Observations that were cut to fit the context, or left out because nothing of them fitted."""
    path: tuple[TreeNode, ...] = ()
    """Nodes of the search tree from below its root to the end of the rollout; empty without a search."""

    @property
    def truncated(self) -> bool:
        return self.finish == "length"

    @property
    def num_tokens(self) -> int:
        """Tokens the policy chose."""
        return int(self.loss_mask.sum())


@dataclass(frozen=True, slots=True)
class Claim:
    """Permission to have one group in flight, and the identity of that group."""

    id: str
    """`policy/epoch/seq`, unique for the life of a run."""
    policy: str
    epoch: int
    seq: int
    task: int
    """Position in the seeded endless sequence of tasks (pass × size + place in the pass)."""
    version: int
    """Released policy version when it was claimed."""
    token: str
    """The lease's secret: who lost the lease cannot put."""


@dataclass(frozen=True, slots=True)
class Group:
    """G rollouts of one task: sampled, judged, stored and trained together."""

    claim: Claim
    task: Task
    rollouts: tuple[Rollout, ...]

    @property
    def id(self) -> str:
        return self.claim.id

    @property
    def version(self) -> int:
        """Policy version at admission: the oldest weights in it."""
        return self.claim.version

    def __len__(self) -> int:
        return len(self.rollouts)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What stands behind a score."""

    judge: str = ""
    model: str = ""
    prompt_hash: str = ""
    attempt: int = 1
    latency_s: float = 0.0
    cost_tokens: int = 0
    note: str = ""
    """Why it failed or abstained, or the raw verdict."""


@dataclass(frozen=True, slots=True)
class Scores:
    """One reward's evidence on the G rollouts of a group.

    Raises ValueError if a SCORED value is not finite or the shapes differ: a NaN is a state, not a number.
    """

    values: np.ndarray
    """[G] float64; NaN unless scored."""
    state: np.ndarray
    """[G] uint8: SCORED, FAILED or ABSTAINED."""
    provenance: tuple[Provenance, ...] = ()
    """One for the group, or one per rollout."""
    version: str = "0"
    """Version of what scored: judge template, model or code."""
    tokens: tuple[np.ndarray, ...] | None = None
    """Per-token values, one [T] float64 array per rollout, NaN where unknown."""

    def __post_init__(self) -> None:
        if self.values.shape != self.state.shape or self.values.ndim != 1:
            raise ValueError(
                f"scores have shape {self.values.shape}, their states {self.state.shape}; both must be [G]."
            )
        known = np.isfinite(self.values)
        if not np.array_equal(known, self.state == SCORED):
            raise ValueError(f"finite values and the state 'scored' must coincide: values {self.values}, {self.state}.")

    @staticmethod
    def of(values: Any, provenance: Provenance | None = None, *, version: str = "0") -> Scores:
        """Scores from G numbers; what is None, NaN or infinite becomes FAILED."""
        array = np.array([np.nan if v is None else v for v in values], np.float64)
        finite = np.isfinite(array)
        state = np.where(finite, SCORED, FAILED).astype(np.uint8)
        return Scores(np.where(finite, array, np.nan), state, (provenance,) if provenance else (), version)

    @staticmethod
    def _unknown(num_rollouts: int, state: int, note: str) -> Scores:
        return Scores(np.full(num_rollouts, np.nan), np.full(num_rollouts, state, np.uint8), (Provenance(note=note),))

    @staticmethod
    def failed(num_rollouts: int, note: str) -> Scores:
        return Scores._unknown(num_rollouts, FAILED, note)

    @staticmethod
    def abstained(num_rollouts: int, note: str = "") -> Scores:
        return Scores._unknown(num_rollouts, ABSTAINED, note)


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference between two rollouts, by their places: in their group, or (in a `Batch`) among the step's."""

    chosen: int
    rejected: int
    weight: float = 1.0
    """What the pair counts in the mean over pairs."""
    margin: float = 0.0
    """Score of the chosen one minus that of the rejected."""
    origin: str = ""
    """Which selector made it."""
    label: float = 1.0
    """Probability that the chosen one is the better: 1 where nobody doubts it."""
    third: int | None = None
    """A rollout beside the two, for terms that have a use for one."""


@dataclass(frozen=True, slots=True)
class GroupReward:
    """One group's scores as the scalar that is trained on."""

    rewards: np.ndarray
    """[G] float64, NaN for a rollout that is left out."""
    drop: str | None = None
    """Why the whole group must go, if it must."""
    metrics: dict[str, float] = field(default_factory=dict)
    pairs: tuple[Pair, ...] | None = None
    """What a selector found to compare; None where none looked for pairs."""
    token_weights: tuple[np.ndarray, ...] | None = None
    """Per rollout [T] float64, NaN where unknown: what loss terms weigh its tokens by, or an advantage looks at. There
    where a selector says so."""
    tokens: tuple[np.ndarray, ...] | None = None
    """Per rollout [T] float64: the part of its reward that came at a token; None where no reward says so. The rest of
    the reward is the rollout's as a whole."""
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    """What each trained reward adds to the rewards, weight included: name → [G] float64."""
    at_tokens: frozenset[str] = frozenset()
    """Rewards whose part is the sum of what came at tokens."""


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group with its scores: as the buffer returns it, then with the reward and advantages that a step gives it."""

    group: Group
    scores: dict[str, Scores]
    """Scores that have arrived, by reward; a reward that has not answered is absent."""
    overdue: bool = False
    """Whether its score deadline has passed."""
    outdated: bool = False
    """Whether a score was made under an older version than the current one of its reward."""
    reward: GroupReward | None = None
    """The scores aggregated; None until a learner has done so."""
    selected: GroupReward | None = None
    """`reward` as it is trained on: NaN also where the learner or a selector leaves a rollout out."""
    reason: str = ""
    """Why the step dropped the group; empty where it did not."""

    @property
    def rewards(self) -> np.ndarray:
        """[G] float64: what is trained on, NaN for a rollout that is left out."""
        found = self.selected or self.reward
        assert found is not None, f"the scores of group {self.group.id} are not aggregated yet"
        return found.rewards


@dataclass(frozen=True, slots=True)
class Replayed:
    """Rollouts of an earlier step that are trained on once more, beside the step's own groups."""

    group: Group
    """With these rollouts alone."""
    rewards: np.ndarray
    """[R] float64, as of the step that first trained on them."""
    advantages: tuple[np.ndarray, ...]
    """Per rollout [1] or [T] float32, as of now."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """What one step trains on, decided once and written before any rank sees a batch."""

    policy: str
    step: int
    groups: tuple[str, ...]
    """Ids, in the order of training."""
    rewards: tuple[np.ndarray, ...]
    """Mixed reward per group, [G] float64, NaN for a rollout that is left out."""
    advantages: tuple[tuple[np.ndarray, ...], ...]
    """Per group and rollout: [1] (one for all its tokens) or [T] float32."""
    metrics: dict[str, float] = field(default_factory=dict)
    pairs: tuple[tuple[Pair, ...], ...] = ()
    """Per group; nothing at all where no selector looked for pairs."""
    token_weights: tuple[tuple[np.ndarray, ...], ...] = ()
    """Per group and rollout [T] float32, NaN where unknown; a group without any has an empty tuple."""
    replayed: tuple[Replayed, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    """What controllers had made of the recipe when this batch was assembled: dotted key → value."""
    observed: dict[str, Any] = field(default_factory=dict)
    """What each controller noted of all groups that the step looked at, dropped ones included; plain values by name."""


@dataclass(slots=True)
class AssembledBatch:
    """A recorded batch with its groups; `wait_s` is how long the learner waited for rollouts and scores."""

    record: BatchRecord
    groups: list[Group]
    wait_s: float = 0.0
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    """Scores by group id, where this call decided; a repeated step reads rewards from the record alone."""
    left_out: list[ScoredGroup] = field(default_factory=list)
    """Groups that the step considered and dropped, where this call decided."""
    observed: Any = None
    """What a controller noted of all groups that the step considered (`Controller.observe`)."""


@dataclass(frozen=True, slots=True)
class SharedRows:
    """A micro-batch's sequences with every common prefix once, which the model computes in place of its rows.

    A token attends to those at or before it whose `ends` lies behind it: the tokens that lead to it. Arrays are [R, W]
    unless they say otherwise.
    """

    tokens: np.ndarray
    positions: np.ndarray
    """int64: place of the token within its sequences, from 0."""
    ends: np.ndarray
    """int64: column behind the last token of this row that continues this one."""
    place: np.ndarray
    """[B, L] int64: where a token of the micro-batch lies in the flattened [R·W]; 0 for padding."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of packed sequences that go through the model at once. All arrays are [B, L]."""

    tokens: np.ndarray
    positions: np.ndarray
    """int64, restarting at 0 with every sequence; padding is a sequence of its own."""
    loss_mask: np.ndarray
    """bool: true where the token was chosen by the policy and is trained on."""
    logprobs: np.ndarray
    """Behaviour log-probs, nats."""
    advantages: np.ndarray
    temperature: np.ndarray
    """Temperature the token was sampled at; 1 elsewhere."""
    rollout: np.ndarray
    """int64: index of the rollout within the step, −1 for padding."""
    staleness: np.ndarray
    """int64: optimizer steps between the weights that sampled a trained token and the current ones; 0 elsewhere.
    Weights of a dead epoch are at least 1 behind: a repeated step need not give the same ones."""
    appended: np.ndarray | None = None
    """bool: true on the token that a loss term had appended to each rollout; its log-prob is computed too."""
    token_weights: np.ndarray | None = None
    """float32: what loss terms weigh a trained token by; 0 elsewhere and where unknown."""
    shared: SharedRows | None = None
    """What a model that takes a mask computes in place of these rows; None where they share too little."""
    idle: bool = False
    """Whether all advantages of this micro-batch are 0, and of those that other ranks run beside it."""


@dataclass(frozen=True, slots=True)
class TrainedRollouts:
    """The trained rollouts of a step, all ranks', in the order that `MicroBatch.rollout` counts them."""

    group: np.ndarray
    """[N] int64: place of its group in the step."""
    weighted: np.ndarray
    """[N] bool: whether all its trained tokens have a known weight."""
    pairs: tuple[Pair, ...]
    """Their places are among these N."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one rank trains on in one step."""

    step: int
    micros: tuple[MicroBatch, ...]
    num_tokens: int
    """Trained tokens of the whole step, all ranks."""
    num_rollouts: int
    """Trained rollouts of the whole step, all ranks."""
    trained: TrainedRollouts
    rewards: np.ndarray
    """[N] float64: of each of them, whatever the rank; `MicroBatch.rollout` is the place."""
    truncated: np.ndarray
    """[N] bool: cut short by its budget."""
    metrics: dict[str, float] = field(default_factory=dict)
    tempered: bool = False
    """Whether any rank's trained token was sampled at another temperature than 1."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A published file of weights, in safetensors."""

    path: str
    host: str = ""
    """Name of the machine on which it lies, as `socket.gethostname` gives it."""


@dataclass(frozen=True, slots=True)
class LogprobProbe:
    """The learner's log-probs on a fixed sequence under published weights, for engines to compare theirs with."""

    tokens: tuple[int, ...]
    cuts: tuple[int, ...]
    """Positions of the tokens that are compared."""
    logprobs: tuple[float, ...]
    """Log-prob of the token at each of them, nats, at temperature 1."""


@dataclass(frozen=True, slots=True)
class Publication:
    """Weights that engines may sample with, as announced by a learner."""

    policy: str
    epoch: int
    step: int
    file: WeightFile | None = None
    """Where engines fetch them; None where the learner pushes them into the engines."""
    probe: LogprobProbe | None = None
    """What an engine compares itself with once it has them; None where this version is not compared."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What controllers make of the recipe from this version on: dotted key → value."""

    @property
    def version(self) -> str:
        """`epoch.step`: unique also after a crash repeats a step."""
        return f"{self.epoch}.{self.step}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint commits to; its rename is the commit point."""

    policy: str
    step: int
    epoch: int
    frontier: int
    """The next task never claimed."""
    requeued: tuple[int, ...]
    """Tasks that are claimed before the frontier, in order."""
    outstanding: tuple[int, ...]
    """Tasks of groups that are claimed and not trained at `step`."""
    trained: tuple[str, ...]
    """Ids of the groups trained since the manifest before."""
    scheduled: bool = True
    """Whether `checkpoint.every_steps` asked for it, and no stop and no end of the run."""
    rounds: int | None = None
    """Scheduled checkpoints in the run's history up to this one; None where nobody counted."""
