"""Whatever lies damaged or strange in a run's directory is skipped with a warning, or refused in one line."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from cluster import config
from cluster.driver import preflight
from cluster.errors import ConfigError
from cluster.observability import metrics
from cluster.storage import checkpoint, group_archive, leftovers
from cluster.types import Manifest, encode

RECIPE = Path(__file__).parents[2] / "deploy" / "recipes" / "quickstart.toml"
KINDS = (
    "id", "config.toml", "metrics.jsonl", "samples.jsonl", "alarms.jsonl", "summary.json", "error.txt",
    "redis/password", "redis/redis.conf", "redis/redis.pid", "owner.lock",
    "groups/step_00000001.kept", "groups/step_00000002.kept",
    "checkpoints/global_step_1/manifest.json", "checkpoints/global_step_2/manifest.json",
    "checkpoints/global_step_2/model.safetensors", "checkpoints/global_step_2/config.json",
    "checkpoints/global_step_2/learner/part-000.safetensors", "checkpoints/global_step_2/learner/state.json",
    "redis", "groups", "checkpoints", "checkpoints/global_step_2",
)  # fmt: skip


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


WAYS: dict[str, Callable[[Path], object]] = {
    "truncated": _truncate,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "json of another shape": lambda path: path.write_text("[1, 2]\n"),
    "a directory": lambda path: _replace(path, Path.mkdir),
    "a file": lambda path: _replace(path, Path.touch),
    "a dangling link": lambda path: _replace(path, lambda p: p.symlink_to("nowhere")),
    "a link to itself": lambda path: _replace(path, lambda p: p.symlink_to(p.name)),
    "gone": lambda path: _replace(path, lambda p: None),
    "a copy beside it": lambda path: (shutil.copytree if path.is_dir() else shutil.copy)(
        path, path.with_name(path.name + ".bak")
    ),
    "a copy with a suffix": lambda path: (shutil.copytree if path.is_dir() else shutil.copy)(
        path, path.with_name(f"{path.stem} (1){path.suffix}")
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory with a file of each kind."""
    run = tmp_path_factory.mktemp("runs") / "quickstart"
    for step in (1, 2):
        target = run / "checkpoints" / f"global_step_{step}"
        (target / "learner").mkdir(parents=True)
        for file in ("model.safetensors", "learner/part-000.safetensors"):
            save_file({"w": torch.ones(64)}, target / file)
        (target / "config.json").write_text('{"model_type": "llama"}')
        (target / "learner" / "state.json").write_text('{"step": 1}')
        checkpoint.commit(target, Manifest("policy", step, 1, step * 64, (), (), ()))
        (run / "groups").mkdir(exist_ok=True)
        head = encode([])
        (run / "groups" / f"step_{step:08d}.kept").write_bytes(len(head).to_bytes(8, "little") + head)
    (run / "redis").mkdir()
    for name in ("id", "redis/password", "redis/redis.pid", "owner.lock", "error.txt"):
        (run / name).write_text("quickstart-abcdef")
    (run / "redis" / "redis.conf").write_text("bind 127.0.0.1\nport 1\n")
    (run / "config.toml").write_text(config.dump(settings(run.parent)))
    for name in ("metrics.jsonl", "samples.jsonl", "alarms.jsonl"):
        (run / name).write_text('{"step": 1, "reward/mean": 0.5}\n{"step": 2, "reward/mean": 0.5}\n')
    (run / "summary.json").write_text("{}")
    return run


def settings(runs: Path) -> config.RunConfig:
    return config.load(RECIPE, [f"run.dir={runs}"])


def start(run: Path) -> list[str]:
    """What is read of a run's directory before its actors are placed."""
    recipe = settings(run.parent)
    warnings = leftovers.look(run)
    preflight.place(run)
    preflight.used_directory(recipe, run)
    resumed = preflight.resume_point(recipe, run)
    recorder = metrics.Recorder(run, recipe.tracking, "quickstart", {})
    recorder.forget_after(checkpoint.read(resumed).step if resumed else -1)
    recorder.close()
    metrics.read(run)
    metrics.read_alarms(run)
    group_archive.GroupArchive(run / "groups", 100, done=2).finish()
    preflight.run_id(recipe, run)
    return warnings


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_run_directory_starts_or_is_refused_in_one_line(whole: Path, tmp_path: Path, kind: str, way: str):
    run = Path(shutil.copytree(whole, tmp_path / "quickstart"))
    if (run / kind).is_dir() and way in ("truncated", "empty", "garbage", "zeros", "json of another shape"):
        pytest.skip("only files have contents")
    WAYS[way](run / kind)
    refused = None
    try:
        start(run)
    except ConfigError as error:
        refused = str(error)
    assert refused is None or (str(tmp_path) in refused and len(refused.splitlines()) == 1)


@pytest.mark.parametrize("way", ["truncated", "empty", "garbage", "zeros"])
@pytest.mark.parametrize("kind", [k for k in KINDS if "global_step_2/" in k or k.startswith("groups/")])
def test_what_can_be_done_without_is_skipped_with_a_warning(whole: Path, tmp_path: Path, kind: str, way: str):
    run = Path(shutil.copytree(whole, tmp_path / "quickstart"))
    WAYS[way](run / kind)
    warnings = start(run)
    assert len(warnings) == 1
    assert "damaged" in warnings[0]
    if "global_step_2" in kind:
        assert preflight.resume_point(settings(tmp_path), run) == run / "checkpoints" / "global_step_1"


def test_a_backup_beside_the_checkpoints_is_no_checkpoint(whole: Path, tmp_path: Path):
    run = Path(shutil.copytree(whole, tmp_path / "quickstart"))
    shutil.copytree(run / "checkpoints" / "global_step_2", run / "checkpoints" / "global_step_2.bak")
    assert [p.name for p in checkpoint.committed(run / "checkpoints")] == ["global_step_1", "global_step_2"]
    assert start(run) == []


def test_an_undamaged_directory_has_no_warning(whole: Path, tmp_path: Path):
    assert start(Path(shutil.copytree(whole, tmp_path / "quickstart"))) == []


@pytest.mark.parametrize(
    ("place", "words"), [("/dev/shm", "/dev/shm has 4 MB free.*shm-size"), ("", "run.dir: .*Free")]
)
def test_too_little_room_is_named_before_the_start(tmp_path: Path, monkeypatch, place: str, words: str):
    def usage(path) -> SimpleNamespace:
        here = str(path) == place if place else str(path) != "/dev/shm"
        return SimpleNamespace(free=4 * 2**20 if here else 2**40)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(ConfigError, match=words):
        leftovers.sizes(settings(tmp_path), tmp_path, 0)


def spoil(draw: random.Random, path: Path) -> None:
    """Change some bytes of a file: other ones, fewer, more, or those of another part of it."""
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 2, 8))):
        at, size = draw.randrange(len(data) + 1), draw.choice((0, 1, 1, 4, 40))
        more = draw.choice((b"", bytes(size), draw.randbytes(size), bytes(data[-size:]), b"\n", b'{"', b"\xff" * 8))
        data[at : at + size] = more
    path.write_bytes(data)


def spoilt_at_random(whole: Path, directory: Path, seed: int, count: int) -> tuple[int, int]:
    """Start in `count` directories with files that were changed at random; return how many started and were refused."""
    draw, refused = random.Random(seed), 0
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    for number in range(count):
        run = Path(shutil.copytree(whole, directory / str(number) / "quickstart"))
        for file in draw.sample(files, draw.choice((1, 1, 1, 3))):
            spoil(draw, run / file)
        try:
            start(run)
        except ConfigError:
            refused += 1
        shutil.rmtree(run.parent)
    return count - refused, refused


def test_a_run_directory_with_bytes_changed_at_random_starts_or_is_refused(whole: Path, tmp_path: Path):
    assert min(spoilt_at_random(whole, tmp_path, 0, 300)) > 20


@pytest.mark.verify
@pytest.mark.timeout(3600)
def test_many_run_directories_with_bytes_changed_at_random_start_or_are_refused(whole: Path, tmp_path: Path):
    assert min(spoilt_at_random(whole, tmp_path, 1, 20_000)) > 1000
