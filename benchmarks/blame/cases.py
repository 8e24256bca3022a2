"""The agents: graphs of nodes that do one step each, with one corrupted instruction in each."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from textautograd.errors import UsageError

CASES = 105
SEED = 1  # seed 0 was looked at, when the measures were defined
KINDS = ("format", "subtask", "hint")

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


def correct(node: str, step: str) -> str:
    return f"{step or f'List all {node} in the question.'} {COMMAS}"


def _corrupted(
    draw: random.Random, kind: str, node: str, step: str, value: str, others: Sequence[str]
) -> str:
    right = correct(node, step)
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
    return [case_at(i, seed) for i in range(number)]


def case_at(number: int, seed: int) -> Case:
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
        right = {n: correct(n, s) for n, (s, _) in graph.items()}
        sound = values(graph, right, question)
        others = [n for n in dict.fromkeys(there) if n != node]
        wrong = right | {node: _corrupted(draw, kind, node, step, sound[node], others)}
        spoiled = values(graph, wrong, question)
        result = list(graph)[-1]
        if spoiled[node] != sound[node] and spoiled[result] != sound[result]:
            break
    differ = frozenset(n for n in graph if spoiled[n] != sound[n])
    return Case(number, shape, kind, node, question, graph, wrong, sound[result], differ)
