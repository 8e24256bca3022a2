"""Which node is to blame? Credit assignment by planted defects.

    python -m benchmarks.blame --model M [--api-base URL] --out FILE.jsonl [--rule R ...]
    python -m benchmarks.blame --out FILE.jsonl --report       the tables of what is there

A working agent of several nodes gets one corrupted instruction; its output is compared by exact
match; the gradients in words of one backward pass tell which nodes should have said something else.

**Forward is scripted, backward is real.** The nodes are `nn.LLM`s, but an engine that knows their
few instructions executes them by rule, the corrupted one as faithfully as the others. Every
backward call is made by the model, with the prompts of the library as they are. So it is known
without a judge that one node is wrong at its source and that each other node did right with
what it was given; and no input could have made the corrupted node's output right.

Instructions are corrupted in three ways: the output's *format*, a wrong *subtask*, a misleading
*hint*. The defect is planted in each node of a graph equally often, the last one included, and any
first part of the cases is balanced over shapes, kinds and nodes, so a run may be cut at any time.

How blame is read from the gradients, defined before any case of this seed was measured:

- A node is *asked* to change if its output got a gradient that is not `None`, that does not say in
  words that nothing needs to change, and that is not the very value the node has (`asks`; the rule
  `textgrad` cannot return `None`). The last node is always asked: the loss does it. That a gradient
  may be the value itself was added after three cases of seed 0: a model of 0.5 billion parameters
  often replies with the value it wants.
- **blame**, the main measure, falls where the chain of requests that starts at the output ends: on
  the asked nodes of whose predecessors none is asked. k of them share it, 1/k each: the expected
  accuracy of a random pick. In a node after the defect a change is rightly asked for, as its value
  is wrong too; the chain goes on through it. Asking every node, asking none, always blaming the
  last node, and picking at random all score 1/(number of nodes) over a shape's nodes.
- *largest*: as blame, but of several the one with the longest gradient in words.
- *exact*: the asked nodes are precisely those whose values differ from those of the sound agent.

A case in which a backward reply could not be used, also when asked again, scores 0, and is counted.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import textautograd as ta
from benchmarks.paper import lines
from benchmarks.paper.numbers import at_least
from textautograd import nn, rules
from textautograd.checking import misfit
from textautograd.engines import Engine, Request, Scripted
from textautograd.errors import (
    ContentFilterError,
    ContextOverflowError,
    EngineError,
    IncompleteReplyError,
    ReplyError,
    UsageError,
)

CASES = 105
SEED = 1  # seed 0 was looked at: see above
MAX_TOKENS = 200
IN_FLIGHT = 8
HOLDS = {"case": int, "rule": str, "model": str}  # of a line; then its whole shape
SHAPE = HOLDS | {"gradients": {str: str | None}, "failed": int, "calls": int, "tokens": (int, int)}
SHAPE |= {"seconds": int | float}
RULES: dict[str, Any] = {
    "semantic": rules.semantic,
    "textgrad": rules.textgrad,
    "blind": rules.blind(rules.semantic),
}
KINDS = ("format", "subtask", "hint")
MEASURES = ("blame", "largest", "exact")

WORDS = {
    "fruits": "apple cherry fig grape lemon mango peach plum",
    "tools": "axe chisel drill hammer pliers saw shovel wrench",
    "animals": "bear cow duck fox goat horse lion wolf",
    "drinks": "beer cider cocoa coffee juice milk tea wine",
}
CATEGORY = {word: name for name, words in WORDS.items() for word in words.split()}

Names = list[str]
STEPS: dict[str, Callable[[Names], Names]] = {
    "Sort all words from A to Z.": lambda w: sorted(w, key=str.lower),
    "Sort all words from Z to A.": lambda w: sorted(w, key=str.lower, reverse=True),
    "Write all words in capitals.": lambda w: [x.upper() for x in w],
    "Write the first letter of each word.": lambda w: [x[0] for x in w],
    "Write the last letter of each word.": lambda w: [x[-1] for x in w],
    "Write all words, one input after the other.": lambda w: w,
    "Write how many words there are.": lambda w: [str(len(w))],
}
A_TO_Z, Z_TO_A, CAPITALS, FIRST, LAST, ALL, COUNT = STEPS
OTHER = {  # a wrong step, which gives the right output for no input
    A_TO_Z: [Z_TO_A, COUNT],
    CAPITALS: [FIRST, COUNT],
    FIRST: [LAST, COUNT],
    ALL: [LAST, COUNT],
}
COMMAS = "Separate words by commas."
FORMATS: dict[str, Callable[[Names], str]] = {
    COMMAS: ", ".join,
    "Answer in an English sentence.": lambda w: f"The words are {' and '.join(w)}.",
    "Put each word in brackets.": lambda w: ", ".join(f"[{x}]" for x in w),
}

Step = tuple[str, tuple[str, ...]]
Graph = dict[str, Step]
"""node → its step and its predecessors; in order, the last is the output. A node without
predecessors lists the words of the category that it is named after."""


def _chain(a: str, b: str, c: str, d: str) -> Graph:
    return {a: ("", ()), "in_order": (A_TO_Z, (a,)), "result": (CAPITALS, ("in_order",))}


def _two(a: str, b: str, c: str, d: str) -> Graph:
    return {a: ("", ()), b: ("", ()), "result": (A_TO_Z, (a, b))}


def _three(a: str, b: str, c: str, d: str) -> Graph:
    return {a: ("", ()), b: ("", ()), c: ("", ()), "result": (CAPITALS, (a, b, c))}


def _diamond(a: str, b: str, c: str, d: str) -> Graph:
    return {
        a: ("", ()),
        "capitals": (CAPITALS, (a,)),
        "initials": (FIRST, (a,)),
        "result": (ALL, ("capitals", "initials")),
    }


def _tree(a: str, b: str, c: str, d: str) -> Graph:
    left, right = f"{a}_and_{b}", f"{c}_and_{d}"
    sources: Graph = {name: ("", ()) for name in (a, b, c, d)}
    return sources | {
        left: (A_TO_Z, (a, b)),
        right: (A_TO_Z, (c, d)),
        "result": (CAPITALS, (left, right)),
    }


SHAPES = {
    "chain of 3": _chain,
    "2 → 1": _two,
    "3 → 1": _three,
    "diamond": _diamond,
    "tree of 7": _tree,
}


@dataclass(frozen=True)
class Case:
    """A graph with a defect: the truth about it is `node`, and what it spoils, `wrong`."""

    number: int
    shape: str
    kind: str
    node: str
    question: str
    graph: Graph
    instructions: Mapping[str, str]
    expected: str
    wrong: frozenset[str]


def execute(instruction: str, question: str, inputs: Sequence[str]) -> str:
    """A node's output: its instruction, carried out to the letter. A word is what stands between
    commas.

    Raises:
        UsageError: the instruction is none of those that are known.
    """
    given = [w.strip() for text in inputs or [question] for w in text.split(",")]
    words = None
    if listed := re.match(r"List all (\w+) in the question\.", instruction):
        words = [w for w in given if CATEGORY.get(w) == listed[1]]
    for step, run in STEPS.items():
        if instruction.startswith(step):
            words = run(given)
    form = [write for text, write in FORMATS.items() if text in instruction]
    if words is None or len(form) != 1:
        raise UsageError(f"nothing executes the instruction {instruction!r}")
    if out := re.search(r"Hint: (\w+) does not belong\.", instruction):
        words = [w for w in words if w.lower() != out[1].lower()]
    if more := re.search(r"Hint: (\w+) belongs too\.", instruction):
        words = [*words, more[1]]
    return form[0](words)


def values(graph: Graph, instructions: Mapping[str, str], question: str) -> dict[str, str]:
    """What every node says."""
    found: dict[str, str] = {}
    for node, (_, before) in graph.items():
        found[node] = execute(instructions[node], question, [found[p] for p in before])
    return found


def _sound(node: str, step: str) -> str:
    return f"{step or f'List all {node} in the question.'} {COMMAS}"


def _corrupted(
    draw: random.Random, kind: str, node: str, step: str, value: str, others: Sequence[str]
) -> str:
    right = _sound(node, step)
    if kind == "format":
        return right.replace(COMMAS, draw.choice([f for f in FORMATS if f != COMMAS]))
    if kind == "subtask":
        wrong = draw.choice(
            OTHER[step] if step else [f"List all {o} in the question." for o in others]
        )
        return f"{wrong} {COMMAS}"
    one = draw.choice(value.split(", "))
    return f"{right} Hint: {draw.choice([f'{one} does not belong', 'stone belongs too'])}."


def cases(number: int = CASES, seed: int = SEED) -> list[Case]:
    """The cases, the same for every rule; the first n of them are `cases(n)`."""
    return [_case(i, seed) for i in range(number)]


def _case(number: int, seed: int) -> Case:
    draw = random.Random(f"{seed}/{number}")
    turn, which = divmod(number, len(SHAPES))
    shape = list(SHAPES)[which]
    names = draw.sample(list(WORDS), 4)
    graph = SHAPES[shape](*names)
    at = (turn + which) % len(graph)
    node = list(graph)[at]
    # no number of nodes is a multiple of the kinds less one, so all pairs come in turn
    kind = KINDS[(turn + turn // len(graph) + which) % len(KINDS)]
    step, _ = graph[node]
    asked_for = [name for name in names if name in graph]
    there = [*asked_for, next((n for n in names if n not in graph), names[0])]
    while True:
        each = 2 if len(asked_for) > 1 else 3
        words = [w for name in dict.fromkeys(there) for w in draw.sample(WORDS[name].split(), each)]
        draw.shuffle(words)
        question = ", ".join(words)
        right = {n: _sound(n, s) for n, (s, _) in graph.items()}
        sound = values(graph, right, question)
        others = [n for n in dict.fromkeys(there) if n != node]
        wrong = right | {node: _corrupted(draw, kind, node, step, sound[node], others)}
        spoiled = values(graph, wrong, question)
        result = list(graph)[-1]
        if spoiled[node] != sound[node] and spoiled[result] != sound[result]:
            break
    differ = frozenset(n for n in graph if spoiled[n] != sound[n])
    return Case(number, shape, kind, node, question, graph, wrong, sound[result], differ)


class Agent(nn.Module):
    """The nodes of a case, each shown the question and its predecessors' outputs."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.nodes = nn.ModuleDict({n: nn.LLM(case.instructions[n]) for n in case.graph})

    def forward(self, question: str) -> dict[str, ta.TextVariable]:
        found: dict[str, ta.TextVariable] = {}
        for name, (_, before) in self.case.graph.items():
            inputs = {p: found[p] for p in before}
            found[name] = self.nodes[name](question=question, **inputs)
        return found


def _play(request: Request) -> str:
    instruction, shown = (m["content"] for m in request.messages)
    question, *inputs = re.findall(r"<([\w-]+)>\n(.*?)\n</\1>", shown, re.DOTALL)
    return execute(instruction, question[1], [text for _, text in inputs])


UNUSABLE = (ReplyError, IncompleteReplyError, ContextOverflowError, ContentFilterError)


class _Watched:
    """A rule whose unusable replies are counted and pass nothing back; any other failure of a call
    is no opinion of the model, and is kept to be raised."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.failed = 0
        self.error: EngineError | None = None

    async def __call__(self, node: Any, gradient: ta.Gradient, engine: Engine | None) -> Any:
        try:
            return await self.rule(node, gradient, engine)
        except UNUSABLE:
            self.failed += 1
        except EngineError as error:
            self.error = error
        return rules.none(node, gradient)


def gradients(case: Case, rule: Any, engine: Engine) -> dict[str, Any]:
    """One forward and one backward pass: what each node was told, and what that took.

    Raises:
        EngineError: a call failed.
    """
    outputs = Agent(case).to(Scripted(_play))(case.question)
    for variable in outputs.values():
        variable.retain_grad()
    loss = nn.ExactMatchLoss()(list(outputs.values())[-1], case.expected)
    if loss.item() != 1:
        raise UsageError(f"case {case.number} is right in spite of its defect")
    watched = _Watched(rule)
    started = time.monotonic()
    with ta.Budget() as budget:
        loss.backward(rule=watched, engine=engine)
    if watched.error is not None:
        raise watched.error
    said = {n: None if v.grad is None else str(v.grad) for n, v in outputs.items()}
    return {
        "gradients": said,
        "failed": watched.failed,
        "calls": budget.spent.calls,
        "tokens": [budget.spent.input_tokens, budget.spent.output_tokens],
        "seconds": round(time.monotonic() - started, 2),
    }


_NOTHING = re.compile(
    r"\bno (?:further )?changes?\b|\b(?:is|was|are|were|looks?|seems?) (?:already )?"
    r"(?:correct|right|fine|accurate|good)\b|\b(?:need|require)s? no\b|\bdo(?:es)? not need\b"
    r"|\bshould (?:remain|stay|be kept)\b|\bunchanged\b",
    re.IGNORECASE,
)
_YET = re.compile(
    r"\b(?:but|however|instead|except|although)\b|\bshould (?!remain|stay|be kept|not)|\bmissing\b",
    re.IGNORECASE,
)


def asks(text: str | None, value: str) -> bool:
    """Whether a gradient asks that a value change: it neither is that value, nor only says that
    nothing needs to change."""
    if text is None or text.strip(" .\"'`") == value.strip(" .\"'`"):
        return False
    return not (_NOTHING.search(text) and not _YET.search(text))


def scores(case: Case, said: Mapping[str, str | None], failed: int = 0) -> dict[str, float]:
    """The three measures of one case."""
    if failed:
        return dict.fromkeys(MEASURES, 0.0)
    result = list(case.graph)[-1]
    was = values(case.graph, case.instructions, case.question)
    asked = {n for n in case.graph if n == result or asks(said[n], was[n])}
    ends = [n for n in asked if not asked.intersection(case.graph[n][1])]
    length = {n: len((said[n] or "").split()) for n in ends}
    longest = [n for n in ends if length[n] == max(length.values())]
    return {
        "blame": (case.node in ends) / len(ends),
        "largest": (case.node in longest) / len(longest),
        "exact": float(asked == case.wrong),
    }


def read(out: Path) -> list[dict[str, Any]]:
    """The lines of a file; the last, if a crash cut it, is left out.

    Raises:
        UsageError: a line is damaged. OSError: the file cannot be read.
    """
    found = lines.read(out, HOLDS)
    for number, line in enumerate(found, 1):
        why = misfit(line, SHAPE)
        if not why and line["rule"] not in RULES:
            why = f"there is no rule {line['rule']}"
        if not why and line["gradients"].keys() != _case(line["case"], SEED).graph.keys():
            why = f"its nodes are not those of case {line['case']}"
        if why:
            raise UsageError(f"{out}: result {number} is damaged: {why}: mend or delete its line")
    return found


def run(out: Path, engine: Engine, model: str, names: Sequence[str], number: int = CASES) -> None:
    """Every case and rule that the file does not have yet, in the order of the cases.

    Raises:
        UsageError: the file has lines of another model, or damaged ones. EngineError: a call
            failed; what is there stays, and the same run goes on from it.
    """
    done = read(out)
    if others := {line["model"] for line in done} - {model}:
        raise UsageError(f"{out} was measured with {', '.join(others)}: name another file")
    there = {(line["case"], line["rule"]) for line in done}
    todo = [(c, n) for c in cases(number) for n in names if (c.number, n) not in there]
    lines.check(out, HOLDS)
    lock = threading.Lock()

    def one(item: tuple[Case, str]) -> None:
        case, name = item
        found = gradients(case, RULES[name], engine)
        about = {"case": case.number, "rule": name, "model": model}
        with lock:
            lines.append(out, about | found)

    ta.map(one, todo, max_workers=IN_FLIGHT)


def wilson(mean: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927); shared blame counts as its fraction."""
    z = 1.959964
    middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def bootstrap(differences: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """The 95 % interval of a mean over cases, by drawing cases anew."""
    drawn = np.random.default_rng(0).choice(differences, (draws, len(differences)))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def report(out: Path) -> str:
    """Markdown: by rule, the differences between rules, by shape, by kind. Only cases that every
    rule in the file has are compared."""
    done = read(out)
    by_case = {(line["case"], line["rule"]): line for line in done}
    names = [name for name in RULES if any(name == rule for _, rule in by_case)]
    numbers = sorted({number for number, _ in by_case})
    shared = [_case(i, SEED) for i in numbers if all((i, n) in by_case for n in names)]
    if not shared:
        return "No case is there for every rule."
    score = {
        (c.number, n): scores(c, by_case[c.number, n]["gradients"], by_case[c.number, n]["failed"])
        for c in shared
        for n in names
    }

    def share(some: Sequence[Case], name: str, measure: str = "blame") -> str:
        mean = sum(score[c.number, name][measure] for c in some) / len(some)
        low, high = wilson(mean, len(some))
        return f"{mean:.0%} ({max(low, 0):.0%} to {high:.0%})"

    def chance(some: Sequence[Case]) -> str:
        return f"{sum(1 / len(c.graph) for c in some) / len(some):.0%}"

    def last(some: Sequence[Case]) -> str:
        return f"{sum(c.node == list(c.graph)[-1] for c in some) / len(some):.0%}"

    text = [f"{len(shared)} cases, {', '.join(sorted({line['model'] for line in done}))}", ""]
    text += ["| rule | blame | largest | exact | unusable | calls | tokens in | out | seconds |"]
    text += ["|---" * 9 + "|"]
    for n in names:
        of = [by_case[c.number, n] for c in shared]
        text.append(
            f"| {n} | {' | '.join(share(shared, n, m) for m in MEASURES)} "
            f"| {sum(x['failed'] > 0 for x in of)} | {sum(x['calls'] for x in of)} "
            f"| {sum(x['tokens'][0] for x in of)} | {sum(x['tokens'][1] for x in of)} "
            f"| {sum(x['seconds'] for x in of):.0f} |"
        )
    text += [f"| a random node | {chance(shared)} | | | | | | | |"]
    text += [f"| always the last | {last(shared)} | | | | | | | |"]
    for i, n in enumerate(names):
        for other in names[i + 1 :]:
            d = [score[c.number, n]["blame"] - score[c.number, other]["blame"] for c in shared]
            low, high = bootstrap(d)
            text += ["", f"{n} minus {other}: {sum(d) / len(d):+.1%} ({low:+.1%} to {high:+.1%})"]
    groups: dict[str, Callable[[Case], str]] = {
        "shape": lambda c: c.shape,
        "kind": lambda c: c.kind,
    }
    groups["defect in"] = lambda c: "the last node" if c.node == "result" else "a node before it"
    for title, key in groups.items():
        text += ["", f"| {title} | cases | {' | '.join(names)} | random | last |"]
        text += ["|---" * (len(names) + 4) + "|"]
        for value in dict.fromkeys(map(key, shared)):
            some = [c for c in shared if key(c) == value]
            cells = [share(some, n) for n in names]
            text.append(
                f"| {value} | {len(some)} | {' | '.join([*cells, chance(some), last(some)])} |"
            )
    return "\n".join(text)


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="one JSON line per case and rule")
    parser.add_argument("--model", help="of the backward calls")
    parser.add_argument("--api-base", help="an OpenAI-compatible server that has it")
    parser.add_argument("--rule", choices=RULES, action="append", help="by default all")
    parser.add_argument("--cases", type=at_least(1), default=CASES)
    parser.add_argument("--report", action="store_true", help="only print the tables")
    arguments = parser.parse_args(words)
    if not arguments.report and arguments.model is None:
        parser.error("--model is needed to run")
    try:
        if not arguments.report:
            engine = ta.engine(
                arguments.model,
                api_base=arguments.api_base,
                max_tokens=MAX_TOKENS,
                max_concurrency=IN_FLIGHT,
            )
            chosen = arguments.rule or list(RULES)
            run(arguments.out, engine, arguments.model, chosen, arguments.cases)
        print(report(arguments.out))
    except (ta.Error, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
