# %% [markdown]
# # 5 · Self-attention
#
# What it takes: about 90 minutes, 16 points. Read first: chapter 5 up to and including
# “Softmax in one pass”.
#
# Why it is worth building: the four lines of `scaled_dot_product_attention` are the part of every
# GPT that lets one token read another. At the end a model made of yours writes lines of a play, and
# you see which letters it looked at. The last function computes the same thing without ever holding
# the matrix of weights; it is the idea behind FlashAttention, and the hardest part of the notebook.

# %% setup=true
import math

import torch
from torch import nn

from autograder.checks import self_attention as checks
from autograder.engine.notebook import points_so_far, ready

# %% [markdown]
# ## 5.1 `scaled_dot_product_attention` (4 points, 20 minutes)
#
# Read “A dictionary that answers in shares”, “Why the square root” and “Masks” first.
#
# $$\text{weights} = \operatorname{softmax}\!\Big(\frac{q\,k^\top}{\sqrt{d_k}}\Big), \qquad
# \text{output} = \text{weights}\; v$$
#
# T queries and S keys need not be equally many, and any number of axes may stand before the last
# two: (B, T, d) and (B, H, T, d) go through the same lines. In a mask, **True means “may attend”**,
# and a forbidden key gets a weight of exactly 0.
#
# <!-- hints: scaled_dot_product_attention -->


# %% answer="scaled_dot_product_attention"
def scaled_dot_product_attention(q, k, v, mask=None):
    """Each query's mean of the values, weighted by how well its key fits.

    q: (..., T, d_k). k: (..., S, d_k). v: (..., S, d_v). mask: boolean, broadcasts to the scores
    (..., T, S), True = may attend; None lets every query attend to every key. No row of the mask
    is all False.
    Returns output (..., T, d_v) and weights (..., T, S), whose rows sum to 1. The inputs are left
    alone, and scores of any size give finite weights.

    Example: q = [[1.0]], k = [[ln 3], [0.0]] and v = [[4.0], [0.0]]. The scores are ln 3 and 0, so
    the weights are 3/4 and 1/4 and the output is [[3.0]]. With mask [[False, True]] the weights are
    0 and 1 and the output is [[0.0]].
    """
    ### BEGIN SOLUTION
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = torch.softmax(scores, dim=-1)
    return weights @ v, weights
    ### END SOLUTION


# %% check="scaled_dot_product_attention"
checks.scaled_dot_product_attention.check(scaled_dot_product_attention)

# %% [markdown]
# What the scale is for. Sixteen random keys and a random query of growing width: how large is the
# largest of your sixteen weights? Then the same with the division undone, by handing in q · √d_k.

# %%
if ready(checks.scaled_dot_product_attention):
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    widths, largest = (1, 4, 16, 64, 256, 1024), {"divided by √d_k": [], "not divided": []}
    for d_k in widths:
        q, k, v = torch.randn(500, 1, d_k), torch.randn(500, 16, d_k), torch.randn(500, 16, 1)
        for name, undo in (("divided by √d_k", 1.0), ("not divided", math.sqrt(d_k))):
            _, weights = scaled_dot_product_attention(undo * q, k, v)
            largest[name].append(weights.amax(dim=-1).mean())
    for name, values in largest.items():
        plt.plot(widths, values, "o-", label=name)
    plt.xscale("log", base=2)
    plt.xlabel("width d_k")
    plt.ylabel("largest of 16 weights, on average")
    plt.legend()
    plt.show()

# %% [markdown]
# ## 5.2 `causal_mask` (2 points, 10 minutes)
#
# Who may read whom when the next token is to be predicted. Read “Masks” first.
#
# With s > t there are more keys than queries: the model has kept s − t earlier keys and asks only
# about the newest t positions.
#
# <!-- hints: causal_mask -->


# %% answer="causal_mask"
def causal_mask(t, s=None, device=None):
    """A boolean mask (t, s): True where the key is not later than the query.

    The t queries are the last t of the s positions; s = None means s = t. Made on `device` (None
    is the CPU). Raises ValueError when s < t.

    Example: causal_mask(2, 4) is
    [[True, True, True, False],
     [True, True, True, True]].
    """
    ### BEGIN SOLUTION
    s = t if s is None else s
    if s < t:
        raise ValueError(f"{t} queries cannot be the last of {s} positions")
    queries = torch.arange(s - t, s, device=device)  # their positions, (t,)
    return torch.arange(s, device=device) <= queries[:, None]  # (t, s)
    ### END SOLUTION


# %% check="causal_mask"
checks.causal_mask.check(causal_mask)

# %% [markdown]
# ## 5.3 `padding_mask` (2 points, 10 minutes)
#
# Texts of unequal length share a batch, the shorter ones filled up at the end. Nothing may be read
# there.
#
# <!-- hints: padding_mask -->


# %% answer="padding_mask"
def padding_mask(lengths, max_len):
    """A boolean mask (B, 1, 1, S), True at the first lengths[b] positions of row b.

    lengths: (B,), integers from 1 to max_len. S = max_len. The mask stands on the device of
    `lengths`. Its two axes of size 1 meet the heads and the queries of the scores (B, H, T, S).

    Example: padding_mask(torch.tensor([2, 3]), 3) is [[[[True, True, False]]],
    [[[True, True, True]]]].
    """
    ### BEGIN SOLUTION
    positions = torch.arange(max_len, device=lengths.device)  # (S,)
    return (positions < lengths[:, None])[:, None, None]  # (B, S) → (B, 1, 1, S)
    ### END SOLUTION


# %% check="padding_mask"
checks.padding_mask.check(padding_mask)

# %% [markdown]
# The two masks together: `&` lets through what both allow. Each picture is one text of a batch,
# queries downward, keys to the right, five positions wide.

# %%
if ready(checks.causal_mask, checks.padding_mask):
    import matplotlib.pyplot as plt

    lengths = torch.tensor([5, 3, 4])
    both = causal_mask(5) & padding_mask(lengths, 5)  # (T, S) & (B, 1, 1, S) → (B, 1, T, S)
    fig, axes = plt.subplots(1, 3, figsize=(8, 2.6))
    for ax, mask, length in zip(axes, both[:, 0], lengths, strict=True):
        ax.imshow(mask, cmap="Blues", vmin=0, vmax=1.5)
        ax.set_title(f"{length} tokens")
        ax.set_xlabel("key")
    axes[0].set_ylabel("query")
    plt.show()

# %% [markdown]
# ## 5.4 `SelfAttention` (2 points, 10 minutes)
#
# The layer: three linear maps and the function you wrote. Read “Self-attention” first. Call your
# `scaled_dot_product_attention`; if its check is not green yet, mend it first.
#
# <!-- hints: SelfAttention -->


# %% answer="SelfAttention"
class SelfAttention(nn.Module):
    """Queries, keys and values, made from the same tokens by three matrices.

    Parameters: W_q.weight and W_k.weight (d_k, d_model), W_v.weight (d_v, d_model); no biases.

    Example: SelfAttention(7, 5, 3)(x) with x of (2, 6, 7) gives an output of (2, 6, 3) and weights
    of (2, 6, 6).
    """

    def __init__(self, d_model, d_k, d_v):
        super().__init__()
        ### BEGIN SOLUTION
        self.W_q = nn.Linear(d_model, d_k, bias=False)
        self.W_k = nn.Linear(d_model, d_k, bias=False)
        self.W_v = nn.Linear(d_model, d_v, bias=False)
        ### END SOLUTION

    def forward(self, x, mask=None):
        """x: (B, T, d_model). mask: as above, (T, T), (B, 1, T) or (B, T, T).

        Returns output (B, T, d_v) and weights (B, T, T).
        """
        ### BEGIN SOLUTION
        return scaled_dot_product_attention(self.W_q(x), self.W_k(x), self.W_v(x), mask)
        ### END SOLUTION


# %% check="SelfAttention"
checks.SelfAttention.check(SelfAttention, scaled_dot_product_attention=scaled_dot_product_attention)

# %% [markdown]
# Two of your layers between an embedding and a linear head are a language model. A second
# embedding, of the position, tells it where each character stands; without it the layers could not
# know. This cell trains it on the plays (some ten seconds) and shows what each layer looked at.

# %%
if ready(checks.scaled_dot_product_attention, checks.causal_mask, checks.SelfAttention):
    import matplotlib.pyplot as plt
    import torch.nn.functional as F

    from rnn2gpt.data import CharTokenizer, get_batch, load_text

    text = load_text()
    tokenizer = CharTokenizer(text)
    ids = tokenizer.encode(text)
    T = 32  # what the model sees at a time

    class CharModel(nn.Module):
        def __init__(self, vocab_size, width=64, n_layers=2):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(T, width)
            for table in (self.tokens, self.positions):
                nn.init.normal_(table.weight, std=0.5)
            layers = [SelfAttention(width, width, width) for _ in range(n_layers)]
            self.layers, self.head = nn.ModuleList(layers), nn.Linear(width, vocab_size)

        def forward(self, ids, mask):
            """ids: (B, T) → logits (B, T, V) and a list of weights (B, T, T)."""
            x, seen = self.tokens(ids) + self.positions.weight[: ids.shape[1]], []
            for layer in self.layers:
                read, weights = layer(x, mask)
                x = x + read  # each layer adds to what is known of a token
                seen.append(weights)
            return self.head(x), seen

    def train(mask, n_steps=500):
        """A trained model and its loss at each step, in nats per character."""
        torch.manual_seed(0)
        model, losses = CharModel(tokenizer.vocab_size), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        chance = torch.Generator().manual_seed(0)
        for _ in range(n_steps):
            x, y = get_batch(ids, T, 32, chance)
            logits, _ = model(x, mask)
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        return model, losses

    model, losses = train(causal_mask(T))
    print(f"last 50 steps: {sum(losses[-50:]) / 50:.2f} nats per character")
    line = "the king hath sent for you"
    with torch.no_grad():
        _, seen = model(tokenizer.encode(line)[None], causal_mask(len(line)))
    fig, axes = plt.subplots(1, 2, figsize=(11, 5.5))
    for number, (ax, weights) in enumerate(zip(axes, seen, strict=True), start=1):
        ax.imshow(weights[0], cmap="Blues")
        ax.set_xticks(range(len(line)), line)
        ax.set_yticks(range(len(line)), line)
        ax.set_title(f"layer {number}: row = who reads, column = whom")
    plt.show()

# %% [markdown]
# It writes, too. It has no state: for each new character it reads the last 32 again.

# %%
if ready(checks.scaled_dot_product_attention, checks.causal_mask, checks.SelfAttention):

    @torch.no_grad()
    def write(model, prompt, n_characters=200, masked=True, temperature=0.8):
        seen, chance = tokenizer.encode(prompt)[None], torch.Generator().manual_seed(1)
        for _ in range(n_characters):
            window = seen[:, -T:]
            logits, _ = model(window, causal_mask(window.shape[1]) if masked else None)
            p = torch.softmax(logits[:, -1] / temperature, dim=-1)  # (1, V)
            seen = torch.cat([seen, torch.multinomial(p, 1, generator=chance)], dim=1)
        return tokenizer.decode(seen[0])

    print(write(model, "KING RICHARD II:\n"))

# %% [markdown]
# ## 5.5 `online_softmax_attention` (4 points, 30 minutes, a challenge)
#
# The same output, without the T × S matrix. Read “Softmax in one pass” first.
#
# The keys arrive in blocks of `block_size`. After each block you hold, for each query, what
# attention to the keys so far would need: the largest score, the sum of the exponentials, and the
# sum of the values weighted by them. The check also looks at the largest tensor you make.
#
# <!-- hints: online_softmax_attention -->


# %% answer="online_softmax_attention"
def online_softmax_attention(q, k, v, block_size):
    """Attention without mask, over the keys in blocks.

    q: (..., T, d_k). k: (..., S, d_k). v: (..., S, d_v). block_size: 1 or more; it need not divide
    S and may be larger. Returns the output (..., T, d_v) of scaled_dot_product_attention(q, k, v).
    No tensor of T × S numbers is made on the way.

    Example with d_k = 1, q = [[1.0]], k = [[0.0], [ln 3]], v = [[0.0], [4.0]] and block_size 1:
    after the first block the maximum is 0, the sum 1 and the mixed values 0; the second block has
    the larger score ln 3, so both are multiplied by exp(0 − ln 3) = 1/3 before 1 and 4 are added:
    (0 + 4) / (1/3 + 1) = 3.
    """
    ### BEGIN SOLUTION
    m = torch.full_like(q[..., :1], -math.inf)  # largest score so far, (..., T, 1)
    total, mixed = torch.zeros_like(m), 0.0
    for start in range(0, k.shape[-2], block_size):
        block = slice(start, start + block_size)
        scores = q @ k[..., block, :].mT / math.sqrt(q.shape[-1])  # (..., T, block)
        larger = torch.maximum(m, scores.amax(dim=-1, keepdim=True))
        old, p = torch.exp(m - larger), torch.exp(scores - larger)
        total = old * total + p.sum(dim=-1, keepdim=True)
        mixed = old * mixed + p @ v[..., block, :]  # (..., T, d_v)
        m = larger
    return mixed / total
    ### END SOLUTION


# %% check="online_softmax_attention"
checks.online_softmax_attention.check(online_softmax_attention)

# %% [markdown]
# What it saves: one text of growing length, width 32. The largest tensor of the explicit version is
# the T × T weights. Yours, in blocks of 64, has T × 64 scores. The outputs agree, and so nearly do
# the times: the work is the same, only the room it takes is not.

# %%
if ready(checks.scaled_dot_product_attention, checks.online_softmax_attention):
    import time

    torch.manual_seed(0)
    print("    T   weights (MB)   a block (MB)   explicit (ms)   online (ms)   difference")
    for length in (256, 512, 1024, 2048):
        q, k, v = torch.randn(3, length, 32)
        spent, outputs = [], []
        for attend in (
            lambda q, k, v: scaled_dot_product_attention(q, k, v)[0],
            lambda q, k, v: online_softmax_attention(q, k, v, 64),
        ):
            start = time.process_time()
            outputs.append(attend(q, k, v))
            spent.append(1000 * (time.process_time() - start))
        apart = (outputs[0] - outputs[1]).abs().max()
        matrix, block = 4e-6 * length**2, 4e-6 * length * 64
        print(
            f"{length:5}   {matrix:12.2f}   {block:12.2f}   {spent[0]:13.1f}   {spent[1]:11.1f}"
            f"   {apart:10.0e}"
        )

# %% [markdown]
# ## 5.6 Your own experiment (2 points, 10 minutes)
#
# What does a language model do without the causal mask? The cell below trains the same model once
# more with `mask=None`, so that every character may read every other, and lets it write without a
# mask, as it has learned.

# %%
if ready(checks.scaled_dot_product_attention, checks.causal_mask, checks.SelfAttention):
    unmasked, without = train(None)
    plt.plot(losses, label="causal mask")
    plt.plot(without, label="no mask")
    plt.xlabel("step")
    plt.ylabel("training loss (nats per character)")
    plt.legend()
    plt.show()
    print(write(unmasked, "KING RICHARD II:\n", masked=False))

# %% [markdown] written="written_05" points=2
# Before you run the cell above, write down which of the two losses you expect to end lower and what
# the unmasked model will write. Then run it, and explain in two sentences what you measured: what
# has the unmasked model learned, and why does it not help it to write?
#
# ### BEGIN SOLUTION
# A full answer gives both measured losses and finds the unmasked one far lower, near 0 (about 0.1
# nats against about 2.2). The target at position t is the character at t + 1, which stands in the
# input; without a mask, attention learns to look one position ahead and to copy it. Only the last
# position of a window has no such neighbor, and there the model has learned nothing; writing uses
# exactly that position, so the text is noise. A low training loss is no success when the answer
# stands in the question.
# ### END SOLUTION

# %%
print(points_so_far(*checks.ASSIGNMENT.exercises))
