"""Servers that answer a judge's question in every wrong way: real sockets, seeded."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gzip
import json
import random
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.rewards.judges.servers import chat

End = Literal["close", "reset", "hang", "again"]
"""What comes behind the bytes. `again`: they are sent over and over."""


@dataclass(frozen=True)
class Answer:
    """Bytes on the wire, how they come, and whether a client may take them for a chat completion."""

    name: str
    data: bytes
    end: End = "close"
    size: int = 1 << 20
    """Bytes that are sent at a time,"""
    pause_s: float = 0.0
    """and the time between."""
    good: bool = False


class Server:
    """Gives one answer to every request; `requests` are the heads that it read, `idle` is set without a connection."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.requests, self.idle = answer, list[bytes](), asyncio.Event()
        self._open = 0
        self.idle.set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        self.idle.clear()
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head)
            length = next((int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")), 0)
            await reader.readexactly(length)
            await self._send(writer)
            if self.answer.end in ("hang", "again"):
                await reader.read()  # until the client leaves
        except (OSError, EOFError):
            pass
        finally:
            self._open -= 1
            if not self._open:
                self.idle.set()
            if self.answer.end == "reset":
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        answer = self.answer
        while True:
            for start in range(0, len(answer.data), answer.size):
                writer.write(answer.data[start : start + answer.size])
                await writer.drain()
                if answer.pause_s:
                    await asyncio.sleep(answer.pause_s)
            if answer.end != "again":
                return
            await asyncio.sleep(0)


@asynccontextmanager
async def hostile(answer: Answer) -> AsyncIterator[tuple[str, Server]]:
    """The base URL of such a server."""
    server = Server(answer)
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", server
    finally:
        listening.close()


GOOD = json.dumps(chat("4", top={"4": -0.1, "5": -2.5})).encode()
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 5, 5.5, 2**63, -(2**63), 2**200, float("nan"), float("inf"), -float("inf"), 1e308, "",
    "4 or 5", "\0",
    "\ud83d", [], [[]], [None], {}, {"0": 1}, {"text": "5"}, [{"type": "text", "text": "5"}], [5], "x" * 5000,
    [[[[[]]]]],
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def altered(path: tuple[Any, ...], value: Any, *, drop: bool = False) -> bytes:
    """A good answer with another value at one place, or without it."""
    whole: Any = copy.deepcopy(json.loads(GOOD))
    if not path:
        return json.dumps(value).encode()
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(whole).encode()


def framed(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = (f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def unframed(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", *headers)).encode() + b"\r\n\r\n" + body


def chunked(body: bytes, size: int = 100) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"


def packed(body: bytes, encoding: str, claimed: str | None = None) -> bytes:
    data = {"gzip": gzip.compress, "deflate": zlib.compress, "raw": lambda b: zlib.compress(b)[2:-4]}[encoding](body)
    return framed(data, "200 OK", f"Content-Encoding: {claimed or encoding}")


def bomb(size: int) -> bytes:
    """Some hundred kilobytes of gzip that unpack to `size` bytes of blanks and no JSON."""
    packer, blanks = zlib.compressobj(1, zlib.DEFLATED, 31), b" " * (1 << 20)
    return b"".join(packer.compress(blanks) for _ in range(size >> 20)) + packer.flush()


WHERES = ("", "/", "http://", "http://[", "\x01", "javascript:x", "http://127.0.0.1:99999/", "x" * 5000)
WAITS = (
    "-1",
    "1e9",
    "nan",
    "inf",
    "-inf",
    "",
    "x",
    "0x1",
    "Wed, 21 Oct 2065 07:28:00 GMT",
    "Wed, 99 Foo 2065",
    "1" * 5000,
    "0",
)
STATUSES = (
    "201 Created", "202 Accepted", "203 X", "204 No Content", "205 X", "206 Partial", "226 X", "299 X", "300 X",
    "301 Moved", "302 Found",
    "303 X", "304 Not Modified", "307 X", "308 X", "400 X", "401 X", "402 X", "403 X", "404 X", "405 X", "406 X",
    "407 X", "408 X", "409 X",
    "410 X", "411 X", "413 X", "414 X", "415 X", "418 X", "421 X", "422 X", "425 X", "426 X", "428 X", "431 X",
    "444 X", "451 X", "499 X",
    "500 X", "501 X", "502 X", "503 X", "504 X", "505 X", "507 X", "508 X", "511 X", "520 X", "529 X", "599 X",
    "600 X", "999 X",
)  # fmt: skip
HEADS = (
    b"", b"\r\n\r\n", b"x" * 2000, b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK\r\n", b"HTTP/0.9 200 OK\r\n\r\n",
    b"HTTP/2 200 OK\r\n\r\n{}",
    b"HTTP/1.1 20 OK\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 -200 OK\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b"HTTP/1.1 200 OK\r\n: empty\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA\0B: c\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: \xff\xfe\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00" * 300,
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"2;" + b"x" * 200_000,
)  # fmt: skip


@dataclass
class Bodies:
    """JSON and what is none."""

    found: list[tuple[str, bytes]] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        yield "nothing", b""
        yield "a byte order mark", b"\xef\xbb\xbf{}"
        yield "invalid UTF-8", b'{"choices": [{"message": {"content": "\xff\xfe"}}]}'
        yield "UTF-16", GOOD.decode().encode("utf-16")[: len(GOOD)]
        yield "NUL bytes", b"\0" * 1000
        yield "half of it", GOOD[: len(GOOD) // 2]
        yield "two of them", GOOD + GOOD
        yield "lines of events", b"data: " + GOOD + b"\n\ndata: [DONE]\n\n"
        yield "HTML", b"<html><body>502 Bad Gateway</body></html>"
        yield "a trailing comma", GOOD[:-1] + b",}"
        yield "single quotes", GOOD.replace(b'"', b"'")
        yield "lists within lists", b"[" * 400_000 + b"]" * 400_000
        yield "objects within objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000
        yield "a million lists", b'{"choices": [' + b"[]," * 900_000 + b"1]}"
        yield (
            "a number of a million digits",
            b'{"choices": [{"message": {"content": "4"}}], "usage": {"prompt_tokens": ' + b"9" * 10**6 + b"}}",
        )
        yield "a key of a million letters", b'{"' + b"a" * 10**6 + b'": 1}'
        for depth in (900, 950, 970, 980, 990, 1000):
            yield f"{depth} lists in the reason to end", GOOD.replace(b'"stop"', b"[" * depth + b"]" * depth)
            yield (
                f"{depth} objects in place of the choices",
                b'{"choices": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}",
            )


def answers(seed: int, tries: int, hang_s: float) -> Iterator[Answer]:
    """All kinds once, and `tries` random ones of those that are many; a client leaves after `hang_s`."""
    rng = random.Random(seed)
    yield Answer("a good one", framed(GOOD), good=True)
    yield Answer("a good one until the end of the connection", unframed(GOOD), good=True)
    yield Answer("a good one in chunks", unframed(chunked(GOOD), "Transfer-Encoding: chunked"), good=True)
    yield Answer("a good one byte by byte", framed(GOOD), size=37, pause_s=0.001, good=True)
    yield Answer("a good one behind 100 Continue", b"HTTP/1.1 100 Continue\r\n\r\n" + framed(GOOD), good=True)
    yield Answer("a good one and more", framed(GOOD) + framed(GOOD.replace(b'"4"', b'"5"')), good=True)
    yield Answer("a good one, packed", packed(GOOD, "gzip"), good=True)
    yield Answer("silence", b"", "hang")
    yield Answer("a head and silence", b"HTTP/1.1 200 OK\r\n", "hang")
    yield Answer("half a body and silence", framed(GOOD)[:-20], "hang")
    yield Answer("a slow head", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000, "hang", 1, hang_s / 20)
    yield Answer("a slow body", framed(GOOD), "hang", 1, hang_s / 20)
    yield Answer("endless headers", b"A: b\r\n" * 10_000, "again")
    yield Answer("endless 100 Continue", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, "again")
    yield Answer("an endless line", b"x" * 100_000, "again")
    yield Answer("an endless body", b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (1 << 20), "again")
    yield Answer("a bomb", framed(bomb(48 << 20), "200 OK", "Content-Encoding: gzip"))
    yield Answer("a bomb in a bomb", framed(gzip.compress(bomb(16 << 20)), "200 OK", "Content-Encoding: gzip, gzip"))
    for claimed in (
        "gzip, gzip",
        "br",
        "zstd",
        "deflate, br",
        "compress",
        "identity, gzip",
        "GZIP ",
        "x" * 5000,
        "gzip\x01",
    ):
        yield Answer(f"packed as {claimed[:20]!r}", packed(GOOD, "gzip", claimed), good=claimed == "GZIP ")
    yield Answer("packed as nothing of the kind", packed(GOOD, "raw", "gzip"))
    yield Answer("packed, cut", packed(GOOD, "gzip")[:-100])
    for status in STATUSES:
        headers = ("Location: http://127.0.0.1:1/elsewhere",) if status.startswith("3") else ()
        yield Answer(status, framed(b"" if status[:3] in ("204", "304") else GOOD, status, *headers))
    for where in WHERES:
        yield Answer(f"a redirect to {where[:20]!r}", framed(b"", "302 Found", f"Location: {where}"))
    for wait in WAITS:
        for status in ("429 X", "503 X"):
            yield Answer(f"{status} for {wait[:30]!r}", framed(b"{}", status, f"Retry-After: {wait}"))
    for head in HEADS:
        yield Answer(f"the head {head[:60]!r}", head)
    for name, body in Bodies():
        yield Answer(f"the body: {name}", framed(body))
    good = framed(GOOD)
    every = list(places(json.loads(GOOD)))
    for _ in range(tries):
        path, value, drop = rng.choice(every), rng.choice(ODD), rng.random() < 0.1
        yield Answer(f"{value!r:.40} at {path}, dropped: {drop}", framed(altered(path, value, drop=drop)))
        cut = rng.randrange(len(good))
        yield Answer(f"{cut} bytes of {len(good)}", good[:cut], rng.choice(("close", "reset")))
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        yield Answer(f"with other bytes: {bytes(data)[:80]!r}", bytes(data))
