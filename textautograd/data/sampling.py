"""Orders that depend on nothing but a seed: the same in every process and Python version."""

import random
from collections.abc import Iterable, Sequence
from math import floor, isclose
from typing import TypeVar

from textautograd.checking import whole
from textautograd.data.dataset import Indexable, check_dataset, item
from textautograd.errors import UsageError

T = TypeVar("T")


def permutation(n: int, *key: object) -> list[int]:
    """0 … n-1 in the order that `key` fixes.

    Seeding by a str does not involve `hash`, and of all that `random` offers only `random()` is
    promised to stay the same between versions; hence no `shuffle`.
    """
    rng = random.Random(":".join(map(str, key)))
    return sorted(range(n), key=[rng.random() for _ in range(n)].__getitem__)


def random_split(
    dataset: Indexable[T], lengths: Sequence[int] | Sequence[float], seed: int = 0
) -> list[list[T]]:
    """Disjoint random parts of a dataset, as `torch.utils.data.random_split`.

    `lengths` are counts, or fractions when all of them are floats: each part is rounded down, and
    fractions that add up to 1 leave nothing out. Unlike PyTorch, counts may leave examples out.
    Raises `UsageError` where a length is negative or together they exceed the dataset.
    """
    check_dataset("random_split", dataset)
    whole("random_split: seed", seed, None)
    if isinstance(lengths, str) or not isinstance(lengths, Iterable):
        raise UsageError(
            f"random_split: lengths must be a list, such as [{lengths!r}], not {lengths!r}"
        )
    counts = _counts(list(lengths), len(dataset))
    order = iter(permutation(len(dataset), "random_split", seed))
    return [[item("random_split", dataset, next(order)) for _ in range(count)] for count in counts]


def _counts(lengths: Sequence[float], n: int) -> list[int]:
    if lengths and all(isinstance(length, float) for length in lengths):
        if not all(0 <= length <= 1 for length in lengths):
            raise UsageError(f"random_split: fractions must lie in [0, 1], got {lengths}")
        is_all = isclose(sum(lengths), 1)
        if sum(lengths) > 1 and not is_all:
            raise UsageError(f"random_split: fractions {lengths} add up to more than 1")
        counts = [floor(length * n) for length in lengths]
        if is_all:
            for index in range(n - sum(counts)):
                counts[index % len(counts)] += 1
        return counts
    counts = [whole("random_split: a length", length, 0) for length in lengths]
    if sum(counts) > n:
        raise UsageError(
            f"random_split: lengths {counts} add up to {sum(counts)}, "
            f"but the dataset holds {n} examples"
        )
    return counts
