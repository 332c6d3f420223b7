from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cluster.types import Publication
from learner.publish.publishers import PullPublisher


class Weights:
    """An engine as a publisher sees it: a tied head, and tensors that are reused after they were yielded."""

    def __init__(self, rank: int = 0) -> None:
        self.rank, self.value, self.passes = rank, 0.0, 0

    def weights(self):
        self.passes += 1
        buffer = torch.zeros(2, 3)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            yield name, buffer.fill_(self.value)
        buffer.fill_(-1.0)

    def metadata(self):
        return [(n, torch.float32, (2, 3)) for n in ("model.embed_tokens.weight", "lm_head.weight")]


class Board:
    def __init__(self) -> None:
        self.seen: list[Publication] = []
        self.files_at_announcement: list[bool] = []

    def announce(self, publication: Publication) -> None:
        self.seen.append(publication)
        self.files_at_announcement.append(Path(publication.file.path).exists())


@pytest.fixture
def board() -> Board:
    return Board()


def publisher_of(board: Board, root: Path, **options) -> PullPublisher:
    return PullPublisher(board, "policy", 3, run_id="run", root=root, **options)


def test_a_publication_names_a_complete_file_with_every_parameter(board, tmp_path):
    engine: Any = Weights()
    engine.value = 7.0
    publisher_of(board, tmp_path, describe=lambda engine, plain: replace(plain, settings={"a.b": 1})).publish(engine, 5)
    (publication,) = board.seen
    assert (publication.policy, publication.version) == ("policy", "3.5")
    assert publication.file.host == socket.gethostname()
    assert publication.settings == {"a.b": 1}
    assert board.files_at_announcement == [True]
    weights = load_file(publication.file.path)
    assert set(weights) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert all((w == 7.0).all() for w in weights.values())


def test_two_versions_are_kept_and_nothing_after_the_end(board, tmp_path):
    publisher = publisher_of(board, tmp_path)
    engine: Any = Weights()
    for step in range(4):
        publisher.publish(engine, step)
    assert sorted(p.name for p in publisher.folder.iterdir()) == ["3.2.safetensors", "3.3.safetensors"]
    publisher.close()
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_take_part_in_gathering_and_write_nothing(board, tmp_path):
    engine: Any = Weights(rank=1)
    publisher_of(board, tmp_path).publish(engine, 0)
    assert engine.passes == 1
    assert board.seen == []
    assert list(tmp_path.iterdir()) == []


def test_weights_travel_in_the_engines_precision(board, tmp_path):
    engine: Any = Weights()
    publisher_of(board, tmp_path, dtype=torch.bfloat16).publish(engine, 0)
    assert load_file(board.seen[0].file.path)["lm_head.weight"].dtype == torch.bfloat16


def test_a_file_holds_tensors_of_any_shape_and_precision_bit_for_bit(board, tmp_path):
    tensors = {
        "a.scalar": torch.tensor(3.5),
        "b.odd": torch.randn(3, dtype=torch.float16),
        "c.transposed": torch.randn(5, 7).T,
        "d.wide": torch.randn(2, 3, 4, dtype=torch.float64),
        "e.empty": torch.zeros(0, 4),
        "f.half": torch.randn(6, 2).bfloat16(),
    }

    class TwoDtypes:
        rank = 0

        def weights(self):
            yield from tensors.items()

        def metadata(self):
            return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]

    engine: Any = TwoDtypes()
    publisher_of(board, tmp_path).publish(engine, 0)
    stored = load_file(board.seen[0].file.path)
    assert list(stored) == list(tensors)
    for name, tensor in tensors.items():
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name], tensor)


def test_vllms_trainer_sees_the_same_parameters_in_both_channels():
    pytest.importorskip("vllm")
    from learner.publish.publishers import engine_source

    class Sized(Weights):
        def metadata(self):
            return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.weights()]

    source = engine_source(Sized())
    declared = [(m.name, m.dtype, m.shape) for m in source.metadata()]
    assert declared == [(name, t.dtype, tuple(t.shape)) for name, t in source]
    assert [name for name, _ in source] == [name for name, _, _ in declared], "a second pass must be a fresh one"
