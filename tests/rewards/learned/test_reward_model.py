"""What is published has proved good, no version is two models, and a killed trainer goes on where it was."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import torch

from cluster.config import RewardModelSection
from cluster.errors import ConfigError
from cluster.types import decode
from rewards.learned import trainer as module
from rewards.learned.label_store import RedisLabels
from rewards.learned.labels import Label, MemoryLabels
from rewards.learned.publishing import MemoryBoard, RedisBoard, read
from rewards.learned.trainer import Checkpoint, RewardModelTrainer, is_held_out, passes
from tests.rewards.learned.judges import captions, is_good

QUICK = {"publish_every_s": 1e-9, "min_held_out": 4, "min_agreement": 0.0, "held_out_frac": 0.3}
SMALL = {"batch_size": 8, "early_steps": 2}


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class Run:
    """A table and a board, and reward_models that come and go."""

    def __init__(self, directory: Path, **section) -> None:
        self.directory = directory
        self.section = RewardModelSection(**QUICK | {"options": SMALL} | section)
        self.labels, self.board = MemoryLabels(), MemoryBoard()
        self.published: list[tuple[str, bytes]] = []
        """Versions that were announced and relabelled, and the file's content then."""

    def trainer(self, **section) -> RewardModelTrainer:
        chosen = self.section.model_copy(update=section)
        return RewardModelTrainer(
            "oni",
            chosen,
            labels=self.labels,
            board=self.board,
            directory=self.directory,
            relabel=self._relabel,
        )

    def _relabel(self, version: str) -> None:
        current = self.board.current("oni")
        assert current is not None
        assert current.version == version, "announced before stored groups are handed out again"
        self.published.append((version, Path(current.path).read_bytes()))

    @property
    def kind(self) -> type:
        """The class of the models that its trainers train."""
        return type(module.model_of("oni", self.section))

    def label(self, texts, rule=is_good) -> None:
        self.labels.add({text: Label(rule(text)) for text in texts})

    def checkpoint(self) -> Checkpoint:
        return decode((self.directory / "checkpoint").read_bytes(), Checkpoint)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def version_number(version: str) -> int:
    return int(version.rpartition(".")[2])


async def work(trainer: RewardModelTrainer, done) -> None:
    task = asyncio.create_task(trainer.run())
    async with asyncio.timeout(60):
        while not done() and not task.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await trainer.stop()
    await task


def learnt(run: Run, num_labels: int) -> Callable[[], bool]:
    """Whether so many entries of the table are learnt from. A trainer that stops tries to publish them before."""

    def done() -> bool:
        return (run.directory / "checkpoint").exists() and run.checkpoint().cursor == str(num_labels)

    return done


def test_the_gate():
    assert passes(0.8, 0.8, 0.6)
    assert passes(0.8, float("nan"), 0.6), "nothing is published yet"
    assert not passes(0.79, 0.8, 0.6)
    assert not passes(0.59, float("nan"), 0.6)
    assert not passes(float("nan"), float("nan"), 0.0), "unknown is not good"


def test_the_held_out_split_is_by_hash_alone():
    texts = captions(2000, 0)
    held = [t for t in texts if is_held_out(t, 0.1)]
    assert 0.07 < len(held) / len(texts) < 0.13
    assert set(held) <= {t for t in texts if is_held_out(t, 0.2)}
    assert is_held_out("gold", 0.5) == (sha256(b"gold").digest()[0] < 128)


async def test_it_never_learns_from_what_it_compares_on(run, monkeypatch):
    trainer, fitted, compared = run.trainer(), [], []
    fit, agreement = run.kind.fit, run.kind.agreement
    monkeypatch.setattr(run.kind, "fit", lambda self, k, v: fitted.extend(k) or fit(self, k, v))
    monkeypatch.setattr(run.kind, "agreement", lambda self, k, v: compared.extend(k) or agreement(self, k, v))
    texts = captions(60, 1)
    run.label(texts)
    await work(trainer, learnt(run, 60))
    assert set(fitted) | set(compared) == set(texts)
    assert not set(fitted) & set(compared)
    assert len(set(compared)) > 4


async def test_a_good_model_is_published_and_one_spoilt_by_wrong_labels_is_not(run):
    run.section = run.section.model_copy(update={"options": {"batch_size": 32, "lr": 1e-3, "early_steps": 120}})
    trainer, texts = run.trainer(min_agreement=0.6), captions(200, 2)
    run.label(texts)
    await work(trainer, learnt(run, 200))
    assert trainer.version == "classification.1"
    announced = run.board.current("oni")
    assert announced.version == "classification.1"
    assert announced.agreement == trainer.agreement >= 0.6
    model, trained = module.model_of("oni", run.section), module.model_of("oni", run.section)
    model.load(read(announced))
    trained.load(run.checkpoint().state)
    unseen = captions(100, 3)
    assert np.array_equal(model.predict(unseen), trained.predict(unseen))
    shown = trainer.snapshot()
    assert shown["reward_model/oni_num_labels"] == 200
    assert shown["reward_model/oni_version"] == 1
    spoilt = run.trainer(min_agreement=0.6)
    wrong = [t for t in captions(900, 8) if t not in texts and not is_held_out(t, run.section.held_out_frac)][:400]
    run.label(wrong, lambda text: 1 - is_good(text))
    await work(spoilt, learnt(run, 600))
    assert spoilt.num_refused == 1
    assert spoilt.agreement < announced.agreement
    assert run.board.current("oni") == announced


@pytest.mark.parametrize(("section", "num"), [({"min_held_out": 1000}, 60), ({"min_agreement": 1.0}, 60)])
async def test_too_few_labels_or_too_little_agreement_publish_nothing(run, section, num):
    trainer = run.trainer(**section)
    run.label(captions(num, 4))
    await work(trainer, learnt(run, num))
    assert trainer.version == "classification.0"
    assert run.board.current("oni") is None
    assert trainer.num_refused == 1
    assert run.published == []


async def test_a_worse_model_is_refused_and_the_published_one_stays(run, monkeypatch):
    """Agreement is compared on the labels of today for both."""
    first, texts = run.trainer(), captions(60, 5)
    run.label(texts)
    await work(first, learnt(run, 60))
    assert first.version == "classification.1"
    before = run.board.current("oni")
    second = run.trainer()
    scores = itertools.cycle((0.7, 0.8))  # the new model's, then the published one's
    monkeypatch.setattr(run.kind, "agreement", lambda *_: next(scores))
    run.label(captions(20, 6))
    await work(second, lambda: second.num_refused == 1)
    assert run.board.current("oni") == before
    assert second.version == "classification.1"
    third = run.trainer()
    monkeypatch.setattr(run.kind, "agreement", lambda *_: 0.8)
    run.label(captions(20, 7))
    await work(third, lambda: third.version == "classification.2")
    assert run.board.current("oni").version == "classification.2"


async def test_the_table_itself_is_published_whenever_labels_came(run):
    run.section = run.section.model_copy(update={"use": "retrieval", "options": {}})
    trainer = run.trainer()
    run.label(["gold", "wall"])
    await work(trainer, lambda: run.board.current("oni") is not None)
    model = module.model_of("oni", run.section)
    model.load(read(run.board.current("oni")))
    assert np.array_equal(model.predict(["gold", "wall", "fog"]), [1.0, 0.0, np.nan], equal_nan=True)
    again = run.trainer()
    run.label(["kill"])
    await work(again, lambda: again.version == "retrieval.2")
    model.load(read(run.board.current("oni")))
    assert model.predict(["gold", "kill"]).tolist() == [1.0, 1.0]


async def test_unreadable_labels_are_not_learnt(run, monkeypatch):
    seen: set[str] = set()
    fit, agreement = run.kind.fit, run.kind.agreement
    monkeypatch.setattr(run.kind, "fit", lambda self, k, v: seen.update(k) or fit(self, k, v))
    monkeypatch.setattr(run.kind, "agreement", lambda self, k, v: seen.update(k) or agreement(self, k, v))
    run.labels.add({"mumble": Label(float("nan"))})
    run.label(texts := captions(20, 9))
    await work(run.trainer(), learnt(run, 21))
    assert seen == set(texts)


async def test_versions_come_no_faster_than_allowed(run, monkeypatch):
    monkeypatch.setattr(module, "MAX_NEWS", 20)
    trainer = run.trainer(publish_every_s=3600.0)
    run.label(captions(60, 10))
    await work(trainer, learnt(run, 60))
    assert len(run.published) == 1
    assert run.checkpoint().untried, "what it has learnt since is tried when the time has come"


async def test_the_loop_is_free_while_it_trains(run, monkeypatch):
    trainer, begun, go_on = run.trainer(), threading.Event(), threading.Event()
    monkeypatch.setattr(run.kind, "fit", lambda self, k, v: begun.set() or go_on.wait(20) or 0.0)
    run.label(["gold"])
    task = asyncio.create_task(trainer.run())
    await asyncio.to_thread(begun.wait, 20)
    at = time.monotonic()
    await asyncio.sleep(0)
    run.labels.submit(["another"])
    assert run.labels.take(1, 0) == {"another": 1}
    assert time.monotonic() - at < 1
    go_on.set()
    await trainer.stop()
    await task


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "place", ["reward_model.after_fit", "reward_model.after_model", "reward_model.after_checkpoint"]
)
async def test_wherever_it_dies_it_goes_on_exactly(tmp_path, monkeypatch, place):
    monkeypatch.setattr(module, "MAX_NEWS", 25)  # all labels are there from the start: batches are the same
    texts = captions(100, 11)

    whole = Run(tmp_path / "whole")
    whole.label(texts)
    trainer = whole.trainer()
    await work(trainer, learnt(whole, 100))

    broken, visits = Run(tmp_path / "broken"), []

    def die(name: str) -> None:
        """Twice, after the first batch."""
        visits.extend([name] if name == place else [])
        if name == place and len(visits) in (2, 3):
            raise Killed

    monkeypatch.setattr(module, "failpoint", die)
    broken.label(texts)
    for _ in range(3):
        trainer = broken.trainer()
        try:
            await work(trainer, learnt(broken, 100))
            break
        except Killed:
            continue
    assert len(visits) >= 3
    left, right = whole.checkpoint(), broken.checkpoint()
    assert left.cursor == right.cursor == "100"
    assert left.state.keys() == right.state.keys()
    assert all(np.array_equal(left.state[k], right.state[k]) for k in left.state), "weights, optimiser, random numbers"
    contents = dict(broken.published)
    assert all(contents[version] == content for version, content in broken.published), "one version, one model"
    numbers = [version_number(version) for version, _ in broken.published]
    assert numbers == sorted(numbers)
    assert broken.published[-1][0] == broken.board.current("oni").version == trainer.version


SCRIPT = """
import asyncio, sys
from pathlib import Path
from cluster.config import RewardModelSection
from cluster.types import decode
from rewards.learned.trainer import Checkpoint, RewardModelTrainer
from rewards.learned.publishing import RedisBoard
from rewards.learned.label_store import RedisLabels

def tried(saved):
    return saved.published is not None and saved.published.num_labels == 60 and not saved.untried

async def main():
    url, run, directory, section = sys.argv[1:]
    labels, board = RedisLabels(url, run, "oni"), RedisBoard(url, run)
    one = RewardModelTrainer("oni", RewardModelSection.model_validate_json(section), labels=labels, board=board,
                    directory=Path(directory), relabel=lambda version: print(version, flush=True))
    task = asyncio.create_task(one.run())
    path = Path(directory) / "checkpoint"
    while not (path.exists() and tried(decode(path.read_bytes(), Checkpoint))):
        await asyncio.sleep(0.01)
    await one.stop()
    await task

asyncio.run(main())
"""


def test_a_killed_process_is_succeeded_by_one_that_publishes(redis_url, tmp_path):
    name = f"test-{uuid4().hex[:12]}"
    labels, board = RedisLabels(redis_url, name, "oni"), RedisBoard(redis_url, name)
    labels.add({text: Label(is_good(text)) for text in captions(60, 12)})
    section = RewardModelSection(**QUICK, options=SMALL)
    command = [sys.executable, "-c", SCRIPT, redis_url, name, str(tmp_path / "oni"), section.model_dump_json()]
    environment = os.environ | {"KANABO_FAILPOINT": "reward_model.after_model", "KANABO_FAILPOINT_DIR": str(tmp_path)}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert board.current("oni") is None
    assert (tmp_path / "oni" / "classification.1.model").exists()
    successor = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert successor.returncode == 0, successor.stderr
    assert successor.stdout.split() == ["classification.1"]
    assert board.current("oni").version == "classification.1"
    labels.close()
    board.close()


async def test_another_split_or_kind_of_model_is_refused(run):
    trainer = run.trainer()
    run.label(captions(20, 13))
    await work(trainer, learnt(run, 20))
    with pytest.raises(ConfigError, match="Give the new model another name"):
        run.trainer(held_out_frac=0.2)
    with pytest.raises(ConfigError, match="is of 'classification'"):
        run.trainer(use="ranking")


async def test_labels_that_the_table_lost_do_not_stop_it(run):
    trainer = run.trainer()
    run.label(captions(30, 14))
    await work(trainer, learnt(run, 30))
    run.labels = MemoryLabels()
    run.label(captions(10, 15))
    again = run.trainer()
    before = again.version
    assert before == trainer.version != "classification.0"
    await work(again, learnt(run, 10))
    assert version_number(again.version) >= version_number(before)


async def test_old_model_files_go(run, monkeypatch):
    monkeypatch.setattr(module, "MAX_NEWS", 10)
    monkeypatch.setattr(module, "KEPT_FILES", 2)
    trainer = run.trainer(use="retrieval", options={})
    run.label(captions(50, 16))
    await work(trainer, lambda: trainer.version == "retrieval.5")
    assert sorted(p.name for p in run.directory.glob("*.model")) == ["retrieval.4.model", "retrieval.5.model"]
