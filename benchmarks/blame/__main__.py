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
import sys
from collections.abc import Sequence
from pathlib import Path

import textautograd as ta
from benchmarks.blame.cases import CASES
from benchmarks.blame.gradients import RULES
from benchmarks.blame.results import IN_FLIGHT, run
from benchmarks.blame.tables import report
from benchmarks.paper.numbers import at_least

MAX_TOKENS = 200


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.blame", description=__doc__.split("\n")[0]
    )
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
