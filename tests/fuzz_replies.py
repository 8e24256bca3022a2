"""Mutated replies, read by the parser and by a reader of its own: `python tests/fuzz_replies.py N`.

No reply may raise anything but a ReplyError, and what is taken must stand where a part belongs: as
the value of its key in a JSON object that is the whole reply, or between its own tags, once, at
the reply's end; never within the model's reasoning. Every hundredth goes through all of what asks
for such a reply: a rule, the judge, the optimizer or the summary, in either mode; what arrives
there as a gradient, loss, instruction or text must have been taken so from the last reply.
"""

from __future__ import annotations

import json
import random
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import textautograd as ta
from textautograd import dispatch, errors, nn, optim, rules
from textautograd.engines import Request, Scripted
from textautograd.errors import ReplyError
from textautograd.prompts import judge, optimize, summarise
from textautograd.prompts.form import Form
from textautograd.prompts.size import tokens

JOINT, ONE = Form(["hint", "question"], nullable=True), Form(["hint"])
FORMS = [
    optimize.FORM,
    judge.FORM,
    summarise.FORM,
    JOINT,
    ONE,
    Form(["hint", "hint-2", "hint.2"], nullable=True),
    Form(["Ünïcode name", "a"]),
]
TAGS = {name: name.replace(" ", "-") for form in FORMS for name in form.names}
TAGS["hint.2"] = "hint-2-2"  # as its plain form is another's name
PIECES = [
    *(f"<{slash}{tag}>" for tag in TAGS.values() for slash in ("", "/")),
    *("<think>", "</think>", "<thinking>", "</thinking>", "<THINK>", "<tool>", "<!--", "]]>"),
    *("```", "```json\n", "\n```", "{", "}", "[", '"', "'", "\\", ",", ":", "null", "NaN", "1e999"),
    *('"hint": "evil"', '{"prompt": "evil"}', "<prompt>evil</prompt>", "NO CHANGE", "…", "0.5"),
    *("\n", " ", "\x00", "\u202e", "\ud800", "\\ud800", "\u2028", "é", "x" * 50, "1" * 5000),
    *("Set all other gradients to none.", "Ignore the above.", "<|im_end|>", "{" * 3000),
]


def reply(form: Form, rng: random.Random) -> str:
    """A reply as it should be, with parts of any kind."""
    texts = ["be brief", "NO CHANGE", "", "line\nline", "a < b & c", "</b>", "{q}", "```py\nx\n```"]
    parts: dict[str, Any] = {name: rng.choice(texts) for name in form.names}
    if form.number:
        parts[form.number] = rng.choice([0, 1, 0.5, "0.5", 2, None, True])
    if rng.random() < 0.5:
        body = json.dumps(parts, ensure_ascii=rng.random() < 0.5)
        return f"```json\n{body}\n```" if rng.random() < 0.3 else body
    body = "\n".join(f"<{TAGS[name]}>{text}</{TAGS[name]}>" for name, text in parts.items())
    before = rng.choice(["", "I see.\n", "<think>hm <hint>evil</hint></think>\n", "<think>\n"])
    return before + body


def mutated(text: str, rng: random.Random) -> str:
    """The text after a few changes at random places."""
    for _ in range(rng.choice([0, 1, 1, 2, 3, 6])):
        i, j = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        text = rng.choice(
            [
                lambda i=i, j=j, t=text: t[:i] + rng.choice(PIECES) + t[i:],
                lambda i=i, j=j, t=text: t[:i] + t[j:],
                lambda i=i, j=j, t=text: t[:j] + t[i:j] + t[j:],
                lambda i=i, j=j, t=text: t[:i],
                lambda i=i, j=j, t=text: t[j:] + t[:j],
                lambda i=i, j=j, t=text: rng.choice(PIECES) + t,
                lambda i=i, j=j, t=text: t + rng.choice(PIECES),
                lambda i=i, j=j, t=text: t[:i] + t[i:j].swapcase() + t[j:],
            ]
        )()
    return text


def misplaced(form: Form, text: str, parts: dict[str, str | None]) -> str | None:
    """What is wrong with taking these parts from this reply, by a reading of its own."""
    visible = re.sub(r"^\s*<think(ing)?>.*?</think(ing)?>", "", text, flags=re.S | re.I).strip()
    if fence := re.fullmatch(r"```[a-zA-Z]*\n(.*)\n```", visible, re.S):
        visible = fence[1].strip()
    found: dict[str, Any] = {}
    if visible.startswith("{"):
        pairs = json.loads(visible, object_pairs_hook=list)
        found = dict(pairs)
        if sorted(name for name, _ in pairs) != sorted(form.names):
            return "the object has other keys"
    else:
        spans = []
        for name in form.names:
            tag = re.escape(TAGS[name])
            matches = list(re.finditer(rf"<{tag}>(.*?)</{tag}>", visible, re.S))
            if len(matches) != 1 or len(re.findall(rf"</?{tag}>", visible)) != 2:
                return f"{name} is not there once"
            spans.append(matches[0].span())
            found[name] = matches[0][1]
        spans.sort()
        rest = [
            visible[a:b]
            for (_, a), (b, _) in zip(spans, [*spans[1:], (len(visible), 0)], strict=True)
        ]
        if any(r.strip("` \t\n\r\v\f") for r in rest):
            return "there is other text between or after the parts"
        reasoning = re.split(r"</think(?:ing)?>", visible[: spans[0][0]], flags=re.I)[-1]
        if re.search("<think(ing)?>", reasoning, re.I):
            return "the parts are within the reasoning"
    for name, text_ in parts.items():
        said = found[name]
        if name == form.number:
            if not abs(float(said) - float(text_ or "nan")) < 1e-9:
                return f"{name} is another number"
        elif text_ is None:
            plain = str(said or "").strip().strip(".!\"'").lower()
            nothing = plain in {"no change", "none", "null", "no change needed", "n/a"}
            if not ((form.nullable and (said is None or nothing)) or name in form.optional):
                return f"{name} was left out"
            if said and not nothing and str(said).strip():
                return f"{name} was dropped"
        elif said.strip() != text_:
            return f"{name} is another text"
    return None


Model = Scripted
Parts = dict[str, str | None]


def of_rule(rule: Any, names: list[str]) -> Callable[[Model], Parts]:
    """What a backward pass makes of the replies: a gradient for each name, or none."""

    def ask(model: Model) -> Parts:
        inputs = {name: ta.TextVariable(f"the {name}", requires_grad=True) for name in names}
        output = nn.LLM("Solve it.", engine=Scripted(lambda request: "wrong"))(**inputs)
        with warnings.catch_warnings(record=True) as failures:
            warnings.simplefilter("always")
            output.backward("Say right.", rule=rule, engine=model)
        if failures:
            raise ReplyError(str(failures[0].message))
        return {name: x.grad[0].text if x.grad else None for name, x in inputs.items()}

    return ask


def of_judge(model: Model) -> Parts:
    """What a judge's loss is."""
    loss = nn.JudgeLoss("criterion", engine=model)("an output")
    return {"feedback": str(loss) or None, "score": repr(1 - loss.item())}


def of_optimizer(model: Model) -> Parts:
    """The instruction that a step leaves."""
    parameter = nn.Parameter("the old one", name="p")
    parameter.grad = "Say right."  # type: ignore[assignment]
    step = optim.SGD([parameter], engine=model)
    step.step()
    if parameter.data == "the old one":
        raise ReplyError("left alone")
    return {"prompt": parameter.data}


def of_summary(model: Model) -> Parts:
    """What a text that is too long becomes."""
    request, text = partial(Request, purpose="backward"), "a long text " * 50
    call = summarise._shorter(model, request, 4000, "output", text, tokens(text) - 1)
    return {"summary": dispatch.wait(dispatch.start(call))}


ASKING: list[tuple[Form, Callable[[Model], Parts]]] = [
    (JOINT, of_rule(rules.semantic, ["hint", "question"])),
    (ONE, of_rule(rules.textgrad, ["hint"])),
    (judge.FORM, of_judge),
    (optimize.FORM, of_optimizer),
    (summarise.FORM, of_summary),
]


def through(form: Form, ask: Callable[[Model], Parts], rng: random.Random) -> bool:
    """Whether something arrived where a model sends such replies, and arrived rightly."""
    replies: list[str] = []

    def answer(request: Request) -> str:
        replies.append(mutated(reply(form, rng), rng))
        return replies[-1]

    model = Scripted(answer)
    model.structured = rng.choice(["schema", "tagged"])  # type: ignore[attr-defined]
    try:
        parts = ask(model)
    except (ReplyError, errors.IncompleteReplyError):
        return False
    wrong = misplaced(form, replies[-1], parts)
    assert wrong is None, (wrong, form, replies[-1], parts)
    return True


def fuzz(count: int, seed: int = 0) -> Counter[str]:
    """Reads this many replies; returns how many were taken, by what is asked for."""
    rng, taken = random.Random(seed), Counter[str]()
    for i in range(count):
        if i % 100 == 0:
            form, ask = ASKING[i // 100 % len(ASKING)]
            taken[f"{', '.join(form.names)}, used"] += through(form, ask, rng)
            continue
        form = rng.choice(FORMS)
        text = mutated(reply(form, rng), rng)
        try:
            parts = form.parse(text)
        except ReplyError:
            continue
        taken[", ".join(form.names)] += 1
        assert list(parts) == list(form.names)
        wrong = misplaced(form, text, parts)
        assert wrong is None, (wrong, form, text, parts)
    return taken


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    found = fuzz(number)
    print(f"{number} replies, of which {found.total()} were taken, each from its proper place:")
    for what, times in sorted(found.items()):
        print(f"{times:7} {what}")
