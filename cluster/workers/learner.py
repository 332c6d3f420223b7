"""One rank of a learner, as a Ray actor."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster.buffer import Buffer
from cluster.config import RunConfig
from cluster.errors import BufferUnavailable
from cluster.placement.groups import options
from cluster.placement.resources import openmp, threads
from cluster.process.cleanup import remove_after_me, settle
from cluster.process.disk import alone, until_written
from cluster.storage import checkpoint
from cluster.storage.model_aliases import Registry
from cluster.types.events import WorkerHeld
from cluster.workers.context import POLICY, RunContext, learner_name
from rewards.aggregation.mixer import Mixer
from rewards.aggregation.selectors import Selection
from rewards.monitors import build_monitors

TELL_S = 5.0


class LearnerActor:
    """One rank of a policy's learner: a DeepSpeed engine and the training loop."""

    def __init__(self, context: RunContext, policy: str, rank: int) -> None:
        settle()
        self._context, self._policy, self._rank = context, policy, rank
        self._stopping = self._leaving = False
        self._published: Path | None = None
        self._stage, self._since = "has just started", time.monotonic()

    def address(self) -> tuple[str, int]:
        """Where the ranks meet: this node's address and a free port."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def ready(self) -> int:
        return os.getpid()

    def stop(self) -> None:
        """Finish the step under way, checkpoint, return."""
        self._stopping = True

    def leave(self) -> None:
        """Wait for no more room on a full disk; training ends when the learner that assembles the batches does."""
        self._leaving = True

    def waiting(self) -> str:
        return f"{self._stage} for {time.monotonic() - self._since:.0f} s"

    def _enter(self, stage: str) -> None:
        self._stage, self._since = stage, time.monotonic()

    def _wait_for_room(self, stage: str) -> None:
        self._enter(stage)
        # Not as patient as the pipeline's: Redis may have the same disk, and the driver then says so itself.
        buffer = Buffer(self._context.url, self._context.run_id, TELL_S)
        with suppress(BufferUnavailable):
            buffer.emit(WorkerHeld(message=f"The learner {stage}"), once=stage)
        buffer.close()

    def blob(self, path: str) -> np.ndarray:
        """A published file, for engines on other nodes."""
        return np.fromfile(path, np.uint8)

    def close(self) -> None:
        """Remove the published files; engines may fetch them until the run's last evaluation."""
        if self._published is not None:
            shutil.rmtree(self._published, ignore_errors=True)

    def run(self, epoch: int, resume_from: str | None, master: tuple[str, int], rollout_actors: list[Any]) -> int:
        """Train from the checkpoint, or the initial model, to the end or until `stop`; returns the step reached."""
        from learner.engine.deepspeed_engine import collective_failures
        from learner.publish.publishers import weights_folder
        from learner.rank import Rank, Services, learn

        context, policy, buffer = self._context, self._policy, self._context.buffer()
        config = context.config.of_policy(policy)
        if self._rank == 0:
            self._published = weights_folder(context.run_id, policy, epoch)
            remove_after_me(self._published)
        rank = Rank(
            config=config,
            model_dir=context.model_of(policy),
            run_id=context.run_id,
            run_dir=Path(context.run_dir),
            policy=policy,
            rank=self._rank,
            epoch=epoch,
            resume_from=checkpoint.part(Path(resume_from), policy, POLICY) if resume_from else None,
            master=master,
            policies=context.config.policy_names if context.config.policies else (),
        )

        def written(write: Callable[[], Any], what: str, agree: Callable[[bool], bool] = alone) -> Any:
            return until_written(write, what, self._wait_for_room, lambda: self._stopping or self._leaving, agree)

        def save(engine: Any, step: int) -> None:
            target = Path(context.run_dir) / "checkpoints"
            if policy == POLICY:
                section, members = config.checkpoint, tuple(context.config.policies)
                checkpoint.save(
                    target, engine, buffer, POLICY, epoch, step, section.keep_last, members,
                    scheduled=bool(section.every_steps) and step % section.every_steps == 0,
                    needed=Registry(context.config, Path(context.run_dir), context.model_dir).retained,
                    written=written,
                )  # fmt: skip
            else:
                checkpoint.save_part(target, engine, buffer, POLICY, epoch, step, policy, written=written)

        with collective_failures(self._rank, config.learner.collective_timeout_s):
            return learn(
                rank,
                buffer,
                lambda config, memory: (_mixer(config, memory.of).of_step, _selection(config)),
                Services(stop=lambda: self._stopping, save=save, stage=self._enter, written=written),
                stateful=_mixer(config).states,
                rollout_actors=rollout_actors,
                plugins=_further_sequences(config, context.model_of(policy)),
            )


def _further_sequences(config: RunConfig, model_dir: str) -> list[Any]:
    """What trains on sequences that are no rollouts: demonstrations, and losses that ask the policy something."""
    from transformers import AutoTokenizer

    from actors.chat import Chat
    from actors.demonstrations import Demonstrations, continuation
    from learner.losses.demonstrations import DemonstrationLoss
    from learner.losses.sequence_losses.asking import AskingTerms
    from learner.losses.sequence_losses.registry import terms_of

    section, asks = config.learner.demonstrations, any(term.asks for _, _, term in terms_of(config.learner))
    if section is None and not asks:
        return []
    chat, plugins = Chat(AutoTokenizer.from_pretrained(model_dir)), []
    if section is not None:
        rows = Demonstrations(section, chat, config.seed)
        plugins.append(DemonstrationLoss(section.coef, rows.batch, config.learner))
    if asks:
        most = config.engine.max_model_len
        plugins.append(AskingTerms(config.learner, lambda messages, reply: continuation(chat, messages, reply, most)))
    return plugins


def _mixer(config: RunConfig, state_of: Callable[[str], Any] = lambda name: None) -> Mixer:
    names, min_scored = config.reward_names, config.reward_workers.min_scored_rollouts
    return Mixer(config.rewards, names, min_scored, build_monitors(config), state_of)


def _selection(config: RunConfig) -> Selection | None:
    return Selection(config.selectors) if config.selectors else None


def place_learner(context: RunContext, policy: str, rank: int) -> Any:
    if policy == POLICY:
        where = options(context.config, context.run_id, "learner", rank=rank)
    else:  # no layout reserves places for these
        where = options(context.config, context.run_id, f"learner:{policy}")
    return (
        ray.remote(LearnerActor)
        .options(
            name=learner_name(context.run_id, policy, rank),
            max_concurrency=4,  # `run` holds one thread for good; stop, ready and blob need others
            runtime_env=openmp(threads(context.config, "learner", policy)),
            **where,
        )
        .remote(context, policy, rank)
    )
