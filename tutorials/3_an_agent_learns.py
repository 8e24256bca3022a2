# %% [markdown]
# # An agent learns
#
# The first tutorial walked a tape of texts. Here the operations are calls of models, what learns
# are their instructions, and the loop is PyTorch's: forward, backward, step. A `Scripted` engine
# plays all models, so it costs nothing; with `.to("openai/gpt-4o-mini")` the same code calls one.

# %%
import json

import textautograd as ta
from textautograd import engines, nn, optim


class Agent(nn.Module):
    def __init__(self):
        self.hint = nn.LLM("Give a hint.")
        self.solve = nn.LLM("Answer the question.")

    def forward(self, question):
        return self.solve(question=question, hint=self.hint(question=question))


def model(request):
    """Answers in a sentence, until its instruction asks for one word."""
    if request.schema:  # a gradient or a rewrite: a JSON object with a text for each name
        text = "Say it in one word." if request.purpose == "backward" else "Answer in one word."
        return json.dumps({name: text for name in request.schema["properties"]})
    capitals = {"Peru": "Lima", "Chile": "Santiago", "Cuba": "Havana"}
    asked = request.messages[1]["content"]
    answer = next(capital for country, capital in capitals.items() if country in asked)
    return answer if "one word" in request.messages[0]["content"] else f"It is {answer}, I think."


scripted = engines.Scripted(model)
agent = Agent().to(scripted)
print(agent)

# %% [markdown]
# A call records a node and returns at once; reading a value waits for it. The loss is a variable
# too: its number is `.item()`, its text what it says of the output.

# %%
loss_fn = nn.ExactMatchLoss()
loss = loss_fn(agent("What is the capital of Peru?"), "Lima")
print(repr(loss))
assert loss.item() == 1.0

# %% [markdown]
# `backward` walks from the loss to the instructions. At a model's call it asks *one* question about
# all inputs together: how should each have been different? An instruction needs no call: its
# gradient is what happened there, the inputs, the output and the feedback.

# %%
loss.backward()
backward = [call for call in scripted.calls if call.purpose == "backward"]
print(backward[0].messages[1]["content"])
print(agent.hint.instruction.grad)
assert len(backward) == 1  # for the hint; of the question no gradient is wanted
assert [feedback.text for feedback in agent.hint.instruction.grad] == ["Say it in one word."]

# %% [markdown]
# `step` writes better instructions from that evidence. Without a closure it keeps what it writes.
# With one it evaluates the old instructions and each candidate on questions that the gradients have
# not seen, and keeps the best only if its loss is lower: a gate.

# %%
val = [("What is the capital of Chile?", "Santiago"), ("What is the capital of Cuba?", "Havana")]


def closure():
    return ta.mean([loss_fn(agent(question), answer) for question, answer in val])


optimizer = optim.SGD(agent.parameters(), engine=scripted)
result = optimizer.step(closure)
print(result)
assert result.accepted and (result.before, result.after) == (1.0, 0.0)
assert agent("What is the capital of Peru?").data == "Lima"

# %% [markdown]
# Now nothing is wrong, a loss of 0 sends no gradient back, and there is nothing to rewrite.

# %%
optimizer.zero_grad()
ta.mean([loss_fn(agent(question), answer) for question, answer in val]).backward()
result = optimizer.step(closure)
print(result)
assert not result and result.why == "no gradient"

# %% [markdown]
# What was learnt is text, and so is the state. `ta.fit` is this loop with batches, checkpoints, a
# cache and a budget.

# %%
print(json.dumps(agent.state_dict(), indent=1))
