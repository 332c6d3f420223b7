"""A checkpoint as a plain directory: `python -m cluster.commands.export RUN [--step N] [--policy NAME] --to DIR`.

Adapters (`[learner.lora]`) are merged into the model that the run began with, or given alone in peft's format.

Exit codes: 0 written · 1 it vanished or the disk failed meanwhile · 2 no such run or step, or DIR is taken.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import config
from cluster.commands import app
from cluster.errors import ConfigError, KanaboError
from cluster.process.lock import readable
from cluster.storage import checkpoint

OURS = ("manifest.json", "manifest.json.tmp", "learner", "policies")
"""What a checkpoint holds besides the model: of use to resume, to nothing else."""
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
CHUNK_BYTES = 16 * 2**20


def main(
    run: app.RunName,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="New directory for the model.")],
    step: Annotated[int | None, typer.Option("--step", metavar="N", help="Which one.", show_default="newest")] = None,
    policy: Annotated[str, typer.Option("--policy", metavar="NAME", help="Of several, which one.")] = config.POLICY,
    adapter: Annotated[bool, typer.Option("--adapter", help="With LoRA: the adapter alone.")] = False,
    directory: app.RunsDir = None,
    as_json: app.AsJson = False,
) -> None:
    """Copy a run's checkpoint as a directory that AutoModelForCausalLM and vLLM load.

    Exit codes: 0 written · 1 it vanished or the disk failed meanwhile · 2 no such run or step, or DIR is taken.
    """
    with app.exit_codes():
        source = choose(*app.find_step(run, directory, step))
        result = export(source, to.absolute(), adapter=adapter, policy=policy)
    if as_json:
        app.print_json(result)
    else:
        print(f"step {result['step']}: {result['files']} files, {result['bytes'] / 1e6:,.1f} MB in {result['path']}")


def choose(run: Path, step: int | None) -> Path:
    """The committed checkpoint of a step, or the newest. Raises ConfigError naming those there are."""
    found = {checkpoint.read(path).step: path for path in checkpoint.committed(run / "checkpoints")}
    if not found:
        raise ConfigError(
            f"run '{run.name}' has no checkpoint yet; it writes one at its end, and sooner with checkpoint.every_steps."
        )
    if step is not None and step not in found:
        raise ConfigError(
            f"run '{run.name}' has no checkpoint of step {step}; it has {', '.join(map(str, sorted(found)))}. "
            "checkpoint.keep_last says how many it keeps."
        )
    return found[max(found) if step is None else step]


def export(source: Path, target: Path, *, adapter: bool = False, policy: str = config.POLICY) -> dict[str, Any]:
    """The model's files, whole or with `adapter` the adapter's; the target appears when it is complete.

    Raises ConfigError if it exists, or if there is no such policy or no adapter.
    """
    if target.exists() or target.is_symlink():
        raise ConfigError(f"--to '{target}' exists. Name a new directory, or remove that one.")
    part = checkpoint.part(source, policy, config.POLICY)
    if not part.is_dir():
        others = sorted(path.name for path in source.glob("policies/*"))
        raise ConfigError(f"{source.name} has no policy '{policy}'. There are: {', '.join((config.POLICY, *others))}.")
    adapted = (part / ADAPTER[0]).exists()
    if adapter and not adapted:
        raise ConfigError(f"{source.name} holds whole weights: the run has no [learner.lora]. Leave --adapter out.")
    merging = adapted and not adapter
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: what lies beside the target is the user's.
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        there = [path for path in sorted(part.rglob("*")) if path.is_file() and _of_the_model(path, part)]
        files = [path for path in there if not (merging and path.name in ADAPTER)]
        total = sum(path.stat().st_size for path in files)
        if merging:
            with app.progress("merging the adapter"):
                _merge(part, draft, config.stored(source.parent.parent).of_policy(policy))
        with app.progress(f"copying {source.name}", total) as advance:
            for path in files:
                _copy(path, draft / path.relative_to(part), advance)
        written = [path for path in draft.rglob("*") if path.is_file()]
        result = {"files": len(written), "bytes": sum(path.stat().st_size for path in written)}
        # A run removes a manifest before anything else: while it is there, all files were.
        (source / "manifest.json").stat()
        readable(draft)
        draft.rename(target)
    except FileNotFoundError as error:
        raise KanaboError(
            f"{error.filename} vanished while it was copied: the run has newer checkpoints and removed this one. "
            "Ask for a newer step, or raise checkpoint.keep_last."
        ) from error
    except OSError as error:
        raise KanaboError(f"{source} could not be copied to {target}: {error}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    step = int(source.name.removeprefix("global_step_"))
    return {"run": source.parent.parent.name, "step": step, "path": target, **result}


def _merge(source: Path, target: Path, settings: config.RunConfig) -> None:
    """W + alpha / rank · B·A in fp32, in the precision of the model that the run began with."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from actors.models import prepare
    from learner.engine.forward import use_savable_generation_config

    base: Any = AutoModelForCausalLM.from_pretrained(prepare(settings.model, settings.seed))
    use_savable_generation_config(base)
    precision = base.dtype
    merged: Any = PeftModel.from_pretrained(base.float(), str(source))
    merged.merge_and_unload().to(precision).save_pretrained(target)


def _of_the_model(path: Path, source: Path) -> bool:
    return path.relative_to(source).parts[0] not in OURS


def _copy(source: Path, target: Path, advance: Any) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(CHUNK_BYTES):
            writing.write(chunk)
            advance(len(chunk))


if __name__ == "__main__":
    app.start(main)
