"""Conversations of a data file as sequences of tokens that a learner imitates or compares.

{ "messages": [{"role": "user", …}, {"role": "assistant", …}] }          a conversation that ends with the assistant
{ "prompt": "1 + 1?", "completion": "2" }                                texts, or lists of messages
{ "prompt": "1 + 1?", "chosen": "2", "rejected": "3" }                   a pair
{ "chosen": [{"role": "user", …}, …], "rejected": [{"role": "user", …}, …] }     with the prompt that both begin with

The tokens are those of a rollout in which the policy had said the same, so a model that is trained on them samples
behind the prompts that it has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from actors.chat import Chat
from actors.tasks.base import order
from actors.tasks.columns import find
from actors.tasks.prompts import conversation
from actors.tasks.rows import Row
from actors.tasks.shards import Shards, open_rows
from cluster.config import POLICY, DataSection, RowsSection
from cluster.errors import ConfigError, DataError, nearest
from cluster.types import Claim, Group, Message, Pair, Rollout, Task
from cluster.types.wire import brief, clean_text

CONVERSATIONS = ("messages", "conversations", "prompt")
COMPLETIONS = ("completion", "response", "answer")
CHECKED_ROWS = 1_000
"""Rows that are tokenised before training starts."""
PAIR = (Pair(chosen=0, rejected=1),)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation, and from which message on the assistant's turns are trained on."""

    messages: tuple[Message, ...]
    trained_from: int


class Demonstrations:
    """The rows of a recipe's `[data]`, read and tokenised when asked for."""

    def __init__(
        self, section: RowsSection, chat: Chat, seed: int, *, pairs: bool = False, where: str = "learner.demonstrations"
    ) -> None:
        """With `pairs` every row has a chosen and a rejected completion. `where` is the section's name in errors.

        Raises ConfigError for files that cannot be read.
        """
        self._section, self._chat, self._pairs, self._where = section, chat, pairs, where
        self._rejected = section.rejected_key if isinstance(section, DataSection) else "rejected"
        self._rows = self._opened(section.path, section.split, f"{where}.path")
        self._held_out: Shards | None = None
        self._num_held_out = 0
        if isinstance(section, DataSection):
            self._hold_out(section)
        self._place = order(seed, len(self), section.shuffle)

    def _hold_out(self, section: DataSection) -> None:
        count = len(self._rows)
        if section.evaluation_path is not None:
            option = f"{self._where}.evaluation_path"
            self._held_out = self._opened(section.evaluation_path, section.evaluation_split, option)
        elif section.num_evaluation >= count:
            raise ConfigError(
                f"{self._where}.num_evaluation = {section.num_evaluation}, but '{section.path}' has {count} rows; "
                "nothing is left to train on."
            )
        else:
            self._num_held_out = section.num_evaluation

    def __len__(self) -> int:
        """Rows to train on."""
        return len(self._rows) - self._num_held_out

    def batch(self, step: int) -> tuple[list[Group], list[str]]:
        """The rows of step number `step`, from 0, as groups of one rollout, or of a chosen and a rejected one.

        Returns with them why each row that is left out was, if any were.
        """
        size = self._section.batch_size
        places = [self._place(position)[1] for position in range(step * size, (step + 1) * size)]
        return self._groups(self._rows, places, step)

    def evaluation(self) -> tuple[list[Group], list[str]]:
        """All held-out rows, as `batch` gives those of a step."""
        if self._held_out is not None:
            return self._groups(self._held_out, range(len(self._held_out)), 0)
        return self._groups(self._rows, range(len(self), len(self._rows)), 0)

    def check(self) -> list[str]:
        """Tokenise the first rows. Returns why rows are left out, one sentence each.

        Raises ConfigError where none of them can be trained on.
        """
        places = range(min(len(self), CHECKED_ROWS))
        groups, left_out = self._groups(self._rows, places, 0)
        if not groups:
            raise ConfigError(f"{self._where}: none of the first {len(places)} rows can be trained on: {left_out[0]}")
        return left_out

    def _opened(self, path: str, split: str, option: str) -> Shards:
        rows = open_rows(path, split, option, frozenset(self._text_columns))
        if not len(rows):
            raise ConfigError(f"{option}: '{path}' is empty. One conversation a row is expected.")
        return rows

    @cached_property
    def _text_columns(self) -> set[str]:
        section = self._section
        named = {section.prompt_key, section.completion_key, self._rejected} - {""}
        return named | {*CONVERSATIONS, *COMPLETIONS, "chosen"}

    def _groups(self, rows: Shards, places: Sequence[int], version: int) -> tuple[list[Group], list[str]]:
        groups, left_out = [], []
        for number, place in enumerate(places):
            file, line = rows.place(place)
            try:
                group = self._group(rows.read(place), f"{file.name}:{line}", number, place, version)
                longest = max(len(rollout.tokens) for rollout in group.rollouts)
                if longest > self._section.max_tokens:
                    most = self._section.max_tokens
                    raise DataError(
                        f"it has {longest} tokens, and {self._where}.max_tokens or the model allows {most}."
                    )
            except DataError as error:
                left_out.append(f"{file}:{line}: {error}")
            else:
                groups.append(group)
        return groups, left_out

    def _group(self, row: Row, id: str, number: int, place: int, version: int) -> Group:
        """The row as a group. Raises DataError."""
        said = self._pair(row) if self._pairs else [self._single(row)]
        rollouts = tuple(self._rollout(one) for one in said)
        claim = Claim(f"{POLICY}/1/{version}-{number}", POLICY, 1, number, place, version, "")
        return Group(claim, Task(id, {"orig": said[0].messages[: said[0].trained_from]}), rollouts)

    def _single(self, row: Row) -> Demonstration:
        """The conversation of a row. Raises DataError."""
        column = self._column(row, self._section.prompt_key, CONVERSATIONS, "prompt_key")
        begin = self._messages(column, row)
        if begin[-1].role == "assistant" and not self._section.completion_key:
            last = self._section.train_on == "last"
            return Demonstration(begin, len(begin) - 1 if last else 0)
        column = self._column(row, self._section.completion_key, COMPLETIONS, "completion_key")
        return Demonstration((*begin, *self._completion(column, row)), len(begin))

    def _pair(self, row: Row) -> list[Demonstration]:
        """The chosen and the rejected conversation of a row. Raises DataError."""
        columns = [self._column(row, self._section.completion_key, ("chosen",), "completion_key")]
        columns.append(self._column(row, self._rejected, ("rejected",), "rejected_key"))
        ends = [self._completion(column, row) for column in columns]
        prompt = self._section.prompt_key or next((name for name in CONVERSATIONS if find(row, name) is not None), "")
        if prompt:
            begin = self._messages(prompt, row)
            # Many files repeat the prompt in both conversations.
            ends = [end[len(begin) :] if end[: len(begin)] == begin else end for end in ends]
        else:
            same = next((i for i, (a, b) in enumerate(zip(*ends, strict=False)) if a != b), min(map(len, ends)))
            begin, ends = self._with_system(ends[0][:same]), [end[same:] for end in ends]
            if not begin:
                raise DataError(
                    f"'{columns[0]}' and '{columns[1]}' begin with no message that they share, and the row has no "
                    "prompt. Name its column with data.prompt_key."
                )
        if ends[0] == ends[1]:
            raise DataError(f"'{columns[0]}' and '{columns[1]}' say the same, so neither is better.")
        return [Demonstration((*begin, *end), len(begin)) for end in ends]

    def _column(self, row: Row, named: str, usual: Sequence[str], option: str) -> str:
        """The column that `named` names, or the first of the usual ones. Raises DataError."""
        names = [named] if named else list(usual)
        found = next((name for name in names if find(row, name) is not None), None)
        if found is None:
            near = nearest(names[0], list(row))
            where = f"{self._where}.{option}"
            raise DataError(
                f"the row has no {' or '.join(map(repr, names))}, and no other column is named by {where}. "
                f"{near}It has {', '.join(map(str, row))}."
            )
        return found

    def _messages(self, column: str, row: Row) -> tuple[Message, ...]:
        said = conversation(column, find(row, column))
        if said is None:
            raise DataError(f"'{column}' is {brief(find(row, column))}; a text or a list of messages is expected.")
        return self._with_system((Message("user", said),) if isinstance(said, str) else said)

    def _completion(self, column: str, row: Row) -> tuple[Message, ...]:
        said = conversation(column, find(row, column))
        if said is None:
            raise DataError(f"'{column}' is {brief(find(row, column))}; what the assistant says is expected.")
        messages = (Message("assistant", said),) if isinstance(said, str) else said
        if messages[-1].role != "assistant":
            raise DataError(f"'{column}' ends with a message of '{messages[-1].role}', not with the assistant's.")
        return messages

    def _with_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not self._section.system or not messages or messages[0].role == "system":
            return messages
        return (Message("system", self._section.system), *messages)

    def _rollout(self, said: Demonstration) -> Rollout:
        """The conversation as the policy would have sampled it. Raises DataError."""
        chat, tokens, mask, texts = self._chat, [], [], []
        heard: list[Message] = []
        for place, message in enumerate(said.messages):
            if message.role != "assistant":
                heard.append(message)
                continue
            if not heard:
                before = "begins with a message" if not tokens else "has two messages in a row"
                raise DataError(f"the conversation {before} of the assistant, which answers nothing.")
            opened = chat.opened(heard, first=not tokens)
            ids = chat.observation(heard, after=tokens[-1]) if tokens else chat.prompt(heard)
            text = clean_text(message.content)
            if opened and not text.startswith(opened):
                raise DataError(
                    f"the model's chat template opens {opened!r} for the assistant, whose text begins with "
                    f"{text[:40]!r}. Begin it with the thought, or use a template that opens none."
                )
            spoken = chat.turn(text.removeprefix(opened))
            tokens += [*ids, *spoken]
            mask += [False] * len(ids) + [place >= said.trained_from] * len(spoken)
            texts.append(text)
            heard = []
        if not any(mask[1:]):
            raise DataError("the conversation has no turn of the assistant to train on.")
        return Rollout(
            tokens=np.array(tokens, np.int32), loss_mask=np.array(mask), logprobs=np.zeros(len(tokens), np.float32),
            text="\n".join(texts), turns=(), spans=(), finish="stop",
        )  # fmt: skip


def continuation(chat: Chat, messages: Sequence[Message], reply: str, max_tokens: int) -> Rollout:
    """Messages, and how the policy's turn behind them begins, as a rollout of which the reply is trained on.

    Raises DataError if the chat template refuses the messages, the reply is no token, or all of it is longer than
    `max_tokens`.
    """
    before, said = chat.passage((*messages, Message("assistant", reply)))
    if not said:
        raise DataError(f"the reply {reply!r} is no token.")
    if len(before) + len(said) > max_tokens:
        raise DataError(f"a question of {len(before)} tokens is longer than the context of {max_tokens}.")
    return Rollout(
        tokens=np.array([*before, *said], np.int32),
        loss_mask=np.array([False] * len(before) + [True] * len(said)),
        logprobs=np.zeros(len(before) + len(said), np.float32),
        text=reply, turns=(), spans=(), finish="stop",
    )  # fmt: skip
