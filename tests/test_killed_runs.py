"""What is left of runs that were killed; `killed_runs.py` does it as often as one likes."""

import pytest
from killed_runs import OPTIMIZERS, PHASES, killed


def test_a_run_that_is_killed_anywhere_ends_as_if_it_had_not_been() -> None:
    assert set(killed(20)) == set(PHASES)


@pytest.mark.parametrize("kind", sorted(set(OPTIMIZERS) - {"SGD"}))
def test_so_does_one_of_a_rival(kind: str) -> None:
    phases = OPTIMIZERS[kind]
    assert set(killed(len(phases), kind=kind)) == set(phases)
