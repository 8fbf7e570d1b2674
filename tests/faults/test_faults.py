"""The quick form of `make faults`: each case in one of the four variants. Not how quickly it was over: that is for a
machine that is quiet."""

from __future__ import annotations

import pytest

from tests.faults.cases import registry
from tests.faults.site import VARIANTS, Variant, play_all


@pytest.mark.real
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
async def test_a_quarter_of_all_faults(variant: Variant) -> None:
    number = VARIANTS.index(variant)
    cases = [case for place, case in enumerate(registry()) if place % len(VARIANTS) == number]
    verdicts = await play_all(variant, cases, at_once=len(cases))
    wrong = {verdict.case.name: verdict.wrong for verdict in verdicts if verdict.wrong}
    assert not wrong, wrong


def test_there_are_so_many_cases() -> None:
    assert len(registry()) >= 150
