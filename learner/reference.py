"""The frozen reference model that a KL penalty pulls towards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.config import LearnerSection, RunConfig
from cluster.plugins import build
from cluster.storage.model_aliases import Registry, is_alias
from cluster.types import MicroBatch
from learner.engine.deepspeed_engine import DeepSpeedEngine
from learner.engine.forward import attach_row_selection, logprobs_of, token_statistics
from learner.engine.trees import packing_of, why_not_trees
from learner.losses.policy_losses import LOSSES
from learner.losses.sequence_losses import build_sequence_losses
from learner.types import DTYPES


class Reference:
    """A causal LM that is only read. Each rank holds a whole one, in the learner's dtype."""

    def __init__(self, model_dir: str | Path, section: LearnerSection, device: torch.device | str = "cpu") -> None:
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=DTYPES[section.dtype])
        self._model.to(device).requires_grad_(False).eval()
        self._select = attach_row_selection(self._model)
        self._device = torch.device(device)
        self._statistics = partial(token_statistics, entropy_grad=False)
        config = self._model.config
        self._computes_trees = packing_of(section) == "shared_prefix" and not why_not_trees(
            config, self._logprobs, int(config.vocab_size)
        )

    def logprobs(self, micro: MicroBatch) -> Tensor:
        """[B, L] nats, aligned and tempered as the engine's."""
        return self._logprobs(micro if self._computes_trees else replace(micro, shared=None))

    @torch.no_grad()
    def _logprobs(self, micro: MicroBatch) -> Tensor:
        return logprobs_of(self._model, self._select, micro, self._device, self._statistics)[0]


class Unadapted:
    """The learner's own model without its adapters: no second one in memory."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self._engine = engine

    def logprobs(self, micro: MicroBatch) -> Tensor:
        """[B, L] nats, aligned and tempered as the engine's."""
        return self._engine.initial_logprobs(micro)


def wants_reference(section: LearnerSection) -> bool:
    """Whether anything would read the reference model. Raises ConfigError for terms that cannot be built."""
    loss = build(LOSSES, section.loss.use, section.loss.options, "learner.loss")
    return section.reads_reference or loss.need_reference or build_sequence_losses(section).needs_reference


class Following:
    """A reference that stands for another checkpoint after each one that is written: `previous`, `previous@N`."""

    def __init__(self, find: Callable[[], str], load: Callable[[str], Reference]) -> None:
        """`find` gives the directory that the alias stands for now, `load` the model in it."""
        self._find, self._load = find, load
        self.directory = find()
        self._model: Reference | None = load(self.directory)

    def logprobs(self, micro: MicroBatch) -> Tensor:
        """[B, L] nats, aligned and tempered as the engine's."""
        assert self._model is not None
        return self._model.logprobs(micro)

    def move(self) -> None:
        """Read the checkpoint that the alias stands for now, if it is another. Every rank does so between two steps."""
        if (directory := self._find()) != self.directory:
            self._model = None  # never two in memory
            self._model, self.directory = self._load(directory), directory


def resolved(config: RunConfig, run_dir: Path, model_dir: str | Path) -> LearnerSection:
    """The learner's section with a directory where it names its reference by an alias. Raises ConfigError."""
    section = config.learner
    if section.reference == "initial" or not is_alias(section.reference):
        return section
    found = Registry(config, run_dir, str(model_dir)).directory(section.reference)
    return section.model_copy(update={"reference": found.where})


def reference_for(
    section: LearnerSection, model_dir: str | Path, engine: DeepSpeedEngine
) -> Reference | Unadapted | None:
    """The reference model, or None where nothing would read it.

    `learner.reference` is `initial` (the run's own first weights) or a directory.
    """
    if not wants_reference(section):
        return None
    if section.reference != "initial":
        return Reference(section.reference, section, engine.device)
    return Unadapted(engine) if section.lora else Reference(model_dir, section, engine.device)


def reference_of(
    config: RunConfig, run_dir: Path, model_dir: str | Path, engine: DeepSpeedEngine
) -> Reference | Unadapted | Following | None:
    """The reference of a run: one that follows the checkpoints where `learner.reference` is an alias that moves.

    Raises ConfigError if there is no such model.
    """
    registry = Registry(config, run_dir, str(model_dir))
    if not registry.moves(config.learner.reference) or not wants_reference(config.learner):
        return reference_for(resolved(config, run_dir, model_dir), model_dir, engine)
    return Following(
        lambda: registry.directory(config.learner.reference).where,
        lambda directory: Reference(directory, config.learner, engine.device),
    )
