from __future__ import annotations

from tests.pop3 import profiles

profiles.load()
