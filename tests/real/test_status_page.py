"""The status page in a real Chromium, wide and narrow, light and dark, under load, and with a server down.

The pictures are kept in .venv/pictures, for people to look at.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from popproxy.errors import BackendError
from tests.admin.test_status import TOKEN, served
from tests.cli.helpers import write_pair
from tests.peers.browser import Page, chromium
from tests.peers.process import REPOSITORY
from tests.session.rig import Peer, Rig, until

pytestmark = pytest.mark.real

SIZES = [(1280, 900, "light"), (1280, 900, "dark"), (390, 844, "light"), (390, 844, "dark")]
HOSTILE = "<img/src=x/onerror=document.title='owned'>"
LIVE = "document.querySelector('#live').textContent == 'live'"

TOO_PALE = """
(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType == 3 && node.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) found.push(`${element.tagName} ${element.textContent}: ${contrast.toFixed(2)}`);
  }
  return found;
})()
"""
"""Texts whose contrast is below that of WCAG 2.1 AA."""
SPILT = """
[...document.querySelectorAll("body *")].filter((element) =>
  element.checkVisibility() && !element.closest(".unseen, thead, svg") &&
  element.getBoundingClientRect().right > innerWidth + 0.5).map((element) => element.outerHTML.slice(0, 80))
"""
"""Elements that reach beyond the page."""
UNNAMED = """
[...document.querySelectorAll("section, table, svg, input, button")].filter((element) =>
  !(element.getAttribute("aria-label") || element.getAttribute("aria-labelledby") || element.querySelector("caption") ||
    element.labels?.length || element.textContent.trim())).map((element) => element.outerHTML.slice(0, 80))
"""
"""What a screen reader could not name."""


async def test_the_page_is_live_readable_and_safe(tmp_path: Path) -> None:
    from popproxy.demo.certificates import issue, make_authority

    authority = make_authority(days=400)
    sections: dict[str, Any] = {
        "tls": {"certificates": [write_pair(tmp_path, issue(authority, ["localhost"], days=12), chain=(authority,))]},
        "more_listeners": [{"name": "pop3s", "listen": ["127.0.0.1:0"], "tls": "implicit"}],
        "more_pools": {
            "new": {"servers": ["127.0.0.1:9", "127.0.0.1:8"], "shared": True, "tls": "none", "allow_cleartext": True},
            "a-pool-with-a-long-name": {"servers": ["pop1.some-department.subsidiary.example.net:9995"]},
        },
        "routing": {"rules": [{"user": "dave", "pool": "new"}], "default": "main"},
    }
    async with served(tmp_path, **sections) as (rig, url), chromium() as page:
        names = ("alice", HOSTILE, "carol.with.quite.a.long.name@subsidiary.example.com")
        for name in names:
            await logged_in(rig, name)
        enough = asyncio.Event()
        loading = asyncio.ensure_future(load(rig, enough))
        try:
            await page.look(*SIZES[0])
            await page.open(f"{url}/status")
            await page.until("+document.querySelector('.card .value').textContent >= 3")
            await page.until("document.querySelectorAll('svg polyline').length == 4")
            await page.until("document.querySelector('#verdict').textContent == 'Working, with trouble'")
            await inspect(page, "load")

            rig.expected_errors.append("backend failed|no server")
            failing = await rig.greeted()
            await failing.send("USER dave\r\nPASS canary-pw-dave\r\n")
            assert (await failing.line()).startswith(b"+OK")
            assert b"[SYS/TEMP]" in await failing.line()
            pool = rig.parts.pools["new"]
            for backend in pool.backends:
                while backend.member.state.value == "up":
                    pool.failed(backend, BackendError("Connection refused", "connect", "refused"), 0.0)
            await page.until("document.querySelector('#servers').textContent.includes('down')")
            await page.until("document.querySelector('#verdict').textContent == 'Something is broken'")
            assert "no server of pool new is up" in await page.run("document.querySelector('#reasons').textContent")
            await inspect(page, "down")

            await page.run(unlock("not the token"))
            await page.until("document.querySelector('#said').textContent == 'That is not the token.'")
            assert await page.run("document.querySelector('#sessions').hidden")
            assert "alice" not in await page.run("document.documentElement.outerHTML")
            page.complaints.clear()  # Chromium complains of an answer 401
            await page.run(unlock(TOKEN))
            await page.until("!document.querySelector('#sessions').hidden")
            cells = await page.run(
                "[...document.querySelectorAll('#sessions td:first-child')].map((e) => e.textContent)"
            )
            assert set(names) <= set(cells)
            await inspect(page, "sessions")
            assert "owned" not in await page.run("document.title")
            assert not await page.run("document.querySelector('img') !== null")
            assert {one for one in page.requested if not one.startswith((url, "data:"))} == set()
        finally:
            enough.set()
            await loading


def unlock(token: str) -> str:
    return f"document.querySelector('#token').value = {token!r}; document.querySelector('#unlock').requestSubmit()"


async def inspect(page: Page, what: str) -> None:
    pictures = REPOSITORY / ".venv" / "pictures"
    pictures.mkdir(exist_ok=True)
    for width, height, scheme in SIZES:
        await page.look(width, height, scheme)
        assert await page.run("document.documentElement.scrollWidth <= innerWidth"), (width, await page.run(SPILT))
        assert await page.run(SPILT) == [], (what, width)
        assert await page.run(TOO_PALE) == [], (what, scheme)
        assert await page.run(UNNAMED) == [], what
        background = await page.run("getComputedStyle(document.body).backgroundColor")
        assert (int(background[4:].split(",")[0]) < 128) is (scheme == "dark")
        picture = await page.shoot(pictures / f"status-{what}-{width}-{scheme}.png")
        assert len(picture) > 20_000
    await page.until(LIVE)
    assert page.complaints == []


async def logged_in(rig: Rig, name: str) -> None:
    client = await rig.greeted()
    await client.send(f"USER {name}\r\nPASS canary-pw-x\r\n")
    await rig.backend.logged_in()
    await client.line()
    await until(lambda: len(rig.audit("login")) and rig.audit("login")[-1]["user.name"] == name, f"{name} logged in")


async def load(rig: Rig, enough: asyncio.Event) -> None:
    """One client after another fetches a message, reading as it comes: QUIT waits behind the body."""
    while not enough.is_set():
        client, backend = await rig.logged_in()
        await client.send("RETR 1\r\nQUIT\r\n")
        await asyncio.gather(client.rest(), served_message(backend))
        client.close()
        backend.close()
        rig.clients.remove(client)
        rig.backend.connections.remove(backend)
        await asyncio.sleep(0.05)


async def served_message(backend: Peer) -> None:
    """One message of up to a megabyte, then QUIT."""
    await backend.expect("RETR 1")
    await backend.send(b"+OK\r\n" + b"x" * random.randrange(1000, 1_000_000) + b"\r\n.\r\n")
    await backend.expect("QUIT")
    await backend.send("+OK\r\n")
