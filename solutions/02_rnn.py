# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2 · Recurrent networks
#
# What it takes: about 90 minutes, 16 points. Read first: chapter 2 of the book, at least up to
# “Clipping the gradient”.
#
# A counting model forgets everything beyond its last few characters, and what it learned after
# *the king* tells it nothing about *the queen*. Here you build the first model that carries a
# state of its own along the text: the cell, the loop, the backward pass through time by hand, the
# clipping that keeps it from blowing up, and a language model made of them. At the end it writes.
#
# Below each part stands a check. It answers at once; run it as often as you like.

# %% setup=true
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from autograder.checks import rnn as checks
from autograder.engine.notebook import points_so_far, ready
from rnn2gpt.data import CharTokenizer, get_batch, load_text, split
from rnn2gpt.metrics import cross_entropy

# %% [markdown]
# ## 2.1 `rnn_cell` (2 points, 10 minutes)
#
# One step of the network. B rows (the texts of a batch) are handled side by side, and each has its
# own state. Everything else in this chapter repeats this line, so it is worth getting the sides of
# the products right. Book: “One cell, used again and again”.
#
# <!-- hints: rnn_cell -->


# %% answer="rnn_cell"
def rnn_cell(x: Tensor, h: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    """The next state: tanh of what the input, the last state and the bias add up to.

    x: (B, I), the input of this step; h: (B, H), the state before it; W_xh: (I, H); W_hh: (H, H);
    b: (H,). Returns the new state, (B, H), in the inputs' dtype and on their device.

    Example, B = I = H = 1: x = 1, h = 0.5, W_xh = 0.6, W_hh = 0.8, b = −0.2 gives
    tanh(0.6 + 0.4 − 0.2) = tanh(0.8) = 0.664.
    """
    ### BEGIN SOLUTION
    return torch.tanh(x @ W_xh + h @ W_hh + b)
    ### END SOLUTION


# %% check="rnn_cell"
checks.rnn_cell.check(rnn_cell)

# %% [markdown]
# What a state remembers. The network below is struck once, by one input, and then left alone: its
# input is zero for 40 steps. Three recurrent matrices differ in one factor only.

# %%
if ready(checks.rnn_cell):
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    H = 64
    fig, ax = plt.subplots(figsize=(6, 3))
    for factor in (0.7, 1.0, 1.4):
        W_hh = factor * torch.linalg.qr(torch.randn(H, H)).Q  # stretches every state by `factor`
        h, lengths = 0.1 * torch.randn(1, H), []
        for _ in range(40):
            lengths.append(h.norm().item())
            h = rnn_cell(torch.zeros(1, 1), h, torch.zeros(1, H), W_hh, torch.zeros(H))
        ax.plot(lengths, label=f"W_hh stretches by {factor}")
    ax.set(xlabel="steps since the input", ylabel="length of the state", yscale="log")
    ax.legend()
    plt.show()

# %% [markdown]
# ## 2.2 `rnn_forward` (2 points, 10 minutes)
#
# The cell along a text: T steps, each from the state that the step before left behind. You may
# call your `rnn_cell`. Book: “Unrolled through time”.
#
# <!-- hints: rnn_forward -->


# %% answer="rnn_forward"
def rnn_forward(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    """The states after each of T steps.

    x: (B, T, I), the inputs, T ≥ 1; h0: (B, H), the state before the first; weights as in
    `rnn_cell`. Returns hs: (B, T, H), where hs[:, t] is the state after reading x[:, t]; h0 is not
    among them. Gradients flow through all of it.

    Example, B = I = H = 1, W_xh = 0.6, W_hh = 0.8, b = −0.2: from h0 = 0 the inputs 1, 0 give
    tanh(0.4) = 0.380 and then tanh(0.8 · 0.380 − 0.2) = 0.104.
    """
    ### BEGIN SOLUTION
    h, states = h0, []
    for t in range(x.shape[1]):
        h = rnn_cell(x[:, t], h, W_xh, W_hh, b)
        states.append(h)
    return torch.stack(states, dim=1)  # T of (B, H) → (B, T, H)
    ### END SOLUTION


# %% check="rnn_forward"
checks.rnn_forward.check(rnn_forward)

# %% [markdown]
# Two lines of text that differ in their first letter only. How long can the states of an untrained
# network tell them apart?

# %%
if ready(checks.rnn_forward):
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    lines = ["Now is the winter of our discontent", "How is the winter of our discontent"]
    alphabet = CharTokenizer("".join(lines))
    one_hot = torch.eye(alphabet.vocab_size)[torch.stack([alphabet.encode(s) for s in lines])]
    n_in, H = alphabet.vocab_size, 64
    weights = torch.randn(n_in, H) / n_in**0.5, torch.randn(H, H) / H**0.5, torch.zeros(H)
    hs = rnn_forward(one_hot, torch.zeros(2, H), *weights)  # (2, T, H)
    apart = (hs[0] - hs[1]).norm(dim=-1)  # (T,)
    plt.figure(figsize=(6, 3))
    plt.semilogy(apart)
    plt.xticks(range(len(lines[0])), list(lines[0]))
    plt.ylabel("distance of the two states")
    plt.show()

# %% [markdown]
# ## 2.3 `rnn_backward` (4 points, 25 minutes)
#
# Backpropagation through time, by hand: no autograd. This is the one part of the chapter that
# explains all its troubles, because you write the line that multiplies the gradient by the same
# matrix again and again. Book: “Backpropagation through time”.
#
# <!-- hints: rnn_backward -->


# %% answer="rnn_backward"
def rnn_backward(
    dhs: Tensor, x: Tensor, hs: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a loss for everything that went into `rnn_forward`.

    dhs: (B, T, H), the gradient that the loss sends to each state directly (what reaches a state
    through later states is for you to add); x: (B, T, I), hs: (B, T, H), h0: (B, H) as they were
    going forward; W_xh: (I, H); W_hh: (H, H). The bias is not needed: its effect is in hs.

    Returns dx: (B, T, I), dh0: (B, H), dW_xh: (I, H), dW_hh: (H, H), db: (H,), in this order.

    Example, B = T = I = H = 1: with x = 1, h0 = 0.5, hs = 0.6, W_xh = 0.6, W_hh = 0.8 and dhs = 1,
    the gradient before tanh is 1 − 0.6² = 0.64, so dx = 0.384, dh0 = 0.512, dW_xh = 0.64,
    dW_hh = 0.32, db = 0.64.
    """
    ### BEGIN SOLUTION
    dx, dh = torch.zeros_like(x), torch.zeros_like(h0)
    dW_xh, dW_hh, db = torch.zeros_like(W_xh), torch.zeros_like(W_hh), torch.zeros_like(W_hh[0])
    for t in reversed(range(x.shape[1])):
        before = hs[:, t - 1] if t > 0 else h0  # (B, H)
        da = (dhs[:, t] + dh) * (1 - hs[:, t] ** 2)  # (B, H): the gradient before tanh
        dx[:, t] = da @ W_xh.T
        dW_xh += x[:, t].T @ da  # (I, B) @ (B, H)
        dW_hh += before.T @ da
        db += da.sum(dim=0)
        dh = da @ W_hh.T  # what this step sends to the state before it
    return dx, dh, dW_xh, dW_hh, db
    ### END SOLUTION


# %% check="rnn_backward"
checks.rnn_backward.check(rnn_backward)

# %% [markdown]
# Your own backward pass shows where learning stops. The loss below asks about the last of 60
# states only; the picture shows how much gradient reaches the input of each step before it, for
# weights of three sizes.

# %%
if ready(checks.rnn_forward, checks.rnn_backward):
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    T, H = 60, 64
    plt.figure(figsize=(6, 3))
    for factor in (0.5, 1.0, 2.0):
        x, h0 = 0.1 * torch.randn(1, T, 8), torch.zeros(1, H)
        W_xh, W_hh = torch.randn(8, H) / 8**0.5, factor * torch.randn(H, H) / H**0.5
        hs = rnn_forward(x, h0, W_xh, W_hh, torch.zeros(H))
        dhs = torch.zeros_like(hs)
        dhs[:, -1] = torch.randn(1, H)
        dx = rnn_backward(dhs, x, hs, h0, W_xh, W_hh)[0]  # (1, T, 8)
        lags = torch.arange(T - 1, -1, -1)
        plt.semilogy(lags, dx[0].norm(dim=-1), label=f"W_hh times {factor}")
    plt.xlabel("steps between input and loss")
    plt.ylabel("length of the gradient")
    plt.legend()
    plt.show()

# %% [markdown]
# ## 2.4 `clip_grad_norm_` (3 points, 15 minutes)
#
# When the factors above multiply up instead of down, one step can throw the weights far away.
# Clipping bounds the step and keeps its direction. Book: “Clipping the gradient”.
#
# <!-- hints: clip_grad_norm_ -->


# %% answer="clip_grad_norm_"
def clip_grad_norm_(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor | float:
    """Scale the gradients of all parameters, in place, so that their joint norm is ≤ max_norm.

    parameters: an iterable of `nn.Parameter`, maybe a generator that can be read only once; some
    may have `.grad` None, and those are passed over. max_norm: a positive float.

    The joint norm is the length of all gradients written into one long vector. If it is larger
    than max_norm, every gradient is multiplied by the same factor; otherwise nothing changes.
    Returns the joint norm as it was before (0 if there is no gradient), a float or a 0-dim tensor.

    Example: gradients [3] and [4] have joint norm 5. With max_norm = 1 they become [0.6] and
    [0.8], and 5 is returned. With max_norm = 10 they stay.
    """
    ### BEGIN SOLUTION
    gradients = [p.grad for p in parameters if p.grad is not None]
    total = sum((g**2).sum() for g in gradients) ** 0.5
    if total > max_norm:
        for g in gradients:
            g *= max_norm / total
    return total
    ### END SOLUTION


# %% check="clip_grad_norm_"
checks.clip_grad_norm_.check(clip_grad_norm_)

# %% [markdown]
# ## 2.5 `CharRNN` (3 points, 15 minutes)
#
# The language model: an embedding turns each id into a vector, the recurrence carries a state
# along, a linear head turns every state into scores for the next character. Build the recurrence
# from your `rnn_forward` and parameters of your own, or, if that part is still red, from
# `nn.RNN(..., batch_first=True)`. Start W_hh small enough: entries of size 1/√D are a good choice.
# Book: “A language model with a state”.
#
# <!-- hints: CharRNN -->


# %% answer="CharRNN"
class CharRNN(nn.Module):
    """A recurrent language model over V characters, with embeddings and states of width D.

    CharRNN(vocab_size, d_model): V = vocab_size, D = d_model.

    forward(ids, h=None) -> logits, h
        ids: (B, T) int64; h: (B, D), the state to go on from, zeros if None.
        Returns logits: (B, T, V), where logits[:, t] scores the character after ids[:, t] (no
        softmax), and the state after the last character, (B, D). Nothing is remembered between
        calls except through h, and nothing is detached.

    Example: CharRNN(65, 32)(torch.zeros(4, 10, dtype=torch.int64)) returns shapes (4, 10, 65) and
    (4, 32).
    """

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.W_xh = nn.Parameter(torch.randn(d_model, d_model) / d_model**0.5)
        self.W_hh = nn.Parameter(torch.randn(d_model, d_model) / d_model**0.5)
        self.b = nn.Parameter(torch.zeros(d_model))
        self.head = nn.Linear(d_model, vocab_size)
        ### END SOLUTION

    def forward(self, ids: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        ### BEGIN SOLUTION
        x = self.embedding(ids)  # (B, T) → (B, T, D)
        h = torch.zeros_like(x[:, 0]) if h is None else h  # (B, D)
        hs = rnn_forward(x, h, self.W_xh, self.W_hh, self.b)  # (B, T, D)
        return self.head(hs), hs[:, -1]
        ### END SOLUTION


# %% check="CharRNN"
checks.CharRNN.check(CharRNN)

# %% [markdown]
# Now your parts work together. The next cell trains your model on nine of Shakespeare's plays for
# half a minute, clips with your function, and lets the model write: one character at a time, with
# the state handed from call to call.

# %%
BLOCK, STEPS, MAX_NORM = 64, 400, 1.0


def train(block_size, n_steps, max_norm):
    """Train a fresh model on windows of `block_size` characters; 2,048 characters a step."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = CharRNN(tokenizer.vocab_size, 128)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for step in range(n_steps):
        x, y = get_batch(train_ids, block_size, 2048 // block_size, generator)
        loss = cross_entropy(model(x)[0].flatten(0, 1), y.flatten())  # (B T, V) against (B T,)
        optimizer.zero_grad()
        loss.backward()
        norm = clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step:3d}  loss {loss:.3f} nats  gradient norm {norm:.2f}")
    return model


@torch.no_grad()
def held_out_loss(model, n=40_000):
    """Nats per character on held-out text, read in 20 strands from their beginning to their end."""
    strands = held_out[: n + 20].unfold(0, n // 20 + 1, n // 20)  # (20, n / 20 + 1)
    logits, _ = model(strands[:, :-1])
    return cross_entropy(logits.flatten(0, 1), strands[:, 1:].flatten()).item()


@torch.no_grad()
def write(model, prompt, n_characters):
    """Continue the prompt, each character drawn from the model's distribution."""
    generator = torch.Generator().manual_seed(0)
    logits, h = model(tokenizer.encode(prompt)[None])
    written = prompt
    for _ in range(n_characters):
        p = logits[:, -1].softmax(dim=-1)  # (1, V)
        token = torch.multinomial(p, 1, generator=generator)  # (1, 1)
        written += tokenizer.decode(token[0])
        logits, h = model(token, h)
    return written


if ready(checks.CharRNN, checks.clip_grad_norm_):
    text = load_text("nine-plays")
    tokenizer = CharTokenizer(text)
    train_ids, held_out = split(tokenizer.encode(text))
    model = train(BLOCK, STEPS, MAX_NORM)
    print(f"held-out loss {held_out_loss(model):.3f} nats per character\n")
    print(write(model, "KING RICHARD:\n", 400))

# %% [markdown]
# ## 2.6 How far back must the gradient go? (2 points, 15 minutes)
#
# The model above was trained on windows of 64 characters, so its gradient went back at most 64
# steps. Predict what happens to the held-out loss when the windows are 4 characters long and when
# they are 16, with the same number of characters a step. Then measure: `held_out_loss(train(4,
# STEPS, MAX_NORM))` and so on, in a cell of your own. Note that the held-out text is read in long
# strands in every case.

# %% [markdown] written="written_02" points=2
# Write down your prediction, the three numbers, and two sentences that explain them.
#
# ### BEGIN SOLUTION
# Measured (other machines differ in the third digit): 1.956 nats per character with windows of 4,
# 1.887 with 16, 1.873 with 64. Four steps are too few: words are longer, and a model that has only
# ever started from zeros never learned what to do with a state that has been running for long. But
# four times the way from 16 to 64 buys almost nothing, because the gradient is gone after some ten
# steps, whether one cuts it there or not. A good answer names a prediction and says where it was
# wrong; full points need the three numbers and a reason that fits them.
# ### END SOLUTION

# %%
print(points_so_far(*checks.ASSIGNMENT.exercises))
