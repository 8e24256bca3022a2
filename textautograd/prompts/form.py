"""Replies with named parts: how they are asked for, as JSON or between tags, and parsed strictly.

A reply is taken only if it is whole: every part once, none besides, all of them text. Anything else
is asked for once more, with the error, and is an error after that; nothing is ever half-parsed.
"""

import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textautograd.checking import is_seen
from textautograd.engines.ask import ask
from textautograd.engines.base import Engine, Message, Request
from textautograd.errors import IncompleteReplyError, ReplyError, SchemaRejected
from textautograd.prompts.quote import as_tags
from textautograd.prompts.size import beginning, check_size, limit_of, size, tokens


@dataclass(frozen=True, slots=True)
class Form:
    """The parts of a reply, by name: a JSON object and nothing else, or tags at the reply's end.

    `nullable` parts may be "no change", which parses to `None`; `optional` ones may be empty, which
    parses to `None` too; `number` names the one part that is a number from 0 to 1.
    """

    names: Sequence[str]
    nullable: bool = False
    number: str | None = None
    optional: Sequence[str] = ()

    def schema(self) -> dict[str, Any]:
        """A JSON schema: an object with one property per name.

        "No change" is text: where schema or `how` offer it as well as the prompt, small models
        take it always.
        """
        text = {"type": "string"}
        score = {"type": "number", "minimum": 0, "maximum": 1}
        return {
            "type": "object",
            "properties": {n: score if n == self.number else text for n in self.names},
            "required": list(self.names),
            "additionalProperties": False,
        }

    def how(self, structured: str) -> str:
        """The sentence that asks for this form."""
        if structured == "schema":
            keys = self._keys()
            number = (
                f" ({_QUOTED.encode(self.number)} is a number from 0 to 1)" if self.number else ""
            )
            return f"Reply with one JSON object. Its keys: {keys}. Each value is text{number}."
        shown = "\n".join(f"<{t}>{_TEXT}</{t}>" for t in self._tags().values())
        null = " For no change write NO CHANGE between them." if self.nullable else ""
        return f"End your reply with exactly these tags and your text between them.{null}\n{shown}"

    def _keys(self) -> str:
        return ", ".join([_QUOTED.encode(name) for name in self.names])

    def _tags(self) -> dict[str, str]:
        """A tag for each name, none of them one that models reason in."""
        reserved = ("think", "thinking")
        return dict(
            zip(self.names, as_tags((*reserved, *self.names))[len(reserved) :], strict=True)
        )

    def parse(self, reply: str) -> dict[str, str | None]:
        """The parts of a reply, from JSON or from tags.

        Raises:
            ReplyError: says what is wrong with it.
        """
        bare = reply.strip()
        if not bare.startswith("{"):
            bare = _bare(reply)
        parts = self._from_json(bare) if bare.startswith("{") else self._from_tags(bare)
        return {name: self._part(name, parts[name]) for name in self.names}

    def _from_json(self, text: str) -> dict[str, Any]:
        try:
            parts, end = _DECODER.raw_decode(text)
            if end != len(text):
                raise ValueError(f"more follows it at character {end}")
        except (ValueError, RecursionError) as error:
            raise ReplyError(f"it is not valid JSON: {error}") from None
        if not isinstance(parts, dict) or parts.keys() != set(self.names):
            raise ReplyError(f"the keys must be exactly {list(self.names)}")
        return parts

    def _from_tags(self, text: str) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        named = self._tags()
        if not any(f"<{t}>" in text for t in named.values()):
            raise ReplyError(
                f"it is neither a JSON object with the keys {self._keys()} "
                f"nor text between the tags {', '.join(f'<{t}>' for t in named.values())}"
            )
        for name, t in named.items():
            opened, closed = text.count(f"<{t}>"), text.count(f"</{t}>")
            _, _, rest = text.partition(f"<{t}>")
            part, end, _ = rest.partition(f"</{t}>")
            if not (opened == closed == 1 and end):
                raise ReplyError(
                    f"it must have exactly one <{t}>…</{t}>, "
                    f"not {opened} opened and {closed} closed"
                )
            if any(f"<{other}>" in part for other in named.values()):
                raise ReplyError(f"another part begins before </{t}>")
            parts[name] = part
        before, begins, tail = text.partition(
            min((f"<{t}>" for t in named.values()), key=text.find)
        )
        tail = begins + tail
        for name, t in named.items():
            tail = tail.replace(f"<{t}>{parts[name]}</{t}>", "", 1)
        if tail.strip("`" + string.whitespace):
            raise ReplyError("there is other text between or after the tags")
        if _THINKING_BEGINS.search(_THINKING_ENDS.split(before)[-1]):
            raise ReplyError("the tags are within its reasoning")
        return parts

    def _part(self, name: str, value: Any) -> str | None:
        if name == self.number:
            return _number(name, value)
        optional = name in self.optional
        if value is None and (self.nullable or optional):
            return None
        if not isinstance(value, str):
            raise ReplyError(f"{name!r} must be text")
        text = value.strip()
        if self.nullable and is_no_change(text):
            return None
        if not (is_seen(text) or optional) or text == _TEXT:
            raise ReplyError(f"{name!r} is empty")
        return text if is_seen(text) else None


def is_no_change(text: str) -> bool:
    """Whether a text is one by which models say that there is nothing to change."""
    return _NO_CHANGE.fullmatch(text.strip(".!\"'*_` ").lower()) is not None


def _bare(reply: str) -> str:
    """A reply without the reasoning before it and the fence around it."""
    body = _THINKING.sub("", reply, count=1).strip()
    if _THINKING_BEGINS.match(body):
        raise ReplyError("it ends within its reasoning")
    fenced = _FENCE.fullmatch(body)
    return fenced[1].strip() if fenced else body


async def fill_in(
    engine: Engine,
    form: Form,
    messages: Callable[[str], list[Message]],
    request: Callable[..., Request],
    check: Callable[[Mapping[str, str | None]], str | None] = lambda parts: None,
    again: Callable[..., Request] | None = None,
) -> dict[str, str | None]:
    """Asks for a form and parses it; asks once more where the reply cannot be used.

    `messages(how)` makes the prompt around the sentence that asks for the form; `check` may object
    to a well-formed reply by returning why. `request(messages, schema=…)` makes the request, with
    its purpose and sampling; `again` does where it is asked once more, if that should differ.

    Raises:
        ReplyError: after the second reply; EngineError from the calls themselves.
        ContextOverflowError: before a call whose prompt is above the engine's `max_input_tokens`.
    """
    structured = getattr(engine, "structured", "schema")
    limit = limit_of(engine)
    objection, rejected, replies = "", "", 0
    while replies < 2:
        prompt = messages(form.how(structured))
        schema = form.schema() if structured == "schema" else None
        room = None if limit is None else limit - size(prompt, schema)
        prompt = prompt + once_more(rejected, objection, room)
        asking = (again if again and objection else request)(prompt, schema=schema)
        if limit is not None:
            check_size(size(prompt, schema), limit, f"the {asking.purpose} prompt")
        try:
            reply = await ask(engine, asking)
            replies += 1
            rejected = reply.text
            parts = form.parse(reply.text)
            objection = check(parts) or ""
            if not objection:
                return parts
        except SchemaRejected:
            if structured == "tagged":
                raise
            structured = "tagged"
        except IncompleteReplyError as error:
            replies += 1
            rejected, objection = error.text, str(error)
        except ReplyError as error:
            objection = str(error)
    raise ReplyError(
        f"the model's {asking.purpose} reply cannot be used, also when asked again: {objection}. "
        f"It began: {rejected[:200]!r}"
    )


def once_more(reply: str, objection: str, room: int | None) -> list[Message]:
    """What is added to a prompt whose reply could not be used, in so many tokens."""
    if not objection:
        return []
    shown = reply[:4000]
    if room is not None:
        objection = beginning(objection, room // 2)
        shown = beginning(shown, room - tokens(objection) - _FRAME)
    return [
        {"role": "assistant", "content": shown.strip() or "(nothing)"},
        {"role": "user", "content": f"This reply cannot be used: {objection}. Reply again."},
    ]


def _number(name: str, value: Any) -> str:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ReplyError(f"{name!r} must be a number from 0 to 1") from None
    if isinstance(value, bool) or not 0 <= number <= 1:
        raise ReplyError(f"{name!r} must be a number from 0 to 1, not {value!r}")
    return repr(number)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parts = dict(pairs)
    if len(parts) != len(pairs):
        raise ValueError("a key occurs twice")
    return parts


_QUOTED = json.JSONEncoder(ensure_ascii=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates)
_TEXT = "…"  # what stands for a text where tags are asked for; a model may send it back
_THINKING = re.compile(r"\A\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_THINKING_BEGINS = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_THINKING_ENDS = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_FENCE = re.compile(r"\A```[a-zA-Z]*\n(.*)\n```\Z", re.DOTALL)
_FRAME = 40  # tokens of asking again, without what was wrong and the reply
_NO_CHANGE = re.compile(
    r"no changes?(?: (?:is |are )?(?:needed|required|necessary))?|none|null|n/a"
)
