"""A real Chromium without a window, driven over its DevTools protocol: what a page says, and how it looks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.peers.process import public_directory, require

_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--no-proxy-server", "--remote-debugging-port=0", "about:blank"),
)


class Page:
    """One tab. `complaints` is what went wrong in it: errors of scripts and of the content security policy."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self._socket = socket
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.ensure_future(self._read())

    async def call(self, method: str, **parameters: Any) -> Any:
        """A method of the DevTools protocol."""
        self._number += 1
        answer = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        async with asyncio.timeout(60):
            return await answer

    async def look(self, width: int, height: int, scheme: str = "light") -> None:
        """Be so large, in points, and prefer that colour scheme."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def open(self, url: str) -> None:
        """Go there."""
        await self.run("window.before = true")
        await self.call("Page.navigate", url=url)
        await self.until("!window.before && document.readyState == 'complete'")

    async def run(self, script: str) -> Any:
        """The value of an expression."""
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, script: str, seconds: float = 60) -> None:
        """Wait until an expression is true; while it fails, it is not."""
        script = f"(() => {{ try {{ return {script} }} catch {{ return false }} }})()"
        try:
            async with asyncio.timeout(seconds):
                while not await self.run(script):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"never: {script}; complaints: {self.complaints}") from None

    async def shoot(self, path: Path) -> bytes:
        """A picture of the whole page, in PNG."""
        taken = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        octets = base64.b64decode(taken["data"])
        path.write_bytes(octets)
        return octets

    async def _read(self) -> None:
        async for message in self._socket:
            told = message.json()
            waiting = self._waiting.pop(told.get("id", 0), None)
            if waiting is not None and not waiting.done():
                if "error" in told:
                    waiting.set_exception(AssertionError(str(told["error"])))
                else:
                    waiting.set_result(told["result"])
            elif told.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(str(told["params"]["exceptionDetails"]))
            elif told.get("method") == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                self.complaints.append(told["params"]["entry"]["text"])
            elif told.get("method") == "Network.requestWillBeSent":
                self.requested.append(told["params"]["request"]["url"])

    async def close(self) -> None:
        """No longer."""
        await self._socket.close()
        await self._reading


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Page]:
    """A browser with one page, for the length of a with statement."""
    with public_directory("chromium") as directory:
        process = await asyncio.create_subprocess_exec(
            require("chromium"), *_OPTIONS, f"--user-data-dir={directory}/profile",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, cwd=directory,
            env={"PATH": "/usr/bin:/bin", "HOME": str(directory)},
        )  # fmt: skip
        try:
            assert process.stderr is not None
            said = b""
            async with asyncio.timeout(60):
                while not (found := re.search(rb"DevTools listening on ws://([^/]+)/", said)):
                    line = await process.stderr.readline()
                    assert line, said.decode()
                    said += line
            drain = asyncio.ensure_future(process.stderr.read())
            host = found.group(1).decode()
            async with aiohttp.ClientSession() as client:
                async with client.get(f"http://{host}/json") as answer:
                    pages = [one for one in await answer.json() if one["type"] == "page"]
                async with client.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    page = Page(socket)
                    for domain in ("Page", "Runtime", "Log", "Network"):
                        await page.call(f"{domain}.enable")
                    yield page
                    await page.close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10):
                    await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await drain
