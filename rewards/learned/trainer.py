"""Learns a reward model from the labels that come, apart from everybody else, and publishes what has proved good.

    news ─► learn (a thread, one core) ─► checkpoint ─► compare on held-out labels ─► publish ─► announce ─► relabel
      ▲ waits for labels                                   └ worse, or too few labels to tell: refused, counted

Nobody waits for it and it waits for labels alone. It may be killed anywhere: it goes on from its checkpoint, and one
version is never announced for two different models.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch

from cluster.config import RewardModelSection
from cluster.errors import ConfigError
from cluster.process.disk import until_written
from cluster.process.failpoints import failpoint
from cluster.types import decode
from rewards.learned.labels import Labels, News, pair
from rewards.learned.models import model_of
from rewards.learned.publishing import Announcement, Board, State, is_held_out, passes, read, write
from rewards.monitors.cliff import flip_rate
from rewards.monitors.starc import group_distance

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How often it looks whether it should stop, or may publish."""
MAX_NEWS = 1000
"""Labels that are learnt from at once."""
KEPT_FILES = 5
"""Published models that stay on the disk: a reward worker may still be reading an older one."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a trainer stands; the labels themselves are in the table."""

    use: str
    held_out_frac: float
    cursor: str
    """Labels up to here were learnt from."""
    number: int
    """Number of the last version published."""
    untried: bool
    """It has learnt since it last tried to publish."""
    published: Announcement | None
    state: State


class RewardModelTrainer:
    def __init__(
        self,
        name: str,
        section: RewardModelSection,
        *,
        labels: Labels,
        board: Board,
        directory: Path,
        relabel: Callable[[str], object],
    ) -> None:
        """`relabel(version)` tells the buffer, after the announcement, that the rewards that use it score anew.

        `directory` is its own. Raises ConfigError if its checkpoint there belongs to another kind of model or split.
        """
        self.name, self._section = name, section
        self._labels, self._board, self._relabel = labels, board, relabel
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._model, self._rival = model_of(name, section), model_of(name, section)
        self._values: dict[str, float] = {}
        self._cursor, self._number, self._untried = "0", 0, False
        self._published: Announcement | None = None
        self._tried_at = -math.inf
        self._stopping = False
        self._stage = "has just started"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"reward-model-{name}", initializer=_one_core)
        self.loss = self.agreement = self.starc = self.flips = math.nan
        """Figures of the last fit, of the last comparison, and of the last two versions with each other."""
        self.num_refused = 0
        self._resume()

    async def run(self) -> None:
        """Learn and publish until `stop`. Raises what table, board, disk and buffer raise."""
        try:
            if self._published:
                await self._work(self._announce)
            while not self._stopping:
                self._stage = "waits for labels"
                news = await asyncio.to_thread(self._labels.news, self._cursor, MAX_NEWS, POLL_S)
                if news or self._owes:
                    self._stage = f"learns from {len(news)} labels"
                    await self._work(lambda news=news: self._learn(news))
                due = time.monotonic() - self._tried_at >= self._section.publish_every_s
                if self._untried and due:
                    self._stage = "compares with what is published"
                    await self._work(self._try_to_publish)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def stop(self) -> None:
        self._stopping = True  # what is under way is finished, then `run` returns

    @property
    def version(self) -> str:
        return f"{self._section.use}.{self._number}"  # the last published

    def snapshot(self) -> dict[str, float]:
        """Metrics by name; what is not known yet is NaN."""
        counts, area = self._labels.counts(), f"reward_model/{self.name}"
        return {
            f"{area}_num_labels": float(counts.labels),
            f"{area}_num_waiting": float(counts.backlog),
            f"{area}_num_in_flight": float(counts.in_flight),
            f"{area}_num_pushed_out": float(counts.pushed_out),
            f"{area}_coverage_frac": counts.coverage,
            f"{area}_version": float(self._number),
            f"{area}_good_frac": self._good_frac(),
            f"{area}_num_refused": float(self.num_refused),
            f"{area}_agreement_frac": self.agreement,
            f"{area}_loss": self.loss,
            f"{area}_starc_distance": self.starc,
            f"{area}_flip_frac": self.flips,
        }

    def waiting(self) -> str:
        """What it does now, in words."""
        told = f"{self._stage}, has published {self._number} versions of '{self.name}'"
        if not self.num_refused:
            return told
        asked = self._section.min_agreement
        return f"{told}, refused {self.num_refused}: agreement {self.agreement:.2f}, min_agreement {asked:g}"

    @property
    def _owes(self) -> bool:
        """Whether it knows labels that no version knows: it learns on from those there are, also if no more come."""
        return self._model.learns and len(self._values) > (self._published.num_labels if self._published else 0)

    def _good_frac(self) -> float:
        """Share of good news among its labels; of pairs, of those where the first is the better."""
        values = [*self._values.values()]
        return sum(v > 0.5 for v in values) / len(values) if values else math.nan

    async def _work(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _learn(self, news: list[News]) -> None:
        self._take_in(news)
        if self._model.wants_groups:
            self._model.see(self._labels.shown())
        self.loss = self._model.fit(*self._arrays(held_out=False))
        self._cursor, self._untried = news[-1].cursor if news else self._cursor, True
        failpoint("reward_model.after_fit")
        if news:
            self._save()

    def _try_to_publish(self) -> None:
        self._tried_at, self._untried = time.monotonic(), False
        if self._model.learns and not self._proves_good():
            self.num_refused += 1
            self._save()
            return
        if self._published and self._model.learns:
            self._compare_versions()
        version = f"{self._section.use}.{self._number + 1}"
        state, path = self._model.state(training=False), self._directory / f"{version}.model"
        self._write(path, state)
        failpoint("reward_model.after_model")
        agreement = self.agreement if self._model.learns else math.nan
        self._published = Announcement(self.name, version, str(path), len(self._values), agreement)
        self._number += 1
        self._rival.load(state)
        # The checkpoint before the announcement: whoever resumes must know of a version that somebody may use.
        self._save()
        failpoint("reward_model.after_checkpoint")
        self._announce()
        for number in range(self._number - KEPT_FILES, 0, -1):
            old = self._directory / f"{self._section.use}.{number}.model"
            if not old.exists():
                break
            old.unlink()

    def _proves_good(self) -> bool:
        keys, values = self._arrays(held_out=True)
        self.agreement = self._model.agreement(keys, values)
        # Both on the labels of today: what the published one reached when it was new was on others.
        current = self._rival.agreement(keys, values) if self._published else math.nan
        enough = len(keys) >= self._section.min_held_out
        good = enough and passes(self.agreement, current, self._section.min_agreement)
        if not good:
            text = "reward model '%s' is not published: agreement %.3f on %d held-out labels, published %.3f"
            log.info(text, self.name, self.agreement, len(keys), current)
        return good

    def _compare_versions(self) -> None:
        groups = self._labels.shown()
        before, now = ([model.predict(texts) for texts in groups] for model in (self._rival, self._model))
        self.starc, self.flips = group_distance(before, now), flip_rate(before, now)

    def _announce(self) -> None:
        assert self._published is not None
        self._board.announce(self._published)
        # After the announcement: who is handed a group again must find the new version.
        self._relabel(self._published.version)

    def _take_in(self, news: list[News]) -> None:
        for item in news:
            if item.label.known:
                key = pair(item.key, item.label.against) if item.label.against else item.key
                self._values[key] = item.label.value

    def _arrays(self, *, held_out: bool) -> tuple[list[str], np.ndarray]:
        """Keys and values to learn from or to compare on; a model that is the table itself learns from all."""
        if self._model.learns:
            frac = self._section.held_out_frac
            keys = [key for key in self._values if is_held_out(key, frac) == held_out]
        else:
            keys = [*self._values]
        return keys, np.array([self._values[key] for key in keys], np.float64)

    # ── checkpoint ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _path(self) -> Path:
        return self._directory / "checkpoint"

    def _save(self) -> None:
        state = self._model.state(training=True) if self._model.learns else {}
        section = self._section
        standing = (section.use, section.held_out_frac, self._cursor, self._number, self._untried, self._published)
        self._write(self._path, Checkpoint(*standing, state=state))

    def _write(self, path: Path, value: Any) -> None:
        what = f"{path.name} of reward model '{self.name}'"
        until_written(lambda: write(path, value), what, self._enter, lambda: self._stopping)

    def _enter(self, stage: str) -> None:
        self._stage = stage

    def _resume(self) -> None:
        if not self._path.exists():
            return
        saved = self._read_checkpoint()
        ours = (self._section.use, self._section.held_out_frac)
        if ours != (saved.use, saved.held_out_frac):
            raise ConfigError(
                f"reward_models.{self.name}: use = '{ours[0]}', held_out_frac = {ours[1]}, but {self._path} is of "
                f"'{saved.use}' with {saved.held_out_frac}: labels it has learnt from would count as unseen. "
                "Give the new model another name."
            )
        self._cursor, self._number = saved.cursor, saved.number
        self._untried, self._published = saved.untried, saved.published
        if self._published:
            self._rival.load(read(self._published))
        reached = self._read_labels()
        if self._model.learns:
            self._model.load(saved.state)
        else:
            self._model.fit(*self._arrays(held_out=False))
        if not reached:  # the table has lost what the checkpoint knows: what is there is learnt from again
            log.warning("reward model '%s': labels are gone from the table; %d remain", self.name, len(self._values))
            self._cursor = "0"

    def _read_checkpoint(self) -> Checkpoint:
        try:
            return decode(self._path.read_bytes(), Checkpoint)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{self._path} cannot be read: {error}. Move it away to start anew.") from error

    def _read_labels(self) -> bool:
        """Labels up to the cursor, as they came; whether it was found."""
        after = "0"
        while after != self._cursor:
            news = self._labels.news(after, MAX_NEWS, 0.0)
            if not news:
                return False
            cursors = [item.cursor for item in news]
            if self._cursor in cursors:
                news = news[: cursors.index(self._cursor) + 1]
            self._take_in(news)
            after = news[-1].cursor
        return True


def _one_core(*_: Any) -> None:
    torch.set_num_threads(1)
