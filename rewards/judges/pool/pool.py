"""A judge: replicas with a circuit breaker each, a request queue in front of them, an archive behind.

    ask ─► request queue (order, single flight, deadline) ─► least busy replica whose circuit is closed, or wait
             └► raw answers ─► archive ─► read; unreadable: asked once more ─► Verdict

A request that fails is a verdict with the state `failed` and the error's name in its note; no failure is ever a number.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from uuid import uuid4

from cluster.types import ABSTAINED, FAILED, Message, Provenance
from rewards.judges.canaries import Canary, fitting
from rewards.judges.errors import Declined, JudgeAbsent, JudgeError, JudgeTimeout, JudgeUnavailable, Unreadable
from rewards.judges.extraction import check_labels
from rewards.judges.metrics import JudgeMetrics
from rewards.judges.pool.archive import Archive, MemoryArchive, Record
from rewards.judges.pool.circuit_breaker import CircuitBreaker
from rewards.judges.pool.replicas import Replica, Replicas
from rewards.judges.pool.request_queue import Order, RequestQueue
from rewards.judges.protocol import first_call, verdict_call, verdict_from
from rewards.judges.templates import Template
from rewards.judges.types import Answer, Call, ChatRequest, Completion, Request, Transport, Verdict

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ATTEMPTS = 3
"""Failed calls of one completion, on different replicas where there are; calls that reached nobody are not counted."""
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.25, 1.0
Split = Callable[[str], Awaitable[Sequence[str] | None]]
"""Text → its tokens."""


class JudgePool:
    """Implements `Judge`. Belongs to one event loop."""

    def __init__(
        self,
        name: str,
        transports: Sequence[Transport],
        *,
        model: str = "",
        revision: str = "",
        live: bool = False,
        come_and_go: bool = False,
        split: Split | None = None,
        archive: Archive | None = None,
        max_in_flight: int = 64,
        max_queue: int = 4096,
        order: Order = "newest",
        deadline_s: float = 60.0,
        in_flight_ttl_s: float = 120.0,
        canaries: Sequence[Canary] = (),
        canary_every: int = 0,
        breaker: Callable[[], CircuitBreaker] = CircuitBreaker,
    ) -> None:
        """`deadline_s` is a request's whole time, waiting included. One canary goes out per `canary_every` requests.

        `live`: its weights change while it judges, and every answer names their version. `come_and_go`: replicas are
        added and removed by others, and having none is a matter of time. `split`: its tokenizer, where it is at hand;
        else a replica is asked.
        """
        self.name, self.model, self.revision, self.live = name, model, revision, live
        self._split, self._weights = split, ""
        self.archive: Archive = archive or MemoryArchive()
        self.metrics = JudgeMetrics(name)
        self.replicas = Replicas(transports, breaker, come_and_go=come_and_go)
        self._queue: RequestQueue[Any] = RequestQueue(
            max_in_flight=max_in_flight, max_queue=max_queue, order=order, ttl_s=in_flight_ttl_s
        )
        self._deadline_s, self._ttl_s = deadline_s, in_flight_ttl_s
        self._canaries, self._canary_every, self._num_asked = canaries, canary_every, 0
        self._background: set[asyncio.Task[None]] = set()
        self._needs_room = False
        """Whether verdicts had to be asked for again with room for a thought: then they get it at once."""
        self._accepted: set[str] = set()
        self._accepting = asyncio.Lock()

    @property
    def identity(self) -> str:
        """Return the identity of the scores: this judge with this model. When it changes, stored groups are judged
        again.

        Made of the recipe alone, so that all workers agree on it. The version of a live policy is no part of it: every
        step would have the whole store judged again.
        """
        return f"{self.name}:{self.model}@{self.revision}"

    def key(self, request: Request | ChatRequest, weights: str = "") -> str:
        """Under which an answer is archived and found again.

        A live policy's answer is good only for the weights that gave it: `weights`, or the newest that were seen.
        """
        return request.key(f"{self.identity}#{weights or self._weights}" if self.live else self.identity)

    def saw(self, weights: str) -> None:
        """A live policy has this version, `epoch.step`, somewhere; older ones than the newest are ignored."""
        newest = weights.rpartition("-")[2]  # an answer may span several
        if newest and (not self._weights or _order(newest) > _order(self._weights)):
            self._weights = newest

    def trouble(self) -> str:
        """Why nobody answers now, in words; nothing if somebody does."""
        found = self.replicas.trouble()
        return f"judge '{self.name}': {found}" if found else ""

    async def ask(self, request: Request) -> Verdict:
        """Raises ConfigError if the template's labels are not tokens of this judge."""
        await self.accept(request.template, logprobs=request.logprobs)
        self._num_asked += 1
        if self._canary_every and self._num_asked % self._canary_every == 0:
            self._send_canary(request)
        return await self._ask(request)

    async def accept(self, template: Template, *, logprobs: bool) -> None:
        """Check the template's labels against the judge's tokenizer, once. Raises ConfigError."""
        if not logprobs or not template.labels or template.hash in self._accepted:
            return
        if self._split is None and not self.replicas:
            return  # nobody to ask yet; whoever asks for a verdict comes here again
        async with self._accepting:
            if template.hash in self._accepted:
                return
            split = self._split or self.replicas[0].transport.tokens
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
        """Metrics by name; the longest wait is that since the last snapshot."""
        self.metrics.joined = self._queue.num_joined
        circuits = sum(r.breaker.is_open for r in self.replicas)
        return self.metrics.snapshot(
            queue_depth=self._queue.queue_depth, queue_age_s=self._queue.longest_wait_s(), open_circuits=circuits
        )

    async def complete(self, call: Call) -> Completion:
        """The bare answer to a chat of the caller's own, from whichever replica may be asked; archived as well.

        Raises JudgeError.
        """
        completion, replica = await self._complete(call, time.monotonic() + self._ttl_s)
        asked = (
            f"{self.identity}\n{[(m.role, m.content) for m in call.messages]}\n{call.temperature}\n{call.max_tokens}"
        )
        key = hashlib.sha256(asked.encode()).hexdigest()[:32]
        await self.archive.append(self._record(key, ("chat", "", "text"), 1, call.messages, [completion], replica))
        return completion

    async def answers(
        self, messages: Sequence[Message], n: int, *, max_tokens: int, temperature: float, cached: bool
    ) -> list[Answer]:
        """`n` samples of an answer to one conversation: queued, archived and counted as requests for a verdict are.

        `cached`: take a sample that the archive holds already. A request that fails is an `Answer` without a text.
        """
        samples = [ChatRequest(tuple(messages), max_tokens, temperature, sample=i) for i in range(n)]
        return await asyncio.gather(*(self._sample(sample, cached) for sample in samples))

    async def close(self) -> None:
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._queue.close()
        await self.replicas.close()

    async def _ask(self, request: Request) -> Verdict:
        return await self._counted(self._verdict(request))

    async def _counted(self, asking: Awaitable[T]) -> T:
        begun = time.monotonic()
        self.metrics.asked += 1
        self.metrics.in_flight += 1
        try:
            answer = await asking
        except BaseException:
            self.metrics.cancelled += 1
            raise
        finally:
            self.metrics.in_flight -= 1
        self.metrics.verdicts += 1
        self.metrics.latencies_s.append(time.monotonic() - begun)
        return answer

    async def _sample(self, request: ChatRequest, cached: bool) -> Answer:
        if cached and (records := await self.archive.get(self.key(request))):
            self.metrics.hits += 1
            return self._answer(request, records[-1].completions[-1])
        return await self._counted(self._answered(request))

    async def _answered(self, request: ChatRequest) -> Answer:
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._queue.submit(self.key(request), lambda: self._continue(request))
        except TimeoutError:
            error = self._overdue()
        except JudgeError as failure:
            error = failure
        self.metrics.failures[type(error).__name__] += 1
        note = f"{type(error).__name__}: judge '{self.name}': {error}"
        return Answer(None, provenance=Provenance(self.name, prompt_hash=request.prompt_hash, note=note))

    async def _continue(self, request: ChatRequest) -> Answer:
        """Raises JudgeError."""
        begun = time.monotonic()
        completion, replica = await self._complete(request.call, begun + self._ttl_s)
        key, how = self.key(request, completion.version), ("chat", request.prompt_hash, "text")
        await self.archive.append(self._record(key, how, 1, request.messages, [completion], replica))
        spent = completion.prompt_tokens + completion.completion_tokens
        return self._answer(request, completion, latency_s=time.monotonic() - begun, cost_tokens=spent)

    def _answer(self, request: ChatRequest, completion: Completion, **spent: Any) -> Answer:
        provenance = Provenance(self.name, completion.signature, request.prompt_hash, **spent)
        return Answer(completion.text, completion.finish, provenance)

    async def _verdict(self, request: Request) -> Verdict:
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._queue.submit(self.key(request), lambda: self._judge(request))
        except TimeoutError:
            return self._failed(request, self._overdue())
        except (JudgeError, Unreadable) as error:
            return self._failed(request, error)
        except Declined as error:
            self.metrics.abstained += 1
            return self._unknown(request, f"the judge declines: {error}", ABSTAINED)

    def _failed(self, request: Request, error: Exception) -> Verdict:
        self.metrics.failures[type(error).__name__] += 1
        return self._unknown(request, f"{type(error).__name__}: judge '{self.name}': {error}")

    def _overdue(self) -> JudgeError:
        late, trouble = f"no verdict within {self._deadline_s:g} s", self.replicas.trouble()
        return JudgeUnavailable(f"{late}: {trouble}") if trouble else JudgeTimeout(f"{late}.")

    def _unknown(self, request: Request, note: str, state: int = FAILED) -> Verdict:
        verdict = Verdict.unknown(request.num_values, note, state=state)
        return replace(verdict, judge=self.name, prompt_hash=request.template.hash)

    async def _judge(self, request: Request) -> Verdict:
        """Two attempts at most. Raises JudgeError, Unreadable, Declined."""
        begun, spent, cut = time.monotonic(), 0, False
        for attempt in (1, 2):
            completions, replica = await self._answers(request, attempt, begun + self._ttl_s)
            spent += sum(c.prompt_tokens + c.completion_tokens for c in completions)
            try:
                verdict = verdict_from(request, completions)
            except Unreadable as error:
                self.metrics.unreadable += 1
                if completions[-1].finish == "length":
                    cut = cut or attempt == 1
                else:  # a cut answer is the fault of its budget
                    replica.breaker.retract(str(error))
                if attempt == 2:
                    raise
            else:
                self._needs_room |= cut and request.mode != "text"
                latency_s = time.monotonic() - begun
                return replace(verdict, judge=self.name, attempt=attempt, latency_s=latency_s, cost_tokens=spent)
        raise AssertionError("the second attempt returns or raises")

    async def _answers(self, request: Request, attempt: int, until: float) -> tuple[list[Completion], Replica]:
        """The raw answers of one attempt, archived also when only the first of two came."""
        messages = request.messages
        completion, replica = await self._complete(first_call(request, messages, attempt, room=self._needs_room), until)
        completions = [completion]
        try:
            if request.mode == "reason" and completion.finish == "stop":
                second = verdict_call(request, messages, completion.text, attempt, room=self._needs_room)
                completion, replica = await self._complete(second, until)
                completions.append(completion)
        finally:
            template, key = request.template, self.key(request, completions[-1].version)
            how = (template.kind, template.hash, request.mode)
            await self.archive.append(self._record(key, how, attempt, messages, completions, replica))
        return completions, replica

    def _record(
        self,
        key: str,
        how: tuple[str, str, str],
        attempt: int,
        messages: tuple[Message, ...],
        completions: Sequence[Completion],
        replica: Replica,
    ) -> Record:
        """`how`: template, its hash, mode."""
        said, at_s = tuple(completions), time.time()
        return Record(uuid4().hex, key, self.identity, *how, attempt, messages, said, replica.transport.name, at_s)

    async def _complete(self, call: Call, until: float) -> tuple[Completion, Replica]:
        """One completion, from another replica or later if need be, but not after `until`. Raises JudgeError."""
        tried: list[Replica] = []
        failed, backoff_s = 0, FIRST_BACKOFF_S
        while True:
            replica = await self.replicas.take(tried, until)
            tried.append(replica)
            self.metrics.calls += 1
            try:
                completion = await self.replicas.call(replica, call)
            except JudgeError as error:
                failed += not isinstance(error, JudgeAbsent)
                if not error.retry or failed == MAX_ATTEMPTS:
                    raise
                if not self.replicas.untried(tried):
                    await asyncio.sleep(max(error.retry_after_s, backoff_s))
                    backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
            else:
                self.saw(completion.version if self.live else "")
                self.metrics.tokens += completion.prompt_tokens + completion.completion_tokens
                return completion, replica

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


def _order(version: str) -> tuple[int, ...]:
    """Versions of a policy are `epoch.step`."""
    return tuple(map(int, version.split(".")))
