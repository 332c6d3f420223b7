"""Random models of many architectures, small enough for a CPU, with a character tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.models import character_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""`head_dim` is 32, the smallest that vLLM has for CPUs."""
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3, tied": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3 moe": (
        "Qwen3Moe",
        {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "gemma": ("Gemma", {"head_dim": 32}),
    "gemma 2": ("Gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 512}),
    "gemma 3": ("Gemma3Text", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 512}),
    "olmo 2": ("Olmo2", {}),
    "phi 3": ("Phi3", {"rope_scaling": None, "sliding_window": None}),
    "gpt 2": ("GPT2", {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "granite": ("Granite", {}),
    "smollm 3": ("SmolLM3", {}),
}


def build(name: str, directory: Path, **changes: Any) -> Path:
    """A random model of this architecture whose distributions are far from uniform."""
    import torch
    import transformers

    kind, own = ARCHITECTURES[name]
    tokenizer = character_tokenizer()
    tokenizer.save_pretrained(directory)
    sizes = {k: v for k, v in SIZES.items() if kind != "GPT2" or k.endswith("token_id")}
    make_config: Callable[..., Any] = getattr(transformers, f"{kind}Config")
    config = make_config(**{**sizes, "vocab_size": 64, **own, **changes})
    torch.manual_seed(0)
    base = kind.removesuffix("Text") if kind == "Gemma3Text" else kind
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    model = getattr(transformers, f"{base}{head}")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(directory)
    return directory
