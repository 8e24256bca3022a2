"""What a rewritten instruction must satisfy before it is tried."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from textautograd.prompts.form import is_no_change

Check = Callable[[str, str, Sequence[str], Sequence[str]], str | None]
"""(rewrite, instruction, rewrites tried in vain, data it was written from) → why not, or `None`."""

IN_VAIN = "it was tried and did not help"
SHINGLE = 8
_PLACEHOLDER = re.compile(r"\{[A-Za-z_]\w*\}")
_OURS = re.compile(
    r"\bfeedback\b|\b(?:example|tried)[ -]\d+|\b(?:attempt|past|value)-\d+"
    r"|\bbetter instruction\b|</?(?:prompt|instruction)\b",
    re.IGNORECASE,
)
# Thai, Lao, Burmese, Khmer, Chinese and Japanese are written without spaces: each sign is a word.
_SIGN = (
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
_WORD = re.compile(rf"{_SIGN}|(?:(?!{_SIGN})\w)+")
_IS_SIGN = re.compile(_SIGN)


def objection(new: str, old: str, tried: Iterable[str], data: Iterable[str]) -> str | None:
    """Why a rewrite cannot be used, or `None`: the check of `optim.SGD`.

    It must be more than "no change", differ from the old text and from those that were tried
    without success, keep the placeholders of the old one, not speak of what only the optimizer saw
    ("feedback", "example 1", tags of its prompt) unless the old text or the data do, and not copy
    the data it was written from: a whole text of three words or more, or eight words in a row; in
    scripts without spaces twice as many signs.
    """
    plain_old = _plain(old)
    if _plain(new) == plain_old:
        return "it is the same as the current instruction"
    if is_no_change(new):
        return "it is no instruction: say what should be done"
    if _plain(new) in {_plain(text) for text in tried}:
        return IN_VAIN
    lost = [name for name in dict.fromkeys(_PLACEHOLDER.findall(old)) if name not in new]
    if lost:
        return f"it must keep the placeholders {', '.join(lost)}"
    texts = list(data)
    known = "\n".join([old, *texts]).casefold()
    for found in dict.fromkeys(_OURS.findall(new)):
        if found.casefold() not in known:
            return f"it speaks of {found!r}, which who follows it will not see"
    copied = _copied(_words(new), plain_old.split(), texts)
    return None if copied is None else f"it copies the example text {copied!r}: say it in general"


def is_long(text: str) -> bool:
    """Whether a text is long enough to hold words in a row that must not be copied."""
    words = _words(text)
    return len(words) >= SHINGLE * _scale(words)


def _copied(new: Sequence[str], old: Sequence[str], data: Iterable[str]) -> str | None:
    """What the new words have in common with a text of the data, and the old words have not."""
    own: dict[int, set[str]] = {}
    for text in data:
        words = _words(text)
        scale = _scale(words)
        size = min(len(words), SHINGLE * scale)
        if size < 3 * scale:
            continue
        if size not in own:
            own[size] = set(_in_a_row(new, size)).difference(_in_a_row(old, size))
        for copied in _in_a_row(words, size) if own[size] else ():
            if copied in own[size]:
                return copied if scale == 1 else copied.replace(" ", "")
    return None


def _in_a_row(words: Sequence[str], size: int) -> Iterator[str]:
    return (" ".join(words[i : i + size]) for i in range(len(words) - size + 1))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _scale(words: Sequence[str]) -> int:
    """2 for a text that consists of signs for the most part: two make up about a word."""
    return 2 if 2 * sum(_IS_SIGN.match(word) is not None for word in words) > len(words) else 1


def _plain(text: str) -> str:
    return " ".join(_words(text)) or text
