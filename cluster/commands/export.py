"""A checkpoint as a plain directory: `python -m cluster.commands.export RUN [--step N] [--policy NAME] --to DIR`.

Beside the model lies a model card, README.md, with the run's figures and its recipe; `--push-to-hub ID` uploads both to
Hugging Face. Adapters (`[learner.lora]`) are merged into the model that the run began with, or given alone in peft's
format.

Exit codes: 0 written · 1 it vanished, or the disk or the upload failed · 2 no such run or step, or DIR is taken.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer

from actors.models import prepare
from cluster import config
from cluster.commands import app
from cluster.errors import ConfigError, KanaboError, one_line
from cluster.observability import metrics
from cluster.process.lock import readable
from cluster.storage import checkpoint

OURS = ("manifest.json", "manifest.json.tmp", "learner", "policies")
"""What a checkpoint holds besides the model: of use to resume, to nothing else."""
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
CHUNK_BYTES = 16 * 2**20
FIGURES = ("eval/accuracy", "reward/mean", "rollout/length_tokens")
"""Metrics of the model card, where the run has them."""


def main(
    run: app.RunName,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="New directory for the model.")],
    step: Annotated[int | None, typer.Option("--step", metavar="N", help="Which one.", show_default="newest")] = None,
    policy: Annotated[str, typer.Option("--policy", metavar="NAME", help="Of several, which one.")] = config.POLICY,
    adapter: Annotated[bool, typer.Option("--adapter", help="With LoRA: the adapter alone.")] = False,
    push_to_hub: Annotated[str, typer.Option("--push-to-hub", metavar="ID", help="Upload it to Hugging Face.")] = "",
    public: Annotated[bool, typer.Option("--public", help="A repository that is made for it is not private.")] = False,
    directory: app.RunsDir = None,
    as_json: app.AsJson = False,
) -> None:
    """Copy a run's checkpoint as a directory that AutoModelForCausalLM and vLLM load.

    Exit codes: 0 written · 1 it vanished, or the disk or the upload failed · 2 no such run or step, or DIR is taken.
    """
    with app.exit_codes():
        source = choose(*app.find_step(run, directory, step))
        if push_to_hub:
            check_hub(push_to_hub)
        result = export(source, to.absolute(), adapter=adapter, policy=policy)
        if push_to_hub:
            result["url"] = push(to.absolute(), push_to_hub, f"step {result['step']}", public=public)
    if as_json:
        app.print_json(result)
    else:
        print(f"step {result['step']}: {result['files']} files, {result['bytes'] / 1e6:,.1f} MB in {result['path']}")
        if push_to_hub:
            print(f"uploaded: {result['url']}")


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
        (draft / "README.md").write_text(card(source, policy), "utf-8")
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

    from learner.engine.forward import use_savable_generation_config

    base: Any = AutoModelForCausalLM.from_pretrained(prepare(settings.model, settings.seed))
    use_savable_generation_config(base)
    precision = base.dtype
    merged: Any = PeftModel.from_pretrained(base.float(), str(source))
    merged.merge_and_unload().to(precision).save_pretrained(target)


def card(source: Path, policy: str) -> str:
    """Return the model card of a checkpoint: what was trained, the figures at its step, and the recipe."""
    run, step = source.parent.parent, int(source.name.removeprefix("global_step_"))
    settings = config.stored(run)
    settings = settings.of_policy(policy) if policy in settings.policy_names else settings
    rows = [row for row in metrics.read(run) if row["step"] <= step]
    figures = []
    for name in FIGURES:
        known = [row for row in rows if row.get(name) is not None]
        if known:
            first, last = (f"{row[name]:.4g} (step {row['step']})" for row in (known[0], known[-1]))
            figures.append(f"| `{name}` | {first} | {last} |")
    tree = _without_variables(config.tree_of(settings))
    hub = settings.model.path.count("/") == 1 and not Path(settings.model.path).exists()
    base = [f"base_model: {settings.model.path}"] * hub
    return "\n".join(
        [
            "---", "library_name: transformers", "pipeline_tag: text-generation", *base,
            "tags:", "- kanabo", "- reinforcement-learning", "---", "",
            f"# {run.name}", "",
            f"`{settings.model.path}` after {step} steps of reinforcement learning by Kanabo {version('kanabo')}.", "",
            *(["| metric | first | last |", "|---|---|---|", *figures, ""] if figures else []),
            "## Recipe", "", "```toml", tomli_w.dumps(tree).rstrip(), "```", "",
        ]
    )  # fmt: skip


def _without_variables(tree: Any) -> Any:
    """Return a recipe whose tables named `env`, which may hold keys, have no values."""
    if isinstance(tree, list):
        return [_without_variables(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    return {
        key: dict.fromkeys(value, "…") if key == "env" and isinstance(value, dict) else _without_variables(value)
        for key, value in tree.items()
    }


def check_hub(repository: str) -> None:
    """Raise ConfigError unless a model could be uploaded under this id, as far as can be told without asking."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub '{repository}': {one_line(error)}") from error
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"--push-to-hub '{repository}': HF_HUB_OFFLINE is set. Unset it, or leave --push-to-hub out.")
    if not get_token():
        raise ConfigError(f"--push-to-hub '{repository}': there is no key. Set HF_TOKEN, or run `hf auth login`.")


def push(folder: Path, repository: str, message: str, *, public: bool) -> str:
    """Upload a model's directory to Hugging Face, or to $HF_ENDPOINT, and return its address. Raises KanaboError."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        made = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:  # of the network, of HTTP, of the disk: the client has no common root for them
        raise KanaboError(
            f"--push-to-hub '{repository}': {one_line(error)} The model is in {folder}; `hf upload` can try again."
        ) from error
    return str(made.url)


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
