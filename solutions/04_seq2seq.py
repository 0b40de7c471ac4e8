# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · Sequence to sequence with attention
#
# What it takes: about 90 minutes, 15 points. Read first: chapter 4 up to and including
# “Greedy decoding”.
#
# Why it is worth building: you write the first network of the course that looks back. By the end of
# the notebook two models of yours turn English number words into Chinese numerals, one through a
# single vector and one with attention, and you see on which lengths the single vector gives up.

# %% setup=true
import torch
from torch import nn

from autograder.checks import seq2seq as checks
from autograder.engine.notebook import points_so_far, ready

# %% [markdown]
# ## 4.1 `masked_softmax` (2 points, 15 minutes)
#
# A softmax over the places where there is something to attend to. Read “A softmax that skips
# padding” first.
#
# $$w_j = \frac{m_j\, e^{a_j}}{\sum_k m_k\, e^{a_k}}$$
#
# with $m_j$ = 1 where the mask is True and 0 elsewhere. Where no $m_k$ is 1, the whole row is 0.
#
# Why it is worth building: every batch of sentences has padding, and every attention of the course
# goes through this function.
#
# <!-- hints: masked_softmax -->


# %% answer="masked_softmax"
def masked_softmax(scores, mask, dim=-1):
    """Softmax along `dim` over the places where the mask is True, exactly 0 elsewhere.

    scores: any shape, floating point. mask: boolean, of a shape that broadcasts to that of scores;
    True = may attend. Where no place along `dim` is True the result is 0 at all of them, and the
    gradient there is 0 too, not NaN. Scores may be in the thousands, masked ones included.

    Example: masked_softmax([[1, 2, 3], [1, 2, 3]], [[True, True, False], [False, False, False]])
    is [[0.2689, 0.7311, 0], [0, 0, 0]].
    """
    ### BEGIN SOLUTION
    nothing = ~mask.any(dim=dim, keepdim=True)  # rows with no True place
    hidden = ~mask & ~nothing  # those rows keep their scores: no 0 / 0
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=dim)
    return weights.masked_fill(~mask, 0.0)
    ### END SOLUTION


# %% check="masked_softmax"
checks.masked_softmax.check(masked_softmax)

# %% [markdown]
# What the mask is for: one sentence of four words with random scores, in batches that pad it
# further and further. Without a mask, how much of the weight goes to places where nothing stands?

# %%
if ready(checks.masked_softmax):
    scores = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    for width in (4, 8, 16, 40):
        a, real = scores[:, :width], torch.arange(width)[None] < 4
        lost = a.softmax(-1)[~real].sum().item()
        kept = masked_softmax(a, real)[0, :4]
        print(f"padded to {width:>2}: {lost:4.0%} lost without a mask; with it {kept.numpy()}")

# %% [markdown]
# ## 4.2 `AdditiveAttention` (3 points, 15 minutes)
#
# The attention of Bahdanau and colleagues: a small network scores every pair of a query (the
# decoder's state) and a key (the encoder's state at one word). Read “Looking back” first.
#
# $$a_{ts} = v^\top \tanh(W_q q_t + W_k k_s), \qquad
# w_t = \operatorname{softmax}_s(a_{ts}), \qquad c_t = \sum_s w_{ts} k_s$$
#
# You may call your `masked_softmax` or, if it is not right yet, `masked_fill` with −∞ and
# `torch.softmax`: no row is fully masked here.
#
# <!-- hints: AdditiveAttention -->


# %% answer="AdditiveAttention"
class AdditiveAttention(nn.Module):
    """Attention with the score v·tanh(W_q q + W_k k).

    Parameters: W_q, a linear map from d_query to d_hidden; W_k, from d_key to d_hidden; v, from
    d_hidden to 1; all three `nn.Linear` without bias, so that the weights are W_q.weight
    (d_hidden, d_query), W_k.weight (d_hidden, d_key) and v.weight (1, d_hidden).
    """

    def __init__(self, d_query, d_key, d_hidden):
        super().__init__()
        ### BEGIN SOLUTION
        self.W_q = nn.Linear(d_query, d_hidden, bias=False)
        self.W_k = nn.Linear(d_key, d_hidden, bias=False)
        self.v = nn.Linear(d_hidden, 1, bias=False)
        ### END SOLUTION

    def forward(self, query, keys, mask=None):
        """query: (B, T, Q). keys: (B, S, K). mask: (B, S), True at real tokens, or None: all real.

        Returns context (B, T, K), the average of the keys with the weights, and the weights
        (B, T, S), which sum to 1 over S.

        Example with B = T = 1, S = 2, Q = K = d_hidden = 1, W_q = W_k = v = 1, query 0 and keys
        0 and 1: the scores are tanh(0) = 0 and tanh(1) = 0.762, the weights 0.318 and 0.682, the
        context 0.682.
        """
        ### BEGIN SOLUTION
        q = self.W_q(query)[:, :, None]  # (B, T, 1, d_hidden)
        k = self.W_k(keys)[:, None]  # (B, 1, S, d_hidden)
        scores = self.v(torch.tanh(q + k))[..., 0]  # (B, T, S, 1) → (B, T, S)
        if mask is None:
            mask = torch.ones_like(keys[..., 0], dtype=torch.bool)  # (B, S)
        weights = masked_softmax(scores, mask[:, None])  # (B, 1, S) for all queries
        return weights @ keys, weights
        ### END SOLUTION


# %% check="AdditiveAttention"
checks.AdditiveAttention.check(AdditiveAttention, masked_softmax=masked_softmax)

# %% [markdown]
# A fresh attention has no opinion. The weights of three queries over seven keys, before any
# training: how far are they from 1/7 = 14 %?

# %%
if ready(checks.AdditiveAttention):
    torch.manual_seed(0)
    _, weights = AdditiveAttention(16, 16, 16)(torch.randn(1, 3, 16), torch.randn(1, 7, 16))
    for row in weights[0]:
        print("  ".join(f"{w:4.0%}" for w in row.tolist()))

# %% [markdown]
# ## 4.3 `shift_right` (1 point, 5 minutes)
#
# What the decoder reads while it learns. Read “Teacher forcing” first.
#
# <!-- hints: shift_right -->


# %% answer="shift_right"
def shift_right(targets, bos_id):
    """The decoder's input for these targets: BOS in front, every token one place later.

    targets: (B, T), integers. Returns a new (B, T) of the same dtype, and leaves targets alone;
    each row's last token is not in it.

    Example: shift_right([[5, 6, 2]], bos_id=1) is [[1, 5, 6]].
    """
    ### BEGIN SOLUTION
    bos = targets.new_full((targets.shape[0], 1), bos_id)  # (B, 1)
    return torch.cat([bos, targets[:, :-1]], dim=1)
    ### END SOLUTION


# %% check="shift_right"
checks.shift_right.check(shift_right)

# %% [markdown]
# The task of this notebook: English number words to Chinese numerals. 万 is ten thousand, so the
# digits are grouped by four where English groups them by three. This is what the decoder reads and
# what it has to write, step by step.

# %%
if ready(checks.shift_right):
    from rnn2gpt.translation import BOS, EOS, PAD, PairTokenizer, load_pairs, pad_pairs

    splits = load_pairs("numbers")
    tokenizer = PairTokenizer.of("numbers", splits)
    pairs = {name: tokenizer.encode(splits[name]) for name in ("train", "test")}
    words, numerals = splits["train"][0]
    source, lengths, targets = pad_pairs(pairs["train"][:1])
    print(f"{words} → {numerals}")
    tokens = tokenizer.target.tokens
    for read, write in zip(shift_right(targets, BOS)[0], targets[0], strict=True):
        print(f"  reads {tokens[read]:<5}  writes {tokens[write]}")

# %% [markdown]
# ## 4.4 `sequence_cross_entropy` (2 points, 10 minutes)
#
# The loss of a batch of answers with different lengths. Read “A loss over real tokens” first.
# `torch.nn.functional.cross_entropy` may be used.
#
# <!-- hints: sequence_cross_entropy -->


# %% answer="sequence_cross_entropy"
def sequence_cross_entropy(logits, targets, pad_id):
    """Mean of −ln p(target) over all targets of the batch that are not padding, in nats.

    logits: (B, T, V). targets: (B, T), integers from 0 to V − 1, or pad_id. pad_id: any integer;
    a negative one is no class. Returns a scalar tensor; 0 if every target is padding, and then no
    gradient is NaN either.

    Example with V = 2, all logits 0 and targets [[1, 1, 1], [1, 0, 0]] with pad_id 0: four real
    tokens, each with p = 1/2, so the loss is ln 2 = 0.6931.
    """
    ### BEGIN SOLUTION
    real = targets != pad_id  # (B, T)
    total = nn.functional.cross_entropy(logits[real], targets[real], reduction="sum")  # of (N, V)
    return total / real.sum().clamp(min=1)
    ### END SOLUTION


# %% check="sequence_cross_entropy"
checks.sequence_cross_entropy.check(sequence_cross_entropy)

# %% [markdown]
# A model that knows nothing bets evenly on all V tokens. Its loss must be ln V, however much
# padding there is.

# %%
if ready(checks.shift_right, checks.sequence_cross_entropy):
    import math

    for n in (1, 10, 100):
        _, _, targets = pad_pairs(pairs["train"][:n])
        V, padding = len(tokenizer.target), (targets == PAD).float().mean().item()
        loss = sequence_cross_entropy(torch.zeros(*targets.shape, V), targets, PAD).item()
        print(
            f"{n:>3} answers, {padding:3.0%} padding: {loss:.4f} nats; ln {V} = {math.log(V):.4f}"
        )

# %% [markdown]
# ## 4.5 `Seq2Seq` (5 points, 35 minutes)
#
# An encoder reads the source, a decoder writes the target, with attention or without. Read “A
# sentence in one vector”, “The decoder that looks back” and “Greedy decoding” first.
#
# The layers and their names are yours to choose. This is enough: an embedding and an `nn.GRU` for
# the source, an embedding and an `nn.GRUCell` for the target, your `AdditiveAttention` (or a score
# of your own, if it is not right yet), and a linear head. Write `encode` and `decode_step` first:
# the other two methods are loops over them.
#
# <!-- hints: Seq2Seq -->


# %% answer="Seq2Seq"
class Seq2Seq(nn.Module):
    """Encoder and decoder. D is d_model, V is target_vocab.

    With attention=True every step of the decoder reads the encoder's states. With attention=False
    all that it has of the source is the state that it starts from.
    """

    def __init__(self, source_vocab, target_vocab, d_model, attention=True):
        super().__init__()
        ### BEGIN SOLUTION
        self.source_embedding = nn.Embedding(source_vocab, d_model)
        self.target_embedding = nn.Embedding(target_vocab, d_model)
        self.encoder = nn.GRU(d_model, d_model, batch_first=True)
        self.cell = nn.GRUCell(d_model, d_model)
        self.attention = AdditiveAttention(d_model, d_model, d_model) if attention else None
        self.head = nn.Linear(2 * d_model if attention else d_model, target_vocab)
        ### END SOLUTION

    def encode(self, source, lengths):
        """source: (B, S) ids. lengths: (B,), how many of each row are real; the rest is padding.

        Returns memory (B, S, D), one vector for each source token, and the state from which the
        decoder starts: a tensor, or a tuple of tensors. Neither the state nor the memory at real
        tokens depends on what stands in the padding, or on how much of it there is.
        """
        ### BEGIN SOLUTION
        memory, _ = self.encoder(self.source_embedding(source))  # (B, S, D)
        rows = torch.arange(source.shape[0], device=source.device)
        return memory, memory[rows, lengths - 1]  # the state after each row's last real token
        ### END SOLUTION

    def decode_step(self, ids, state, memory, mask):
        """One step for B rows.

        ids: (B,), the token just written, BOS first. state: as `encode` or the last step returned
        it; leave it unchanged. memory: (B, S, D). mask: (B, S), True at real tokens.
        Returns logits (B, V) of the next token, the new state, and the attention weights (B, S)
        of this step, or None without attention.
        """
        ### BEGIN SOLUTION
        state = self.cell(self.target_embedding(ids), state)  # (B, D)
        if self.attention is None:
            return self.head(state), state, None
        context, weights = self.attention(state[:, None], memory, mask)  # (B, 1, D), (B, 1, S)
        both = torch.cat([context[:, 0], state], dim=1)  # (B, 2D)
        return self.head(both), state, weights[:, 0]
        ### END SOLUTION

    def forward(self, source, lengths, target_in):
        """Teacher forcing. target_in: (B, T), the targets shifted right.

        Returns logits (B, T, V): those at step t come after target_in[:, 0] to target_in[:, t].
        """
        ### BEGIN SOLUTION
        memory, state = self.encode(source, lengths)
        mask = torch.arange(source.shape[1], device=source.device) < lengths[:, None]  # (B, S)
        logits = []
        for ids in target_in.unbind(dim=1):
            step, state, _ = self.decode_step(ids, state, memory, mask)
            logits.append(step)
        return torch.stack(logits, dim=1)  # T of (B, V) → (B, T, V)
        ### END SOLUTION

    @torch.no_grad()
    def greedy_decode(self, source, lengths, max_len, bos_id, eos_id):
        """The likeliest token again and again, each row until its own EOS, max_len tokens at most.

        Returns a list of B lists of ints, without BOS and EOS. Example: two rows whose likeliest
        tokens are 7, 4, EOS, … and 5, EOS, … give [[7, 4], [5]]. New tensors stand on the device of
        `source`.
        """
        ### BEGIN SOLUTION
        memory, state = self.encode(source, lengths)
        mask = torch.arange(source.shape[1], device=source.device) < lengths[:, None]  # (B, S)
        ids, steps = torch.full_like(source[:, 0], bos_id), []
        for _ in range(max_len):
            logits, state, _ = self.decode_step(ids, state, memory, mask)
            ids = logits.argmax(dim=1)  # (B, V) → (B,)
            steps.append(ids)
        rows = torch.stack(steps, dim=1).tolist()
        return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]
        ### END SOLUTION


# %% check="Seq2Seq"
checks.Seq2Seq.check(Seq2Seq, masked_softmax=masked_softmax, AdditiveAttention=AdditiveAttention)

# %% [markdown]
# Train both of your models on numbers of up to eight words, 200 batches each (some 15 seconds in
# all), and ask them for numbers they have not seen.

# %%
if ready(*checks.ASSIGNMENT.exercises):
    import random

    short = {name: [pair for pair in pairs[name] if len(pair[0]) <= 8] for name in pairs}

    def train(attention, d_model=64, updates=200):
        """A trained model. The same seed for all: they see the same batches."""
        torch.manual_seed(0)
        chance = random.Random(0)
        model = Seq2Seq(len(tokenizer.source), len(tokenizer.target), d_model, attention)
        optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
        for _ in range(updates):
            source, lengths, targets = pad_pairs(chance.sample(short["train"], 64))
            logits = model(source, lengths, shift_right(targets, BOS))
            loss = sequence_cross_entropy(logits, targets, PAD)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return model

    def right_answers(model):
        """Whether each short test number is translated without a mistake."""
        source, lengths, _ = pad_pairs(short["test"])
        rows = model.greedy_decode(source, lengths, 24, BOS, EOS)
        return [row == target[:-1] for row, (_, target) in zip(rows, short["test"], strict=True)]

    models = {"with attention": train(True), "without": train(False)}

# %%
if ready(*checks.ASSIGNMENT.exercises):
    for name, model in models.items():
        right = right_answers(model)
        sizes = [len(ids) for ids, _ in short["test"]]
        shares = ""
        for n in range(4, 9):
            some = [answer for answer, length in zip(right, sizes, strict=True) if length == n]
            shares += f"  {n}: {sum(some) / len(some):4.0%}"
        print(f"{name:>14}: {sum(right) / len(right):4.0%} right; by words{shares}")
    source, lengths, _ = pad_pairs(short["test"][:6])
    rows = models["with attention"].greedy_decode(source, lengths, 24, BOS, EOS)
    for (ids, _), row in zip(short["test"], rows, strict=False):
        print(f"{tokenizer.source.decode(ids)} → {tokenizer.target.decode(row)}")

# %% [markdown]
# And where does it look? One row for each numeral that your model writes, one column for each word
# that it has read; the darker a cell, the more of the weight falls there. Try numbers of your own,
# up to eight words; “three million five hundred and sixty thousand” may be too much for it.

# %%
if ready(*checks.ASSIGNMENT.exercises):
    from IPython.display import HTML, display

    def show_alignment(text):
        """What the model writes for `text`, and a table of its weights."""
        model, ids = models["with attention"], tokenizer.source.encode(text)
        source, lengths = torch.tensor([ids]), torch.tensor([len(ids)])
        written = [*model.greedy_decode(source, lengths, 24, BOS, EOS)[0], EOS]
        with torch.no_grad():
            memory, state = model.encode(source, lengths)
            rows = [["", *tokenizer.source.split(text)]]
            for last, new in zip([BOS, *written], written, strict=False):
                _, state, w = model.decode_step(
                    torch.tensor([last]), state, memory, torch.ones_like(source, dtype=torch.bool)
                )
                rows.append([tokenizer.target.tokens[new], *w[0].tolist()])

        def cell(value):
            if isinstance(value, str):
                return f"<th>{value.replace('<', '&lt;')}</th>"
            return f"<td style='background:rgba(0,114,178,{value:.2f})'>{100 * value:.0f}</td>"

        body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
        print(f"{text} → {tokenizer.target.decode(written[:-1])}")
        display(HTML(f"<table>{body}</table>"))

    show_alignment("seven hundred and twenty thousand and five")
    show_alignment("two hundred and five thousand and forty")

# %% [markdown]
# ## 4.6 Your own experiment (2 points, 10 minutes)
#
# Without attention the whole number passes through one vector of `d_model` = 64 numbers. If that
# is the narrow place, a wider vector should help, and a narrower one should hurt. The cell below
# trains the model without attention at half and at twice the width.

# %%
if ready(*checks.ASSIGNMENT.exercises):
    for d_model in (32, 128):
        model = train(False, d_model)
        right, size = right_answers(model), sum(p.numel() for p in model.parameters())
        print(
            f"without attention, width {d_model}: {sum(right) / len(right):4.0%} right,"
            f" {size:,} weights"
        )
    size = sum(p.numel() for p in models["with attention"].parameters())
    print(f"with attention, width 64: {size:,} weights")

# %% [markdown] written="written_04" points=2
# Before you run the cell above, write down what share you expect at 32 and at 128, and whether you
# expect the wide model to reach the one with attention. Then run it, and compare what you measured
# with what you expected, in two sentences. Can you tell from this experiment alone that the vector
# is what was too narrow?
#
# ### BEGIN SOLUTION
# A full answer gives the three measured shares without attention (32, 64, 128), which rise steeply
# with the width, and finds that even at 128 the model stays behind the one with attention at 64,
# though it has more weights. It also sees the limit of the experiment: a wider model has more
# weights everywhere, in its recurrence and its head, and after 200 updates none of the models is
# trained to the end, so part of the gain may be faster learning and not a wider vector. To
# separate the two one would keep the widths and narrow the vector alone, or train until the losses
# stop falling.
# ### END SOLUTION

# %%
print(points_so_far(*checks.ASSIGNMENT.exercises))
