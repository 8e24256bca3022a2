"""What is left of runs that were killed; `killed_runs.py` does it as often as one likes."""

from killed_runs import PHASES, killed


def test_a_run_that_is_killed_anywhere_ends_as_if_it_had_not_been() -> None:
    assert set(killed(20)) == set(PHASES)
