"""The list of faults is current: each has its place, and tests beside it."""

from pathlib import Path

import pytest
from faults import FAULTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_can_be_planted_in_one_place(fault):
    assert (ROOT / fault.path).read_text().count(fault.was) == 1
    assert fault.was != fault.now
    assert all((ROOT / tests).exists() for tests in fault.tests.split())


def test_names_are_unique():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
