"""`Optimizer`: proposes new states, gates them, and writes the best one or none."""

from __future__ import annotations

import difflib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

from textautograd import dispatch
from textautograd.calling import is_async, mismatch
from textautograd.cancelling import cancel_scope
from textautograd.checking import misfit, whole
from textautograd.engines import as_engine, default_engine
from textautograd.engines.base import Engine
from textautograd.errors import StateError, TransientError, UsageError
from textautograd.optim.gate import (
    IS_ASYNC,
    Gate,
    State,
    Verdict,
    closure_gate,
    described,
    is_verdict,
)
from textautograd.rules import Rule, semantic
from textautograd.variable import TextVariable

NO_GRADIENT = "no gradient"
_SHOWN = 200  # characters of a reason; a candidate's `problems` and `error` hold the whole


@dataclass(slots=True)
class Candidate:
    """A whole new state: the texts that would change, by parameter name.

    `loss` is what the gate measured, `None` without a gate or where `error` says what went wrong;
    `problems` (name → why) lists parameters that no usable rewrite was found for. `unjudged`: the
    error may not come again, and says nothing about the texts, which can be proposed anew.
    """

    state: dict[str, str]
    loss: float | None = None
    error: str | None = None
    problems: dict[str, str] = field(default_factory=dict)
    unjudged: bool = False


@dataclass(slots=True, repr=False)
class StepResult:
    """What a step did.

    `accepted`, which is also its truth (`if optimizer.step(closure):`), says whether anything was
    written; `before` and `after` are the gate's losses of the
    old state and of the one now in place (`None` without a gate); `changes` maps a parameter's name
    to its old and new text.
    """

    accepted: bool
    before: float | None
    after: float | None
    candidates: list[Candidate]
    changes: dict[str, tuple[str, str]]

    def diff(self) -> str:
        """The accepted change as a unified diff."""
        lines: list[str] = []
        for name, (old, new) in self.changes.items():
            lines += difflib.unified_diff(
                old.splitlines(),
                new.splitlines(),
                f"{name} (before)",
                f"{name} (after)",
                lineterm="",
            )
        return "\n".join(lines)

    @property
    def why(self) -> str | None:
        """Why nothing changed, if nothing did."""
        if self.accepted:
            return None
        about: dict[str, dict[str, None]] = {}
        for candidate in self.candidates:
            for name, why in candidate.problems.items():
                about.setdefault(shorten(why, _SHOWN), {})[name] = None
        refused = "; ".join(f"{', '.join(names)}: {why}" for why, names in about.items())
        tried = [candidate for candidate in self.candidates if candidate.state]
        if not tried:
            return f"rewrite refused: {refused}" if refused else NO_GRADIENT
        found = Counter(shorten(c.error or f"loss {c.loss:g}", _SHOWN) for c in tried)
        each = [said if n == 1 else f"{said} ({n} times)" for said, n in found.items()]
        return f"not better than loss {self.before:g}; candidates: {', '.join(each)}"

    def __bool__(self) -> bool:
        return self.accepted

    def __repr__(self) -> str:
        return f"StepResult({str(self).splitlines()[0]})"

    def __str__(self) -> str:
        if self.accepted:
            gate = "" if self.before is None else f": loss {self.before:g} → {self.after:g}"
            return f"accepted{gate}\n{self.diff()}"
        return f"nothing changed: {self.why}"


class Optimizer:
    """Base of optimizers (`torch.optim.Optimizer`); a subclass writes `propose`.

    `rule` makes the gradients that the optimizer is meant for: `loss.backward(rule=optimizer.rule)`
    for any of them; `fit` does so unless it is given another. One that sets `needs_gradients` to
    False works without: for it `fit` runs no forward and no backward pass on the batch. One that
    sets `needs_losses` to True learns from bad candidates' losses too: `fit` stops none early.

    Args:
        params: the parameters to rewrite.
        engine: an engine or its name, for the optimizer's own calls; by default the context's.
        candidates: new states to draw per step.
        seed: of every random choice.

    Raises:
        UsageError: no parameters, or arguments that make no sense.
    """

    rule: Rule = staticmethod(semantic)
    needs_gradients = True
    needs_losses = False

    def __init__(
        self,
        params: Iterable[TextVariable],
        *,
        engine: Engine | str | None = None,
        candidates: int = 1,
        seed: int = 0,
    ) -> None:
        if not isinstance(params, Iterable):
            raise UsageError(f"params are parameters, as of .parameters(), not {params!r}")
        self.params = list(params)
        if not self.params:
            raise UsageError("the optimizer got no parameters: does the module have any?")
        for param in self.params:
            if not isinstance(param, TextVariable) or not param.is_leaf:
                hint = ": pass .parameters()" if isinstance(param, tuple) else ""
                raise UsageError(f"can only optimize leaves, not {param!r}{hint}")
        if len(set(self.params)) != len(self.params):
            raise UsageError("a parameter occurs twice")
        whole("optimizer: candidates", candidates)
        whole("optimizer: seed", seed, None)
        self.engine = None if engine is None else as_engine(engine)
        self.candidates = candidates
        self.seed = seed
        self.steps = 0
        self.names = _unique_names(self.params)
        self._rejected: list[dict[str, str]] = []  # states, as a `Candidate` has them
        self._unjudged: list[dict[str, str]] = []
        self._refused: set[str] = set()  # digests of requests that brought nothing usable

    def zero_grad(self) -> None:
        """Sets every parameter's `.grad` to `None`."""
        for param in self.params:
            param.grad = None

    def step(self, closure: Callable[[], float] | None = None) -> StepResult:
        """One update of all parameters that have a gradient: a whole candidate or none.

        Args:
            closure: the update gate, `() -> loss`: evaluated with the old state and each candidate,
                concurrently and in full; the best candidate is kept only if strictly lower. Without
                it the first usable candidate is written, of those that lack the fewest rewrites
                (what is lacking stays as it is, and `problems` says why). (Not torch's closure,
                which computes the gradients: here they are there before, as backward left them.)

        Raises:
            UsageError: the closure returned no number. EngineError, ReplyError: the old state could
                not be evaluated, or no candidate could be drawn for want of a reply.
        """
        if closure is not None and not callable(closure):
            raise UsageError(f"the closure must be a function, not {type(closure).__name__}")
        if closure is not None and is_async(closure):
            raise UsageError(IS_ASYNC)
        if closure is not None and (why := mismatch(closure)):
            raise UsageError(f"the closure is called as (), but {why}")
        return self.step_with(None if closure is None else closure_gate(closure))

    def step_with(self, gate: Gate | None) -> StepResult:
        """`step`, for a gate that evaluates and compares the states itself."""
        with cancel_scope():
            proposing = dispatch.start(self.propose(self.engine or default_engine()))
            candidates = dispatch.wait(proposing)
        self._check_proposed(candidates)
        usable = [candidate for candidate in candidates if candidate.state]
        before: float | None = None
        best = min(usable, key=lambda candidate: len(candidate.problems), default=None)
        if gate is not None and usable:
            verdict = self._decide(gate, usable)
            before = verdict.before
            best = None if verdict.best is None else usable[verdict.best]
        self.steps += 1  # one that an error has cut short was none
        if best is None:
            self._remember(usable)
            return StepResult(False, before, before, candidates, {})
        changes = self._write(best.state)
        return StepResult(True, before, best.loss, candidates, changes)

    def check_rule(self, rule: Rule) -> None:
        """Raises `UsageError`, before a backward pass, where this optimizer cannot read what the
        rule leaves."""

    async def propose(self, engine: Engine) -> list[Candidate]:
        """New states for the parameters that have a gradient."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What distinguishes this optimizer's runs from another's: JSON."""
        return {"kind": type(self).__name__, "candidates": self.candidates, "seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: JSON."""
        return {
            "kind": type(self).__name__,
            "parameters": list(self.names),
            "steps": self.steps,
            "rejected": [dict(state) for state in self._rejected],
            "unjudged": [dict(state) for state in self._unjudged],
            "refused": sorted(self._refused),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken.

        Raises:
            StateError: it is no such state; the optimizer stays as it was.
        """
        kind = type(self).__name__
        if isinstance(state, dict) and state.get("kind", kind) != kind:
            raise StateError(
                f"this is the state of {state['kind']!r:.80}, and the optimizer {kind}"
            )
        steps = stored(state, "steps", int, None)
        if steps < 0:
            raise StateError(f"an optimizer has not taken {steps} steps")
        rejected = stored(state, "rejected", [{str: str}], None)
        unjudged = stored(state, "unjudged", [{str: str}], [])
        refused = stored(state, "refused", [str], [])
        names = stored(state, "parameters", [str], self.names)
        named = {name for texts in [*rejected, *unjudged] for name in texts} | {*names}
        if foreign := named.difference(self.names):
            raise StateError(f"this optimizer has no parameter {', '.join(sorted(foreign)):.80}")
        if lacking := set(self.names).difference(names):
            raise StateError(
                "this is an optimizer's state that has no parameter "
                f"{', '.join(sorted(lacking)):.80}"
            )
        self.steps = steps
        self._rejected = [dict(texts) for texts in rejected]
        self._unjudged = [dict(texts) for texts in unjudged]
        self._refused = set(refused)

    def _by_name(self, lists: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """The lists of this optimizer's parameters, empty ones for those that have none."""
        return {name: list(lists.get(name, [])) for name in self.names}

    def tried(self, name: str) -> list[str]:
        """The rewrites of a parameter that were rejected, whatever changed with them."""
        return list(dict.fromkeys(state[name] for state in self._rejected if name in state))

    def is_new(self, name: str) -> bool:
        """Whether no rewrite of a parameter came to nothing since its text was written."""
        return not any(name in state for state in [*self._rejected, *self._unjudged])

    def _check_proposed(self, candidates: Any) -> None:
        """Raises `UsageError` for what `propose` must not return, before anything is written."""
        of = f"{type(self).__name__}: propose returns a list of Candidate"
        if not isinstance(candidates, (list, tuple)):
            raise UsageError(f"{of}, not {candidates!r:.80}")
        for candidate in candidates:
            if not isinstance(candidate, Candidate):
                raise UsageError(f"{of}, and {candidate!r:.80} is none")
            if why := misfit(candidate.state, {str: str}, "a candidate's state"):
                raise UsageError(f"{of}, texts by parameter name, and {why}")
            if foreign := candidate.state.keys() - set(self.names):
                raise UsageError(
                    f"{of}, and {', '.join(map(repr, foreign)):.80} is no parameter: there are "
                    f"{', '.join(self.names):.200}"
                )

    def _decide(self, gate: Gate, usable: Sequence[Candidate]) -> Verdict:
        old: State = {param: param.detach() for param in self.params}
        by_name = dict(zip(self.names, self.params, strict=True))
        found: Any = gate(
            old,
            [
                {**old, **{by_name[n]: TextVariable(t, name=n) for n, t in c.state.items()}}
                for c in usable
            ],
        )
        if not is_verdict(found, len(usable)):
            raise UsageError(
                f"a gate returns a Verdict of {len(usable)} candidates, not {found!r:.200}"
            )
        verdict: Verdict = found
        for candidate, loss in zip(usable, verdict.losses, strict=True):
            if isinstance(loss, TransientError):
                candidate.error, candidate.unjudged = described(loss), True
            elif isinstance(loss, str):
                candidate.error = loss
            else:
                candidate.loss = loss
        return verdict

    def _write(self, state: dict[str, str]) -> dict[str, tuple[str, str]]:
        changes = {}
        with _writing:
            for name, param in zip(self.names, self.params, strict=True):
                if name in state:
                    changes[name] = (param.data, state[name])
                    param.data = state[name]
        for states in (self._rejected, self._unjudged):
            states[:] = [state for state in states if changes.keys().isdisjoint(state)]
        return changes

    def _remember(self, tried: Sequence[Candidate]) -> None:
        for candidate in tried:
            states = self._unjudged if candidate.unjudged else self._rejected
            if candidate.state not in states:
                states.append(dict(candidate.state))

    def __repr__(self) -> str:
        count = f"{len(self.params)} parameter" + ("" if len(self.params) == 1 else "s")
        settings = [f"{k}={v!r}" for k, v in self.settings().items() if k != "kind"]
        return f"{type(self).__name__}({', '.join([count, f'step {self.steps}', *settings])})"


_writing = threading.Lock()


def stored(state: Any, key: str, shape: Any, default: Any) -> Any:
    """A part of an optimizer's state.

    Raises:
        StateError: it does not have its shape (`textautograd.checking.misfit`).
    """
    found = state.get(key, default) if isinstance(state, dict) else None
    if why := misfit(found, shape, f"its {key!r}"):
        raise StateError(f"an optimizer's state is what state_dict() returns, and {why}")
    return found


def _unique_names(params: Sequence[TextVariable]) -> list[str]:
    names: list[str] = []
    for i, param in enumerate(params):
        name = param.name or f"parameter{i}"
        while name in names:
            name += f"#{i}"
        names.append(name)
    return names
