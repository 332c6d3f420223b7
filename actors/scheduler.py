"""What runs inside a CPU engine's core process: a scheduler that reports a generation's tokens together.

vLLM's own scheduler reports every token by itself, with three arrays around its log-prob, which are encoded, sent
and decoded one by one. No rollout reads a token before its generation ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists

MOST_HELD = 64
"""Tokens of one generation that are reported together, so that counters of tokens go on during long ones."""


@dataclass(slots=True)
class HeldTokens:
    """Tokens of one generation that the scheduler has not reported."""

    last: EngineCoreOutput
    """The latest report of them; its other fields stand for all."""
    prefill_stats: Any
    """How the prompt was read: only the first report of a generation has them."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)

    def add(self, output: EngineCoreOutput) -> None:
        self.last = output
        self.events += output.events or ()
        if output.new_token_ids:
            assert output.new_logprobs is not None
            self.tokens += output.new_token_ids
            self.logprobs += output.new_logprobs.logprobs[:, 0].tolist()  # the sampled token comes first

    def merged(self) -> EngineCoreOutput:
        """Return the latest report with all tokens that are held."""
        output, tokens = self.last, np.array(self.tokens, np.int32)
        output.new_token_ids = self.tokens
        output.new_logprobs = LogprobsLists(
            tokens[:, None], np.array(self.logprobs, np.float32)[:, None], np.zeros_like(tokens)
        )
        output.events, output.prefill_stats = self.events or None, self.prefill_stats
        return output


class FinalOutputScheduler(Scheduler):
    """Holds the tokens of a generation until it ends, until `MOST_HELD` of them, or until generations pause.

    Generations pause before weights change, so tokens that are reported together have one version. An aborted
    generation loses the tokens that are held: an engine that aborts for new weights has vLLM's own scheduler.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[str, HeldTokens] = {}

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        by_client = super().update_from_output(*args, **kwargs)
        for outputs in by_client.values():
            outputs.outputs = [whole for output in outputs.outputs if (whole := self._hold(output)) is not None]
        if self.pause_state != PauseState.UNPAUSED:
            for request_id in list(self._held):
                client = self.requests[request_id].client_index
                by_client.setdefault(client, EngineCoreOutputs()).outputs.append(self._release(request_id))
        return {
            client: outputs
            for client, outputs in by_client.items()
            if outputs.outputs or outputs.finished_requests or outputs.scheduler_stats
        }

    def has_requests(self) -> bool:
        """Whether the engine must take a step: a pause is complete only when no token is held."""
        return super().has_requests() or (self.pause_state != PauseState.UNPAUSED and bool(self._held))

    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        finished = super().finish_requests(*args, **kwargs)
        for request in finished:
            self._held.pop(request.request_id, None)
        return finished

    def _hold(self, output: EngineCoreOutput) -> EngineCoreOutput | None:
        """Return what is reported now, None where the tokens are held."""
        held = self._held.get(output.request_id)
        if held is None:
            if output.finished or not self._holdable(output):
                return output
            held = self._held[output.request_id] = HeldTokens(output, output.prefill_stats)
        held.add(output)
        return self._release(output.request_id) if output.finished or len(held.tokens) >= MOST_HELD else None

    def _holdable(self, output: EngineCoreOutput) -> bool:
        """Whether the generation is one that only its end is read of, with log-probs of the sampled tokens alone."""
        params = self.requests[output.request_id].sampling_params
        return (
            params is not None
            and params.output_kind == RequestOutputKind.FINAL_ONLY
            and params.logprobs == 0
            and params.prompt_logprobs is None
            and output.new_logprobs is not None
        )

    def _release(self, request_id: str) -> EngineCoreOutput:
        return self._held.pop(request_id).merged()
