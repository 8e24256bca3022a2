"""Modules: found by walking attributes, called with hooks, written all or nothing."""

from __future__ import annotations

import contextvars
import copy
import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import textautograd as ta
from textautograd import engines, errors, nn, optim
from textautograd.engines import Request, Scripted


def echo(request: Request) -> str:
    return "/".join(message["content"] for message in request.messages)


class Pair(nn.Module):
    def __init__(self) -> None:
        self.hint = nn.LLM("Give a hint.")
        self.solve = nn.LLM("Solve it.")

    def forward(self, question: Any) -> Any:
        return self.solve(question=question, hint=self.hint(question=question))


# Walking attributes


def test_parameters_are_found_in_attributes_lists_tuples_and_dicts() -> None:
    class Everything(nn.Module):
        def __init__(self) -> None:
            self.own = nn.Parameter("own")
            self.listed = [nn.LLM("a"), "text", 3, [nn.Parameter("b")]]
            self.tupled = (nn.LLM("c"), {"deep": [nn.LLM("d")]})
            self.by_name = {"x": nn.Parameter("e"), 7: nn.LLM("f")}
            self.plain = ta.TextVariable("no parameter", requires_grad=True)
            self.nothing = None

    assert Everything().state_dict() == {
        "own": "own",
        "listed.0.instruction": "a",
        "listed.3.0": "b",
        "tupled.0.instruction": "c",
        "tupled.1.deep.0.instruction": "d",
        "by_name.x": "e",
        "by_name.7.instruction": "f",
    }


def test_a_part_that_is_reachable_twice_counts_once_under_its_first_name() -> None:
    module = Pair()
    module.again = [module.hint, module.solve.instruction]  # type: ignore[attr-defined]
    assert list(module.state_dict()) == ["hint.instruction", "solve.instruction"]
    assert [name for name, _ in module.named_modules()] == ["", "hint", "solve"]
    assert len(list(module.parameters())) == 2


def test_tied_instructions_are_one_parameter() -> None:
    shared = nn.Parameter("Say it.")
    module = nn.ModuleList([nn.LLM(shared), nn.LLM(shared)])
    assert module.state_dict() == {"0.instruction": "Say it."}
    module.load_state_dict({"0.instruction": "Sing it."})
    assert str(module[1].instruction) == "Sing it."  # type: ignore[attr-defined]


def cyclic() -> Pair:
    module = Pair()
    module.hint.parent = module  # type: ignore[attr-defined]
    loop: list[Any] = [module.solve]
    loop.append(loop)
    module.loop = loop  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("parts", "name", "places"),
    [
        ({1: "a", "1": "b"}, "parts.1", "['parts'][1] and ['parts']['1']"),
        ({"a.b": "a", "a": {"b": "b"}}, "parts.a.b", "['parts']['a.b'] and ['parts']['a']['b']"),
        ({"0": {"x": "a"}, "0.x": "b"}, "parts.0.x", "['parts']['0']['x'] and ['parts']['0.x']"),
    ],
)
def test_two_parts_of_one_name_are_refused_and_both_named(
    parts: Any, name: str, places: str
) -> None:
    def build(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: build(p) for key, p in part.items()}
        return nn.Parameter(part)

    module: Any = nn.Module()
    module.parts = build(parts)
    for use in (
        lambda: module.state_dict(),
        lambda: module.load_state_dict({}),
        lambda: list(module.parameters()),
        lambda: module.to(Scripted(echo)),
        lambda: ta.functional_call(module, {}),
    ):
        with pytest.raises(errors.UsageError) as caught:
            use()
        assert repr(name) in str(caught.value) and places in str(caught.value)
    shared = nn.Parameter("x")
    module.parts = {1: shared, "1": shared}  # one part, under two names
    assert module.state_dict() == {"parts.1": "x"}


def test_two_modules_of_one_name_are_refused() -> None:
    module = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.LLM("x")}), "a.b": nn.LLM("y")})
    with pytest.raises(errors.UsageError, match=r"called 'a.b': \['a'\]\['b'\] and \['a.b'\]"):
        module.state_dict()


def test_cycles_are_walked_once() -> None:
    module = cyclic()
    assert list(module.state_dict()) == ["hint.instruction", "solve.instruction"]
    assert [name for name, _ in module.named_modules()] == ["", "hint", "solve"]
    assert "Give a hint." in repr(module)
    assert copy.deepcopy(module).state_dict() == module.state_dict()


def test_the_repr_of_a_module_within_itself_ends() -> None:
    module = nn.ModuleList([nn.LLM("Give a hint.")])
    module.append(nn.ModuleDict({"back": module}))
    assert repr(module) == (
        "ModuleList(\n"
        "  (0): LLM('Give a hint.')\n"
        "  (1): ModuleDict(\n"
        "    (back): (a module that contains this one)\n"
        "  )\n"
        ")"
    )


def test_a_deep_module_needs_no_recursion() -> None:
    module: Any = nn.LLM("deepest")
    for _ in range(3000):
        module = {"part": [module]}
    root = nn.Module()
    root.part = module  # type: ignore[attr-defined]
    (name,) = root.state_dict()
    assert name.endswith(".instruction") and name.count(".0") == 3000


@given(st.recursive(st.just("leaf"), lambda inner: st.lists(inner, max_size=3), max_leaves=12))
def test_names_lead_to_their_parameters(shape: Any) -> None:
    def build(part: Any) -> Any:
        return nn.Parameter("x") if part == "leaf" else [build(p) for p in part]

    root = nn.Module()
    root.part = build(shape)  # type: ignore[attr-defined]
    for name, parameter in root.named_parameters():
        found: Any = root
        for step in name.split("."):
            found = found[int(step)] if isinstance(found, list) else getattr(found, step)
        assert found is parameter
    assert len(list(root.parameters())) == json.dumps(shape).count("leaf")


def test_a_parameter_is_called_as_in_the_module_that_was_asked_for_its_parameters() -> None:
    module = Pair()
    module.solve.instruction.name = "mine"
    list(module.parameters())
    nn.ModuleList([module]).state_dict()
    assert module.hint.instruction.name == "hint.instruction"
    assert module.solve.instruction.name == "mine"
    copied = copy.deepcopy(module)
    list(nn.ModuleList([module, copied]).parameters())
    assert module.hint.instruction.name == "0.hint.instruction"
    assert copied.hint.instruction.name == "1.hint.instruction"
    assert module.solve.instruction.name == "mine"


def test_an_optimizers_names_do_not_depend_on_who_was_asked_before() -> None:
    module = Pair()
    module.hint.requires_grad_(True)
    module.solve.zero_grad()
    list(module.hint.parameters())
    names = ["hint.instruction", "solve.instruction"]
    assert optim.SGD(module.parameters()).names == names


def test_a_parameter_is_not_lost_to_a_text_that_takes_its_place() -> None:
    class Styled(nn.Module):
        def __init__(self) -> None:
            self.style: Any = nn.Parameter("Be kind.")

    module = Styled()
    for text in ("Be brief.", module.style + " Be brief.", ta.TextVariable("Be brief.")):
        with pytest.raises(errors.UsageError, match=r"assign \.style\.data"):
            module.style = text
    assert module.state_dict() == {"style": "Be kind."}
    module.style = other = nn.Parameter("Be brief.")
    assert list(module.parameters()) == [other]
    module.style = None
    module.style = "a constant from now on"
    assert not module.state_dict()


def test_a_module_without_super_init_works() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            self.x = nn.Parameter("x")

        def forward(self) -> str:
            return "called"

    module = Bare()
    assert module() == "called" and module.training
    seen: list[Any] = []
    module.register_forward_hook(lambda *args: seen.append(args))
    module()
    assert len(seen) == 1


def test_a_module_without_parameters_has_an_empty_state() -> None:
    module = nn.Module()
    assert module.state_dict() == {} and list(module.parameters()) == []
    module.load_state_dict({})
    module.zero_grad()
    module.requires_grad_(False).to(Scripted(echo)).train().eval()
    assert repr(module) == "Module()"


def test_a_module_without_forward_says_so() -> None:
    class Forgotten(nn.Module):
        pass

    with pytest.raises(ta.Error, match="Forgotten has no forward"):
        Forgotten()(question="why?")


# State


@given(st.text(), st.text())
def test_a_state_comes_back_whatever_the_texts(hint: str, solve: str) -> None:
    module, other = Pair(), Pair()
    module.hint.instruction.data, module.solve.instruction.data = hint, solve
    other.load_state_dict(json.loads(json.dumps(module.state_dict())))
    assert (
        other.state_dict()
        == module.state_dict()
        == {
            "hint.instruction": hint,
            "solve.instruction": solve,
        }
    )


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"hint.instruction": "new"}, r"missing \['solve.instruction'\]"),
        (
            {"hint.instruction": "new", "solve.instruction": "new", "more": "x"},
            r"unknown \['more'\]",
        ),
        ({"hint.instruction": "new", "solve.instruction": 3}, "is int, not text"),
        ({"hint.instruction": "new", "solve.instruction": None}, "is NoneType, not text"),
        (["hint.instruction"], "is a dict of name → text, not list"),
        (None, "not NoneType"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(state: Any, message: str) -> None:
    module = Pair()
    with pytest.raises(errors.StateError, match=message):
        module.load_state_dict(state)
    assert module.state_dict() == Pair().state_dict()


def test_not_strict_takes_what_fits_and_still_only_texts() -> None:
    module = Pair()
    module.load_state_dict({"hint.instruction": "new", "more": "x"}, strict=False)
    assert module.state_dict() == {"hint.instruction": "new", "solve.instruction": "Solve it."}
    with pytest.raises(errors.StateError):
        module.load_state_dict({"hint.instruction": "newer", "solve.instruction": 3}, strict=False)  # type: ignore[dict-item]
    assert str(module.hint.instruction) == "new"


def test_loading_counts_as_a_modification() -> None:
    module = Pair().to(Scripted(echo))
    loss = nn.ExactMatchLoss()(module(question="why?"), "right")
    module.load_state_dict(module.state_dict())
    with pytest.raises(errors.GraphError, match="modified after it was used"):
        loss.backward()


def test_a_deep_copy_has_parameters_of_its_own_and_shares_the_engine() -> None:
    engine = Scripted(echo)
    module = Pair().to(engine)
    module.solve.instruction.grad = ta.Gradient(["old"])
    twin = copy.deepcopy(module)
    twin.hint.instruction.data = "Other."
    assert str(module.hint.instruction) == "Give a hint."
    assert twin.hint.engine is engine
    assert isinstance(twin.hint.instruction, nn.Parameter) and twin.hint.instruction.requires_grad


def test_a_deep_copy_keeps_ties() -> None:
    shared = nn.Parameter("Say it.")
    twin = copy.deepcopy(nn.ModuleList([nn.LLM(shared), nn.LLM(shared)]))
    assert len(list(twin.parameters())) == 1


# Modes


def test_to_reaches_every_call_and_takes_engines_and_names() -> None:
    module = Pair()
    engine = Scripted(echo)
    assert module.to(engine) is module
    assert module.hint.engine is module.solve.engine is engine
    loss = nn.JudgeLoss("Be brief.").to(engine)
    assert loss.engine is engine
    for wrong in (3, None, Scripted, object(), ""):
        with pytest.raises(errors.UsageError):
            module.to(wrong)  # type: ignore[arg-type]
    assert module.hint.engine is module.solve.engine is engine


def test_to_leaves_other_things_called_engine_alone() -> None:
    class Database(nn.Module):
        def __init__(self) -> None:
            self.engine = "sqlite://"

    assert Database().to(Scripted(echo)).engine == "sqlite://"


def test_without_an_engine_of_its_own_a_call_takes_the_contexts() -> None:
    engine, own = Scripted(lambda r: "context"), Scripted(lambda r: "own")
    module = nn.LLM("Say it.")
    with ta.use_engine(engine):
        assert str(module(question="why?")) == "context"
        assert str(nn.LLM("Say it.", engine=own)(question="why?")) == "own"
        assert module.engine is None


def test_train_and_eval_reach_every_module() -> None:
    module = Pair()
    assert module.eval() is module
    assert [m.training for m in module.modules()] == [False] * 3
    module.train()
    assert [m.training for m in module.modules()] == [True] * 3


def test_requires_grad_and_zero_grad_reach_every_parameter() -> None:
    module = Pair().to(Scripted(echo))
    assert module.requires_grad_(False) is module
    assert not module(question="why?").requires_grad
    module.requires_grad_()
    assert module(question="why?").requires_grad
    for parameter in module.parameters():
        parameter.grad = ta.Gradient(["x"])
    module.zero_grad()
    assert [parameter.grad for parameter in module.parameters()] == [None, None]


# Hooks


def test_hooks_see_and_replace_and_go_away() -> None:
    class Double(nn.Module):
        def forward(self, text: str) -> str:
            return text * 2

    module, seen = Double(), []
    first = module.register_forward_pre_hook(lambda m, args: (args[0] + "!",))
    second = module.register_forward_pre_hook(lambda m, args: args[0] + "?")
    third = module.register_forward_hook(lambda m, args, out: seen.append((m, args, out)))
    fourth = module.register_forward_hook(lambda m, args, out: out.upper())
    assert module("a") == "A!?A!?"
    assert seen == [(module, ("a!?",), "a!?a!?")]
    for handle in (first, second, third, fourth, fourth):
        handle.remove()
    assert module("a") == "aa" and len(seen) == 1


def test_a_hook_with_kwargs_sees_and_replaces_named_inputs() -> None:
    module, seen = nn.LLM("Do it.").to(Scripted(lambda r: r.messages[1]["content"])), []
    before = module.register_forward_pre_hook(
        lambda m, args, kwargs: (args, {**kwargs, "a": kwargs["a"] + "!"}), with_kwargs=True
    )
    module.register_forward_pre_hook(lambda m, args, kwargs: None, with_kwargs=True)
    module.register_forward_hook(
        lambda m, args, kwargs, out: seen.append((args, kwargs, str(out))), with_kwargs=True
    )
    module(a="x")
    assert seen == [((), {"a": "x!"}, "<a>\nx!\n</a>")]
    before.remove()
    module(a="x")
    assert seen[1][1] == {"a": "x"}

    with pytest.raises(errors.UsageError, match=r"called as \(module, args, kwargs\), but"):
        module.register_forward_pre_hook(lambda module, args: None, with_kwargs=True)
    with pytest.raises(errors.UsageError, match="a hook must be a function"):
        module.register_forward_pre_hook(3, with_kwargs=True)  # type: ignore[arg-type]
    for wrong in ({"a": "x"}, ("x", "y")):
        handle = module.register_forward_pre_hook(lambda *_, w=wrong: w, with_kwargs=True)
        with pytest.raises(errors.UsageError, match=r"returns None or a tuple \(args, kwargs\)"):
            module(a="x")
        handle.remove()


def test_a_hook_that_cannot_be_called_is_refused_when_it_is_registered() -> None:
    module: Any = nn.Sequential()
    with pytest.raises(errors.UsageError, match=r"called as \(module, args, output\), but"):
        module.register_forward_hook(lambda module, args: None)
    with pytest.raises(errors.UsageError, match=r"called as \(module, args\), but"):
        module.register_forward_pre_hook(lambda args: None)
    assert module("a") == "a"


def test_a_hook_may_remove_itself() -> None:
    module = nn.Sequential()
    handles: list[Any] = []
    handles.append(module.register_forward_hook(lambda m, a, out: handles[0].remove()))
    assert module("a") == module("a") == "a"


# Containers and repr


def test_sequential_passes_each_output_on() -> None:
    a, b = (nn.LLM(text).to(Scripted(lambda r: r.messages[0]["content"] + "!")) for text in "ab")
    module = nn.Sequential(a, b)
    assert str(module("x")) == "b!"
    assert list(module.state_dict()) == ["0.instruction", "1.instruction"]
    assert list(module) == [a, b] and len(module) == 2 and module[-1] is b


def test_module_list_and_dict_behave_as_a_list_and_a_dict() -> None:
    a, b = nn.LLM("a"), nn.LLM("b")
    listed = nn.ModuleList([a])
    assert listed.append(b) is listed and list(listed) == [a, b] and listed[1] is b
    named = nn.ModuleDict({"first": a})
    named["second"] = b
    assert list(named) == list(named.keys()) == ["first", "second"]
    assert list(named.items()) == [("first", a), ("second", b)]
    assert list(named.values()) == [a, b] and "first" in named and len(named) == 2
    assert list(named.state_dict()) == ["first.instruction", "second.instruction"]


MODULES = [nn.LLM(text) for text in "abcd"]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["append", "remove"]), st.sampled_from(MODULES)),
            st.tuples(st.just("insert"), st.integers(-5, 5), st.sampled_from(MODULES)),
            st.tuples(st.just("extend"), st.lists(st.sampled_from(MODULES), max_size=3)),
            st.tuples(st.just("__setitem__"), st.integers(-5, 5), st.sampled_from(MODULES)),
            st.tuples(st.just("__setitem__"), st.slices(4), st.lists(st.sampled_from(MODULES))),
            st.tuples(st.sampled_from(["__delitem__", "pop"]), st.integers(-5, 5)),
            st.tuples(st.just("__delitem__"), st.slices(4)),
            st.tuples(st.sampled_from(["reverse", "clear"])),
        )
    ),
    st.slices(4),
    st.sampled_from([nn.ModuleList, nn.Sequential]),
)
def test_a_module_list_is_a_list(steps: list[Any], some: slice, kind: Any) -> None:
    own, oracle = kind(), list[nn.Module]()
    for name, *arguments in steps:
        failed: list[Any] = []
        for each in (own, oracle):
            try:
                getattr(each, name)(*arguments)
            except (IndexError, ValueError) as error:
                failed.append(type(error))
        assert failed in ([], failed[:1] * 2)
        assert list(own) == oracle and len(own) == len(oracle)
    part = own[some]
    assert list(part) == oracle[some] and type(part) is kind and part.training
    assert list(dict(own.named_modules()).values())[1:] == list(dict.fromkeys(oracle))


def test_a_module_dict_is_a_dict() -> None:
    a, b = nn.LLM("a"), nn.LLM("b")
    named = nn.ModuleDict({"first": a})
    named.update({"second": b, "third": a})
    assert named.pop("first") is a and list(named) == ["second", "third"]
    del named["third"]
    assert named.get("third") is None and dict(named) == {"second": b}
    assert named != nn.ModuleDict({"second": b}) and {named: 1}[named] == 1
    with pytest.raises(errors.UsageError):
        named.update({"fourth": "no module"})  # type: ignore[dict-item]
    named.clear()
    assert not named


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: nn.Sequential("not a module"),  # type: ignore[arg-type]
        lambda: nn.ModuleList([nn.LLM("a"), None]),  # type: ignore[list-item]
        lambda: nn.ModuleList().append(3),  # type: ignore[arg-type]
        lambda: nn.Sequential().insert(0, 3),  # type: ignore[arg-type]
        lambda: nn.Sequential().extend([nn.LLM("a"), 3]),  # type: ignore[list-item]
        lambda: nn.ModuleList([nn.LLM("a")]).__setitem__(0, "b"),
        lambda: nn.ModuleDict({"a": lambda x: x}),  # type: ignore[dict-item]
        lambda: nn.ModuleDict().__setitem__("a", "b"),  # type: ignore[assignment]
    ],
)
def test_containers_hold_modules_only(wrong: Any) -> None:
    with pytest.raises(errors.UsageError, match="a container holds modules, not"):
        wrong()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: nn.ModuleDict([("a", nn.LLM("a"))]),  # type: ignore[arg-type]
        lambda: nn.ModuleDict(3),  # type: ignore[arg-type]
        lambda: nn.ModuleDict({1: nn.LLM("a")}),  # type: ignore[dict-item]
        lambda: nn.ModuleDict().__setitem__(1, nn.LLM("a")),  # type: ignore[index]
        lambda: nn.ModuleDict({"": nn.LLM("a")}),
        lambda: nn.ModuleList(None),  # type: ignore[arg-type]
        lambda: nn.ModuleList(nn.LLM("a")),  # type: ignore[arg-type]
        lambda: nn.ModuleList({"a": nn.LLM("a")}),  # type: ignore[arg-type]
        lambda: nn.ModuleList("ab"),  # type: ignore[arg-type]
        lambda: nn.Sequential([nn.LLM("a")]),  # type: ignore[arg-type]
        lambda: nn.LLM("a").register_forward_hook(5),  # type: ignore[arg-type]
        lambda: nn.LLM("a").register_forward_pre_hook("f"),  # type: ignore[arg-type]
        lambda: setattr(nn.LLM("a"), "instruction", "b"),
        lambda: setattr(nn.LLM("a"), "instruction", ta.TextVariable("b")),
        lambda: nn.Parameter("a", "b"),  # type: ignore[arg-type]
        lambda: nn.Parameter("a", name=5),  # type: ignore[arg-type]
        lambda: nn.Parameter("a", 1),  # type: ignore[arg-type]
    ],
)
def test_careless_use_of_modules_is_one_clear_error(wrong: Any) -> None:
    with pytest.raises(errors.UsageError):
        wrong()


def test_an_llm_shows_what_it_sends() -> None:
    class Solver(nn.LLM):
        pass

    shown = repr(Solver("Solve it.", output_format="A number.", max_tokens=9, temperature=0.5))
    assert shown == "Solver('Solve it.', output_format='A number.', max_tokens=9, temperature=0.5)"


def test_what_is_no_instruction_is_called_so() -> None:
    with pytest.raises(errors.UsageError, match="the instruction must be a str, not int"):
        nn.LLM(3)  # type: ignore[arg-type]


def test_another_parameter_may_be_given_as_the_instruction() -> None:
    module, shared = nn.LLM("a"), nn.Parameter("b")
    module.instruction = shared
    assert module.instruction is shared and copy.deepcopy(module).state_dict() == {
        "instruction": "b"
    }


def test_repr_is_a_tree() -> None:
    class Agent(nn.Module):
        def __init__(self) -> None:
            self.hints = nn.ModuleList([nn.LLM("Give a hint."), nn.LLM("Give another.")])
            self.more = {"solve": nn.LLM("Solve " + "it " * 50)}
            self.tone = nn.Parameter("kind")

    assert repr(Agent()) == (
        "Agent(\n"
        "  (hints): ModuleList(\n"
        "    (0): LLM('Give a hint.')\n"
        "    (1): LLM('Give another.')\n"
        "  )\n"
        "  (more.solve): LLM('Solve it it ... it it it it ')\n"
        "  (tone): Parameter('kind', requires_grad=True)\n"
        ")"
    )


# functional_call


def test_functional_call_reads_other_texts_and_touches_nothing() -> None:
    engine = Scripted(echo)
    module = Pair().to(engine)
    output = ta.functional_call(module, {"hint.instruction": "Other."}, question="why?")
    assert "Other." in str(engine.calls[0].messages) and "Solve it." in str(output)
    assert module.state_dict() == Pair().state_dict()
    assert module.hint.instruction._version == 0
    assert "Give a hint." in str(ta.functional_call(module, {}, question="why?"))


def test_functional_call_gives_the_gradient_to_the_variable_it_was_given() -> None:
    module = nn.LLM("Solve it.").to(Scripted(echo))
    new = ta.TextVariable("Other.", requires_grad=True)
    output = ta.functional_call(module, {"instruction": new}, question="why?")
    nn.ExactMatchLoss()(output, "right").backward()
    assert new.grad is not None and module.instruction.grad is None


def test_functional_calls_nest_and_the_inner_one_counts() -> None:
    module = nn.Module()
    module.a, module.b = nn.Parameter("a"), nn.Parameter("b")  # type: ignore[attr-defined]

    class Outer(nn.Module):
        def __init__(self) -> None:
            self.inner = Reads(module)

        def forward(self) -> Any:
            inside = ta.functional_call(self.inner, {"part.a": "inner"})
            return inside, self.inner()

    assert ta.functional_call(Outer(), {"inner.part.a": "outer", "inner.part.b": "outer"}) == (
        {"a": "inner", "b": "outer"},
        {"a": "outer", "b": "outer"},
    )
    assert module.state_dict() == {"a": "a", "b": "b"}


class Reads(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        self.part = part

    def forward(self) -> dict[str, str]:
        return self.part.state_dict()


def test_functional_calls_in_threads_do_not_see_each_other() -> None:
    module = nn.Module()
    module.x = nn.Parameter("own")  # type: ignore[attr-defined]
    together = threading.Barrier(9)

    class Waits(Reads):
        def forward(self) -> dict[str, str]:
            together.wait(60)
            found = super().forward()
            together.wait(60)
            return found

    waiting, found = Waits(module), {}

    def call(i: int) -> None:
        found[i] = ta.functional_call(waiting, {"part.x": str(i)})

    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(call, i)) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    together.wait(60)
    assert module.state_dict() == {"x": "own"}
    together.wait(60)
    for thread in threads:
        thread.join()
    assert found == {i: {"x": str(i)} for i in range(8)}


@pytest.mark.parametrize("state", [{"nowhere": "x"}, {"hint.instruction": 3}, "text", None])
def test_functional_call_with_a_state_that_does_not_fit_is_an_error(state: Any) -> None:
    engine = Scripted(echo)
    with pytest.raises(errors.StateError):
        ta.functional_call(Pair().to(engine), state, question="why?")
    assert engine.calls == []


def test_inside_a_functional_call_nothing_can_be_assigned() -> None:
    class Assigns(Pair):
        def forward(self, question: Any) -> Any:
            self.load_state_dict({"hint.instruction": "x", "solve.instruction": "y"})

    module = Assigns()
    with pytest.raises(errors.UsageError, match="cannot be assigned"):
        ta.functional_call(module, Pair().state_dict(), question="why?")
    assert module.state_dict() == Pair().state_dict()


# LLM


def test_an_llm_sends_its_instruction_format_and_sampling() -> None:
    engine = Scripted(lambda r: "  reply\n")
    module = nn.LLM(
        "Solve {it}.", engine=engine, output_format="One word.", max_tokens=9, temperature=0.5
    )
    assert str(module("why?")) == "reply"
    (request,) = engine.calls
    assert [dict(message) for message in request.messages] == [
        {"role": "system", "content": "Solve {it}.\n\nOne word."},
        {"role": "user", "content": "<input>\nwhy?\n</input>"},
    ]
    assert (request.purpose, request.max_tokens, request.temperature) == ("forward", 9, 0.5)
    assert request.schema is None


def test_an_llm_takes_a_parameter_and_shares_it() -> None:
    instruction = nn.Parameter("Say it.")
    assert nn.LLM(instruction).instruction is instruction


@pytest.mark.parametrize(
    "call",
    [
        lambda llm: llm(),
        lambda llm: llm("a", "b"),
        lambda llm: llm("a", input="b"),
        lambda llm: llm(instruction="a"),
        lambda llm: llm(question=3),
        lambda llm: llm(question=None),
        lambda llm: llm(["a"]),
        lambda llm: llm(b"a"),
    ],
)
def test_a_call_that_cannot_work_is_refused_before_anything_is_spent(call: Any) -> None:
    engine = Scripted(echo)
    with pytest.raises(errors.UsageError):
        call(nn.LLM("Say it.", engine=engine))
    assert engine.calls == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: nn.LLM(3),  # type: ignore[arg-type]
        lambda: nn.LLM(None),  # type: ignore[arg-type]
        lambda: nn.LLM("x", engine=3),  # type: ignore[arg-type]
        lambda: nn.LLM("x", output_format=3),  # type: ignore[arg-type]
        lambda: nn.LLM("x", max_tokens=0),
        lambda: nn.LLM("x", max_tokens="9"),  # type: ignore[arg-type]
        lambda: nn.LLM("x", temperature=-1),
        lambda: nn.LLM("x", temperature=float("nan")),
        lambda: nn.LLM("x", temperature="hot"),  # type: ignore[arg-type]
        lambda: nn.LLM("x", temperature=True),
        lambda: nn.LLM("x", temperature=float("inf")),
        lambda: nn.LLM("x", max_tokens=True),
        lambda: nn.LLM("x", max_tokens=9.5),  # type: ignore[arg-type]
        lambda: nn.JudgeLoss(3),  # type: ignore[arg-type]
        lambda: nn.JudgeLoss("x", engine=3),  # type: ignore[arg-type]
        lambda: nn.ExactMatchLoss("x"),  # type: ignore[arg-type]
    ],
)
def test_an_argument_that_cannot_work_is_refused_where_it_is_given(wrong: Any) -> None:
    with pytest.raises(errors.UsageError):
        wrong()


def test_a_reply_that_was_cut_off_is_an_error_where_it_is_read() -> None:
    engine = Scripted(lambda r: engines.Reply("half a", finish_reason="length"))
    output = nn.LLM("Say it.", engine=engine, max_tokens=2)("x")
    with pytest.raises(errors.IncompleteReplyError, match="cut off at max_tokens = 2") as caught:
        str(output)
    assert any(__file__ in note for note in caught.value.__notes__)
