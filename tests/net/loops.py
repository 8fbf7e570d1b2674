"""The event loops that popproxy runs on."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

POLICIES = [
    pytest.param(asyncio.DefaultEventLoopPolicy(), id="asyncio", marks=pytest.mark.long),
    pytest.param(uvloop.EventLoopPolicy(), id="uvloop"),
]
