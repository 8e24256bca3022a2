"""What a dataset is: anything with a length and an item for each index."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

from textautograd.errors import UsageError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Indexable(Protocol[T_co]):
    """What a dataset must offer: a length, and an item for each index from 0."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> T_co: ...


def check_dataset(where: str, dataset: object) -> None:
    """Raises `UsageError`, on behalf of `where`, for what has no length or no items."""
    if (
        isinstance(dataset, str | bytes | Mapping)
        or not hasattr(dataset, "__len__")
        or not hasattr(dataset, "__getitem__")
    ):
        raise UsageError(
            f"{where}: the dataset must be a sequence of examples, not {type(dataset).__name__}"
        )


def item(where: str, dataset: Indexable[T], index: int) -> T:
    """A dataset's item.

    Raises:
        UsageError: it has none there, as a table whose items are its columns.
    """
    try:
        return dataset[index]
    except (LookupError, TypeError) as error:
        raise UsageError(
            f"{where}: a dataset has an item for each index from 0 to its length, and "
            f"{type(dataset).__name__} raises {type(error).__name__}: {error} at {index}; of a "
            "table pass the list of its rows"
        ) from error
