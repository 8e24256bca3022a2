"""Batches of a dataset, as `torch.utils.data.DataLoader` without the workers."""

from collections.abc import Iterator
from typing import Generic, TypeVar

from textautograd.checking import whole
from textautograd.data.dataset import Indexable, check_dataset, item
from textautograd.data.sampling import permutation

T = TypeVar("T")


class DataLoader(Generic[T]):
    """Iterates over a dataset in batches, each a list of examples.

    Each `iter()` is an epoch: it holds every example exactly once, with `shuffle` in an order that
    (`seed`, epoch) alone fixes. `epoch` is the number of the next one; assign it to resume. The
    last batch may be smaller, unless `drop_last`. An empty dataset yields no batches. Raises
    `UsageError` for a batch size below 1 or a dataset without length and items.
    """

    def __init__(
        self,
        dataset: Indexable[T],
        batch_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        check_dataset("DataLoader", dataset)
        self.dataset = dataset
        self.batch_size = whole("DataLoader: batch_size", batch_size)
        self.shuffle = shuffle
        self.seed = whole("DataLoader: seed", seed, None)
        self.drop_last = drop_last
        self.epoch = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[T]]:
        # Not a generator: the epoch counts from iter(), not from the first batch that is read.
        n = len(self.dataset)
        order = permutation(n, "DataLoader", self.seed, self.epoch) if self.shuffle else range(n)
        self.epoch += 1
        starts = range(0, len(self) * self.batch_size, self.batch_size)
        return (
            [item("DataLoader", self.dataset, i) for i in order[start : start + self.batch_size]]
            for start in starts
        )

    def __repr__(self) -> str:
        return (
            f"DataLoader({len(self.dataset)} examples, batch_size={self.batch_size}, "
            f"shuffle={self.shuffle}, seed={self.seed}, epoch={self.epoch})"
        )
