# %% [markdown]
# # 11 · Generation and efficiency
#
# What it takes: about 90 minutes, 18 points. Read first: chapter 11 up to “What it costs” for the
# first four parts, “Weights in eight bits” for the rest.
#
# Why it is worth building: a trained model is a table of bets. What you write here turns it into
# text, and makes the text come several times as fast from the same weights. At the end your
# sampler and your cache write a scene with a small GPT that this notebook trains.

# %% setup=true
import math

import torch

from autograder.checks import generation as checks
from autograder.engine.notebook import points_so_far, ready

# %% [markdown]
# ## 11.1 `filter_logits` (3 points, 20 minutes)
#
# Which tokens may be drawn at all. Read “Cutting the tail” first.
#
# Note what happens when both filters are given: top-p looks at what top-k left, with probabilities
# that sum to 1 again.
#
# <!-- hints: filter_logits -->


# %% answer="filter_logits"
def filter_logits(logits, top_k=None, top_p=None):
    """Put minus infinity at the tokens that may not be drawn; leave the other logits as they are.

    logits: (B, V). top_k (1 or more) keeps the k largest of each row, all of them if k > V. top_p
    (0 < p ≤ 1) keeps, of what top_k left, the smallest set of the likeliest tokens whose
    probabilities sum to p or more: at least one. None means: no such filter. Which of two equal
    logits stays is free. Returns (B, V) of the same dtype and leaves `logits` alone.

    Example: the logits of the probabilities [[0.1, 0.5, 0.4]] with top_p=0.6 keep tokens 1 and 2:
    0.5 alone does not reach 0.6, 0.5 + 0.4 does. With top_p=0.5 token 1 alone stays.
    """
    ### BEGIN SOLUTION
    if top_k is not None:
        kth = torch.topk(logits, min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p is not None:
        ordered, order = torch.sort(logits, descending=True)  # (B, V) each
        p = torch.softmax(ordered, dim=-1)
        dropped = p.cumsum(dim=-1) - p >= top_p  # what stands before it reaches p already
        dropped[:, :1] = False
        logits = logits.masked_fill(dropped.gather(1, order.argsort(dim=-1)), -math.inf)
    return logits
    ### END SOLUTION


# %% check="filter_logits"
checks.filter_logits.check(filter_logits)

# %% [markdown]
# Two real distributions. The counts of chapter 1 say what follows *wherefore art th* and what
# follows the end of a line. How many of the characters does each filter keep?

# %%
if ready(checks.filter_logits):
    from rnn2gpt.data import CharTokenizer, load_text, split
    from rnn2gpt.ngram import KneserNey, KneserNeyConfig

    text = load_text()
    characters = CharTokenizer(text)
    known, held_out = split(characters.encode(text))
    config = KneserNeyConfig(vocab_size=characters.vocab_size, order=5)
    counts = KneserNey.fit(known, config)
    for context in ("wherefore art th", "I have done nothing.\n"):
        log_p = counts.next_probabilities(characters.encode(context)).log()[None]  # (1, V)
        print(repr(context))
        for options in ({}, {"top_k": 5}, {"top_p": 0.9}, {"top_p": 0.99}):
            kept = filter_logits(log_p, **options)[0].softmax(0)
            likely = [characters.decode(i[None]) for i in kept.argsort(descending=True)[:6]]
            print(f"  {options!s:16} {int((kept > 0).sum()):3} kept, first {likely}")

# %% [markdown]
# ## 11.2 `sample` (2 points, 10 minutes)
#
# One token for each row. Read “Drawing a token” first, and mind the order: the temperature comes
# before the filters. Call your `filter_logits`; if its check is not green yet, mend it first.
#
# <!-- hints: sample -->


# %% answer="sample"
def sample(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """One token for each row, drawn from what the filters leave of softmax(logits / temperature).

    logits: (B, V). temperature: 0 or more; at 0 the likeliest token is taken and nothing is drawn.
    top_k, top_p: as in filter_logits. generator: a CPU torch.Generator, the only source of chance
    (None is PyTorch's own). Returns the tokens (B,), int64, and leaves `logits` alone.

    Example: sample(torch.tensor([[0.0, 2.0, 1.0]]), temperature=0) is tensor([1]), and with
    top_k=2 and any temperature token 0 is never drawn.
    """
    ### BEGIN SOLUTION
    if temperature == 0:
        return logits.argmax(dim=-1)
    p = torch.softmax(filter_logits(logits / temperature, top_k, top_p), dim=-1)
    return torch.multinomial(p.cpu(), 1, generator=generator)[:, 0].to(logits.device)
    ### END SOLUTION


# %% check="sample"
checks.sample.check(sample, filter_logits=filter_logits)

# %% [markdown]
# The same counts write, with four settings. What does top-p mend that a temperature cannot?

# %%
if ready(checks.filter_logits, checks.sample):
    for options in (
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.0, "top_p": 0.8},
    ):
        chance, ids = torch.Generator().manual_seed(5), characters.encode("JULIET:\n")
        for _ in range(160):
            log_p = counts.next_probabilities(ids[-4:]).log()[None]
            ids = torch.cat([ids, sample(log_p, generator=chance, **options)])
        print(f"--- {options}\n{characters.decode(ids)}\n")

# %% [markdown]
# ## 11.3 `KVCache` (4 points, 20 minutes)
#
# What a GPT need not compute again. Read “Keys and values, kept” first.
#
# In one pass of the model the layers call `update` in order, 0 to n_layers − 1, each with the keys
# and values of the same new tokens. `length` is read by the model before the pass, to know the
# positions of the new tokens, so it may grow only when the pass is over.
#
# <!-- hints: KVCache -->


# %% answer="KVCache"
class KVCache:
    """Keys and values of up to max_len tokens, for each of n_layers.

    `length` is the number of tokens held: 0 at first. What is kept has the dtype and the device of
    the keys that come.

    Example: KVCache(1, 1, 1, 4, 2) given k and v of shape (1, 1, 3, 2), then others of shape
    (1, 1, 1, 2), returns keys and values of shape (1, 1, 4, 2) and has length 4; one token more is
    refused.
    """

    def __init__(self, n_layers, batch_size, n_heads, max_len, d_head):
        ### BEGIN SOLUTION
        self.max_len, self.length = max_len, 0
        self.shape = batch_size, n_heads, max_len, d_head
        self.layers = [None] * n_layers
        ### END SOLUTION

    def update(self, layer, k, v):
        """Put new keys and values behind the old ones of this layer; return all of them.

        k, v: (B, H, T, d_head), T new tokens. Returns keys and values, (B, H, length + T, d_head)
        each, oldest first. `length` grows by T when the last layer is updated. Raises ValueError
        when there is no room for T more, and then keeps what it had.
        """
        ### BEGIN SOLUTION
        start, end = self.length, self.length + k.shape[2]
        if end > self.max_len:
            raise ValueError(f"{end} tokens are more than max_len={self.max_len}")
        if self.layers[layer] is None:
            self.layers[layer] = k.new_empty(self.shape), v.new_empty(self.shape)
        keys, values = self.layers[layer]  # (B, H, max_len, d_head)
        keys[:, :, start:end], values[:, :, start:end] = k, v
        if layer == len(self.layers) - 1:
            self.length = end
        return keys[:, :, :end], values[:, :, :end]
        ### END SOLUTION


# %% check="KVCache"
checks.KVCache.check(KVCache)

# %% [markdown]
# A GPT to use it on: three layers of width 96 over 512 byte-level tokens, trained on the plays for
# some twenty seconds. `model(ids, cache=cache)` is the package's GPT of chapter 9; it calls
# `update` and reads `length`.

# %%
if ready(checks.KVCache):
    from rnn2gpt.data import get_batch, load_text
    from rnn2gpt.gpt import GPT, GPTConfig
    from rnn2gpt.tokenizer import BPETokenizer, train_bpe
    from rnn2gpt.training import cosine_schedule

    text = load_text()
    bpe = BPETokenizer(train_bpe(text[: len(text) // 2], 512))
    ids = torch.tensor(bpe.encode(text))
    train, held_out = ids[: 9 * len(ids) // 10], ids[9 * len(ids) // 10 :]
    T = 96

    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=512, block_size=T, n_layers=3, n_heads=4, d_model=96))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.95))
    chance, n_steps, losses = torch.Generator().manual_seed(0), 300, []
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = cosine_schedule(step, 6e-3, 0.0, 30, n_steps)
        x, y = get_batch(train, T, 12, chance)
        _, loss = model(x, y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    print(f"last 20 steps: {sum(losses[-20:]) / 20:.2f} nats per token")

# %% [markdown]
# The proof and the gain: the logits of every step with your cache and without it, and the time
# that a token takes as the text grows.

# %%
if ready(checks.KVCache):
    import time

    import matplotlib.pyplot as plt

    @torch.no_grad()
    def timed(cached, rounds=2):
        """The logits (T, V) of the held-out text's first tokens, one at a time, and ms for each."""
        best = [math.inf] * T
        for _ in range(rounds):
            cache, logits = KVCache(3, 1, 4, T, 24), []
            for t in range(T):
                start = time.perf_counter()
                if cached:
                    out, _ = model(held_out[None, t : t + 1], cache=cache)
                else:
                    out, _ = model(held_out[None, : t + 1])
                best[t] = min(best[t], 1000 * (time.perf_counter() - start))
                logits.append(out[0, -1])
        return torch.stack(logits), best

    with_cache, ms_with = timed(cached=True)
    without, ms_without = timed(cached=False)
    print(f"largest difference of a logit: {(with_cache - without).abs().max():.1e}")
    print(f"{T} tokens: {sum(ms_with):.0f} ms with the cache, {sum(ms_without):.0f} ms without")
    plt.plot(ms_without, label="everything again")
    plt.plot(ms_with, label="your cache")
    plt.xlabel("tokens in the text")
    plt.ylabel("ms for the next token")
    plt.ylim(bottom=0)
    plt.legend()
    plt.show()

# %% [markdown]
# ## 11.4 `beam_search` (4 points, 25 minutes)
#
# The likeliest text instead of a likely one. Read “Beam search” first.
#
# Whether a finished sequence keeps its place in the beam is free, as long as none of them is
# extended and `score_next` is never asked about more than `beam_size` at a time.
#
# <!-- hints: beam_search -->


# %% answer="beam_search"
def beam_search(score_next, bos_id, eos_id, beam_size, max_len, length_penalty=0.0):
    """The best sequence that a beam of beam_size finds, and its score.

    score_next(sequences) -> (n, V): log-probabilities of every next token after each of n
    sequences, lists of ints that begin with bos_id; call it with unfinished ones only. In each
    step the beam_size best continuations of all live sequences together go on. One that ends in
    eos_id is finished. No sequence has more than max_len tokens (BOS not counted); those that
    reach it unfinished compete with the finished ones at the end.

    Returns ids, score: a list of ints without BOS, with EOS if it ended, and
    score = Σ log p / length ** length_penalty, where length counts EOS and not BOS.

    Example: token 2 follows BOS with probability 0.6 and 3 with 0.4; after 2 all of 10 tokens are
    equally likely, after 3 comes EOS for certain. A beam of 1 goes on with 2; a beam of 2 returns
    [3, EOS] with the score ln 0.4, because 0.6 · 0.1 is less than 0.4.
    """
    ### BEGIN SOLUTION
    live, finished = [([], 0.0)], []
    for _ in range(max_len):
        log_p = score_next([[bos_id, *ids] for ids, _ in live])  # (n, V)
        sums = torch.tensor([total for _, total in live], dtype=torch.float64)  # (n,)
        totals = (sums[:, None] + log_p.cpu()).flatten()  # (n · V,)
        best = totals.topk(min(beam_size, len(totals)))
        grown = []
        for total, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            row, token = divmod(place, log_p.shape[1])
            grown.append(([*live[row][0], token], total))
        finished += [one for one in grown if one[0][-1] == eos_id]
        live = [one for one in grown if one[0][-1] != eos_id]
        if not live:
            break
    scored = [(ids, total / len(ids) ** length_penalty) for ids, total in finished + live]
    return max(scored, key=lambda one: one[1])
    ### END SOLUTION


# %% check="beam_search"
checks.beam_search.check(beam_search)

# %% [markdown]
# Your beams on the trained model: thirty tokens after *My lord,*, no token ends a text here. The
# likelihood rises with the beam. Does the text get better?

# %%
if ready(checks.filter_logits, checks.sample, checks.KVCache, checks.beam_search):
    prompt = bpe.encode("HAMLET:\nMy lord,")

    @torch.no_grad()
    def score_next(sequences):
        seen = torch.tensor([[*prompt[:-1], *ids] for ids in sequences])
        return model(seen)[0][:, -1].log_softmax(-1)

    def per_token(ids):
        """The mean log-probability of these tokens after the prompt, in nats."""
        with torch.no_grad():
            log_p = model(torch.tensor([[*prompt, *ids]]))[0][0].log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) - 1 + len(ids))
        return sum(log_p[t, i].item() for t, i in zip(places, ids, strict=True)) / len(ids)

    for beam_size in (1, 2, 8):
        ids, _ = beam_search(score_next, prompt[-1], -1, beam_size, 30)
        print(f"--- beam of {beam_size}: {per_token(ids):.2f} nats per token")
        print(bpe.decode(ids))
    chance, ids = torch.Generator().manual_seed(2), []
    for _ in range(30):
        log_p = score_next([[prompt[-1], *ids]])
        ids.append(sample(log_p, generator=chance).item())
    print(f"--- sampled: {per_token(ids):.2f} nats per token\n{bpe.decode(ids)}")

# %% [markdown]
# ## 11.5 `quantize_int8` (2 points, 10 minutes)
#
# A matrix in a quarter of its bytes. Read “Weights in eight bits” first.
#
# <!-- hints: quantize_int8 -->


# %% answer="quantize_int8"
def quantize_int8(weight):
    """Each row of a matrix in whole steps from −127 to 127 of its own scale.

    weight: (O, I). Returns q: (O, I), torch.int8, and scale: (O, 1) in weight's dtype. The scale of
    a row is its largest |weight| divided by 127, so that no weight is off by more than half a step.
    A row of zeros gets any scale that is finite and above 0. Leaves `weight` alone.

    Example: quantize_int8(torch.tensor([[2.54, -1.0], [0.0, 0.0]])) gives q = [[127, -50], [0, 0]]
    and a scale of 0.02 for the first row.
    """
    ### BEGIN SOLUTION
    size = weight.abs().amax(dim=1, keepdim=True)  # (O, 1)
    scale = torch.where(size > 0, size, 127.0) / 127
    return torch.round(weight / scale).to(torch.int8), scale
    ### END SOLUTION


# %% check="quantize_int8"
checks.quantize_int8.check(quantize_int8)

# %% [markdown]
# ## 11.6 `dequantize` (1 point, 5 minutes)
#
# The way back.
#
# <!-- hints: dequantize -->


# %% answer="dequantize"
def dequantize(q, scale):
    """The weights that q and scale stand for.

    q: (O, I), torch.int8. scale: (O, 1), floating point. Returns (O, I) in scale's dtype.

    Example: dequantize of q = [[127, -50]] and scale = [[0.02]] is [[2.54, -1.0]].
    """
    ### BEGIN SOLUTION
    return q.to(scale.dtype) * scale
    ### END SOLUTION


# %% check="dequantize"
checks.dequantize.check(dequantize)

# %% [markdown]
# The model through your two functions and back: how much worse does it predict, and how many bytes
# do its matrices take? Beside it the same with one scale for each whole matrix.

# %%
if ready(checks.KVCache, checks.quantize_int8, checks.dequantize):
    import copy

    @torch.no_grad()
    def held_out_loss(model):
        rows = held_out[: 64 * (T + 1)].view(64, T + 1)
        return model(rows[:, :-1], rows[:, 1:])[1].item()

    @torch.no_grad()
    def through_int8(per_row):
        """A copy of the model whose matrices went through int8, and the bytes they take there."""
        small, n_bytes = copy.deepcopy(model), 0
        for weight in small.parameters():
            if weight.ndim == 2:
                q, scale = quantize_int8(weight if per_row else weight.reshape(1, -1))
                weight.copy_(dequantize(q, scale).view_as(weight))
                n_bytes += q.numel() + 4 * scale.numel()
        return small, n_bytes

    size = sum(4 * p.numel() for p in model.parameters() if p.ndim == 2)
    print(f"float32:         {held_out_loss(model):.4f} nats, {size / 1000:6,.0f} kB")
    for name, per_row in (("int8, per row", True), ("int8, one scale", False)):
        small, n_bytes = through_int8(per_row)
        print(f"{name:<16} {held_out_loss(small):.4f} nats, {n_bytes / 1000:6,.0f} kB")

# %% [markdown]
# ## 11.7 A scene, and your own experiment (2 points, 10 minutes)
#
# Everything together: your sampler draws, your cache remembers. When the cache is full, the last
# half of the text is read again into a new one, so the scene may be longer than the model's window.

# %%
if ready(checks.filter_logits, checks.sample, checks.KVCache):

    @torch.no_grad()
    def write(prompt, n_tokens, seed=0, **options):
        text, cache = torch.tensor([bpe.encode(prompt)]), None
        chance = torch.Generator().manual_seed(seed)
        for _ in range(n_tokens):
            if cache is None or cache.length == T:
                cache, new = KVCache(3, 1, 4, T, 24), text[:, -T // 2 :]
            logits, _ = model(new, cache=cache)
            new = sample(logits[:, -1], generator=chance, **options)[:, None]  # (1, 1)
            text = torch.cat([text, new], dim=1)
        return bpe.decode(text[0].tolist())

    print(write("KING RICHARD II:\n", 220, temperature=0.8, top_p=0.9))

# %% [markdown]
# Now the experiment. The cell below lets the model write with settings of your choice, and counts:
# the share of different words among all words, and the share of words that occur in the plays.

# %%
if ready(checks.filter_logits, checks.sample, checks.KVCache):
    words_of_the_plays = set(text.split())
    settings = [
        {"temperature": 0.0},
        {"temperature": 0.5},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0},
        {"temperature": 1.5},
    ]
    for options in settings:
        words = write("KING RICHARD II:\n", 250, **options).split()[3:]
        different = len(set(words)) / len(words)
        genuine = sum(word in words_of_the_plays for word in words) / len(words)
        print(f"{options!s:36} {different:4.0%} different, {genuine:4.0%} in the plays")

# %% [markdown] written="written_11" points=2
# Before you run the cell above, write down which setting you expect to have the most different
# words and which the most genuine ones. Then run it, and explain in two sentences why no setting
# has the most of both, and what top-p does differently from a lower temperature.
#
# ### BEGIN SOLUTION
# A full answer gives the measured shares and names the trade: at temperature 0 nearly all words are
# genuine and few are different, because the text runs in a circle; at 1.5 nearly all are different
# and few genuine, because tokens from the long tail are drawn, and one of them is enough to spoil a
# word. A lower temperature changes the odds between all tokens, the good ones too, so that the text
# becomes monotonous; top-p cuts off the unlikely ones and leaves the odds among the others as the
# model gave them. Full points ask for the numbers, and for one sentence on the tail.
# ### END SOLUTION

# %%
print(points_so_far(*checks.ASSIGNMENT.exercises))
