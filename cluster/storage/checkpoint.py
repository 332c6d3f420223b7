"""Checkpoints: files first, then the manifest's rename, then the buffer's trim (rules 6 and 7 of exactly-once).

checkpoints/global_step_N/              Hugging Face safetensors and tokenizer: AutoModelForCausalLM loads it
                                        (with LoRA the adapter alone, in peft's format)
                          learner/      fp32 weights and optimizer states of what is trained
                          policies/NAME/ the same two of every other policy
                          manifest.json the commit: without it the directory does not count
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from cluster.errors import ConfigError
from cluster.process.disk import Written, written_at_once
from cluster.process.failpoints import failpoint
from cluster.process.lock import readable
from cluster.storage import weight_files
from cluster.types import Manifest

if TYPE_CHECKING:
    from cluster.buffer import Buffer

NAME = re.compile(r"global_step_\d+")
STAGED = "saving"
"""Where members put their parts; whoever commits moves them into the checkpoint."""
LOOK_S = 5.0


class Savable(Protocol):
    rank: int

    def save(self, directory: Path) -> None: ...

    def export(self, directory: Path) -> None: ...

    def agree(self, flag: bool) -> bool: ...


def save(
    directory: Path,
    engine: Savable,
    buffer: Buffer,
    policy: str,
    epoch: int,
    step: int,
    keep_last: int,
    members: Sequence[str] = (),
    *,
    scheduled: bool = True,
    needed: Callable[[], Collection[Path]] = tuple,
    written: Written = written_at_once,
) -> None:
    """Write `global_step_N` on all ranks; on return it is committed, or this process has died trying.

    It waits for the parts of `members`, whose learners save the same step. The newest `keep_last` checkpoints stay, and
    those that `needed` names once this one is committed.
    """
    target = directory / f"global_step_{step}"
    what = f"the checkpoint of step {step}"
    _write(target, engine, what, written)
    if members:
        from cluster.buffer.policy_barrier import Members  # Redis' client takes a while to import

        together = Members(buffer, policy, epoch)
        while not engine.agree(engine.rank == 0 and together.all_saved(step, timeout_s=LOOK_S)):
            pass  # it has waited; a member that died ends this process too

    def close() -> Manifest | None:
        if engine.rank != 0:
            return None
        for name in members:
            _take(target, directory / STAGED / name)
        counted = {"scheduled": scheduled, "rounds": rounds(directory)[1] + scheduled}
        manifest = replace(buffer.snapshot(policy, epoch, step), **counted)
        for path in target.rglob("*"):
            _fsync(path)
        failpoint("learner.after_files")
        commit(target, manifest)
        return manifest

    manifest = written(close, what, engine.agree)
    if engine.rank == 0:
        failpoint("learner.after_manifest")
        buffer.trim(manifest)
        failpoint("learner.after_trim")
        stay = set(needed())
        _remove([path for path in committed(directory)[:-keep_last] if path not in stay])


def save_alone(
    directory: Path, engine: Savable, policy: str, step: int, keep_last: int, *, written: Written = written_at_once
) -> None:
    """Write and commit `global_step_N` of a run without a buffer on all ranks; the newest `keep_last` stay."""
    target = directory / f"global_step_{step}"
    what = f"the checkpoint of step {step}"
    _write(target, engine, what, written)

    def close() -> None:
        if engine.rank == 0:
            commit(target, Manifest(policy, step, epoch=1, frontier=0, requeued=(), outstanding=(), trained=()))
            _remove(committed(directory)[:-keep_last])

    written(close, what, engine.agree)


def save_part(
    directory: Path,
    engine: Savable,
    buffer: Buffer,
    policy: str,
    epoch: int,
    step: int,
    member: str,
    *,
    written: Written = written_at_once,
) -> None:
    """What a member, whose learner trains on the groups of `policy`, has for the checkpoint of `step`."""
    staged = directory / STAGED / member
    _write(staged, engine, f"the part of '{member}' in the checkpoint of step {step}", written)
    if engine.rank == 0:
        from cluster.buffer.policy_barrier import Members

        Members(buffer, policy, epoch).saved(member, step)
        failpoint("learner.after_part")


def _remove(old: Sequence[Path]) -> None:
    for target in old:
        # The manifest first: half a directory without one does not count.
        (target / "manifest.json").unlink()
        shutil.rmtree(target)


def part(target: Path, policy: str, run_policy: str) -> Path:
    """Where in a checkpoint a policy's files are."""
    return target if policy == run_policy else target / "policies" / policy


def _write(target: Path, engine: Savable, what: str, written: Written) -> None:
    """Write all files but the manifest. Collective; no stage begins before every rank has finished the one before."""

    def make_folder() -> None:
        if engine.rank == 0:
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)

    def seal() -> None:
        if engine.rank == 0:
            readable(target)
            for path in target.rglob("*"):
                _fsync(path)

    for stage in (make_folder, lambda: engine.save(target / "learner"), lambda: engine.export(target), seal):
        written(stage, what, engine.agree)


def _take(target: Path, staged: Path) -> None:
    (target / "policies").mkdir(exist_ok=True)
    if staged.exists():  # else it was taken before the disk was full
        staged.rename(target / "policies" / staged.name)


def commit(target: Path, manifest: Manifest) -> None:
    """Write the manifest; its rename is the commit point."""
    temporary = target / "manifest.json.tmp"
    temporary.write_bytes(msgspec.json.encode(manifest))
    _fsync(temporary)
    temporary.replace(target / "manifest.json")
    _fsync(target)
    _fsync(target.parent)


def committed(directory: Path) -> list[Path]:
    """Directories of committed checkpoints, oldest first; other names and links beside them are not ours."""
    found = [p.parent for p in directory.glob("global_step_*/manifest.json") if NAME.fullmatch(p.parent.name)]
    ours = [p for p in found if not p.is_symlink() and (p / "manifest.json").is_file()]
    return sorted(ours, key=lambda p: int(p.name.removeprefix("global_step_")))


def rounds(directory: Path) -> tuple[dict[int, Path], int]:
    """The scheduled checkpoints that are there, by their number in the run's history from 1, and how many there were.

    A checkpoint at a stop or at the end of a run ends no round. One whose manifest does not say is taken for scheduled.
    """
    found: dict[int, Path] = {}
    last = 0
    for path in committed(directory):
        try:
            manifest = msgspec.json.decode((path / "manifest.json").read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError):
            manifest = None
        if manifest is None or manifest.rounds is None:
            last += 1
            found[last] = path
            continue
        last = manifest.rounds
        if manifest.scheduled:
            found[last] = path
    return found, last


def usable(directory: Path) -> list[Path]:
    """Committed checkpoints that can be resumed from, oldest first."""
    return [path for path in committed(directory) if _damage(path) is None]


def damaged(directory: Path) -> dict[Path, str]:
    """Committed checkpoints that cannot be resumed from, and why."""
    return {path: why for path in committed(directory) if (why := _damage(path)) is not None}


def _damage(target: Path) -> str | None:
    """What of a checkpoint cannot be read, as far as sizes and headers tell."""
    try:
        read(target)
    except ConfigError:
        return "manifest.json cannot be read"
    for file in sorted(target.rglob("*.safetensors")):
        try:
            weight_files.header(file)
        except ValueError as error:
            return f"{file.relative_to(target)} {error}"
    for file in (target / "learner" / "state.json", target / "config.json", target / "adapter_config.json"):
        try:
            if file.exists() and not isinstance(json.loads(file.read_text("utf-8")), dict):
                return f"{file.relative_to(target)} cannot be read"
        except (OSError, ValueError):
            return f"{file.relative_to(target)} cannot be read"
    return None


def abandon_after(directory: Path, step: int) -> None:
    """Rename later checkpoints: the run goes back to `step`, and theirs is no longer its history."""
    for later in committed(directory):
        number = int(later.name.removeprefix("global_step_"))
        if number > step:
            abandoned = directory / f"abandoned_step_{number}"
            shutil.rmtree(abandoned, ignore_errors=True)
            later.rename(abandoned)


def read(target: Path) -> Manifest:
    """The manifest of a checkpoint directory. Raises ConfigError if it is none."""
    try:
        return msgspec.json.decode((target / "manifest.json").read_bytes(), type=Manifest)
    except FileNotFoundError as error:
        raise ConfigError(
            f"resume = '{target}' is not a committed checkpoint: it has no manifest.json. "
            "Name a directory like runs/NAME/checkpoints/global_step_40, or 'auto'."
        ) from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{target / 'manifest.json'} cannot be read: {error}. Resume from an older one.") from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
