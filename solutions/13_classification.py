# %% [markdown]
# # 13 · Classification and LoRA
#
# What it takes: about 75 minutes, 15 points. Read first: chapter 13 up to and including “Merged, it
# costs nothing”.
#
# Why it is worth building: a model that continues text becomes one that judges it, with one linear
# map more. You write that map's place, choose which weights may move, and build the detour that
# trains a large matrix by two narrow ones. At the end your classifier reads sentences of yours.

# %% setup=true
import torch
from torch import nn

from autograder.checks import classification as checks
from autograder.engine.notebook import points_so_far, ready
from rnn2gpt.attention import causal_mask

# %% [markdown]
# ## 13.1 `pool_last_token` (2 points, 10 minutes)
#
# In a causal model only the last token has read the whole text. Read “The last token has read
# everything” and “Padding, on either side” first.
#
# <!-- hints: pool_last_token -->


# %% answer="pool_last_token"
def pool_last_token(hidden, attention_mask):
    """The vector of the last real token of each row.

    hidden: (B, T, D). attention_mask: (B, T), bool, True at real tokens; the others are padding,
    all of it before the real tokens of a row or all of it behind them. Each row has at least one
    real token. Returns (B, D).

    Example: hidden = [[[1.], [2.], [3.]]] gives [[2.]] with the mask [[True, True, False]] and
    [[3.]] with the mask [[False, True, True]].
    """
    ### BEGIN SOLUTION
    places = torch.arange(hidden.shape[1], device=hidden.device)  # (T,)
    last = (places * attention_mask).amax(dim=1)  # (B,)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
    ### END SOLUTION


# %% check="pool_last_token"
checks.pool_last_token.check(pool_last_token)

# %% [markdown]
# ## 13.2 `SequenceClassifier` (4 points, 20 minutes)
#
# A GPT with another head. Read “One linear map more” first, and call your `pool_last_token`; if its
# check is not green yet, mend it first.
#
# `gpt` is the package's model of chapter 9. Its parts: `gpt.token_embedding`,
# `gpt.position_embedding`, `gpt.dropout`, `gpt.blocks` (call `block(x, mask)` with chapter 5's
# `causal_mask(t, device=...)`), `gpt.norm`, and the sizes in `gpt.config`. Its own head, which
# gives logits of tokens, is not used here.
#
# <!-- hints: SequenceClassifier -->


# %% answer="SequenceClassifier"
class SequenceClassifier(nn.Module):
    """A pretrained GPT, kept as `gpt`, and a linear map with bias, kept as `head`.

    The classifier builds on the weights of the GPT that it is given. It freezes nothing: which
    weights are trained is decided outside. Dropout acts in training mode alone.
    """

    def __init__(self, gpt, n_classes):
        super().__init__()
        ### BEGIN SOLUTION
        self.gpt = gpt
        self.head = nn.Linear(gpt.config.d_model, n_classes)
        ### END SOLUTION

    def forward(self, ids, attention_mask):
        """Logits of the classes.

        ids: (B, T). attention_mask: (B, T), bool, True at real tokens, with the padding of a row
        before or behind them. Returns (B, n_classes): what the head makes of the vector, after
        `gpt.norm`, of the row's last real token.

        A text gets the same logits alone, with padding behind it and with padding before it:
        padding is attended to by no real token and takes no position. (Real tokens moved to the
        front are safe from both.)

        Example: ids = [[5, 8, 0]] with the mask [[True, True, False]], and ids = [[0, 5, 8]] with
        [[False, True, True]], give what ids = [[5, 8]] gives.
        """
        ### BEGIN SOLUTION
        order = attention_mask.int().argsort(dim=1, descending=True, stable=True)  # (B, T)
        ids, attention_mask = ids.gather(1, order), attention_mask.gather(1, order)
        places = torch.arange(ids.shape[1], device=ids.device)  # (T,)
        x = self.gpt.token_embedding(ids) + self.gpt.position_embedding(places)  # (B, T, D)
        x = self.gpt.dropout(x)
        mask = causal_mask(ids.shape[1], device=ids.device)
        for block in self.gpt.blocks:
            x = block(x, mask)
        return self.head(pool_last_token(self.gpt.norm(x), attention_mask))
        ### END SOLUTION


# %% check="SequenceClassifier"
checks.SequenceClassifier.check(SequenceClassifier, pool_last_token=pool_last_token)

# %% [markdown]
# A GPT to put it on: two layers of width 64 over 512 byte pairs. It reads sentences from film
# reviews for some ten seconds, to learn a little English.

# %%
if ready(checks.pool_last_token, checks.SequenceClassifier):
    from rnn2gpt.data import get_batch
    from rnn2gpt.gpt import GPT, GPTConfig
    from rnn2gpt.sentiment import load_examples
    from rnn2gpt.tokenizer import BPETokenizer, train_bpe
    from rnn2gpt.training import cosine_schedule

    films = "\n".join(text for text, _ in load_examples("sentiment").train)
    bpe = BPETokenizer(train_bpe(films[:300_000], 512))
    stream, T = torch.tensor(bpe.encode(films)), 96

    torch.manual_seed(0)
    sizes = GPTConfig(vocab_size=512, block_size=T, n_layers=2, n_heads=4, d_model=64, dropout=0.1)
    gpt = GPT(sizes)
    optimizer = torch.optim.AdamW(gpt.parameters(), weight_decay=0.01)
    chance, n_steps, losses = torch.Generator().manual_seed(0), 200, []
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = cosine_schedule(step, 6e-3, 0.0, 20, n_steps)
        _, loss = gpt(*get_batch(stream, T, 16, chance))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    pretrained = {name: weight.clone() for name, weight in gpt.state_dict().items()}
    print(f"last 20 steps: {sum(losses[-20:]) / 20:.2f} nats per token")

# %% [markdown]
# A task that it can learn in seconds: is a sentence about a place, a language or a currency? No
# name of the test stands in the training part, so the words around it must tell. (Film sentences
# need more labels and more minutes than a notebook has: the chapter shows what they take.) `teach`
# trains whatever requires a gradient, and returns the accuracy on the test after each pass. Beside
# the pretrained start, the same network from random weights.

# %%
if ready(checks.pool_last_token, checks.SequenceClassifier):
    from rnn2gpt.classifier import pad_right, predict
    from rnn2gpt.entities import KINDS, TAGS, sentences

    def examples(n, held_out, seed):
        """Ids and label of the sentences, of n, that are about one kind of thing."""
        made = []
        for sentence in sentences(bpe, n, held_out, seed):
            kinds = {TAGS[tag][2:] for tag in sentence.tags if tag}
            if len(kinds) == 1:
                made.append((sentence.ids, KINDS.index(kinds.pop())))
        return made

    known, unseen = examples(700, False, 1), examples(500, True, 2)

    def right(model):
        """The share of the test sentences that the model labels rightly."""
        guess = predict(model, [ids for ids, _ in unseen]).argmax(dim=1)
        return (guess == torch.tensor([label for _, label in unseen])).double().mean().item()

    def teach(model, learning_rate, epochs=4):
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, weight_decay=0.01)
        order, reached, step = torch.Generator().manual_seed(1), [right(model)], 0
        total = epochs * len(known) // 16
        for _ in range(epochs):
            model.train()
            for places in torch.randperm(len(known), generator=order).split(16):
                ids, mask = pad_right([known[i][0] for i in places])
                loss = nn.functional.cross_entropy(
                    model(ids, mask), torch.tensor([known[i][1] for i in places])
                )
                optimizer.param_groups[0]["lr"] = cosine_schedule(
                    step, learning_rate, 0.0, 10, total
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
            reached.append(right(model))
        return reached

    def fresh():
        """A new classifier on the pretrained GPT."""
        torch.manual_seed(2)
        start = GPT(sizes)
        start.load_state_dict(pretrained)
        return SequenceClassifier(start, len(KINDS))

    print(f"{len(known)} sentences, {len(unseen)} to test; the first:", bpe.decode(known[0][0]))
    torch.manual_seed(2)
    results = {"from scratch": teach(SequenceClassifier(GPT(sizes), len(KINDS)), 2e-3)}
    everything = fresh()
    results["all weights"] = teach(everything, 2e-3)
    for name, reached in results.items():
        print(f"{name:<14}", " → ".join(f"{share:.1%}" for share in reached))

# %% [markdown]
# ## 13.3 `freeze` (2 points, 10 minutes)
#
# Who may move. Read “Which weights may move” first.
#
# <!-- hints: freeze -->


# %% answer="freeze"
def freeze(model, except_for):
    """Train the parameters whose names begin with one of `except_for`, and no others.

    model: an nn.Module; names are those of `model.named_parameters()`. except_for: a tuple of
    strings, perhaps empty. What is named requires a gradient afterwards, even if it was frozen
    before; all else requires none. Nothing else about the model changes.

    Example: freeze(classifier, ("gpt.blocks.1.", "head.")) trains the second block and the head:
    among others gpt.blocks.1.norm_1.weight and head.bias, but not gpt.norm.weight.
    """
    ### BEGIN SOLUTION
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(tuple(except_for))
    ### END SOLUTION


# %% check="freeze"
checks.freeze.check(freeze)

# %% [markdown]
# The same labels, the same passes, with less and less of the model in motion.

# %%
if ready(checks.pool_last_token, checks.SequenceClassifier, checks.freeze):

    def moving(model):
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    counts = {"all weights": moving(everything)}
    for name, part, rate in (
        ("last block", ("gpt.blocks.1.", "gpt.norm.", "head."), 3e-3),
        ("head", ("head.",), 1e-2),
    ):
        model = fresh()
        freeze(model, part)
        counts[name], results[name] = moving(model), teach(model, rate)
    for name, count in counts.items():
        print(f"{name:<12} {count:>7,} weights trained, {results[name][-1]:.1%} right")

# %% [markdown]
# ## 13.4 `LoRALinear` (5 points, 25 minutes)
#
# A detour of low rank around a frozen matrix. Read “A narrow detour” and “Merged, it costs
# nothing” first.
#
# <!-- hints: LoRALinear -->


# %% answer="LoRALinear"
class LoRALinear(nn.Module):
    """The linear layer `base`, frozen, plus (alpha / rank) · B A, which is trained.

    Parameters: A: (rank, in), random at the start, and B: (out, rank), zeros, both of the dtype and
    on the device of base.weight; the base keeps its own, as `base.weight` and, if it has one,
    `base.bias`. Nothing of the base requires a gradient, now or after merging.

    Example: a base with weight [[2.]] and bias [1.], A = [[3.]], B = [[0.5]], rank = 1, alpha = 4
    maps x = [1.] to 2·1 + 1 + 4·0.5·3·1 = 9. Merged, base.weight is [[8.]] and x still gives 9.
    """

    def __init__(self, base, rank, alpha):
        super().__init__()
        ### BEGIN SOLUTION
        self.base = base
        for parameter in base.parameters():
            parameter.requires_grad = False
        out, width = base.weight.shape
        self.A = nn.Parameter(base.weight.new_empty(rank, width).normal_(std=width**-0.5))
        self.B = nn.Parameter(base.weight.new_zeros(out, rank))
        self.scale, self.merged = alpha / rank, False
        ### END SOLUTION

    def forward(self, x):
        """x: (..., in) to (..., out)."""
        ### BEGIN SOLUTION
        y = self.base(x)
        return y if self.merged else y + self.scale * (x @ self.A.T @ self.B.T)
        ### END SOLUTION

    def merge(self):
        """Add the product into base.weight. A second call in a row changes nothing."""
        ### BEGIN SOLUTION
        if not self.merged:
            with torch.no_grad():
                self.base.weight += self.scale * (self.B @ self.A)
            self.merged = True
        ### END SOLUTION

    def unmerge(self):
        """Take the product out of base.weight, if it is in there; else change nothing."""
        ### BEGIN SOLUTION
        if self.merged:
            with torch.no_grad():
                self.base.weight -= self.scale * (self.B @ self.A)
            self.merged = False
        ### END SOLUTION


# %% check="LoRALinear"
checks.LoRALinear.check(LoRALinear)

# %% [markdown]
# Your layer in the place of each block's query and value projection, with rank 4. Then the proof:
# merged, the model gives the same logits, from the matrices it had before.

# %%
if ready(*checks.ASSIGNMENT.exercises):
    adapted = fresh()
    freeze(adapted, ("head.",))
    detours = []
    for block in adapted.gpt.blocks:
        for name in ("W_q", "W_v"):
            detours.append(LoRALinear(getattr(block.attention, name), rank=4, alpha=8.0))
            setattr(block.attention, name, detours[-1])
    counts["LoRA"], results["LoRA"] = moving(adapted), teach(adapted, 1e-2)
    print(f"LoRA         {counts['LoRA']:>7,} weights trained, {results['LoRA'][-1]:.1%} right")

    ids, mask = pad_right([ids for ids, _ in unseen[:50]])
    adapted.eval()
    with torch.no_grad():
        before = adapted(ids, mask)
        for detour in detours:
            detour.merge()
        apart = (adapted(ids, mask) - before).abs().max()
    print(f"merged: the largest difference of a logit is {apart:.0e}")

# %%
if ready(*checks.ASSIGNMENT.exercises):
    import matplotlib.pyplot as plt

    for name, reached in results.items():
        plt.plot(range(len(reached)), [100 * share for share in reached], "o-", label=name)
    plt.axhline(100 / 3, color="gray", linewidth=1)  # chance
    plt.xlabel("passes over the training sentences")
    plt.ylabel("test sentences right (%)")
    plt.xticks(range(5))
    plt.legend()
    plt.show()

# %% [markdown]
# ## 13.5 Sentences of your own (2 points, 10 minutes)
#
# Replace the sentences by your own. Among them should be one that is easy, one whose clue stands
# behind the name, one with clues of two kinds, and one without any clue that the training had.

# %%
if ready(checks.pool_last_token, checks.SequenceClassifier):
    mine = [
        "She was born in Samoa and laughed.",
        "Tuvalu is spoken by few people.",
        "The letter was paid in francs.",
        "Nobody has ever heard of Zyx.",
    ]
    rows = predict(everything, [bpe.encode(text) for text in mine]).exp()
    for text, row in zip(mine, rows, strict=True):
        print(f"{KINDS[row.argmax()]:>8} {row.max():4.0%}  {text}")

# %% [markdown] written="written_13" points=2
# Which of your sentences did the classifier get wrong, and what about each may have misled it? Then
# say in one sentence what the words alone, in any order, could have told, and in one more how you
# would test whether the model uses their order at all.
#
# ### BEGIN SOLUTION
# A full answer names the sentences with their probabilities and ties each error to something that
# can be seen in the text: a clue of the wrong kind, a clue that no training sentence had, a
# spelling that looks like another kind's. Words in any order can tell what a bag of words tells:
# that a sentence has the word *spoken* or *paid* in it, which is enough for most of these. A test
# of order: shuffle the words of the test sentences and see how far the accuracy falls, or compare
# pairs that differ in order alone. Full points ask for an observation from their own run and for a
# test that could come out either way.
# ### END SOLUTION

# %%
print(points_so_far(*checks.ASSIGNMENT.exercises))
