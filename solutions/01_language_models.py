# %% [markdown]
# # 1 · Language models
#
# What it takes: about 65 minutes, 13 points (11 checked by code, 2 read by a person). Read chapter
# 1 first, up to “Batches”.
#
# You build the smallest language model there is, a table of which character follows which, and the
# three tools that every later model needs: the loss that says how good it is, the unit in which
# models are compared, and the batches they learn from. At the end the same table is found twice,
# once by counting and once by gradient descent on your loss and your batches. From chapter 2 on
# there is nothing left to count, and only the second way remains.
#
# The shapes: N characters in a text, V symbols in the vocabulary, B rows in a batch, T characters
# in a row. Replace `raise NotImplementedError()` by your code and run the check beneath it.

# %% setup=true
import math

import torch

from autograder.checks import language_models as checks
from autograder.engine.notebook import points_so_far, ready

# %% [markdown]
# ## 1.1 `bigram_counts` (2 points, 10 minutes)
#
# Counting is all the training that a bigram model gets. The table it fills has one row for each
# character and one column for each character that may follow. Read “Counting pairs” in the chapter.
#
# <!-- hints: bigram_counts -->


# %% answer="bigram_counts"
def bigram_counts(ids, vocab_size):
    """Count how often each symbol follows each other symbol.

    ids: (N,) int64, each in 0 … vocab_size − 1; N may be 1, which makes no pair.
    Returns a (V, V) table of integers (or floats with whole values): entry [i, j] is the number of
    places where j stands right after i. It lies on the device of `ids`.

    Example: in [0, 1, 1, 0, 1] with vocab_size 3, the pair (0, 1) occurs twice, (1, 1) and (1, 0)
    once each, and symbol 2 not at all: [[0, 2, 0], [1, 1, 0], [0, 0, 0]].
    """
    ### BEGIN SOLUTION
    pairs = ids[:-1] * vocab_size + ids[1:]  # (N − 1,): one number for each pair
    counts = torch.bincount(pairs, minlength=vocab_size * vocab_size)  # (V²,)
    return counts.reshape(vocab_size, vocab_size)  # (V²,) → (V, V)
    ### END SOLUTION


# %% check="bigram_counts"
checks.bigram_counts.check(bigram_counts)

# %% [markdown]
# With the check green, the next cell counts the course's text, nine of Shakespeare's plays. Who
# follows *q*? Who follows a line break?

# %%
if ready(checks.bigram_counts):
    from rnn2gpt.data import CharTokenizer, load_text, split

    tokenizer = CharTokenizer(load_text())
    train, validation = split(tokenizer.encode(load_text()))
    counts = bigram_counts(train, tokenizer.vocab_size)
    for character in "qth\n":
        row = counts[tokenizer.encode(character)[0]]
        best = row.topk(5).indices.tolist()
        shown = ", ".join(f"{tokenizer.characters[j]!r} {int(row[j]):,}" for j in best)
        print(f"after {character!r}: {shown}")
    print(f"{int((counts == 0).sum()):,} of {counts.numel():,} pairs never occur")

# %% [markdown]
# ## 1.2 `bigram_probabilities` (2 points, 10 minutes)
#
# A row of counts becomes a distribution when it is divided by its sum. More than half of the pairs
# never occur, and a model that gives them probability 0 is ruined by the first one that does, so
# alpha is added to every count. Read “From counts to probabilities”.
#
# <!-- hints: bigram_probabilities -->


# %% answer="bigram_probabilities"
def bigram_probabilities(counts, alpha=1.0):
    """Turn a table of counts into a table of probabilities, smoothed by alpha.

    counts: (V, V), integer or floating point, none negative. alpha ≥ 0 is added to every count.
    Returns a (V, V) floating-point table whose rows each sum to one: entry [i, j] is the
    probability that j follows i. A floating-point table keeps its dtype. A row without any count is
    uniform, also when alpha is 0.

    Example: [[2, 0], [0, 0]] becomes [[0.75, 0.25], [0.5, 0.5]] with alpha 1, and
    [[1, 0], [0.5, 0.5]] with alpha 0.
    """
    ### BEGIN SOLUTION
    smoothed = counts + alpha
    totals = smoothed.sum(dim=1, keepdim=True)  # (V, 1)
    return torch.where(totals > 0, smoothed / totals, 1 / counts.shape[1])
    ### END SOLUTION


# %% check="bigram_probabilities"
checks.bigram_probabilities.check(bigram_probabilities)

# %% [markdown]
# Now your table can write. Each character is drawn from the row of the one before it.

# %%
if ready(checks.bigram_counts, checks.bigram_probabilities):

    def write(table, n_characters=200, seed=0):
        """Draw characters one after the other, starting after a line break."""
        generator = torch.Generator().manual_seed(seed)
        ids = tokenizer.encode("\n").tolist()
        for _ in range(n_characters):
            ids.append(int(torch.multinomial(table[ids[-1]], 1, generator=generator)))
        return tokenizer.decode(ids)

    print(write(bigram_probabilities(counts)))

# %% [markdown]
# ## 1.3 `cross_entropy` (3 points, 15 minutes)
#
# Every model of this course gives out V numbers for each prediction, its logits, and every one of
# them is trained on this loss. It has to survive logits of any size: early in training, and after a
# bad step, they are large. Read “Cross-entropy” and simplify on paper before you code. PyTorch's
# own `cross_entropy`, `nll_loss` and `log_softmax` are what you write here, so they do not count.
#
# <!-- hints: cross_entropy -->


# %% answer="cross_entropy"
def cross_entropy(logits, targets):
    """The mean of −ln p(target), with p the softmax of each row of logits.

    logits: (N, V) floating point, of any size. targets: (N,) int64, each in 0 … V − 1.
    Returns a scalar tensor in nats, of the logits' dtype and on their device, through which
    gradients flow. It is exact for logits in the thousands: no overflow, no log of 0.

    Example: logits [[0, ln 3]] give p = [1/4, 3/4]; for target 1 the loss is ln(4/3) = 0.2877.
    """
    ### BEGIN SOLUTION
    rows = torch.arange(len(targets), device=logits.device)  # (N,)
    log_p = logits[rows, targets] - torch.logsumexp(logits, dim=1)  # (N,)
    return -log_p.mean()
    ### END SOLUTION


# %% check="cross_entropy"
checks.cross_entropy.check(cross_entropy)

# %% [markdown]
# What does the bigram table pay on text that it was not counted on? Its logits are the logarithms
# of its probabilities.

# %%
if ready(checks.bigram_counts, checks.bigram_probabilities, checks.cross_entropy):
    table = bigram_probabilities(counts)
    nats = float(cross_entropy(table.log()[validation[:-1]], validation[1:]))
    print(f"even odds: {math.log(tokenizer.vocab_size):.3f} nats per character")
    print(f"bigrams:   {nats:.3f} nats per character")

# %% [markdown]
# ## 1.4 `bits_per_character` (1 point, 5 minutes)
#
# From chapter 8 on, a token may be several characters long, and the loss per token says little: a
# model with longer tokens has fewer and harder guesses to make. Bits per character compare them
# all. Read “Bits per character”.
#
# <!-- hints: bits_per_character -->


# %% answer="bits_per_character"
def bits_per_character(nll_nats_per_token, n_tokens, n_characters):
    """How many bits a model spends on a character of the text.

    nll_nats_per_token: the mean loss per token, in nats. n_tokens: how many tokens it is the mean
    of. n_characters: how many characters those tokens cover. All are positive numbers; a perfect
    model's loss is 0. Returns a float.

    Example: 3 tokens of 2 ln 2 = 1.386 nats each cover 6 characters: 1.0 bit per character.
    """
    ### BEGIN SOLUTION
    nats = nll_nats_per_token * n_tokens  # for the whole text
    return nats / math.log(2) / n_characters
    ### END SOLUTION


# %% check="bits_per_character"
checks.bits_per_character.check(bits_per_character)

# %% [markdown]
# A file of this text stores eight bits for each character. A model that needs fewer is a
# compressor: the ratio is how much smaller the file could be.

# %%
if ready(*checks.ASSIGNMENT.exercises[:4]):
    n = len(validation) - 1
    for name, loss in (("even odds", math.log(tokenizer.vocab_size)), ("bigrams", nats)):
        bits = bits_per_character(loss, n, n)
        print(f"{name:10} {bits:.3f} bits per character: {8 / bits:.2f} times smaller")

# %% [markdown]
# ## 1.5 `get_batch` (3 points, 15 minutes)
#
# A network learns from B windows of T characters at a time, cut from the text at random places, and
# for each character in them the one that follows. Everything that later chapters train draws its
# data through this function, and its mistakes are silent: with a y that is not shifted the loss
# falls to 0, and the model has learned to copy. Read “Batches”.
#
# <!-- hints: get_batch -->


# %% answer="get_batch"
def get_batch(ids, block_size, batch_size, generator=None, device="cpu"):
    """Draw B random windows of T characters, and the characters that follow.

    ids: (N,) integers of any type, on the CPU, N > T. block_size: T. batch_size: B, which may be
    larger than the number of windows. generator: the source of chance, a CPU `torch.Generator`, or
    None for PyTorch's global one. device: where the batch goes.
    Returns x and y, both (B, T) and int64: y[b, t] is what follows x[b, t] in the text. The rows
    are drawn independently, each of the N − T starts with the same probability.

    Example: [10, 11, 12, 13, 14] with T = 3 has two starts. A row that starts at 1 is
    x = [11, 12, 13], y = [12, 13, 14].
    """
    ### BEGIN SOLUTION
    starts = torch.randint(len(ids) - block_size, (batch_size, 1), generator=generator)  # (B, 1)
    at = starts + torch.arange(block_size)  # (B, T)
    return ids[at].long().to(device), ids[at + 1].long().to(device)
    ### END SOLUTION


# %% check="get_batch"
checks.get_batch.check(get_batch)

# %% [markdown]
# Now the other way to the same table. `W` holds V · V logits, all 0 at first. Gradient descent on
# your loss, over your batches, moves them toward the table that counting gave at once.

# %%
if ready(*checks.ASSIGNMENT.exercises):
    generator = torch.Generator().manual_seed(0)
    V = tokenizer.vocab_size
    W = torch.zeros(V, V, requires_grad=True)
    optimizer = torch.optim.Adam([W], lr=0.1)
    curve = []
    for _ in range(400):
        x, y = get_batch(train, 64, 32, generator)
        loss = cross_entropy(W[x].reshape(-1, V), y.reshape(-1))  # (B, T, V) → (B·T, V)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(bits_per_character(loss.item(), 1, 1))
    with torch.no_grad():
        learned = float(cross_entropy(W[validation[:-1]], validation[1:]))
    print(f"counted: {bits_per_character(nats, n, n):.3f} bits per character on held-out text")
    print(f"learned: {bits_per_character(learned, n, n):.3f}")

# %%
if ready(*checks.ASSIGNMENT.exercises):
    import matplotlib.pyplot as plt

    counted = float(-(counts * table.log()).sum() / counts.sum())  # the training text, by pairs
    fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
    ax.plot(curve, color="#0072B2", linewidth=1, label="learned from batches")
    ax.axhline(bits_per_character(counted, 1, 1), color="#D55E00", label="counted")
    ax.set(xlabel="step", ylabel="bits per character", title="Two ways to one table")
    ax.legend()
    plt.show()
    print(write(torch.softmax(W.detach(), dim=1)))

# %% [markdown] written="written_01" points=2
# ## 1.6 An open question (2 points, 10 minutes)
#
# What happens to the bigram model when alpha grows from 0.01 to 1,000? Before you run anything,
# write down which way you expect the bits per character to move on the training text and on the
# held-out text. Then measure both at five values of alpha, in a cell of your own. In two or three
# sentences say what you expected, what you found, and why the two texts agree or differ.
#
# ### BEGIN SOLUTION
# A model answer. I expected the training bits to rise with alpha and the held-out bits to fall at
# first, as unseen pairs get some probability. The training bits do rise at every step, since any
# added count moves the rows away from the shares that fit the training text best. The held-out bits
# fall by less than 0.01 up to alpha = 1 and then rise as well: a million characters have filled
# nearly all the pairs that matter, so smoothing has little to repair, and at 1,000 it drowns all
# but the most frequent pairs.
# ### END SOLUTION

# %%
print(points_so_far(*checks.ASSIGNMENT.exercises))
