"""Breaks the package in known ways and says which test noticed: `python -m tests.mutations`.

Each mutation replaces one piece of source, which must occur exactly once, in a copy of the package
and its benchmarks, and runs the tests that should notice, until one fails. `--write` puts the
result into README.md. Names of mutations as arguments choose some of them.

Ends with status 1 if a mutation survives, or its source is no longer what it was written for.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- mutations -->\n", "<!-- end of mutations -->\n"


class Stale(Exception):
    """A mutation's source is no longer there, or there more than once."""


@dataclass(frozen=True)
class Mutation:
    """One bug: `old` becomes `new` in `file`, of the package or in benchmarks/, and one of `tests`
    should fail: names of files, `tape` for test_tape.py, or of one test in a file,
    `tape::test_a_long_chain`."""

    name: str
    file: str
    old: str
    new: str
    tests: str

    @property
    def path(self) -> Path:
        """Where the file is, from the root."""
        return Path("" if self.file.startswith("benchmarks/") else "textautograd", self.file)

    def applied(self, source: str) -> str:
        """The source with the bug.

        Raises:
            Stale: the source does not hold `old` exactly once.
        """
        if (count := source.count(self.old)) != 1:
            raise Stale(f"{self.name!r}: {self.file} holds {count} times {self.old!r}, not once")
        return source.replace(self.old, self.new)


WALK = "tape paths variable"

MUTATIONS = [
    # the walk
    Mutation(
        "a slot is dropped where a variable is used twice",
        "tape.py",
        "if gradient is not None and predecessor in self._index:",
        "if gradient is not None and predecessor in {*self} - {*node.predecessors[:slot]}:",
        WALK,
    ),
    Mutation(
        "a contribution overwrites those before it",
        "tape.py",
        "self._contributions[predecessor].append((index, slot, gradient))",
        "self._contributions[predecessor] = [(index, slot, gradient)]",
        WALK,
    ),
    Mutation(
        "a contribution is added twice",
        "tape.py",
        ".append((index, slot, gradient))",
        ".extend([(index, slot, gradient)] * 2)",
        WALK,
    ),
    Mutation(
        "a variable does not wait for all of its successors",
        "tape.py",
        "if not waiting[predecessor]:",
        "if predecessor in self._contributions:",
        WALK,
    ),
    Mutation(
        "contributions are added up in the order of completion",
        "tape.py",
        "contributions.sort(key=itemgetter(0, 1))",
        "pass",
        "tape",
    ),
    Mutation(
        "what is complete is handed out in no order",
        "tape.py",
        "found.sort(key=lambda pair: self._index[pair[0]])",
        "found.sort(key=lambda pair: hash(pair[0]))",
        "tape",
    ),
    Mutation(
        "several roots are walked in the order of their hashes",
        "tape.py",
        "for root in dict.fromkeys(roots) if",
        "for root in set(roots) if",
        WALK,
    ),
    Mutation(
        "what a None leaves behind is pruned, whatever else leads there",
        "tape.py",
        "                self._release(self._nodes[variable])\n            else:",
        "                pass\n            else:",
        WALK,
    ),
    Mutation(
        "constants are walked",
        "tape.py",
        "[p for p in node.predecessors if p.requires_grad]",
        "list(node.predecessors)",
        WALK,
    ),
    Mutation(
        "a second pass over a freed graph goes unnoticed",
        "tape.py",
        "node.freed and variable is not only_end",
        "False",
        WALK,
    ),
    Mutation(
        "a freed node keeps what its operation saved",
        "tape.py",
        'getattr(self.operation, "name", self.operation)',
        "self.operation",
        "scale::test_backward_drops_saved_texts_unless_the_graph_is_retained",
    ),
    Mutation(
        "a registry keeps every node",
        "tape.py",
        "        self.freed = False\n",
        "        self.freed = False\n        _live.__dict__.setdefault('every', []).append(self)\n",
        "scale::test_dropping_a_loss_frees_its_tape",
    ),
    # backward
    Mutation(
        "the graph is freed too early, though it is to be retained",
        "backward.py",
        "    if not retain_graph:\n        _free(walk)\n    return failures",
        "    _free(walk)\n    return failures",
        "variable",
    ),
    Mutation(
        "the graph is never freed",
        "backward.py",
        "node.emptied()  #",
        "node  #",
        "scale::test_backward_frees_what_was_behind_a_loss_that_is_kept",
    ),
    Mutation(
        "the first hook is skipped",
        "backward.py",
        "in list((variable._hooks or hooks.get(variable) or {}).values()):",
        "in list((variable._hooks or hooks.get(variable) or {}).values())[1:]:",
        "variable",
    ),
    Mutation(
        "what a hook returns is ignored",
        "backward.py",
        "if replaced is not None:",
        "if False:",
        "variable",
    ),
    Mutation(
        "a second backward overwrites the gradient of the first",
        "backward.py",
        "else variable._grad + gradient",
        "else gradient",
        "variable",
    ),
    Mutation(
        "hooks of computed variables are kept after backward",
        "backward.py",
        "            variable._hooks = None  # type: ignore[attr-defined]\n",
        "",
        "scale::test_a_hook_that_closes_over_its_variable_leaves_no_cycle_after_backward",
    ),
    Mutation(
        "one rule that fails ends the whole backward pass",
        "backward.py",
        "        except (EngineError, ReplyError) as error:\n",
        "        except ZeroDivisionError as error:\n",
        "peers",
    ),
    # variables
    Mutation(
        "an assignment does not count as a new version",
        "variable.py",
        "self._version += 1",
        "self._version += 0",
        "variable",
    ),
    Mutation(
        "a candidate's text is not read where a call is written",
        "variable.py",
        "if replacements := _overrides.get():",
        "if replacements := {}:",
        "nn",
    ),
    Mutation(
        "a result requires grad only if every input does",
        "variable.py",
        "any([x._requires_grad for x in inputs])",
        "all([x._requires_grad for x in inputs])",
        "variable",
    ),
    Mutation(
        "a sum of gradients turns its parts round",
        "gradient.py",
        "both._parts, both._length = (self, other),",
        "both._parts, both._length = (other, self),",
        "gradient",
    ),
    Mutation(
        "a gradient is read one index at a time from its beginning",
        "gradient.py",
        "return tuple(self._at(range(self._length)[index]))",
        "return tuple(self[i] for i in range(self._length)[index])",
        "scale::test_four_times_the_program_is_no_more_than_six_times_the_work",
    ),
    # rules and prompts
    Mutation(
        "a neighbour is left out of the joint prompt",
        "prompts/semantic.py",
        "    inner, names = tuple(inputs)",
        "    inputs = dict([*inputs.items()][:1])\n    inner, names = tuple(inputs)",
        "rules",
    ),
    Mutation(
        "the joint reply's parts go to the wrong slots",
        "rules.py",
        "pulled[slot] = step.about(slot, parts[step.names[slot]])",
        "pulled[slot] = step.about(slot, parts[names[-1 - asked.index(slot)]])",
        "rules",
    ),
    Mutation(
        "an input that is a constant is asked about",
        "rules.py",
        'if p.requires_grad and (instructions or name != "instruction")',
        'if instructions or name != "instruction"',
        "rules",
    ),
    Mutation(
        "feedback that came by several paths is read path by path",
        "rules.py",
        "for f in gradient.distinct()",
        "for f in gradient",
        "scale::test_a_call_is_asked_once_however_many_paths_lead_to_it",
    ),
    Mutation(
        "a perfect loss has a gradient all the same",
        "nn/loss.py",
        "if value.loss == 0 or not value:",
        "if not value:",
        "loss",
    ),
    Mutation(
        "every option of select gets the gradient",
        "functional.py",
        "[gradient if i == self.index else None for i in range(len(node.predecessors))]",
        "[gradient for i in range(len(node.predecessors))]",
        "functional",
    ),
    Mutation(
        "a tagged part loses its last character",
        "prompts/form.py",
        "            parts[name] = part\n",
        "            parts[name] = part[:-1]\n",
        "prompts",
    ),
    Mutation(
        "a reply with a part that nobody asked for is taken",
        "prompts/form.py",
        "or parts.keys() != set(self.names):",
        "or not parts.keys() >= set(self.names):",
        "prompts",
    ),
    # threads, gates, steps
    Mutation(
        "no_grad is forgotten in the threads of map",
        "mapping.py",
        "contexts = [context.copy() for _ in items]",
        "contexts = [type(context)() for _ in items]",
        "map",
    ),
    Mutation(
        "no_grad is forgotten in the gate's threads",
        "optim/gate.py",
        "with no_grad(), overridden(states[index]):",
        "with overridden(states[index]):",
        "gate",
    ),
    Mutation(
        "the gate accepts an equal loss",
        "optim/gate.py",
        "if now < was",
        "if now <= was",
        "gate",
    ),
    Mutation(
        "fit's gate accepts an equal loss",
        "fit_gate.py",
        "return no_worse and (after < before or failed_after < failed_before)",
        "return no_worse",
        "fit::test_a_win_is_better_and_never_worse",
    ),
    Mutation(
        "who answers first decides what fit's gate evaluates",
        "fit_gate.py",
        "not has_lost(old, [*rows[:known], *[None] * (len(old) - known)]):",
        "not has_lost(old, rows):",
        "order::test_threads_and_order_of_completion_change_nothing",
    ),
    Mutation(
        "a parameter without feedback is rewritten",
        "optim/rewriting.py",
        "zip(self.names, self.params, strict=True) if p.grad]",
        "zip(self.names, self.params, strict=True) if p.grad is not None]",
        "optim",
    ),
    Mutation(
        "a rejected text may be proposed again",
        "optim/optimizer.py",
        "                states.append(dict(candidate.state))\n",
        "                pass\n",
        "gate",
    ),
    Mutation(
        "a rewrite that failed in bad company is refused in better",
        "optim/rewriting.py",
        "if list(state) == [name]]",
        "if name in state]",
        "gate",
    ),
    Mutation(
        "rewrites that failed together are evaluated together again",
        "optim/rewriting.py",
        "            return self.tried(name)\n",
        "            pass\n",
        "gate",
    ),
    Mutation(
        "a rewrite that could not be evaluated counts as tried",
        "optim/optimizer.py",
        "self._unjudged if candidate.unjudged else self._rejected",
        "self._rejected",
        "gate",
    ),
    Mutation(
        "a rewrite that could not be evaluated is drawn for ever",
        "optim/optimizer.py",
        "for state in [*self._rejected, *self._unjudged])",
        "for state in self._rejected)",
        "gate",
    ),
    Mutation(
        "a failure in fit's gate that may pass counts against the rewrite",
        "fit_gate.py",
        "            if left and not isinstance(why, TransientError):\n",
        "            if why or left:\n",
        "fit::test_a_passing_failure_in_the_gate_says_nothing_about_the_rewrite",
    ),
    Mutation(
        "a failure that may pass excuses others",
        "optim/gate.py",
        "    if len(failed) - len(passing) > of_old:\n",
        "    if not passing:\n",
        "fit::test_a_passing_failure_among_others_does_not_excuse_a_rewrite",
    ),
    Mutation(
        "a step that the gate cuts short counts",
        "optim/optimizer.py",
        "            candidates = dispatch.wait(proposing)\n",
        "            candidates = dispatch.wait(proposing)\n        self.steps += 1\n",
        "gate",
    ),
    Mutation(
        "a gate waits for a sample that was cancelled before it began",
        "fit_gate.py",
        "                    while not sample.wait(0.1):  # a cancelled sample may never begin\n"
        "                        check_cancelled()\n",
        "                    sample.wait()\n",
        "fit::test_a_sample_that_was_cancelled_before_it_began_is_not_waited_for",
    ),
    Mutation(
        "a run goes on with other parameters",
        "settings.py",
        '        "parameters": _paths(module, optimizer.params),\n',
        "",
        "fit::test_other_parameters_in_the_same_directory_are_refused",
    ),
    Mutation(
        "a cached reply is served at another temperature",
        "engines/cache.py",
        '        "temperature": _number(request.temperature),\n',
        "",
        "engines_cache::test_what_a_reply_depends_on_is_in_the_key",
    ),
    # budgets
    Mutation(
        "what is not known yet is not held",
        "engines/budget.py",
        "        share = Share(tokens, known.dearest, more_tokens, more_dollars)\n",
        "        share = Share(tokens, known.dearest)\n",
        "budget",
    ),
    Mutation(
        "a call that has no room beside others is refused",
        "engines/budget.py",
        "        if call.around is None and self._shares:",
        "        if call.around is self._shares:",
        "budget",
    ),
    Mutation(
        "a call that waits for one budget lets others into those it needs as well",
        "engines/_hold.py",
        "        for budget in budgets:\n            if budget not in self._joined:\n",
        "        for left in [b for b in self._joined if b not in budgets]:\n"
        "            self._joined.remove(left)\n"
        "            left.leave(self)\n"
        "            left.wake()\n"
        "        for budget in budgets:\n            if budget not in self._joined:\n",
        "budget::test_who_needs_two_budgets_comes_before_those_who_came_later_to_one",
    ),
    Mutation(
        "one that waits on a loop that is blocked is waited for",
        "engines/_hold.py",
        "not loop.is_closed() and not _is_silent(loop, self._patience)",
        "not loop.is_closed()",
        "budget::test_a_loop_that_is_blocked_while_it_waits_holds_nobody_up",
    ),
    Mutation(
        "a reply is as dear as any engine's",
        "engines/budget.py",
        "        key = id(call.engine), call.purpose\n",
        "        key = 0, call.purpose\n",
        "budget",
    ),
    Mutation(
        "a gate compares other samples than failed in neither state",
        "optim/gate.py",
        "for sample, found in told if sample not in failed]",
        "for sample, found in told]",
        "gate",
    ),
    # what ends
    Mutation(
        "calls are sent for what has ended",
        "cancelling.py",
        "        scope.check()\n",
        "        pass\n",
        "dispatch::test_a_backward_pass_that_was_given_up_sends_nothing_more map",
    ),
    Mutation(
        "an error that ends the run leaves the other samples running",
        "mapping.py",
        "                            scope.cancel()",
        "                            pass",
        "map",
    ),
    Mutation(
        "a run that an error ends leaves a half-made state",
        "training.py",
        "            module.load_state_dict(finished[0])\n",
        "",
        "fit",
    ),
    # what is compared
    Mutation(
        "an arm of one instruction trains all of them",
        "benchmarks/paper/run.py",
        "    if method.only is not None:\n",
        '    if method.only == "":\n',
        "paper::test_every_method_draws_its_candidates_and_rewrites_its_nodes_and_no_others",
    ),
    Mutation(
        "a gate on the training set is on the gate's questions",
        "benchmarks/paper/methods.py",
        'gate="train", candidates=5',
        'gate="val", candidates=5',
        "paper::test_every_gate_evaluates_candidates_on_its_own_questions_and_takes_the_best_there",
    ),
    Mutation(
        "where training has wrong labels the gate has them too",
        "benchmarks/paper/run.py",
        "val=(questions.val if",
        "val=((with_wrong_answers if method.wrong_labels else list)(questions.val) if",
        "paper::test_every_gate_evaluates_candidates_on_its_own_questions_and_takes_the_best_there",
    ),
]


def caught_by(mutation: Mutation, folder: Path) -> str | None:
    """The first test that fails with the bug in a folder's copy of the code, if one does."""
    file = folder / mutation.path
    source = file.read_text("utf-8")
    file.write_text(mutation.applied(source), "utf-8")
    try:
        return failing(mutation.tests.split(), folder)
    finally:
        file.write_text(source, "utf-8")


def failing(tests: Sequence[str], folder: Path) -> str | None:
    """The first test to fail, or the first file that cannot be run."""
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--tb=no", "--timeout=100"),
            *("-p", "no:cacheprovider", "--hypothesis-seed=0"),
            *map(argument, tests),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    if run.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - .*)?$", run.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"pytest did not say what failed:\n{run.stdout}\n{run.stderr}")
    return found[1]


def argument(test: str) -> str:
    """What pytest calls a test, or a file of tests."""
    file, *one = test.split("::")
    return "::".join((f"tests/test_{file}.py", *one))


def copied(parent: str) -> Path:
    """A copy of the package, its tests and benchmarks that Python prefers to the one installed."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    for name in ("textautograd", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="mutations to run; all by default")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    chosen = [m for m in MUTATIONS if not given.names or m.name in given.names]
    if unknown := {*given.names} - {m.name for m in MUTATIONS}:
        parser.error(f"no such mutations: {', '.join(sorted(unknown))}")
    for mutation in chosen:
        mutation.applied((ROOT / mutation.path).read_text("utf-8"))
    with tempfile.TemporaryDirectory() as parent:
        sound = failing(sorted({t for m in chosen for t in m.tests.split()}), copied(parent))
        if sound is not None:
            print(f"{sound} fails without any mutation")
            return 1

        def run(mutation: Mutation) -> str | None:
            found = caught_by(mutation, copied(parent))
            print(f"{mutation.name}: {found or 'SURVIVED'}", flush=True)
            return found

        with ThreadPoolExecutor(given.jobs) as pool:
            found = list(pool.map(run, chosen))
    survivors = [m.name for m, test in zip(chosen, found, strict=True) if test is None]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    if given.write and not survivors and not given.names:
        rows = [
            f"| {m.name} | `{m.file}` | `{(test or '').replace('|', '¦')}` |\n"
            for m, test in zip(chosen, found, strict=True)
        ]
        before, _, rest = README.read_text("utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        table = "| bug | in | the first test that fails |\n|---|---|---|\n" + "".join(rows)
        README.write_text(before + BEGIN + table + END + after, "utf-8")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
