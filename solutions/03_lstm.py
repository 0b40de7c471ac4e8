# %% [markdown]
# # 3 · LSTM and GRU
#
# What it takes: about 75 minutes, 15 points. Read first: chapter 3 up to “Sampling text”.
#
# Why it is worth building: in chapter 2 you measured a gradient that was gone after a few tens of
# characters. The cell you write here has a path on which it survives, and by the end of the
# notebook a network of yours, trained on the plays in half a minute, writes lines of its own.

# %% setup=true
import torch
from torch import nn

from autograder.checks import lstm as checks
from autograder.engine.notebook import points_so_far, ready

# %% [markdown]
# ## 3.1 `lstm_cell` (3 points, 15 minutes)
#
# One step of the LSTM. Read “The additive path” and “Three gates” first.
#
# The affine map gives 4H numbers a row: four blocks of H, in the order **i, f, g, o**.
#
# $$i, f, o = \sigma(\cdot), \quad g = \tanh(\cdot), \qquad
# c' = f \odot c + i \odot g, \qquad h' = o \odot \tanh(c')$$
#
# Why it is worth building: everything that this chapter gains is in the plus sign of c′.
#
# <!-- hints: lstm_cell -->


# %% answer="lstm_cell"
def lstm_cell(x, state, W_ih, W_hh, b_ih, b_hh):
    """One LSTM step.

    x: (B, I). state: the tuple (h, c), each (B, H). W_ih: (4H, I). W_hh: (4H, H).
    b_ih, b_hh: (4H,), both are added. The 4H rows are the gates i, f, g, o, H rows each.
    Returns the tuple (h, c), each (B, H), and leaves its inputs alone.

    Example with B = I = H = 1, every weight and bias 0, h = 0 and c = 2: the gates i, f, o are
    σ(0) = 0.5 and g is 0, so the new c is 0.5 · 2 + 0.5 · 0 = 1 and the new h is
    0.5 · tanh(1) = 0.3808.
    """
    ### BEGIN SOLUTION
    h, c = state
    affine = x @ W_ih.T + b_ih + h @ W_hh.T + b_hh  # (B, 4H)
    i, f, g, o = affine.chunk(4, dim=1)  # each (B, H)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c
    ### END SOLUTION


# %% check="lstm_cell"
checks.lstm_cell.check(lstm_cell)

# %% [markdown]
# What the forget gate does: one unit is told to hold the number 1, and nothing is written to it
# afterwards. The bias of its forget gate alone decides how long the number lasts.

# %%
if ready(checks.lstm_cell):
    import matplotlib.pyplot as plt

    for bias in (0.0, 1.0, 3.0, 5.0):
        b = torch.tensor([-20.0, bias, 0.0, 0.0])  # i shut, f as given
        W, state, cells = torch.zeros(4, 1), (torch.zeros(1, 1), torch.ones(1, 1)), []
        for _ in range(60):
            state = lstm_cell(torch.zeros(1, 1), state, W, W, b, torch.zeros(4))
            cells.append(state[1].item())
        plt.plot(range(1, 61), cells, label=f"bias {bias:g}")
    plt.xlabel("steps since the number was written")
    plt.ylabel("what is left of it")
    plt.legend()
    plt.show()

# %% [markdown]
# ## 3.2 `gru_cell` (2 points, 10 minutes)
#
# One step of the GRU, as PyTorch computes it. Read “The GRU: two gates, one state” first. The
# blocks of rows stand in the order **r, z, n**.
#
# $$r, z = \sigma(\cdot), \qquad
# n = \tanh\big(W_{in}x + b_{in} + r \odot (W_{hn}h + b_{hn})\big), \qquad
# h' = (1 - z) \odot n + z \odot h$$
#
# Why it is worth building: three quarters of the LSTM's weights, and the same additive idea.
#
# <!-- hints: gru_cell -->


# %% answer="gru_cell"
def gru_cell(x, h, W_ih, W_hh, b_ih, b_hh):
    """One GRU step.

    x: (B, I). h: (B, H). W_ih: (3H, I). W_hh: (3H, H). b_ih, b_hh: (3H,).
    The 3H rows are the gates r, z, n, H rows each. r scales the whole of W_hn h + b_hn.
    Returns the new h, (B, H), and leaves its inputs alone.

    Example with B = I = H = 1, every weight and bias 0 and h = 2: r and z are 0.5 and n is 0, so
    the new h is 0.5 · 0 + 0.5 · 2 = 1.
    """
    ### BEGIN SOLUTION
    x_r, x_z, x_n = (x @ W_ih.T + b_ih).chunk(3, dim=1)  # each (B, H)
    h_r, h_z, h_n = (h @ W_hh.T + b_hh).chunk(3, dim=1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (1 - z) * n + z * h
    ### END SOLUTION


# %% check="gru_cell"
checks.gru_cell.check(gru_cell)

# %% [markdown]
# The two cells side by side: how much of the first state is left after 30 steps of random input,
# seen through the gradient. Both have fresh random weights; only the bias of the gate that keeps
# differs.

# %%
if ready(checks.lstm_cell, checks.gru_cell):
    torch.manual_seed(0)
    size, steps = 32, 30

    def kept(cell, n_gates, keep, bias):
        """The size of d(last state)/d(first state), for a gate `keep` with this bias."""
        W_ih, W_hh = (torch.randn(n_gates * size, size) / size**0.5 for _ in range(2))
        b = torch.zeros(n_gates * size)
        b[keep * size : (keep + 1) * size] = bias
        first = torch.zeros(1, size, requires_grad=True)
        state = (torch.zeros(1, size), first) if n_gates == 4 else first
        for _ in range(steps):
            state = cell(torch.randn(1, size), state, W_ih, W_hh, b, torch.zeros_like(b))
        last = state[1] if n_gates == 4 else state
        return torch.autograd.grad(last.sum(), first)[0].norm().item()

    for bias in (0.0, 1.0, 3.0):
        lstm = kept(lstm_cell, 4, keep=1, bias=bias)  # gate f of i, f, g, o
        gru = kept(gru_cell, 3, keep=1, bias=bias)  # gate z of r, z, n
        print(f"bias {bias:g}: gradient over {steps} steps: LSTM's c {lstm:.1e}, GRU's h {gru:.1e}")

# %% [markdown]
# ## 3.3 `LSTM` (4 points, 20 minutes)
#
# The cell along time, and layers on top of each other. Read “Layers” first. Your parameters carry
# PyTorch's names, so that the weights of any `nn.LSTM` can be copied in.
#
# You may call your `lstm_cell` or, if it is not right yet, `torch.lstm_cell`, which takes the same
# arguments.
#
# <!-- hints: LSTM -->


# %% answer="LSTM"
class LSTM(nn.Module):
    """Stacked LSTM layers, batch first.

    Layer k (0, 1, …) holds the parameters weight_ih_l{k} (4H, I) for k = 0 and (4H, H) above,
    weight_hh_l{k} (4H, H), bias_ih_l{k} and bias_hh_l{k} (4H,). They start uniform in ±1/√H.

    Layer k + 1 reads the states h of layer k, after dropout in training mode. Nothing is dropped
    before the first layer or after the last, nor in evaluation mode.

    Example: LSTM(3, 7, num_layers=2)(x) with x of (2, 5, 3) gives an output of (2, 5, 7) and h and
    c of (2, 2, 7): layers first, then rows.
    """

    def __init__(self, input_size, hidden_size, num_layers=1, dropout=0.0):
        super().__init__()
        ### BEGIN SOLUTION
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.between = nn.Dropout(dropout)
        for k in range(num_layers):
            shapes = {
                "weight_ih": (4 * hidden_size, hidden_size if k else input_size),
                "weight_hh": (4 * hidden_size, hidden_size),
                "bias_ih": (4 * hidden_size,),
                "bias_hh": (4 * hidden_size,),
            }
            for name, shape in shapes.items():
                weight = (2 * torch.rand(shape) - 1) / hidden_size**0.5
                self.register_parameter(f"{name}_l{k}", nn.Parameter(weight))
        ### END SOLUTION

    def forward(self, x, state=None):
        """x: (B, T, I). state: None for zeros, or (h, c), each (layers, B, H).

        Returns output, (h, c): the last layer's states at all steps (B, T, H), and every layer's
        h and c after the last step, each (layers, B, H).
        """
        ### BEGIN SOLUTION
        if state is None:
            zeros = x.new_zeros(self.num_layers, x.shape[0], self.hidden_size)
            state = zeros, zeros
        names, ends = ("weight_ih", "weight_hh", "bias_ih", "bias_hh"), []
        for k in range(self.num_layers):
            weights = [getattr(self, f"{name}_l{k}") for name in names]
            here, outputs = (state[0][k], state[1][k]), []
            for t in range(x.shape[1]):
                here = lstm_cell(x[:, t], here, *weights)
                outputs.append(here[0])
            x = torch.stack(outputs, dim=1)  # T of (B, H) → (B, T, H)
            if k < self.num_layers - 1:
                x = self.between(x)
            ends.append(here)
        h, c = zip(*ends, strict=True)
        return x, (torch.stack(h), torch.stack(c))  # layers of (B, H) → (layers, B, H)
        ### END SOLUTION


# %% check="LSTM"
checks.LSTM.check(LSTM, lstm_cell=lstm_cell)

# %% [markdown]
# PyTorch's layer with your weights must give the same numbers. Which is faster, and by how much?

# %%
if ready(checks.LSTM):
    import time

    torch.manual_seed(0)
    mine, theirs = LSTM(64, 64, 2), nn.LSTM(64, 64, 2, batch_first=True)
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(16, 100, 64)
    for name, layer in (("yours", mine), ("PyTorch's", theirs)):
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            layer(x)[0].sum().backward()
            seconds.append(time.perf_counter() - start)
        print(f"{name:>10}: {1000 * min(seconds):4.0f} ms forward and back over 100 steps")
    print(f"largest difference: {(mine(x)[0] - theirs(x)[0]).abs().max().item():.1e}")

# %% [markdown]
# ## 3.4 `detach_state` (1 point, 5 minutes)
#
# Where the backward pass stops between two windows of a long text. Read “Training on a text longer
# than a window” first.
#
# <!-- hints: detach_state -->


# %% answer="detach_state"
def detach_state(state):
    """The same numbers, cut from the graph that made them.

    state: a tensor, a tuple of tensors (any number of them), or None. Returns the same kind: a
    tensor for a tensor, a tuple for a tuple, None for None.

    Example: detach_state((h, c)) is a tuple of two tensors equal to h and c, and neither of them
    requires a gradient.
    """
    ### BEGIN SOLUTION
    if state is None:
        return None
    if isinstance(state, tuple):
        return tuple(part.detach() for part in state)
    return state.detach()
    ### END SOLUTION


# %% check="detach_state"
checks.detach_state.check(detach_state)

# %% [markdown]
# Your layer between an embedding and a linear head is a language model. This cell trains it on the
# plays for 300 windows (some 15 seconds): 32 places of the text are read side by side, and each
# window goes on from the state in which the last one ended.

# %%
if ready(checks.LSTM, checks.detach_state):
    import matplotlib.pyplot as plt
    import torch.nn.functional as F

    from rnn2gpt.data import CharTokenizer, load_text

    text = load_text()
    tokenizer = CharTokenizer(text)
    ids = tokenizer.encode(text)

    class CharModel(nn.Module):
        def __init__(self, vocab_size, width):
            super().__init__()
            self.embedding, self.lstm = nn.Embedding(vocab_size, width), LSTM(width, width)
            self.head = nn.Linear(width, vocab_size)

        def forward(self, ids, state=None):
            states, state = self.lstm(self.embedding(ids), state)
            return self.head(states), state

    def train(n_windows, window, carry=True, rows=32):
        """A trained model and its loss in nats for each window."""
        torch.manual_seed(0)
        model, state, losses = CharModel(tokenizer.vocab_size, 96), None, []
        optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
        tapes = ids[: len(ids) // rows * rows].view(rows, -1)  # (N,) → (rows, N/rows)
        for k in range(n_windows):
            piece = tapes[:, k * window : (k + 1) * window + 1]  # (rows, window + 1)
            logits, state = model(piece[:, :-1], detach_state(state) if carry else None)
            loss = F.cross_entropy(logits.flatten(0, 1), piece[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        return model, losses

    model, losses = train(n_windows=300, window=32)
    plt.plot(losses)
    plt.xlabel("window")
    plt.ylabel("loss (nats per character)")
    plt.show()

# %% [markdown]
# ## 3.5 `generate` (3 points, 15 minutes)
#
# Text from a model that carries a state. Read “Sampling text” first.
#
# Note two things in the contract. `model` is any function with this signature, not always a module:
# call it and nothing else. And `generator`, a `torch.Generator` on the CPU, is the only source of
# chance, so that a seed means one text.
#
# <!-- hints: generate -->


# %% answer="generate"
@torch.no_grad()
def generate(model, ids, n_tokens, temperature=1.0, generator=None):
    """Continue each row of `ids` by n_tokens tokens.

    model(ids, state) -> logits (B, T, V), state: call it once with the whole prompt and the state
    None, then with one new token at a time, (B, 1), and the state that it returned last.
    ids: (B, T), int64, T ≥ 1. Returns (B, T + n_tokens), int64: the prompt and what follows.

    Each token is drawn from softmax(logits of the last position / temperature) with `generator`,
    a CPU generator; with temperature 0 it is the likeliest token.

    Example: if the model always finds id + 1 likeliest,
    generate(model, torch.tensor([[3]]), 2, temperature=0) is [[3, 4, 5]].
    """
    ### BEGIN SOLUTION
    seen, token, state = [ids], ids, None
    for _ in range(n_tokens):
        logits, state = model(token, state)
        last = logits[:, -1]  # (B, V)
        if temperature == 0:
            token = last.argmax(dim=-1, keepdim=True)  # (B, 1)
        else:
            p = torch.softmax(last / temperature, dim=-1).cpu()
            token = torch.multinomial(p, 1, generator=generator).to(ids.device)  # (B, 1)
        seen.append(token)
    return torch.cat(seen, dim=1)
    ### END SOLUTION


# %% check="generate"
checks.generate.check(generate)

# %% [markdown]
# Everything you built, at work: your model writes, at four temperatures.

# %%
if ready(checks.LSTM, checks.detach_state, checks.generate):
    prompt = tokenizer.encode("ROMEO:\n")[None]  # (T,) → (1, T)
    for temperature in (0.0, 0.5, 1.0, 1.5):
        chance = torch.Generator().manual_seed(3)
        written = generate(model.eval(), prompt, 160, temperature, chance)
        print(f"--- temperature {temperature} ---\n{tokenizer.decode(written[0])}\n")

# %% [markdown]
# ## 3.6 Your own experiment (2 points, 10 minutes)
#
# `train(n_windows, window, carry)` above reads the text in windows. With `carry=False` every window
# starts from an empty state. The cell below trains four models on the same number of characters, in
# windows of 8 and of 32, with the state carried and without. (Shorter windows also mean four times
# as many updates, so compare the two runs of one window length.)

# %%
if ready(checks.LSTM, checks.detach_state):
    for window, n_windows in ((8, 400), (32, 100)):
        for carry in (True, False):
            _, losses = train(n_windows, window, carry)
            end = sum(losses[-n_windows // 5 :]) / (n_windows // 5)
            print(f"windows of {window:>2}, carry={carry!s:>5}: {end:.3f} nats")

# %% [markdown] written="written_03" points=2
# Before you run the cell above, write down for which window length you expect the carried state
# to matter more, and why. Then run it, and compare what you measured with what you expected, in
# two sentences.
#
# ### BEGIN SOLUTION
# A full answer gives the two measured differences (without the state less with it, for 8 and for
# 32) and finds the first several times as large. Without the state the first characters of every
# window are guessed from little or no context; in a window of 8 that is most of them, in one of
# 32 a small share, so the difference shrinks as the window grows. The gradient is cut at the
# window's start in all four runs: what differs is what the model may remember, not how far back
# it is corrected.
# ### END SOLUTION

# %%
print(points_so_far(*checks.ASSIGNMENT.exercises))
