# %% [markdown]
# # 12 · BERT
#
# What it takes: about 75 minutes, 14 points. Read first: chapter 12 up to and including “Scoring a
# whole line”.
#
# Why it is worth building: a GPT reads from the left only. The model you build here reads both
# sides of a gap, because it is trained on gaps. By the end of the notebook it has read Shakespeare
# for some ten seconds and puts back letters that were rubbed out of a passage it has never seen.

# %% setup=true
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from autograder.checks import bert as checks
from autograder.engine.notebook import points_so_far, ready
from rnn2gpt.positions import sinusoidal_positions
from rnn2gpt.transformer import TransformerBlock


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The sizes of the model. block_size is the most tokens it reads at a time."""

    vocab_size: int
    block_size: int
    n_layers: int
    n_heads: int
    d_model: int
    n_token_types: int = 2
    dropout: float = 0.0


# %% [markdown]
# `TransformerBlock(d_model, n_heads, d_ff, dropout=0.0, norm_first=True, activation="relu")` is the
# package's version of what you wrote in chapter 7: `block(x, mask)` takes x of (B, T, D) and a mask
# that broadcasts to (B, H, T, T), True = may attend.
#
# ## 12.1 `mask_tokens` (4 points, 20 minutes)
#
# Make a training example out of any text: hide some tokens, and remember what stood there. Read
# “Hide a word and ask for it” and “80, 10, 10” first.
#
# <!-- hints: mask_tokens -->


# %% answer="mask_tokens"
def mask_tokens(ids, mask_id, vocab_size, special_ids, p=0.15, generator=None):
    """Choose tokens at random and hide most of them.

    ids: int64, any shape, usually (B, T). special_ids: a tuple of ids, mask_id among them, that are
    never chosen and never put in. Each other token is chosen with probability p, by itself. A
    chosen token becomes mask_id with probability 0.8, a random ordinary token (any id below
    vocab_size that is not special, each as likely) with probability 0.1, and stays with
    probability 0.1.

    Returns (inputs, labels), both int64 of ids' shape and on its device. labels holds the token
    that stood there wherever one was chosen, and −100 everywhere else. ids is left alone.
    generator: a CPU torch.Generator, the only source of chance; None is PyTorch's own.

    Example: ids = [7, 5, 9], of which the second is chosen and masked, with mask_id = 3, gives
    inputs = [7, 3, 9] and labels = [−100, 5, −100].
    """
    ### BEGIN SOLUTION
    special = torch.tensor(special_ids)
    ordinary = torch.tensor([i for i in range(vocab_size) if i not in special_ids])
    to_choose, fate = (torch.rand(ids.shape, generator=generator).to(ids.device) for _ in range(2))
    others = ordinary[torch.randint(len(ordinary), ids.shape, generator=generator)].to(ids.device)
    chosen = (to_choose < p) & ~torch.isin(ids, special.to(ids.device))
    inputs = torch.where(chosen & (fate < 0.8), mask_id, ids)
    inputs = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), others, inputs)
    return inputs, torch.where(chosen, ids, -100)
    ### END SOLUTION


# %% check="mask_tokens"
checks.mask_tokens.check(mask_tokens)

# %% [markdown]
# What it makes of a line, five times. An underscore is a mask; the second row of each pair shows
# what is asked for.

# %%
if ready(checks.mask_tokens):
    from rnn2gpt.data import CharTokenizer, get_batch, load_text, split

    text = load_text()
    tokenizer = CharTokenizer(text)
    V, MASK = tokenizer.vocab_size + 1, tokenizer.vocab_size  # the mask is one id more

    def show(ids):
        """The characters of ids, `_` for a mask and a space for −100."""
        return "".join(
            "_" if i == MASK else " " if i < 0 else tokenizer.decode([i]) for i in ids.tolist()
        )

    chance = torch.Generator().manual_seed(0)
    line = tokenizer.encode("The quality of mercy is not strained")
    for _ in range(5):
        inputs, labels = mask_tokens(line, MASK, V, (MASK,), generator=chance)
        print(show(inputs))
        print(show(labels))

# %% [markdown]
# ## 12.2 `BertForMaskedLM` (5 points, 30 minutes)
#
# The encoder of chapter 7 with an embedding for each of two segments below it and a head above it.
# Read “The encoder” and “The head” first.
#
# <!-- hints: BertForMaskedLM -->


# %% answer="BertForMaskedLM"
class BertForMaskedLM(nn.Module):
    """An encoder that gives logits for the token at each position.

    config: an object with the fields of BertConfig. Parts by name, D = d_model, V = vocab_size:
    `token_embedding` (V, D), `position_embedding` (block_size, D) and `type_embedding`
    (n_token_types, D), which are added; `embedding_norm`, a LayerNorm; `blocks`, a ModuleList of
    n_layers post-norm TransformerBlocks with feed-forward layers of 4·D and the exact GELU;
    `dense`, a linear map from D to D; `norm`, a LayerNorm; and `decoder`, a linear map to V with a
    bias, whose weight is the token embedding's table itself. Between `dense` and `norm` stands an
    exact GELU.

    Matrices and tables start as N(0, σ) with σ = 0.02·√(768/D): BERT's 0.02 at its width of 768,
    and more in a narrower model. config.dropout is the blocks' dropout, and falls on the embeddings
    after their norm.

    Example: BertForMaskedLM(config)(ids) with ids of (2, 5) gives logits of (2, 5, V).
    """

    def __init__(self, config):
        super().__init__()
        ### BEGIN SOLUTION
        d = config.d_model
        self.block_size = config.block_size
        self.token_embedding = nn.Embedding(config.vocab_size, d)
        self.position_embedding = nn.Embedding(config.block_size, d)
        self.type_embedding = nn.Embedding(config.n_token_types, d)
        self.embedding_norm = nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(d, config.n_heads, 4 * d, config.dropout, False, "gelu")
            for _ in range(config.n_layers)
        )
        self.dense, self.norm = nn.Linear(d, d), nn.LayerNorm(d)
        self.decoder = nn.Linear(d, config.vocab_size)
        self.decoder.weight = self.token_embedding.weight
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02 * (768 / d) ** 0.5)
        ### END SOLUTION

    def forward(self, ids, attention_mask=None, token_types=None):
        """ids: (B, T), int64. attention_mask: (B, T), True where a token may be read; None lets
        all be read. token_types: (B, T), the segment of each token; None is 0 everywhere.

        Returns logits, (B, T, V). Raises ValueError when T is more than block_size.
        """
        ### BEGIN SOLUTION
        t = ids.shape[1]
        if t > self.block_size:
            raise ValueError(f"{t} tokens, but block_size is {self.block_size}")
        types = torch.zeros_like(ids) if token_types is None else token_types
        x = self.token_embedding(ids) + self.type_embedding(types)
        x = self.dropout(self.embedding_norm(x + self.position_embedding.weight[:t]))  # (B, T, D)
        mask = None if attention_mask is None else attention_mask[:, None, None]  # (B, 1, 1, T)
        for block in self.blocks:
            x = block(x, mask)
        return self.decoder(self.norm(F.gelu(self.dense(x))))
        ### END SOLUTION


# %% check="BertForMaskedLM"
checks.BertForMaskedLM.check(BertForMaskedLM)

# %% [markdown]
# Train it: characters of the plays, 16 at a time, 15 % of them chosen anew in every batch, and the
# loss taken where the labels are not −100. The table of positions starts as the waves of chapter 6,
# so that a masked character finds its neighbors early. Some ten seconds.

# %%
if ready(checks.mask_tokens, checks.BertForMaskedLM):
    train_ids, held_out = split(tokenizer.encode(text))
    T = 16

    def train(p=0.15, n_steps=450):
        """A model trained with the share p of its characters chosen."""
        torch.manual_seed(0)
        config = BertConfig(vocab_size=V, block_size=T, n_layers=2, n_heads=4, d_model=64)
        model = BertForMaskedLM(config)
        model.position_embedding.weight.data = 0.1 * sinusoidal_positions(T, 64)
        optimizer = torch.optim.AdamW(model.parameters())
        chance = torch.Generator().manual_seed(0)
        for step in range(n_steps):
            for group in optimizer.param_groups:  # up for 50 steps, then down to 0
                group["lr"] = 4e-3 * min((step + 1) / 50, 1 - step / n_steps)
            x, _ = get_batch(train_ids, T, 96, chance)
            inputs, labels = mask_tokens(x, MASK, V, (MASK,), p, chance)
            loss = F.cross_entropy(model(inputs).flatten(0, 1), labels.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return model

    @torch.no_grad()
    def accuracy(model):
        """How many masked characters of the held-out plays it puts back, with 15 % masked."""
        chance = torch.Generator().manual_seed(1)
        x, _ = get_batch(held_out, T, 400, chance)
        asked = torch.rand(x.shape, generator=chance) < 0.15
        guesses = model(x.masked_fill(asked, MASK)).argmax(dim=-1)
        return (guesses == x)[asked].double().mean().item()

    model = train()
    print(f"{100 * accuracy(model):.0f} % of the masked characters are put back")

# %% [markdown]
# Rub out letters and let your model fill them in. Try words of your own, at most 16 characters,
# with `_` where a letter is missing.

# %%
if ready(checks.mask_tokens, checks.BertForMaskedLM):

    @torch.no_grad()
    def fill_in(line):
        """The line with each `_` replaced by what the model thinks likeliest there."""
        ids = torch.tensor([MASK if c == "_" else tokenizer.encode(c).item() for c in line])
        best = model(ids[None])[0, :, :MASK].argmax(dim=-1)  # any character but the mask
        return show(torch.where(ids == MASK, best, ids))

    for line in (
        "To b_ or not t_",
        "my l_rd, I w_ll",
        "wh_t say y_u?",
        "and th_n the k_n",
        "H_w now, sir",
    ):
        print(line)
        print(fill_in(line), end="\n\n")

# %% [markdown]
# ## 12.3 `pseudo_log_likelihood` (3 points, 15 minutes)
#
# A score for a whole line, from a model that gives no probability of a line. Read “Scoring a whole
# line” first.
#
# <!-- hints: pseudo_log_likelihood -->


# %% answer="pseudo_log_likelihood"
def pseudo_log_likelihood(model, ids, mask_id):
    """The sum over all tokens of log p(token | all the others), in nats.

    model: a function that takes ids (B, T) and returns logits (B, T, V). ids: (T,), int64, left
    alone; every one of them is scored. For each token it is replaced by mask_id, alone, and the
    model is asked what stood there: T rows in all, in one batch or in several. Returns a number.

    Example: T = 2, and the model gives the first token 1/2 when it sees only the second, the second
    1/4 when it sees only the first: the result is ln 1/2 + ln 1/4 = −2.08.
    """
    ### BEGIN SOLUTION
    total = 0.0
    for t, token in enumerate(ids.tolist()):
        hidden = ids.clone()
        hidden[t] = mask_id
        logits = model(hidden[None])[0, t]  # (V,)
        total += logits.log_softmax(dim=-1)[token].item()
    return total
    ### END SOLUTION


# %% check="pseudo_log_likelihood"
checks.pseudo_log_likelihood.check(pseudo_log_likelihood)

# %% [markdown]
# Put lines in order by it, best first. All have the same characters; only one is a line of a play.

# %%
if ready(checks.mask_tokens, checks.BertForMaskedLM, checks.pseudo_log_likelihood):
    lines = ("I will not go", "I will ton go", "go not will I", "I wlli not og", "og ton lliw I")
    with torch.no_grad():
        scores = [pseudo_log_likelihood(model, tokenizer.encode(s), MASK) for s in lines]
    for score, line in sorted(zip(scores, lines, strict=True), reverse=True):
        print(f"{score:8.1f}  {line}")

# %% [markdown]
# ## 12.4 Your own experiment (2 points, 10 minutes)
#
# Why 15 %? The cell below trains your model three times more, for a third of the steps, with other
# shares, and asks each the same question: with 15 % of held-out text masked, how much does it put
# back?

# %%
if ready(checks.mask_tokens, checks.BertForMaskedLM):
    for p in (0.02, 0.15, 0.9):
        print(f"p = {p:4}: {100 * accuracy(train(p, n_steps=150)):.0f} % put back")

# %% [markdown] written="written_12" points=2
# Before you run the cell above, write down in which order you expect the three shares to come. Then
# run it, and explain in two sentences what a small p costs, what a large p costs, and which of the
# two you see here.
#
# ### BEGIN SOLUTION
# A full answer gives the three measured shares. A small p leaves nearly the whole line to read but
# asks for few characters: with p = 0.02 a batch of 96 · 16 characters holds about 30 questions, so
# the same number of steps teaches little. A large p asks for many, but leaves so little to read
# that only the frequencies of the characters can be learned: with p = 0.9 both neighbors of a
# character can be read once in a hundred times. The answer says which of the two costs more here,
# by the numbers, and that a longer training would lessen the first and not the second.
# ### END SOLUTION

# %% [markdown]
# Last, a passage of a play that your model has not read, with every sixth letter rubbed out, and
# what the model makes of it, line by line of 16 characters.

# %%
if ready(checks.mask_tokens, checks.BertForMaskedLM):
    passage = held_out[: 12 * T].clone()
    passage[2::6] = MASK
    rubbed_out = show(passage)
    print(rubbed_out, "", sep="\n")
    print("".join(fill_in(rubbed_out[i : i + T]) for i in range(0, 12 * T, T)))

# %%
print(points_so_far(*checks.ASSIGNMENT.exercises))
