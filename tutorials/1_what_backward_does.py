# %% [markdown]
# # What `backward` does
#
# You know how PyTorch differentiates numbers: it records operations on a tape, then walks the tape
# back from the loss. Here the values are texts, and a gradient is a sentence: how should this text
# change? This tutorial needs no model at all, so you can see the walk itself.

# %%
import textautograd as ta

greeting = ta.TextVariable("Hello", requires_grad=True, name="greeting")
name = ta.TextVariable("World", requires_grad=True, name="name")
text = greeting + ", " + name
print(repr(text))

# %% [markdown]
# `text` was computed by a recorded operation, its `grad_fn`. A loss knows by itself what is wrong;
# any other text needs a seed that says how it should change.

# %%
text.backward("Make it French.")
print(greeting.grad)
print(name.grad)
assert str(greeting.grad) == str(name.grad) == "Make it French."

# %% [markdown]
# Joining texts is an *exact* operation: feedback on the whole is feedback on each part. Gradients
# add up over several passes, until `zero_grad`, and a part that is used twice hears it twice.

# %%
greeting.grad = None
(greeting + greeting).backward("Shorter.")
assert len(greeting.grad) == 2

# %% [markdown]
# An operation of your own says how a gradient passes through it, as `torch.autograd.Function` does.
# One gradient per input: here the feedback is translated into what it means for the input.


# %%
class Shout(ta.Function):
    @staticmethod
    def forward(ctx, text):
        ctx.save_for_backward(text)
        return text.upper()

    @staticmethod
    def backward(ctx, grad):
        (text,) = ctx.saved
        return f"Of {text!r}, once in capitals, it was said: {grad}"


word = ta.TextVariable("quiet", requires_grad=True)
Shout.apply(word).backward("Too loud.")
print(word.grad)
assert "quiet" in str(word.grad)

# %% [markdown]
# Most steps of an agent are *opaque*: a model's call has no derivative. There backward follows a
# rule, which sees the whole step (all inputs, the output, the feedback) and returns one gradient
# per predecessor. The predecessors that share a successor are one group: that is the point of
# semantic backpropagation. `ta.rules.semantic` asks a model; a rule can also be a plain function.


# %%
def add(a, b):
    """Adds two numbers."""
    return str(int(a) + int(b))


def rule(node, gradient, engine):
    a, b = map(int, node.inputs)
    return [None, f"It should be {int(str(gradient)) - a}, not {b}."]


a = ta.TextVariable("2", requires_grad=True)
b = ta.TextVariable("3", requires_grad=True)
ta.call_tool(add, a=a, b=b).backward("7", rule=rule)
print(a.grad, "|", b.grad)
assert a.grad is None and str(b.grad) == "It should be 5, not 3."

# %% [markdown]
# ## Why a rule must see the neighbours
#
# `ta.rules.blind(rule)` makes of such a rule one that sees a single predecessor at a time: its
# value, the output, the gradient, and nothing else. Take z = x * y at x = 0. The derivative of z by
# x is y. But a blind rule is shown x = 0 and z = 0 for *every* y, so whatever it answers is wrong
# for all of them but one. The joint rule reads y off the neighbour.


# %%
def multiply(x, y):
    """Multiplies two numbers."""
    return str(int(x) * int(y))


def derivative(node, gradient, engine):
    x, y = map(int, node.inputs)
    return [str(int(str(gradient)) * y), str(int(str(gradient)) * x)]


shown = []


def whatever(node, gradient, engine):
    shown.append((node.operation.names, node.inputs, node.output, str(gradient)))
    return ["up"]


for y in ("1", "2"):
    x = ta.TextVariable("0", requires_grad=True)
    z = ta.call_tool(multiply, x=x, y=y)
    z.backward("1", rule=derivative, retain_graph=True)
    assert str(x.grad) == y
    z.backward("1", rule=ta.rules.blind(whatever))
print(shown)
assert shown[0] == shown[1]

# %% [markdown]
# This is about strict blindness, which is TextGrad's equation. TextGrad's own prompts show the
# whole conversation in each of their calls, so the texts of siblings are often visible to it; what
# it lacks is joint attribution, and siblings as variables that could be asked to change instead.
# For a fair comparison take `ta.rules.textgrad`, which does as they do. A rule of your own can be
# checked: `textautograd.testing.check_rule(rule)`.
#
# ## Gradients without `.grad`
#
# `ta.grad(outputs, inputs)` returns gradients and leaves every `.grad` alone, as
# `torch.autograd.grad` does. Only what lies between is walked, so no model is asked about the rest.

# %%
draft = greeting + "!"
print(ta.grad(draft + "?", draft, "Calm down."))
assert len(greeting.grad) == 2

# %% [markdown]
# ## Losses
#
# A loss has a number. Where it is 0 there is nothing to say, so a right answer sends nothing back
# and costs no call.

# %%
right, wrong = (ta.TextVariable(t, requires_grad=True) for t in ("Paris", "Lyon"))
loss_fn = ta.nn.ExactMatchLoss()
loss = ta.mean([loss_fn(right, "Paris"), loss_fn(wrong, "Paris")])
loss.backward()
print(loss.item(), right.grad, wrong.grad)
assert loss.item() == 0.5 and right.grad is None

# %% [markdown]
# Next: tutorial 2 shows the same walk carry numbers; `textautograd demo` trains an agent on a real
# model, in this process.
