from __future__ import annotations

import pytest

from tests.pop3 import profiles

profiles.load()
pytest.register_assert_rewrite("tests.pop3.helpers")
