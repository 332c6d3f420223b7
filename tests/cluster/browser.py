"""A headless Chromium that a test looks through, clicks and types in, over the DevTools protocol."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine: install chromium")
WAIT_S = 15.0
WIDE, NARROW = 1400, 390
"""Windows of a desk and of a telephone, pixels."""
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


class Page:
    """One tab. Raises AssertionError where the page reports an error or does not come to show what it should."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._asked = socket, 0
        self.errors: list[str] = []
        """Exceptions of its scripts, and what its console calls an error."""

    async def open(self, address: str, *, width: int = WIDE, dark: bool = False) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self._call("Emulation.setDeviceMetricsOverride", **size)
        await self._call("Emulation.setEmulatedMedia", features=[scheme])
        await self._call("Page.navigate", url=address)

    async def sees(self, *texts: str) -> str:
        """Waits until all of these are in the page's HTML, and returns that."""
        deadline = time.monotonic() + WAIT_S
        while True:
            html = str(await self.run("document.documentElement?.outerHTML ?? ''"))
            if not (missing := [text for text in texts if text not in html]):
                assert not await self.run("!document.getElementById('problem').hidden"), html
                return html
            assert time.monotonic() < deadline, f"{missing} are not in {html}"
            await asyncio.sleep(0.05)

    async def click(self, selector: str) -> None:
        await self.run(f"document.querySelector({json.dumps(selector)}).click()")

    async def type(self, selector: str, text: str) -> None:
        await self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        await self._call("Input.insertText", text=text)

    async def address(self) -> str:
        return str(await self.run("location.search"))

    async def run(self, script: str) -> Any:
        """The value of an expression, evaluated there."""
        answer = await self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._asked += 1
        asked = self._asked
        await self._socket.send_json({"id": asked, "method": method, "params": parameters})
        while True:
            said = await self._socket.receive_json(timeout=WAIT_S)
            if said.get("id") == asked:
                assert "error" not in said, said
                return said["result"]
            if said.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(said["params"]))
            if said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.errors.append(str(said["params"]["entry"]))


@asynccontextmanager
async def browser(directory: Path) -> AsyncIterator[Page]:
    """A tab of a browser of its own, whose profile is in `directory`."""
    process, port = await asyncio.to_thread(_start, directory)
    try:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                tab = next(t for t in await answer.json(content_type=None) if t["type"] == "page")
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await page._call(f"{domain}.enable")
                yield page
    finally:
        process.terminate()
        process.wait(30)


def _start(directory: Path) -> tuple[subprocess.Popen, str]:
    """The browser, and the port at which it is told what to do."""
    command = [str(CHROMIUM), *QUIET, f"--user-data-dir={directory}", "--remote-debugging-port=0", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    written, deadline = directory / "DevToolsActivePort", time.monotonic() + 60
    while not (written.exists() and written.read_text().strip()):
        assert process.poll() is None, "Chromium ended"
        assert time.monotonic() < deadline, "Chromium does not come up"
        time.sleep(0.05)
    return process, written.read_text().splitlines()[0]
