# %% [markdown]
# # Numbers on the same tape
#
# Semantic backpropagation is said to generalise the backpropagation that trains neural networks.
# Here you can see what that means: the very walk that carries words from a loss to an instruction
# carries numbers from a loss to a weight. Only the rule of each step differs. No model is needed.

# %%
import numpy as np

import textautograd as ta
from textautograd import numeric as tn
from textautograd.tape import Walk
from textautograd.testing import gradcheck

# %% [markdown]
# First the walk, by hand. It hands out each variable once its gradient is complete, that is, once
# everything made from it is done. We ask the operation that made the variable for one gradient per
# predecessor, and give them back. The walk adds up what several successors send.


# %%
def backpropagate(root, seed):
    gradients = {}
    walk = Walk([(root, seed)])
    while walk.is_active():
        for variable, gradient in walk.ready():
            gradients[variable] = gradient
            made_by = variable.grad_fn
            pulled = made_by.operation.backward(made_by, gradient) if made_by else ()
            walk.done(variable, pulled)
    return gradients


# %% [markdown]
# Nothing in there knows what a gradient is. With words, feedback on a joined text is feedback on
# each of its parts, and `+` puts one after the other:

# %%
hint = ta.TextVariable("Count the apples. ", requires_grad=True)
question = ta.TextVariable("How many are left? ", requires_grad=True)
prompt = hint + question + hint
by_word = backpropagate(prompt, ta.Gradient(["Be brief."]))
print(by_word[hint])
assert len(by_word[hint]) == 2 and len(by_word[question]) == 1

# %% [markdown]
# With numbers, a gradient is a derivative, an operation has a *vector-Jacobian product* for each of
# its inputs, and `+` is addition. The same function, and the same shape of graph:

# %%
a = tn.array(3.0, requires_grad=True)
b = tn.array(4.0, requires_grad=True)
product = a * b * a
by_number = backpropagate(product, 1.0)
print(by_number[a], by_number[b])
assert by_number[a] == 2 * 3 * 4 and by_number[b] == 3 * 3

# %% [markdown]
# The derivative by `b` is 9, and that number comes from `a`: how a variable should change depends
# on its *neighbours*, the other inputs of the same step. A rule that looks at each input alone
# could not know. With words it is just so, which is why `ta.rules.semantic` shows a model all the
# inputs of a step at once.
#
# `backward` is this walk, with `.grad` where you expect it.

# %%
(a * b * a).backward()
print(a.grad, b.grad)
assert a.grad == by_number[a] and b.grad == by_number[b]

# %% [markdown]
# ## A network
#
# That is enough to train one. The data: points in a square, of which those in a circle are marked
# 1 and the others -1. The operations are numpy's, with numpy's broadcasting.

# %%
rng = np.random.default_rng(0)
points = rng.uniform(-1, 1, size=(100, 2))
marks = np.where((points**2).sum(axis=1) < 0.5, 1.0, -1.0)


class MLP:
    """Two layers; the second gives one number, the score."""

    def __init__(self, rng, hidden=16):
        self.w1 = tn.array(rng.normal(size=(2, hidden)), requires_grad=True)
        self.b1 = tn.array(rng.normal(size=hidden), requires_grad=True)
        self.w2 = tn.array(rng.normal(size=hidden) / 4, requires_grad=True)
        self.b2 = tn.array(0.0, requires_grad=True)

    def parameters(self):
        return [self.w1, self.b1, self.w2, self.b2]

    def __call__(self, x):
        return tn.tanh(x @ self.w1 + self.b1) @ self.w2 + self.b2


class SGD:
    """Gradient descent with momentum: where a text is rewritten, a number is moved."""

    def __init__(self, params, lr, momentum=0.9):
        self.params, self.lr, self.momentum = list(params), lr, momentum
        self.velocities = [np.zeros(p.shape) for p in self.params]

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    def step(self):
        for p, v in zip(self.params, self.velocities, strict=True):
            v *= self.momentum
            v += p.grad
            p.data = p.data - self.lr * v


# %% [markdown]
# The loop is the one that trains an agent: forward, `zero_grad`, `backward`, `step`. The loss is
# small where mark and score have the same sign (the logistic loss).

# %%
model = MLP(np.random.default_rng(1))
optimizer = SGD(model.parameters(), lr=0.2)
losses = []
for _ in range(300):
    loss = tn.mean(tn.log(1 + tn.exp(-marks * model(points))))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

with ta.no_grad():
    accuracy = np.mean((model(points).data > 0) == (marks > 0))
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, {accuracy:.0%} of the points are right")
assert losses[-1] < losses[0] / 3 and accuracy > 0.9

# %% [markdown]
# ## A step of your own
#
# For words you would write a `ta.Function`. For numbers, give a function of numpy arrays and, for
# each of its inputs, what it makes of the gradient `g` of its output. `gradcheck` compares that
# with what happens when each input is moved a little, so a mistake does not stay hidden.

# %%
softplus = tn.primitive(
    lambda x: np.logaddexp(0, x), lambda g, out, x: g / (1 + np.exp(-x)), name="softplus"
)
x = tn.array([-1.0, 0.5, 2.0], requires_grad=True)
assert gradcheck(softplus, x)

wrong = tn.primitive(lambda x: x**3, lambda g, out, x: g * x**2, name="cube")
try:
    gradcheck(wrong, x)
except ta.Error as error:
    print(error)
    assert "backward says 1, central differences 3" in str(error)
else:
    raise AssertionError("a wrong derivative was not found")
