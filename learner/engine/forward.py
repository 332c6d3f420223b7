"""Log-probs of packed rows under a Hugging Face causal LM; the engine and the reference model share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cluster.types import MicroBatch

Statistics = Callable[[Float[Tensor, "N V"], Int[Tensor, " N"]], tuple[Float[Tensor, " N"], Float[Tensor, " N"]]]
"""(logits, tokens) → log-prob of the tokens and entropy, nats."""


class RowSelection:
    """Which of the flattened [B·L] positions the output head computes logits for; None is all."""

    def __init__(self) -> None:
        self.index: Int[Tensor, " N"] | None = None

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> Any:
        if self.index is None:
            return None
        hidden = args[0]
        return (hidden.flatten(0, 1).index_select(0, self.index)[None], *args[1:])


def attach_row_selection(model: Any) -> RowSelection:
    """Let the output head see selected positions only.

    Prompts and padding are most of a batch and logits are its largest tensor. `logits_to_keep` selects columns, which
    differ from row to row; a hook on the head selects any position and leaves the model's own scaling after it intact.
    """
    select = RowSelection()
    model.get_output_embeddings().register_forward_pre_hook(select)
    return select


def max_positions(config: Any) -> int | None:
    """Return the longest sequence that a model's configuration allows, scaled rotary embeddings included.

    None where the configuration names no limit.
    """
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    return int(limit * max([1.0, *_factors(getattr(text, "rope_parameters", None))]))


def _factors(rope: Any) -> Iterator[float]:
    """The scaling factors in rotary parameters, which may be nested by layer type."""
    if isinstance(rope, dict):
        for key, value in rope.items():
            if key == "factor" and isinstance(value, int | float):
                yield float(value)
            yield from _factors(value)


def use_savable_generation_config(model: Any) -> bool:
    """Replace a generation configuration that transformers reads but refuses to write; returns whether it did.

    Many models have sampling keys without `do_sample`. Training uses none of it, and an export copies the file.
    """
    from transformers import GenerationConfig

    found = getattr(model, "generation_config", None)
    if found is None:
        return False
    try:
        found.validate(strict=True)
    except ValueError:
        model.generation_config = GenerationConfig(
            bos_token_id=found.bos_token_id, eos_token_id=found.eos_token_id, pad_token_id=found.pad_token_id
        )
        return True
    return False


def tied_head(model: Any) -> tuple[str, str] | None:
    """(name of the output head's weight, name of the parameter it shares) if they are tied."""
    head = model.get_output_embeddings()
    first = {id(p): n for n, p in model.named_parameters()}.get(id(head.weight))
    own = next(f"{name}.weight" for name, module in model.named_modules() if module is head)
    return (own, first) if first is not None and first != own else None


def by_layer(named: Iterable[tuple[str, nn.Parameter]]) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Consecutive parameters of the same layer: what is gathered at once."""
    group: list[tuple[str, nn.Parameter]] = []
    current = None
    for name, parameter in named:
        layer = next((part for part in name.split(".") if part.isdigit()), "")
        if group and layer != current:
            yield group
            group = []
        current = layer
        group.append((name, parameter))
    if group:
        yield group


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape of a parameter, also of one that ZeRO 3 has sharded."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def has_fused_experts(model: nn.Module) -> bool:
    """Whether the model holds the experts of a layer in one tensor, which its files hold one by one."""
    return any(".experts." in name and len(whole_shape(p)) == 3 for name, p in model.named_parameters())


def as_saved(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole layers under the names and in the pieces of the model's files, which is what engines can read."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, dict(tensors))


def logprobs_of(
    model: Callable[..., Any], select: RowSelection, micro: MicroBatch, device: torch.device, statistics: Statistics
) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
    """[B, L] nats: log-prob and entropy of each trained or appended token at its temperature, 0 elsewhere.

    Sequences are kept apart by their positions alone: with a cache or any attention mask transformers does not look
    for restarts, and tokens see their neighbours in the row (by 1.19 nats).
    """
    rows, width = micro.tokens.shape
    wanted = micro.loss_mask.copy() if micro.appended is None else micro.loss_mask | micro.appended
    wanted[:, 0] = False
    target = torch.from_numpy(wanted).flatten().nonzero().squeeze(1)
    empty = len(target) == 0
    if empty:
        target = torch.ones(1, dtype=torch.int64)  # an empty micro-batch runs every layer too, or ZeRO-3 hangs
    target = target.to(device)
    tokens = torch.as_tensor(micro.tokens, device=device)
    inputs, before = _inputs(model, micro, tokens), target - 1
    if micro.shared is not None:
        before = torch.as_tensor(micro.shared.place, device=device).flatten()[before]
    select.index = before
    try:
        logits = model(**inputs, use_cache=False).logits.squeeze(0)
    finally:
        select.index = None
    temperature = torch.as_tensor(micro.temperature, device=device).flatten()[target]
    if (micro.temperature != 1).any():
        logits = logits.float() / temperature[:, None]
    chosen, entropy = statistics(logits, tokens.flatten()[target])
    if empty:
        chosen, entropy = chosen * 0, entropy * 0

    def spread(values: Float[Tensor, " N"]) -> Float[Tensor, "B L"]:
        return values.new_zeros(rows * width).index_put((target,), values).view(rows, width)

    return spread(chosen), spread(entropy)


def _inputs(model: Any, micro: MicroBatch, tokens: Int[Tensor, "B L"]) -> dict[str, Tensor]:
    """What the model is called with: the micro-batch's rows, or the trees that stand for them."""
    if micro.shared is not None:
        rows = micro.shared
        tokens, positions, ends = (
            torch.as_tensor(a, device=tokens.device) for a in (rows.tokens, rows.positions, rows.ends)
        )
        return {"input_ids": tokens, "position_ids": positions, "attention_mask": tree_mask(ends)}
    positions = torch.as_tensor(micro.positions, device=tokens.device)
    if _flash(model):
        # Flash attention looks for restarts in a single row only.
        tokens, positions = tokens.reshape(1, -1), positions.reshape(1, -1)
    return {"input_ids": tokens, "position_ids": positions}


def tree_mask(ends: Int[Tensor, "R W"]) -> Bool[Tensor, "R 1 W W"]:
    """Return which tokens (last axis) each token attends to: those that it descends from, and itself."""
    column = torch.arange(ends.shape[1], device=ends.device)
    return ((column[None, :] <= column[:, None]) & (column[:, None] < ends[:, None, :]))[:, None]


class PackedModel:
    """Base of a model in training: log-probs of its packed rows. A subclass sets the attributes."""

    device: torch.device
    _engine: Any
    """Calls the model, which is its `module`."""
    _select: RowSelection
    _statistics: Statistics

    def before_training_pass(self) -> None:
        """Called before each forward pass that has a gradient."""

    def logprobs(self, micro: MicroBatch) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        """Return what `logprobs_of` returns, in training mode if gradients are enabled, else in evaluation mode."""
        if torch.is_grad_enabled():
            self.before_training_pass()
            return logprobs_of(self._engine, self._select, micro, self.device, self._statistics)
        # Back to training at once: a backward pass may be under way that computes layers again.
        self._engine.module.eval()
        try:
            return logprobs_of(self._engine, self._select, micro, self.device, self._statistics)
        finally:
            self._engine.module.train()


def _flash(model: Any) -> bool:
    config = getattr(model, "module", model).config  # DeepSpeed's engine has a config of its own
    return "flash" in (config._attn_implementation or "")


CHUNK_BYTES = {"cpu": 2**22, "cuda": 2**28}
"""Bytes of fp32 logits that are in memory at a time: on a CPU what its cache holds."""


def token_statistics(
    logits: Float[Tensor, "N V"], tokens: Int[Tensor, " N"], *, entropy_grad: bool
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-prob of `tokens` and entropy, fp32 nats. Only with `entropy_grad` the entropy has a gradient.

    `torch.nn.functional.cross_entropy` would keep a copy of the logits in fp32, and an entropy beside it two more.
    """
    chosen, entropy = _TokenStatistics.apply(logits, tokens, entropy_grad)  # pyright: ignore[reportGeneralTypeIssues]
    return chosen, entropy


class _TokenStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, entropy_grad: bool) -> tuple[Tensor, Tensor]:
        chosen = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        entropy = torch.empty_like(chosen)
        for rows in _chunks(logits):
            logprobs = logits[rows].float().log_softmax(-1)
            chosen[rows] = logprobs.gather(1, tokens[rows, None])[:, 0]
            entropy[rows] = _entropy(logprobs)
        ctx.save_for_backward(logits, tokens, entropy)
        if not entropy_grad:
            ctx.mark_non_differentiable(entropy)
        ctx.entropy_grad = entropy_grad
        return chosen, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """∂ log p_t / ∂ logit_v = 1[v = t] − p_v;  ∂ H / ∂ logit_v = −p_v (log p_v + H)."""
        logits, tokens, entropy = ctx.saved_tensors
        of_chosen, of_entropy = grads
        grad = torch.empty_like(logits)
        for rows in _chunks(logits):
            weight, place = of_chosen[rows, None], tokens[rows, None]
            if ctx.entropy_grad:
                logprobs = _bounded(logits[rows].float().log_softmax(-1))
                slope = (logprobs + entropy[rows, None]).mul_(of_entropy[rows, None]).add_(weight)
                part = logprobs.exp_().mul_(slope).neg_().scatter_add_(1, place, weight)
                grad[rows] = part
            else:
                part = logits[rows].float().softmax(-1).scatter_add_(1, place, torch.full_like(weight, -1.0))
                torch.mul(part, -weight, out=grad[rows])
        return grad, None, None


def _chunks(logits: Tensor) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES[logits.device.type] // (4 * logits.shape[1]))
    return (slice(start, start + size) for start in range(0, len(logits), size))


def _entropy(logprobs: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    probabilities = logprobs.exp()
    # A sum of products as matrices: without a tensor of the products.
    return -torch.bmm(probabilities[:, None, :], _bounded(logprobs)[:, :, None])[:, 0, 0]


def _bounded(logprobs: Tensor) -> Tensor:
    """In place: a token that cannot come (−inf) adds 0 to an entropy, not 0 · inf."""
    return logprobs.clamp_(min=torch.finfo(torch.float32).min)
