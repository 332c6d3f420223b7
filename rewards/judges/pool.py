"""A judge: replicas with a circuit breaker each, a broker in front of them, an archive behind.

    ask ─► broker (order, single flight, deadline) ─► replica with the fewest calls whose circuit is closed
             └► raw answers ─► archive ─► read; unreadable: asked once more ─► Verdict

A request that fails is a verdict with the state `failed` and the error's name in its note; no failure is ever a number.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from uuid import uuid4

from cluster.types import ABSTAINED, FAILED, Message
from rewards.judges.archive import Archive, MemoryArchive, Record
from rewards.judges.asking import first_call, verdict_call, verdict_from
from rewards.judges.breaker import Breaker
from rewards.judges.broker import Broker, Order
from rewards.judges.canaries import Canary, fitting
from rewards.judges.errors import Declined, JudgeError, JudgeTimeout, JudgeUnavailable, Unreadable
from rewards.judges.extraction import check_labels
from rewards.judges.metrics import JudgeMetrics
from rewards.judges.templates import Template
from rewards.judges.types import Call, Completion, Request, Transport, Verdict

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Calls of one completion, on different replicas where there are."""
FIRST_BACKOFF_S = 0.25


@dataclass(eq=False)
class Replica:
    transport: Transport
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0


class JudgePool:
    """Implements `Judge`. Belongs to one event loop."""

    def __init__(
        self,
        name: str,
        transports: Sequence[Transport],
        *,
        revision: str = "",
        archive: Archive | None = None,
        max_in_flight: int = 64,
        max_queue: int = 4096,
        order: Order = "newest",
        deadline_s: float = 60.0,
        in_flight_ttl_s: float = 120.0,
        canaries: Sequence[Canary] = (),
        canary_every: int = 0,
        breaker: Callable[[], Breaker] = Breaker,
    ) -> None:
        """`deadline_s` is a request's whole time, waiting included. One canary goes out per `canary_every` requests."""
        self.name, self.revision = name, revision
        self.archive: Archive = archive or MemoryArchive()
        self.metrics = JudgeMetrics(name)
        self._new_breaker = breaker
        self.replicas = [Replica(t, breaker()) for t in transports]
        self._broker: Broker[Verdict] = Broker(
            max_in_flight=max_in_flight, max_queue=max_queue, order=order, ttl_s=in_flight_ttl_s
        )
        self._deadline_s = deadline_s
        self._canaries, self._canary_every, self._num_asked = canaries, canary_every, 0
        self._background: set[asyncio.Task[None]] = set()
        self._accepted: set[str] = set()
        self._accepting = asyncio.Lock()

    @property
    def identity(self) -> str:
        """What a cached answer is good for: this judge with these weights."""
        return f"{self.name}@{self.revision}"

    def add(self, transport: Transport) -> None:
        self.replicas.append(Replica(transport, self._new_breaker()))

    def remove(self, transport: Transport) -> None:
        """Ask it no more; what is in flight there ends by itself."""
        self.replicas = [r for r in self.replicas if r.transport is not transport]

    async def ask(self, request: Request) -> Verdict:
        """Raises ConfigError if the template's labels are not tokens of this judge."""
        await self.accept(request.template, logprobs=request.logprobs)
        self._num_asked += 1
        if self._canary_every and self._num_asked % self._canary_every == 0:
            self._send_canary(request)
        return await self._ask(request)

    async def accept(self, template: Template, *, logprobs: bool) -> None:
        """Check the template's labels against the judge's tokenizer, once. Raises ConfigError."""
        if not logprobs or not template.labels or template.hash in self._accepted or not self.replicas:
            return
        async with self._accepting:
            if template.hash in self._accepted:
                return
            split = self.replicas[0].transport.tokens
            try:
                async with asyncio.timeout(self._deadline_s):
                    checked = await check_labels(template.labels, split, f"judges.{self.name}")
            except (JudgeError, TimeoutError) as error:
                checked = False
                log.warning("the labels of %s were not checked: %s", template.kind, error)
            if not checked:
                log.info("judge '%s' does not tell its tokens; labels without enough mass are parsed", self.name)
            self._accepted.add(template.hash)

    def snapshot(self) -> dict[str, float]:
        """Metrics by name."""
        self.metrics.joined = self._broker.num_joined
        circuits = sum(r.breaker.is_open for r in self.replicas)
        return self.metrics.snapshot(queue_depth=self._broker.queue_depth, open_circuits=circuits)

    async def complete(self, call: Call) -> Completion:
        """The bare answer to a chat of the caller's own, from whichever replica may be asked. Raises JudgeError."""
        return (await self._complete(call))[0]

    async def close(self) -> None:
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._broker.close()
        for replica in self.replicas:
            await replica.transport.close()

    async def _ask(self, request: Request) -> Verdict:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._deadline_s):
                verdict = await self._broker.submit(request.key(self.identity), lambda: self._judge(request))
        except TimeoutError:
            verdict = self._failed(request, JudgeTimeout(f"no verdict within {self._deadline_s:g} s."))
        except (JudgeError, Unreadable) as error:
            verdict = self._failed(request, error)
        except Declined as error:
            self.metrics.abstained += 1
            verdict = self._unknown(request, f"the judge declines: {error}", ABSTAINED)
        self.metrics.verdicts += 1
        self.metrics.latencies_s.append(time.monotonic() - begun)
        return verdict

    def _failed(self, request: Request, error: Exception) -> Verdict:
        self.metrics.failures[type(error).__name__] += 1
        return self._unknown(request, f"{type(error).__name__}: judge '{self.name}': {error}")

    def _unknown(self, request: Request, note: str, state: int = FAILED) -> Verdict:
        verdict = Verdict.unknown(request.num_values, note, state=state)
        return replace(verdict, judge=self.name, prompt_hash=request.template.hash)

    async def _judge(self, request: Request) -> Verdict:
        """Two attempts at most. Raises JudgeError, Unreadable, Declined."""
        begun, spent = time.monotonic(), 0
        for attempt in (1, 2):
            completions, replica = await self._answers(request, attempt)
            spent += sum(c.prompt_tokens + c.completion_tokens for c in completions)
            try:
                verdict = verdict_from(request, completions)
            except Unreadable as error:
                self.metrics.unreadable += 1
                replica.breaker.retract(str(error))
                if attempt == 2:
                    raise
            else:
                latency_s = time.monotonic() - begun
                return replace(verdict, judge=self.name, attempt=attempt, latency_s=latency_s, cost_tokens=spent)
        raise AssertionError("the second attempt returns or raises")

    async def _answers(self, request: Request, attempt: int) -> tuple[list[Completion], Replica]:
        """The raw answers of one attempt, archived also when only the first of two came."""
        messages = request.template.messages(request.item, request.mode)
        completion, replica = await self._complete(first_call(request, messages, attempt))
        completions = [completion]
        try:
            if request.mode == "reason" and completion.finish == "stop":
                completion, replica = await self._complete(verdict_call(request, messages, completion.text, attempt))
                completions.append(completion)
        finally:
            await self.archive.append(self._record(request, attempt, messages, completions, replica))
        return completions, replica

    def _record(
        self,
        request: Request,
        attempt: int,
        messages: tuple[Message, ...],
        completions: Sequence[Completion],
        replica: Replica,
    ) -> Record:
        template, key, name = request.template, request.key(self.identity), replica.transport.name
        return Record(
            uuid4().hex,
            key,
            self.identity,
            template.kind,
            template.hash,
            request.mode,
            attempt,
            messages,
            tuple(completions),
            name,
            time.time(),
        )

    async def _complete(self, call: Call) -> tuple[Completion, Replica]:
        """One completion, from another replica or later if need be. Raises JudgeError."""
        tried: list[Replica] = []
        for attempt in range(1, MAX_ATTEMPTS + 1):
            replica = self._pick(tried)
            tried.append(replica)
            try:
                return await self._call(replica, call), replica
            except JudgeError as error:
                if not error.retry or attempt == MAX_ATTEMPTS:
                    raise
                if not any(r.breaker.ready() for r in self.replicas if r not in tried):
                    await asyncio.sleep(max(error.retry_after_s, FIRST_BACKOFF_S * 2 ** (attempt - 1)))
        raise AssertionError("the last attempt returns or raises")

    async def _call(self, replica: Replica, call: Call) -> Completion:
        replica.breaker.begin()
        replica.in_flight += 1
        self.metrics.calls += 1
        try:
            completion = await replica.transport.complete(call)
        except JudgeError as error:
            replica.breaker.failure(str(error)) if error.blames_replica else replica.breaker.undecided()
            raise
        except asyncio.CancelledError:
            replica.breaker.failure("a call had to be given up")
            raise
        finally:
            replica.in_flight -= 1
        replica.breaker.success()
        self.metrics.tokens += completion.prompt_tokens + completion.completion_tokens
        return completion

    def _pick(self, tried: Sequence[Replica]) -> Replica:
        """The least busy of those that may be asked, one not tried yet if there is any. Raises JudgeUnavailable."""
        ready = [r for r in self.replicas if r.breaker.ready()]
        if not ready:
            reasons = "; ".join(f"{r.transport.name}: {r.breaker.reason}" for r in self.replicas) or "there is none"
            wait_s = min((r.breaker.retry_in_s for r in self.replicas), default=0.0)
            raise JudgeUnavailable(f"no replica may be asked for another {wait_s:.1f} s. {reasons}")
        return min(ready, key=lambda r: (r in tried, r.in_flight))

    def _send_canary(self, request: Request) -> None:
        """Ask one question with a known answer, in the manner of `request`, without anybody waiting for it."""
        canaries = fitting(self._canaries, request.template)
        if not canaries:
            return
        canary = canaries[(self._num_asked // self._canary_every) % len(canaries)]
        # A sample of its own: a cached answer of last week would show no drift.
        asked = replace(request, item=canary.item, sample=-self._num_asked)

        async def ask() -> None:
            self.metrics.canary(canary.right(request.template, await self._ask(asked)))

        task = asyncio.create_task(ask())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
