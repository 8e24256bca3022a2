"""What a PyTorch user may rely on, each with PyTorch's name for it and the tests that hold it.

Read `INDEX` from top to bottom; what had no other home is tested below it. Where this differs from
PyTorch, the entry says so.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from test_rules import Agent, agreeing, playing, wrong_answer

import textautograd as ta
from textautograd import nn, optim
from textautograd.engines import Scripted
from textautograd.errors import GraphError

HERE = Path(__file__).parent

INDEX: dict[str, list[str]] = {
    # Variables
    "Tensor.is_leaf: made by the user": ["test_variable: a_leaf"],
    "Tensor.requires_grad: inherited from any input; set on leaves only": [
        "test_variable: requires_grad_is_inherited_and_a_node_recorded_only_then",
        "test_variable: requires_grad_is_set_on_leaves_only",
    ],
    "Tensor.grad_fn": ["test_variable: grad_fn_is_one_object"],
    "Tensor.detach: a leaf with the same value, cut off": ["test_variable: detach_cuts_the_tape"],
    "Tensor.item: waits": ["test_variable: item_is_for_losses"],
    "nn.Parameter, Module.requires_grad_, Tensor.requires_grad_": [
        "test_nn: requires_grad_and_zero_grad_reach_every_parameter",
        "test_variable: requires_grad_is_set_on_leaves_only",
    ],
    "Module: a Parameter's attribute takes Parameters and None only": [
        "test_nn: a_parameter_is_not_lost_to_a_text_that_takes_its_place",
    ],
    "nn.Sequential, nn.ModuleList, nn.ModuleDict: a list's and a dict's methods": [
        "test_nn: sequential_passes_each_output_on",
        "test_nn: a_module_list_is_a_list",
        "test_nn: a_module_dict_is_a_dict",
    ],
    "loss / n: not needed, and refused": [
        "test_variable: a_loss_cannot_be_scaled_and_need_not_be",
    ],
    # Gradients
    "Tensor.grad: accumulates over backward passes; zero_grad sets it to None": [
        "test_variable: grad_accumulates_over_backwards_and_zero_grad_resets_it",
        "test_semantics: an_optimizers_zero_grad_sets_to_none",
    ],
    "Tensor.backward(gradient): what is no loss needs a seed, and the error says so": [
        "test_variable: backward_needs_a_seed_where_there_is_no_loss",
        "test_variable: a_loss_needs_no_seed_and_takes_one",
        "test_variable: backward_where_nothing_requires_grad_raises",
    ],
    "Tensor.retain_grad: of what is computed, after its hooks": [
        "test_variable: a_non_leaf_keeps_its_grad_only_if_asked",
        "test_semantics: a_retained_grad_is_what_the_hooks_left_and_accumulates",
    ],
    "torch.autograd.grad: touches no .grad; allow_unused; several outputs; intermediate inputs": [
        "test_grad: it_is_what_backward_would_have_left_in_grad",
        "test_grad: only_what_leads_to_an_input_is_pulled",
        "test_grad: no_call_is_made_behind_the_inputs",
        "test_grad: one_or_several_inputs_and_always_a_tuple",
        "test_grad: several_outputs_are_combined",
        "test_grad: an_unused_input_is_an_error_before_any_call_or_none_if_allowed",
    ],
    "torch.autograd.grad of several outputs: one pass, combined in the order given (there is no "
    "backward of several roots: their ta.mean is one)": [
        "test_tape: roots_are_walked_and_seeds_combined_in_the_order_given",
        "test_tape: contributions_are_combined_seeds_first_then_in_the_order_of_successors",
    ],
    # Grad mode
    "torch.no_grad: context manager, nested, ends with an exception": [
        "test_no_grad: nothing_is_recorded_inside",
        "test_no_grad: nests_and_ends_with_an_exception",
    ],
    "torch.no_grad: decorates functions, generators, and, beyond torch, coroutine functions": [
        "test_no_grad: around_a_function",
        "test_no_grad: a_generator_is_off_while_it_runs_and_not_while_it_is_suspended",
        "test_no_grad: around_a_coroutine_function",
        "test_no_grad: it_decorates_without_parentheses",
    ],
    "torch.no_grad: local to the thread, and, beyond torch, to the asyncio task": [
        "test_no_grad: another_thread_is_not_affected_and_does_not_affect",
        "test_no_grad: tasks_are_not_affected_by_one_another",
        "test_no_grad: a_task_and_map_inherit_it",
    ],
    # Hooks
    "Tensor.register_hook: in order, may replace, a handle removes it": [
        "test_variable: hooks_run_in_order_and_may_replace",
        "test_variable: a_hook_on_a_non_leaf_sees_the_whole_gradient_before_it_goes_on",
        "test_variable: a_removed_hook_does_not_run",
        "test_variable: hooks_of_leaves_stay_and_those_of_non_leaves_go",
        "test_scale: a_hook_that_closes_over_its_variable_leaves_no_cycle_after_backward",
        "test_semantics: a_hook_that_raises_leaves_every_grad_as_it_was",
        "test_grad: hooks_run_and_what_they_return_is_the_gradient",
    ],
    "Module.register_forward_hook, register_forward_pre_hook; with_kwargs": [
        "test_nn: a_hook_with_kwargs_sees_and_replaces_named_inputs",
        "test_nn: hooks_see_and_replace_and_go_away",
        "test_nn: a_hook_may_remove_itself",
    ],
    # The graph
    "retain_graph: a second backward through a freed graph raises": [
        "test_variable: a_second_backward_raises_unless_the_graph_was_retained",
        "test_variable: a_part_of_the_graph_that_another_loss_freed_raises",
        "test_grad: the_graph_is_freed_unless_it_is_retained",
        "test_rules: a_failure_keeps_the_graph_for_another_try",
    ],
    "Tensor._version: any use counts, where torch counts saved tensors only": [
        "test_variable: modified_after_it_was_used_names_the_parameter_and_both_places",
        "test_variable: assigning_the_same_text_is_a_modification_too",
        "test_variable: a_modified_constant_counts",
        "test_nn: loading_counts_as_a_modification",
        "test_semantics: a_step_between_forward_and_backward_raises",
        "test_grad: modified_after_it_was_used_raises_where_it_matters",
    ],
    "torch.autograd.Function: ctx.save_for_backward (read as ctx.saved), needs_input_grad": [
        "test_function: forward_and_backward_share_a_context",
        "test_function: each_call_has_its_own_context",
        "test_function: needs_input_grad",
        "test_function: retain_graph_keeps_what_was_saved",
    ],
    "torch.func.functional_call; but arguments follow as in a call, not in a tuple and a dict": [
        "test_nn: functional_call_reads_other_texts_and_touches_nothing",
        "test_nn: functional_call_gives_the_gradient_to_the_variable_it_was_given",
    ],
    # Checks
    "torch.autograd.detect_anomaly": [
        "test_anomaly: a_reply_that_cannot_be_used_tells_the_whole_story",
        "test_anomaly: an_empty_gradient_raises",
        "test_anomaly: not_a_number",
        "test_anomaly: it_is_local_to_the_context_nests_and_decorates",
    ],
    "torch.autograd.gradcheck, and for rules testing.check_rule": [
        "test_check_rule: right_rules_pass",
        "test_check_rule: wrong_rules_fail_and_are_told_what_is_wrong",
    ],
}


@pytest.mark.parametrize("what", INDEX)
def test_the_index_names_tests_that_exist(what: str) -> None:
    for entry in INDEX[what]:
        file, name = entry.split(": ")
        tree = ast.parse((HERE / f"{file}.py").read_text("utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert f"test_{name}" in names, f"{file}.py has no test_{name}"


def leaf(text: str = "x", name: str | None = None) -> ta.TextVariable:
    return ta.TextVariable(text, requires_grad=True, name=name)


def test_an_optimizers_zero_grad_sets_to_none() -> None:
    """`Optimizer.zero_grad(set_to_none=True)`, torch's default."""
    module = nn.Sequential(nn.LLM("a"), nn.LLM("b"))
    first, second = module.parameters()
    optimizer = optim.SGD(module.parameters(), engine=Scripted(lambda request: ""))
    (first + second).backward("f")
    optimizer.zero_grad()
    assert first.grad is None and second.grad is None


def test_a_retained_grad_is_what_the_hooks_left_and_accumulates() -> None:
    """`Tensor.retain_grad` comes last, whenever a hook was registered."""
    x = leaf()
    y = x + "!"
    y.retain_grad()
    y.register_hook(lambda gradient: f"hooked {gradient}")
    z = y + "?"
    z.backward("one", retain_graph=True)
    z.backward("two")
    assert [f.text for f in y.grad or []] == ["hooked one", "hooked two"]
    assert y.grad == x.grad


def test_a_hook_that_raises_leaves_every_grad_as_it_was() -> None:
    """Stricter than torch, where leaves that were reached before keep theirs."""
    first, last = leaf("first"), leaf("last")

    def hook(gradient: Any) -> Any:
        raise ZeroDivisionError("mine")

    last.register_hook(hook)
    y = first + last
    with pytest.raises(ZeroDivisionError, match="mine"):
        y.backward("f")
    assert first.grad is last.grad is None
    (first + "!").backward("f")
    assert first.grad is not None


def test_a_step_between_forward_and_backward_raises() -> None:
    """`optimizer.step()` modifies in place, so an older graph is out of date."""
    engine = Scripted(
        lambda r: "<prompt>Do better.</prompt>" if r.purpose == "optimize" else playing(agreeing)(r)
    )
    agent = Agent().to(engine)
    optimizer = optim.SGD(agent.parameters(), engine=engine)
    older, loss = wrong_answer(agent, "older?"), wrong_answer(agent)
    loss.backward()
    assert optimizer.step().accepted
    before = [p.grad for p in agent.parameters()]
    with pytest.raises(GraphError, match=r"'solve\.instruction' was modified after it was used"):
        older.backward()
    assert [p.grad for p in agent.parameters()] == before
