"""How large DSPy's searches may be, in runs of the whole program.

Without a number of tokens: as many runs as `steps` gated steps take, each a batch and the
validation set, and the validation set before them. With one: what four fifths of the tokens pay
for, as a run cost in the evaluation before training; the rest is for the calls that propose.
"""

from __future__ import annotations

import math

PROPOSING = 0.2  # of the tokens
MOST_BREADTH, MOST_TRIALS = 10, 30
MINIBATCH = 35  # MIPROv2's, which it takes where the validation set has more than 50


def runs(steps: int, batch: int, val: int, tokens: int | None, each: float) -> int:
    """How many runs there may be; `each` is the tokens of one."""
    if tokens is None:
        return steps * (batch + val) + val
    return max(1, int((1 - PROPOSING) * tokens / max(each, 1)))


def copro(allowed: int, each: float, train: int, steps: int) -> dict[str, int]:
    """COPRO's breadth and depth, and how much of the training set it scores candidates on.

    It scores `breadth` candidates for each node on the whole set, the node as it is among them, and
    in each further depth all the earlier ones again. Its cache serves those for the most part, so
    they are counted once, and of a run what does not follow from the node that changes: `each` is
    what all nodes' candidates cost, one of each, in whole runs. As deep as `steps` at most, and
    twice at least, as it proposes from scores from the second depth on; where not even that fits,
    on fewer examples. Whatever it really costs, it ends with its tokens.
    """
    for depth in range(max(steps, 2), 1, -1):
        breadth = min(MOST_BREADTH, int((1 + (allowed / train - 1) / each) / depth))
        if breadth >= 2:
            return {"breadth": breadth, "depth": depth, "trainset": train}
    return {"breadth": 2, "depth": 2, "trainset": max(1, min(train, int(allowed / (1 + 3 * each))))}


def miprov2(allowed: int, nodes: int, train: int, val: int) -> dict[str, int | bool]:
    """MIPROv2's trials and candidates: as many candidates as its own rule has for the trials.

    The default program is scored as well, and the training set is run to find demonstrations, which
    are shown where instructions are proposed.
    """
    minibatch = val > 50
    a_trial = MINIBATCH + val / 5 if minibatch else val
    trials = max(1, min(MOST_TRIALS, int((allowed - train - val) / a_trial)))
    candidates = 2
    while max(2 * nodes * math.log2(candidates + 1), 1.5 * (candidates + 1)) <= trials:
        candidates += 1
    return {"num_trials": trials, "num_candidates": candidates, "minibatch": minibatch}


def gepa(allowed: int, val: int) -> dict[str, int]:
    """GEPA's metric calls: a run each. It needs the validation set and some minibatches."""
    return {"max_metric_calls": max(allowed, val + 6)}
