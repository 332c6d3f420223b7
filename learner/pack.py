"""Packing: a batch's rollouts as rows of tokens, dealt to ranks and grouped into micro-batches.

    rollouts ──sort by length──► rows (best fit) ──deal──► ranks ──► micros of at most `micro_tokens`
    groups ──common prefixes──► trees ───────────────┘               (the same number on every rank)

Alignment: every array says at position t what belongs to token t. The log-prob of token t is predicted by position
t−1 of the same row, so the first token of a sequence has none and is never trained on. Truncated rollouts (finish
`length`) are trained like any other; a rollout whose reward is NaN is left out, and so is one that is in no pair where
only pairs are trained on. Tokens behind a rollout's last trained one change no gradient and are not packed.

Staleness is per token, from the version spans: weights may have changed while a rollout was sampled.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cluster.config import LearnerSection
from cluster.types import Batch, BatchRecord, Group, MicroBatch, Rollout, TrainedRollouts
from learner.shared_prefix import LINEAR_COST, TreeRow, shared_rows, tree_rows

SEQUENCES_PER_ROW = 8
"""Rows hold about so many sequences. Attention over a row is masked, not skipped: in a row of 512 tokens, 12-token
sequences take 1.4 times as long as in rows of 96, and beyond eight a row there is little padding left to save."""
ROW_TOKENS = 512
"""Tokens of a row, if the recipe says nothing."""
LONG_TOKENS = 32
"""On a CPU sequences of so many tokens on average have a row each: attention then needs no mask and computes the lower
triangle alone. With shorter ones the mask costs less than small matrices do."""
FULL_FRAC, LEAST_TOKENS = 0.75, 512
"""A micro-batch of such rows ends where the next row would fill less than this share of it, once it has so many
tokens: another micro-batch costs less than padding."""

Aggregate = Literal["token", "sequence", "constant"]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What a loss may look at, beside the log-probs."""

    loss_mask: Bool[Tensor, "B L"]
    weight: Float[Tensor, "B L"]
    """1 / trained tokens of its rollout for `aggregate = "sequence"`, else 1; 0 on tokens that are not trained."""
    behaviour_logprobs: Float[Tensor, "B L"]
    advantages: Float[Tensor, "B L"]
    rollout: Int[Tensor, "B L"]
    """Which rollout of the micro-batch a token belongs to, counted from 0; padding has a number of its own."""
    staleness: Int[Tensor, "B L"]
    """Optimizer steps between the weights that sampled a token and the current ones."""
    reference_logprobs: Float[Tensor, "B L"] | None = None
    proximal_logprobs: Float[Tensor, "B L"] | None = None
    """Log-probs under the weights before the step's first update; None in a step of one update: the policy's own."""


@dataclass(frozen=True, slots=True)
class _Sequences:
    """The trained rollouts of a step, tokens concatenated."""

    lengths: Int[np.ndarray, " N"]
    tokens: Int[np.ndarray, " T"]
    loss_mask: Bool[np.ndarray, " T"]
    logprobs: Float[np.ndarray, " T"]
    advantages: Float[np.ndarray, " T"]
    temperature: Float[np.ndarray, " T"]
    staleness: Int[np.ndarray, " T"]
    appended: Bool[np.ndarray, " T"]
    token_weights: Float[np.ndarray, " T"]
    rewards: Float[np.ndarray, " N"]
    truncated: Bool[np.ndarray, " N"]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where each sequence lies."""

    row: Int[np.ndarray, " N"]
    offset: Int[np.ndarray, " N"]
    used: Int[np.ndarray, " R"]
    """Tokens in each row."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the model computes in a step."""

    layout: _Layout
    used: Int[np.ndarray, " R"]
    """Tokens in each row that the model computes."""
    dealt: list[list[Int[np.ndarray, " B"]]]
    """`[rank][micro]` → numbers of these rows."""
    num_active: int
    """Micro-batches that come before those that are idle on every rank."""
    masked: bool
    """Whether attention needs a mask, under which it computes the whole square of a row."""
    trees: list[TreeRow] = field(default_factory=list)
    """The rows, where they are not those of the layout."""

    def cost(self) -> float:
        """Return what the step's slots cost, padding included, in the unit of `LINEAR_COST`."""
        micros = [self.used[rows] for of_rank in self.dealt for rows in of_rank]
        share = 1.0 if self.masked else 0.5
        return sum(len(used) * int(used.max()) * (LINEAR_COST + share * int(used.max())) for used in micros)

    def filled(self, sequences: _Sequences, rank: int, *, weighted: bool) -> list[MicroBatch]:
        """Return the micro-batches of a rank."""
        if not self.trees:
            return _fill(sequences, self.layout, self.dealt[rank], weighted=weighted)
        trees = [[self.trees[i] for i in rows] for rows in self.dealt[rank]]
        numbers = [np.array([n for tree in of_micro for n in tree.paths]) for of_micro in trees]
        micros = _fill(sequences, self.layout, numbers, weighted=weighted)
        return [replace(micro, shared=shared_rows(of_micro)) for micro, of_micro in zip(micros, trees, strict=True)]


def pack(
    groups: Sequence[Group],
    record: BatchRecord,
    section: LearnerSection,
    rank: int = 0,
    world: int = 1,
    *,
    epoch: int = 1,
    append: int | None = None,
    shares: bool = False,
) -> Batch:
    """What `rank` of `world` trains on in this step of `epoch`; a token `append` is put behind every rollout.

    Deterministic: every rank computes the same layout from the record and keeps its share. With `shares`
    the model computes common prefixes of a group once, if that costs less or `learner.packing` says so.
    """
    assert tuple(g.id for g in groups) == record.groups, "the groups are not the record's, or not in its order"
    groups, record = with_replayed(groups, record)
    places = places_of(groups, record, section)
    sequences = _sequences(groups, record, places, epoch, append)
    rows = _rows(sequences, section, world)
    if shares and places:
        trees = _trees(sequences, [g for g, _ in places], section, world)
        rows = trees if section.packing == "shared_prefix" or trees.cost() < rows.cost() else rows
    micros = rows.filled(sequences, rank, weighted=bool(record.token_weights))
    micros = [replace(m, idle=i >= rows.num_active) for i, m in enumerate(micros)]
    computed = sum((m.shared or m).tokens.size for m in micros)
    more = range(len(micros), max(map(len, rows.dealt)))
    micros += [replace(_empty(), idle=i >= rows.num_active) for i in more]
    num_used = sum(int(rows.used[numbers].sum()) for numbers in rows.dealt[rank])
    return Batch(
        step=record.step,
        micros=tuple(micros),
        num_tokens=int(sequences.loss_mask.sum()),
        num_rollouts=len(sequences.lengths),
        trained=trained_of(groups, record, places),
        rewards=sequences.rewards,
        truncated=sequences.truncated,
        tempered=bool((sequences.temperature != 1).any()),
        metrics={
            "learner/padding_frac": 1 - num_used / computed if computed else 0.0,
            "learner/shared_frac": 1 - int(rows.used.sum()) / max(1, int(sequences.lengths.sum())),
            "learner/num_micros": float(len(micros)),
        },
    )


def without_overlong(
    groups: Sequence[Group], record: BatchRecord, max_positions: int | None, *, append: int | None = None
) -> tuple[BatchRecord, int]:
    """Leave out the rollouts that have more tokens up to their last trained one than the model has positions.

    Returns the record, in which their reward is NaN, and their number. Every rank leaves out the same ones.
    """
    if max_positions is None:
        return record, 0
    room = max_positions - (append is not None)

    def kept(group: Group, rewards: np.ndarray) -> np.ndarray:
        return np.where([trained_length(r) > room for r in group.rollouts], np.nan, rewards)

    rewards = tuple(map(kept, groups, record.rewards))
    replayed = tuple(replace(r, rewards=kept(r.group, r.rewards)) for r in record.replayed)
    before = (*record.rewards, *(r.rewards for r in record.replayed))
    after = (*rewards, *(r.rewards for r in replayed))
    count = sum(int(np.isfinite(b).sum() - np.isfinite(a).sum()) for b, a in zip(before, after, strict=True))
    return (replace(record, rewards=rewards, replayed=replayed), count) if count else (record, 0)


def trained_length(rollout: Rollout) -> int:
    """Tokens up to the last one that is trained on; 0 where none is."""
    trained = np.flatnonzero(rollout.loss_mask)
    return int(trained[-1]) + 1 if len(trained) else 0


def mini_batches(
    groups: Sequence[Group],
    record: BatchRecord,
    section: LearnerSection,
    rank: int = 0,
    world: int = 1,
    *,
    epoch: int = 1,
    append: int | None = None,
    shares: bool = False,
) -> list[Batch]:
    """What `rank` of `world` trains on in this step: one batch per update of a pass (`learner.updates_per_batch`).

    Mini-batches hold whole groups, in the record's order and in nearly equal numbers; the last one has the replayed
    rollouts.
    """
    return [
        pack(part, own, section, rank, world, epoch=epoch, append=append, shares=shares)
        for part, own in parts_of(groups, record, section)
    ]


def parts_of(
    groups: Sequence[Group], record: BatchRecord, section: LearnerSection
) -> list[tuple[Sequence[Group], BatchRecord]]:
    """The groups of each mini-batch of a step, and what the record says of them."""
    count = max(1, min(section.updates_per_batch, len(groups)))
    bounds = [len(groups) * i // count for i in range(count + 1)]
    result = []
    for start, end in pairwise(bounds):
        part = slice(start, end)
        own = replace(
            record,
            groups=record.groups[part],
            rewards=record.rewards[part],
            advantages=record.advantages[part],
            pairs=record.pairs[part],
            token_weights=record.token_weights[part],
            replayed=record.replayed if end == len(groups) else (),
        )
        result.append((groups[part], own))
    return result


def rollouts_of(groups: Sequence[Group], record: BatchRecord, section: LearnerSection) -> list[tuple[Group, Rollout]]:
    """The rollouts that a mini-batch trains on, in the order that `MicroBatch.rollout` counts them."""
    groups, record = with_replayed(groups, record)
    return [(groups[g], groups[g].rollouts[i]) for g, i in places_of(groups, record, section)]


def whole_batch(batches: Sequence[Batch]) -> Batch:
    """A step's mini-batches as one batch, whose rollouts are numbered through. Loss terms' pairs are left out."""
    if len(batches) == 1:
        return batches[0]
    starts = np.cumsum([0, *(b.num_rollouts for b in batches)])
    micros = [
        replace(micro, rollout=np.where(micro.rollout >= 0, micro.rollout + start, -1))
        for batch, start in zip(batches, starts, strict=False)
        for micro in batch.micros
    ]
    return replace(
        batches[0],
        micros=tuple(micros),
        num_tokens=sum(b.num_tokens for b in batches),
        num_rollouts=int(starts[-1]),
        rewards=np.concatenate([b.rewards for b in batches]),
        truncated=np.concatenate([b.truncated for b in batches]),
    )


def at_temperature_one(micro: MicroBatch) -> MicroBatch:
    """The micro-batch with every token at temperature 1, as preference and SFT losses read log-probs."""
    return replace(micro, temperature=np.ones_like(micro.temperature))


def _sequences(
    groups: Sequence[Group], record: BatchRecord, places: list[tuple[int, int]], epoch: int, append: int | None
) -> _Sequences:
    if not places:
        none = np.zeros(0, np.int64)
        floats, flags = none.astype(np.float32), none.astype(bool)
        return _Sequences(
            none, none, flags, floats, floats, floats, none, flags, floats, none.astype(np.float64), flags
        )
    rollouts = [groups[g].rollouts[i] for g, i in places]
    credits = [record.advantages[g][i] for g, i in places]
    ends = [trained_length(r) for r in rollouts]
    behind = [_staleness(r, groups[g], record.step, epoch) for r, (g, _) in zip(rollouts, places, strict=True)]
    weights = [weights_of(record, g, i) for g, i in places]
    weights = [np.zeros(len(r.tokens)) if w is None else w for r, w in zip(rollouts, weights, strict=True)]
    if any(end < len(r.tokens) for r, end in zip(rollouts, ends, strict=True)):
        rollouts = [_until(r, end) for r, end in zip(rollouts, ends, strict=True)]
        credits = [c if len(c) == 1 else c[:end] for c, end in zip(credits, ends, strict=True)]
        behind, weights = ([a[:end] for a, end in zip(arrays, ends, strict=True)] for arrays in (behind, weights))
    if append is not None:
        rollouts = [_with(r, append) for r in rollouts]
        credits = [c if len(c) == 1 else np.append(c, 0) for c in credits]
        behind, weights = ([np.append(a, 0) for a in arrays] for arrays in (behind, weights))
    lengths = np.fromiter(map(len, (r.tokens for r in rollouts)), np.int64, len(rollouts))
    starts = np.cumsum(lengths) - lengths
    loss_mask = np.concatenate([r.loss_mask for r in rollouts])
    loss_mask[starts] = False
    appended = np.zeros(len(loss_mask), bool)
    if append is not None:
        appended[starts + lengths - 1] = True
    if all(len(c) == 1 for c in credits):
        advantages = np.repeat(np.concatenate(credits), lengths)
    else:
        advantages = np.concatenate([np.broadcast_to(c, n) for c, n in zip(credits, lengths, strict=True)])
    temperature = np.repeat(np.array([r.temperature for r in rollouts], np.float32), lengths)
    known = np.nan_to_num(np.concatenate(weights))
    return _Sequences(
        lengths=lengths,
        tokens=np.concatenate([r.tokens for r in rollouts]).astype(np.int64),
        loss_mask=loss_mask,
        logprobs=np.concatenate([r.logprobs for r in rollouts]).astype(np.float32),
        advantages=np.where(loss_mask, advantages, 0.0).astype(np.float32),
        temperature=np.where(loss_mask, temperature, 1.0).astype(np.float32),
        staleness=np.where(loss_mask, np.concatenate(behind), 0),
        appended=appended,
        token_weights=np.where(loss_mask, known, 0.0).astype(np.float32),
        rewards=np.array([record.rewards[g][i] for g, i in places], np.float64),
        truncated=np.array([r.truncated for r in rollouts]),
    )


def _until(rollout: Rollout, end: int) -> Rollout:
    """Its first `end` tokens."""
    tokens, mask, logprobs = rollout.tokens[:end], rollout.loss_mask[:end], rollout.logprobs[:end]
    return replace(rollout, tokens=tokens, loss_mask=mask, logprobs=logprobs)


def _with(rollout: Rollout, token: int) -> Rollout:
    """With one more token, which the policy did not choose."""
    return replace(
        rollout,
        tokens=np.append(rollout.tokens, np.int32(token)),
        loss_mask=np.append(rollout.loss_mask, False),
        logprobs=np.append(rollout.logprobs, np.float32(0)),
    )


def _staleness(rollout: Rollout, group: Group, step: int, epoch: int) -> Int[np.ndarray, " T"]:
    """Return the staleness of each token. Without spans the version at admission counts: the oldest weights there can
    be."""

    def steps_behind(version_epoch: int, version: int) -> int:
        return max(step - version, 0 if version_epoch == epoch else 1)

    staleness = np.full(len(rollout.tokens), steps_behind(group.claim.epoch, group.version), np.int64)
    for span in rollout.spans:
        staleness[span.start : span.end] = steps_behind(*map(int, span.version.split(".")))
    return staleness


def _rows(sequences: _Sequences, section: LearnerSection, world: int) -> _Rows:
    """The sequences side by side in rows, or in a row each where this device computes that faster."""
    alone = section.row_tokens == 0 and have_own_rows(sequences.lengths)
    capacity = 1 if alone else _capacity(sequences.lengths, section.row_tokens or ROW_TOKENS, world)
    idle = _idle(sequences)
    layout = _best_fit(sequences.lengths, capacity, idle)
    idle_rows = np.zeros(len(layout.used), bool)
    idle_rows[layout.row] = idle
    dealt = _deal(layout.used, idle_rows, section.micro_tokens, world, full_frac=FULL_FRAC if alone else 0.0)
    return _Rows(layout, layout.used, *dealt, masked=not alone)


def _trees(sequences: _Sequences, group_of: Sequence[int], section: LearnerSection, world: int) -> _Rows:
    """The sequences of each group as trees; in the arrays of a micro-batch each has a row."""
    tokens = np.split(sequences.tokens, np.cumsum(sequences.lengths)[:-1])
    bounds = np.searchsorted(group_of, range(group_of[-1] + 2))
    capacity = min(section.micro_tokens, section.row_tokens or section.micro_tokens)
    trees = [tree for start, end in pairwise(bounds) for tree in tree_rows(tokens, range(start, end), capacity)]
    used = np.array([len(tree.tokens) for tree in trees], np.int64)
    layout = _Layout(np.arange(len(tokens)), np.zeros(len(tokens), np.int64), sequences.lengths)
    idle = _idle(sequences)
    idle_trees = np.array([idle[list(tree.paths)].all() for tree in trees], bool)
    dealt = _deal(used, idle_trees, section.micro_tokens, world, full_frac=FULL_FRAC)
    return _Rows(layout, used, *dealt, masked=True, trees=trees)


def _idle(sequences: _Sequences) -> Bool[np.ndarray, " N"]:
    """Whether all advantages of a sequence are 0; false for all where they all are: a step needs a gradient."""
    acts = (sequences.advantages != 0) & sequences.loss_mask  # NaN acts
    owner = np.repeat(np.arange(len(sequences.lengths)), sequences.lengths)
    idle = np.bincount(owner, acts, minlength=len(sequences.lengths)) == 0
    return idle & (not idle.all())


def have_own_rows(lengths: Int[np.ndarray, " N"]) -> bool:
    """Whether this device computes sequences of these lengths fastest in a row each."""
    return len(lengths) > 0 and lengths.mean() >= LONG_TOKENS and not torch.cuda.is_available()


def _capacity(lengths: Int[np.ndarray, " N"], row_tokens: int, world: int) -> int:
    """Tokens a row may hold; a longer sequence has a row of its own."""
    if len(lengths) == 0:
        return 1
    share = -(-int(lengths.sum()) // world)  # no rank without a row while another has a long one
    return max(1, min(row_tokens, int(SEQUENCES_PER_ROW * lengths.mean()), share))


def _best_fit(lengths: Int[np.ndarray, " N"], capacity: int, idle: Bool[np.ndarray, " N"]) -> _Layout:
    """Best-fit decreasing: longest first, each into the fullest row that has room; idle ones in rows of their own."""
    row, offset = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    used: list[int] = []
    room: list[tuple[int, int]] = []
    """(free tokens, row), sorted."""
    rows_are_idle = False
    for index in np.lexsort((-lengths, idle)).tolist():
        length = int(lengths[index])
        if idle[index] and not rows_are_idle:
            room, rows_are_idle = [], True
        place = bisect_left(room, (length, -1))
        if place == len(room):
            which, free = len(used), max(capacity, length)
            used.append(0)
        else:
            free, which = room.pop(place)
        row[index], offset[index] = which, used[which]
        used[which] += length
        if free > length:
            insort(room, (free - length, which))
    return _Layout(row, offset, np.array(used, np.int64))


def _deal(
    used: Int[np.ndarray, " R"],
    idle: Bool[np.ndarray, " R"],
    micro_tokens: int,
    world: int,
    *,
    full_frac: float = 0.0,
) -> tuple[list[list[Int[np.ndarray, " B"]]], int]:
    """Rows to ranks, each rank's rows to micro-batches: `[rank][micro]` → row numbers, and how many micro-batches come
    before those that have idle rows alone on every rank.

    Fullest rows first, back and forth over the ranks, so that ranks get equal work and a micro rows of like length. A
    micro of at least `LEAST_TOKENS` has no row that fills less than `full_frac` of it.
    """
    order = np.lexsort((-used, idle))
    turn = np.arange(len(order)) % (2 * world)
    owner = np.minimum(turn, 2 * world - 1 - turn)
    ranks, num_active = [], 0
    for rank in range(world):
        mine, micros = order[owner == rank], []
        for rows in (mine[~idle[mine]], mine[idle[mine]]):
            while len(rows):
                widest = int(used[rows[0]])
                count = max(1, micro_tokens // widest)
                if full_frac:
                    alike = int((used[rows] >= full_frac * widest).sum())
                    count = min(count, max(alike, -(-LEAST_TOKENS // widest)))
                micros.append(rows[:count])
                rows = rows[count:]
        num_active = max(num_active, sum(not idle[rows[0]] for rows in micros))
        ranks.append(micros)
    return ranks, num_active


def _fill(
    sequences: _Sequences, layout: _Layout, rows_of_micros: list[Int[np.ndarray, " B"]], *, weighted: bool
) -> list[MicroBatch]:
    """Scatter this rank's tokens into one flat buffer per array, of which the micros are views."""
    if not rows_of_micros:
        return []
    widths = [int(layout.used[rows].max()) for rows in rows_of_micros]
    sizes = [len(rows) * width for rows, width in zip(rows_of_micros, widths, strict=True)]
    starts = np.cumsum([0, *sizes])
    row_start = np.full(len(layout.used), -1, np.int64)
    for rows, width, start in zip(rows_of_micros, widths, starts, strict=False):
        row_start[rows] = start + np.arange(len(rows)) * width
    mine = row_start[layout.row] >= 0
    token_is_mine = np.repeat(mine, sequences.lengths)
    lengths = sequences.lengths[mine]
    position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    target = np.repeat((row_start[layout.row] + layout.offset)[mine], lengths) + position

    def scatter(values: np.ndarray, filler: float) -> list[np.ndarray]:
        flat = np.full(starts[-1], filler, values.dtype)
        flat[target] = values
        return [flat[a : a + s].reshape(-1, w) for a, s, w in zip(starts, sizes, widths, strict=False)]

    numbers = np.repeat(np.flatnonzero(mine), lengths)
    positions = scatter(position, -1)
    for micro in positions:
        _number_padding(micro)

    def column(name: str, filler: float = 0) -> list[np.ndarray]:
        return scatter(getattr(sequences, name)[token_is_mine], filler)

    none = [None] * len(sizes)
    columns = (
        column("tokens"), positions, column("loss_mask"), column("logprobs"), column("advantages"),
        column("temperature", 1), scatter(numbers, -1), column("staleness"),
        column("appended") if sequences.appended.any() else none, column("token_weights") if weighted else none,
    )  # fmt: skip
    return [MicroBatch(*arrays) for arrays in zip(*columns, strict=True)]


def _number_padding(positions: Int[np.ndarray, "B L"]) -> None:
    """Number padding (−1) in place: as a sequence of its own where rows hold several.

    Where every row holds one sequence, padding continues it: nothing attends forward, and without a restart the model
    needs no mask.
    """
    padding = positions < 0
    columns = np.broadcast_to(np.arange(positions.shape[1]), positions.shape)
    if (positions == 0).sum() == len(positions):
        positions[padding] = columns[padding]
    else:
        used = (~padding).sum(1, keepdims=True)
        positions[padding] = (columns - used)[padding]


def _empty() -> MicroBatch:
    """A micro-batch without trained tokens: every rank runs the same number, or ZeRO-3 hangs."""
    zeros, floats = np.zeros((1, 2), np.int64), np.zeros((1, 2), np.float32)
    ones = np.ones((1, 2), np.float32)
    return MicroBatch(zeros, np.array([[0, 1]]), zeros.astype(bool), floats, floats, ones, zeros - 1, zeros)


def with_replayed(groups: Sequence[Group], record: BatchRecord) -> tuple[list[Group], BatchRecord]:
    """Groups and record with the replayed rollouts behind the step's own; they are in no pair."""
    more = record.replayed
    return [*groups, *(r.group for r in more)], replace(
        record,
        groups=(*record.groups, *(r.group.id for r in more)),
        rewards=(*record.rewards, *(r.rewards for r in more)),
        advantages=(*record.advantages, *(r.advantages for r in more)),
        pairs=(*record.pairs, *(() for _ in more)) if record.pairs else (),
        token_weights=(*record.token_weights, *(() for _ in more)) if record.token_weights else (),
    )


def places_of(groups: Sequence[Group], record: BatchRecord, section: LearnerSection) -> list[tuple[int, int]]:
    """(group, rollout) of what is trained on, in order.

    Known rewards, and tokens to train on; where pairs alone are trained on, the rollouts of pairs.
    """
    only_pairs = section.loss.coef == 0 and bool(record.pairs)
    places = []
    for g, (group, rewards) in enumerate(zip(groups, record.rewards, strict=True)):
        keep = np.isfinite(rewards)
        if only_pairs:
            whole = [p for p in record.pairs[g] if keep[p.chosen] and keep[p.rejected]]
            members = {i for p in whole for i in (p.chosen, p.rejected, p.third)}
            keep &= [i in members for i in range(len(group))]
        places += [(g, int(i)) for i in np.flatnonzero(keep) if group.rollouts[i].loss_mask[1:].any()]
    return places


def trained_of(groups: Sequence[Group], record: BatchRecord, places: list[tuple[int, int]]) -> TrainedRollouts:
    """What loss terms are told about these rollouts."""
    number = {place: n for n, place in enumerate(places)}
    pairs = []
    for g, of_group in enumerate(record.pairs):
        for p in of_group:
            chosen, rejected = number.get((g, p.chosen)), number.get((g, p.rejected))
            if chosen is not None and rejected is not None:  # one that is left out, or is empty, compares with nothing
                third = None if p.third is None else number.get((g, p.third))
                pairs.append(replace(p, chosen=chosen, rejected=rejected, third=third))
    weighted = []
    for g, i in places:
        weights = weights_of(record, g, i)
        weighted.append(weights is not None and bool(np.isfinite(weights[groups[g].rollouts[i].loss_mask]).all()))
    return TrainedRollouts(
        group=np.array([g for g, _ in places], np.int64),
        weighted=np.array(weighted, bool),
        pairs=tuple(pairs),
    )


def weights_of(record: BatchRecord, g: int, i: int) -> np.ndarray | None:
    """[T], NaN where unknown; None where nothing was said of the group."""
    return record.token_weights[g][i] if record.token_weights and record.token_weights[g] else None


def tokens_of(
    micro: MicroBatch,
    aggregate: Aggregate,
    device: torch.device | str = "cpu",
    reference_logprobs: Tensor | None = None,
    proximal_logprobs: Tensor | None = None,
) -> TokenBatch:
    """The micro-batch's tensors."""
    rollout = np.unique(micro.rollout, return_inverse=True)[1].reshape(micro.rollout.shape)
    weight = micro.loss_mask.astype(np.float32)
    if aggregate == "sequence":
        lengths = np.bincount(rollout[micro.loss_mask], minlength=1)
        weight[micro.loss_mask] /= lengths[rollout[micro.loss_mask]]
    return TokenBatch(
        loss_mask=torch.tensor(micro.loss_mask, device=device),
        weight=torch.tensor(weight, device=device),
        behaviour_logprobs=torch.tensor(micro.logprobs, device=device),
        advantages=torch.tensor(micro.advantages, device=device),
        rollout=torch.tensor(rollout, device=device),
        staleness=torch.tensor(micro.staleness, device=device),
        reference_logprobs=reference_logprobs,
        proximal_logprobs=proximal_logprobs,
    )
