"""Messages to token ids, once and in one direction: what the policy wrote is never tokenised again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.errors import ConfigError, DataError, one_line
from cluster.types import Message

_HOLE = "\u241e\u241f"


class Chat:
    """Renders prompts and observations with the tokenizer's chat template, or as plain text where it has none."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._templated = bool(tokenizer.chat_template)
        if tokenizer.eos_token_id is None:
            raise ConfigError("model.path: its tokenizer has no end-of-sequence token, so no rollout could end.")
        self.stop_tokens = [int(tokenizer.eos_token_id)]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a first observation, ready for the policy to go on. Raises DataError if the template refuses it."""
        if not self._templated:
            return self._encode("".join(m.content for m in messages))
        return self._encode(self._render(messages))

    def observation(self, messages: Sequence[Message], *, after: int) -> list[int]:
        """Ids that follow the policy's turn: what closes that turn, `messages`, and the opening of its next.

        `after` is the last id of its turn, which may have closed it already.
        """
        if not self._templated:
            return self._encode("".join(m.content for m in messages))
        around = self._render([Message("user", "."), Message("assistant", _HOLE), *messages])
        ids = self._encode(around.split(_HOLE, 1)[1])
        return ids[1:] if ids[0] == after else ids

    def text(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def _render(self, messages: Sequence[Message]) -> str:
        rows = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return self._tokenizer.apply_chat_template(rows, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template is a program of others, and may refuse roles or their order
            roles = ", ".join(m.role for m in messages)
            raise DataError(f"the model's chat template refuses messages of {roles}: {one_line(error)}") from error

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))
