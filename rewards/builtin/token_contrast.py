"""What a model finds better and worse in a response, token by token (T-REG, arXiv:2412.02685)."""

from __future__ import annotations

from dataclasses import replace
from string import Formatter
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float
from pydantic import AfterValidator

from cluster.thoughts import whole_text
from cluster.types import Group, Message, Rollout, Scores
from rewards.base import Reward, Services
from rewards.judges.templates.base import marked
from rewards.scorers.passages import chosen, passage_of, prompt_length, scores_of

FIELDS = ("question", "response")
ASKED = (
    "Here are a request and a response to it. Rewrite the response so that it is {how}.\n\n{{question}}\n\n"
    "{{response}}\n\nWrite the new response and nothing else."
)


def _revises(text: str) -> str:
    """Raises ValueError."""
    unknown = {name for _, name, *_ in Formatter().parse(text) if name is not None} - {*FIELDS}
    if unknown:
        raise ValueError(f"unknown field {{{min(unknown)}}}; there are {{question}} and {{response}}.")
    return text


Prompt = Annotated[str, AfterValidator(_revises)]


class TokenContrast(Reward):
    """r̂_t = σ(log p(y_t | better, y_<t) − log p(y_t | worse, y_<t)) − ½, in [−½, ½]: [T], 0 where nobody chose a token.

    Both prompts hold the question and the response and ask for a rewritten one, the one for a better, the other for a
    worse; then the response itself is read behind them, the same token ids. With weight 0 and the selector
    `token_weights` it says where in a response its credit belongs, for the term `t_reg`. The value is the sum over
    tokens: where it does not order responses as the reward does (`reward/NAME_agreement` below ½) the model is too weak
    to be asked. The paper's evaluator is the frozen first policy; the wording of its prompts is not known to us, the
    four qualities are the paper's.
    """

    scope: ClassVar = "rollout"
    services: ClassVar = ("scorer",)
    scorer: str = "scorer"
    """Its section's name, `[scorers.NAME]`, of model `initial`."""
    better: Prompt = ASKED.format(how="more helpful, more correct, more coherent and more concise")
    """Prompt that asks for a better response, with the fields `{question}` and `{response}`."""
    worse: Prompt = ASKED.format(how="less helpful, less correct, less coherent and less concise")
    """Prompt that asks for a worse response, with the same fields."""

    async def prepare(self, services: Services) -> None:
        services.scorer(self.scorer)

    async def score(self, group: Group, services: Services) -> Scores:
        passages = [
            passage_of(rollout, self._asking(group, rollout, text))
            for text in (self.better, self.worse)
            for rollout in group.rollouts
        ]
        readings = await services.scorer(self.scorer).read(passages)
        tokens = tuple(
            _credit(rollout, better.logprobs, worse.logprobs)
            for rollout, better, worse in zip(
                group.rollouts, readings[: len(group)], readings[len(group) :], strict=True
            )
        )
        values = [t.sum() if r.loss_mask.any() else np.nan for r, t in zip(group.rollouts, tokens, strict=True)]
        return replace(scores_of(np.array(values), self.scorer, readings), tokens=tokens)

    @staticmethod
    def _asking(group: Group, rollout: Rollout, text: str) -> tuple[Message, ...]:
        """The task's messages with the last one asking for the rewritten response."""
        *before, last = group.task.variants[rollout.variant]
        question, response = marked("REQUEST", last.content), marked("RESPONSE", whole_text(rollout))
        return (*before, Message("user", text.format(question=question, response=response)))


def _credit(
    rollout: Rollout, better: Float[np.ndarray, " N"], worse: Float[np.ndarray, " N"]
) -> Float[np.ndarray, " T"]:
    tokens = np.zeros(len(rollout.tokens))
    tokens[prompt_length(rollout) :] = np.where(chosen(rollout), token_contrast(better, worse), 0.0)
    return tokens


def token_contrast(better: Float[np.ndarray, " T"], worse: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """σ(better − worse) − ½ of log-probs in nats."""
    return np.tanh((better - worse) / 2) / 2
