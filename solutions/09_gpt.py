# %% [markdown]
# # 9 · GPT
#
# What it takes: about 95 minutes, 16 points. Read first: chapter 9 up to and including “GPT-2's
# weights in our model”.
#
# Why it is worth building: this is the model that the course is named after, in some forty lines.
# Yours will have GPT-2's parts, GPT-2's number of weights to the last one, and room for the weights
# that OpenAI published. At the end it writes a scene, from a file in GPT-2's layout.

# %% setup=true
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from autograder.checks import gpt as checks
from autograder.engine.notebook import points_so_far, ready
from rnn2gpt.attention import causal_mask
from rnn2gpt.transformer import LayerNorm, TransformerBlock

# %% [markdown]
# ## 9.1 `GPTConfig` (1 point, 5 minutes)
#
# The sizes of a model in one object, so that the model, its checkpoint and every formula about it
# speak of the same thing. The fields are written; what is missing is the refusal of sizes that make
# no model. `@dataclass` writes the constructor, and calls `__post_init__` when the fields are set.
#
# <!-- hints: GPTConfig -->


# %% answer="GPTConfig"
@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of a GPT.

    Fields: vocab_size (V), block_size (the longest text, T), n_layers, n_heads, d_model (D), all
    ints that must be given; dropout, a float, 0.0 unless told otherwise; bias, True unless told
    otherwise. Raises ValueError when n_heads does not divide d_model.

    Example: GPTConfig(vocab_size=50257, block_size=1024, n_layers=12, n_heads=12, d_model=768) is
    GPT-2's smallest size.
    """

    vocab_size: int
    block_size: int
    n_layers: int
    n_heads: int
    d_model: int
    dropout: float = 0.0
    bias: bool = True

    def __post_init__(self):
        ### BEGIN SOLUTION
        if self.d_model % self.n_heads:
            raise ValueError(f"{self.n_heads} heads cannot share a width of {self.d_model} equally")
        ### END SOLUTION


# %% check="GPTConfig"
checks.GPTConfig.check(GPTConfig)

# %% [markdown]
# ## 9.2 `GPT` (5 points, 35 minutes)
#
# Read “What is left of the Transformer”, “The model in code”, “One table at both ends” and “How the
# weights start” first.
#
# Chapter 7's `TransformerBlock` and `LayerNorm` and chapter 5's `causal_mask` are imported above.
# `help(TransformerBlock)` shows its arguments: a GPT's blocks are pre-norm, with the tanh form of
# GELU and a feed-forward layer of 4·D.
#
# <!-- hints: GPT -->


# %% answer="GPT"
class GPT(nn.Module):
    """A decoder-only Transformer: from token ids to the logits of the next token, at all positions.

    Its parts, under these names: token_embedding (V, D), position_embedding (T, D), blocks (an
    nn.ModuleList of n_layers TransformerBlocks), norm (LayerNorm), head (nn.Linear from D to V
    without bias, whose weight is the token embedding's own). With config.bias False no linear map
    and no norm has a bias. config.dropout acts on the sum of the embeddings and inside the blocks.

    How the weights start: tables and matrices as N(0, 0.02), but W_o and W_2 of each block as
    N(0, 0.02/√(2·n_layers)); biases at 0; the norms' weights at 1.
    """

    def __init__(self, config):
        super().__init__()
        ### BEGIN SOLUTION
        d_model = config.d_model
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, d_model)
        self.position_embedding = nn.Embedding(config.block_size, d_model)
        self.dropout = nn.Dropout(config.dropout)
        sizes = (d_model, config.n_heads, 4 * d_model, config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(*sizes, activation="gelu_tanh", bias=config.bias)
            for _ in range(config.n_layers)
        )
        self.norm = LayerNorm(d_model, bias=config.bias)
        self.head = nn.Linear(d_model, config.vocab_size, bias=False)
        self.head.weight = self.token_embedding.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes = name.endswith(("W_o.weight", "W_2.weight"))
                nn.init.normal_(
                    parameter, std=0.02 * ((2 * config.n_layers) ** -0.5 if writes else 1)
                )
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        ### END SOLUTION

    def forward(self, ids, targets=None):
        """ids: (B, T) ints below V, T at most block_size. targets: (B, T), the token that follows
        each of ids, −100 where none counts; or None.

        Returns logits (B, T, V) and the loss, the mean cross-entropy in nats over the targets that
        count, or None without targets. Raises ValueError when T is more than block_size.

        Example: a fresh GPT with V = 64 gives a loss of about ln 64 = 4.16.
        """
        ### BEGIN SOLUTION
        t = ids.shape[1]
        if t > self.config.block_size:
            raise ValueError(f"{t} tokens do not fit into a block_size of {self.config.block_size}")
        positions = torch.arange(t, device=ids.device)
        x = self.dropout(
            self.token_embedding(ids) + self.position_embedding(positions)
        )  # (B, T, D)
        mask = causal_mask(t, device=ids.device)
        for block in self.blocks:
            x = block(x, mask)
        logits = self.head(self.norm(x))  # (B, T, V)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        ### END SOLUTION


# %% check="GPT"
checks.GPT.check(GPT)

# %% [markdown]
# First test of any fresh language model: it knows nothing, so its loss must be that of an even
# guess among V characters. Then yours is trained on the plays, for some fifteen seconds.

# %%
if ready(checks.GPTConfig, checks.GPT):
    import matplotlib.pyplot as plt

    from rnn2gpt.data import CharTokenizer, get_batch, load_text, split

    text = load_text()
    tokenizer = CharTokenizer(text)
    train, held_out = split(tokenizer.encode(text))
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, block_size=64, n_layers=3, n_heads=4, d_model=96
    )
    torch.manual_seed(0)
    model = GPT(config)
    chance = torch.Generator().manual_seed(0)
    _, loss = model(*get_batch(train, 64, 16, chance))
    print(f"an even guess: ln V = {math.log(tokenizer.vocab_size):.3f} nats; yours: {loss:.3f}")

    n_steps, losses = 300, []
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    for step in range(n_steps):
        for group in optimizer.param_groups:  # up for 20 steps, then down to 0: chapter 10 says why
            group["lr"] = 3e-3 * min((step + 1) / 20, 1 - step / n_steps)
        _, loss = model(*get_batch(train, 64, 16, chance))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        _, loss = model.eval()(*get_batch(held_out, 64, 256, chance))
    plt.plot(losses)
    plt.axhline(loss, linestyle=":", color="black")
    plt.xlabel("step")
    plt.ylabel("nats per character (dotted: held-out text)")
    plt.show()

# %% [markdown]
# ## 9.3 `count_parameters` (2 points, 15 minutes)
#
# How many numbers a model learns, known before it is built. Read “Counting parameters” first.
#
# <!-- hints: count_parameters -->


# %% answer="count_parameters"
def count_parameters(config):
    """The number of parameters of GPT(config), in closed form: no model is built.

    config: has the fields of GPTConfig. Returns an int. The table that the embedding and the head
    share counts once.

    Example: with V = 11, T = 7, D = 4, one layer and biases: 72 in the two tables, 80 in the
    attention, 148 in the feed-forward layer, 8 in each of three norms, together 324.
    """
    ### BEGIN SOLUTION
    d, bias = config.d_model, int(config.bias)
    norm = d + bias * d
    attention = 4 * (d * d + bias * d)
    feed_forward = 8 * d * d + bias * 5 * d
    tables = (config.vocab_size + config.block_size) * d
    return tables + config.n_layers * (attention + feed_forward + 2 * norm) + norm
    ### END SOLUTION


# %% check="count_parameters"
checks.count_parameters.check(count_parameters)

# %% [markdown]
# ## 9.4 `flops_per_token` (2 points, 10 minutes)
#
# What training costs. Read “Counting operations” first.
#
# <!-- hints: flops_per_token -->


# %% answer="flops_per_token"
def flops_per_token(config):
    """Floating-point operations to train GPT(config) on one token, forward and backward.

    6·N + 12·n_layers·d_model·block_size, with N the parameters without the table of positions.
    Returns an int.

    Example: with V = 11, T = 7, D = 4, one layer and biases, N = 324 − 28 = 296 and the FLOPs are
    1776 + 336 = 2112.
    """
    ### BEGIN SOLUTION
    n = count_parameters(config) - config.block_size * config.d_model
    return 6 * n + 12 * config.n_layers * config.d_model * config.block_size
    ### END SOLUTION


# %% check="flops_per_token"
checks.flops_per_token.check(flops_per_token, count_parameters=count_parameters)

# %% [markdown]
# The two functions on the models that made the name, and how long this machine would need for each,
# at the pace of a product of two large matrices. The tokens of GPT-3's training are from its paper
# (table 2.1); what GPT-2 read is not published as a number of tokens, so its line is for as many.

# %%
if ready(checks.GPTConfig, checks.count_parameters, checks.flops_per_token):
    import time

    a = torch.randn(1024, 1024)
    start = time.perf_counter()
    for _ in range(5):
        a @ a
    per_second = 5 * 2 * 1024**3 / (time.perf_counter() - start)
    sizes = {
        "GPT-2, smallest": (12, 12, 768, 1024),
        "GPT-2, largest": (48, 25, 1600, 1024),
        "GPT-3": (96, 96, 12288, 2048),
    }
    print(f"this machine: {per_second / 1e9:.0f} GFLOP/s")
    for name, (n_layers, n_heads, d_model, block_size) in sizes.items():
        big = GPTConfig(
            vocab_size=50257,
            block_size=block_size,
            n_layers=n_layers,
            n_heads=n_heads,
            d_model=d_model,
        )
        total = 300e9 * flops_per_token(big)
        years = total / per_second / (365 * 24 * 3600)
        print(
            f"{name:>16}: {count_parameters(big):>15,} parameters, {total:.1e} FLOPs for 300"
            f" billion tokens, {years:,.0f} years"
        )

# %% [markdown]
# ## 9.5 `load_gpt2_state_dict` (4 points, 25 minutes)
#
# Published weights into our model. Read “GPT-2's weights in our model” first: it has the table of
# names and says what Conv1D is.
#
# The model that you get has the names of your `GPT`: `model.state_dict()` lists them with their
# shapes. The check hands you a small one of D = 12, whose forward is never run.
#
# <!-- hints: load_gpt2_state_dict -->


# %% answer="load_gpt2_state_dict"
def load_gpt2_state_dict(model, state_dict):
    """Copy weights in GPT-2's layout into a GPT, in place. Returns nothing.

    model: a GPT with biases. state_dict: a dict of tensors under GPT-2's names, which stays as it
    was. All names may begin with "transformer." or none. Names that end in ".attn.bias" or
    ".attn.masked_bias" are stored masks and "lm_head.weight" is the token table once more: all
    three may be there or not, and are passed over. Raises ValueError when a weight is missing, has
    no place in the model, or has another shape. The head stays tied.

    Example: "transformer.h.3.mlp.c_fc.weight" of shape (D, 4·D) goes to
    "blocks.3.feed_forward.W_1.weight" of shape (4·D, D).
    """
    ### BEGIN SOLUTION
    renamed = {
        "wte.": "token_embedding.", "wpe.": "position_embedding.", "ln_f.": "norm.",
        "ln_1.": "norm_1.", "ln_2.": "norm_2.", "attn.c_proj.": "attention.W_o.",
        "mlp.c_fc.": "feed_forward.W_1.", "mlp.c_proj.": "feed_forward.W_2.",
    }  # fmt: skip
    ours = {}
    for name, weight in state_dict.items():
        if name.endswith((".attn.bias", ".attn.masked_bias", "lm_head.weight")):
            continue
        if ".c_" in name and weight.dim() == 2:
            weight = weight.T  # (in, out) → (out, in)
        name = name.removeprefix("transformer.")
        if name.startswith("h."):
            name = "blocks." + name.removeprefix("h.")
        for theirs, mine in renamed.items():
            name = name.replace(theirs, mine)
        if "attn.c_attn" in name:
            for letter, third in zip("qkv", weight.chunk(3), strict=True):  # (3D, D) → 3 × (D, D)
                ours[name.replace("attn.c_attn", f"attention.W_{letter}")] = third
        else:
            ours[name] = weight
    ours["head.weight"] = ours.get("token_embedding.weight", torch.empty(0))
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        raise ValueError(f"these weights do not fit: {error}") from error
    ### END SOLUTION


# %% check="load_gpt2_state_dict"
checks.load_gpt2_state_dict.check(load_gpt2_state_dict)

# %% [markdown]
# The model you trained, written to a file in GPT-2's layout, as it would travel: other names, other
# shapes, safetensors. Then it is forgotten, and a fresh GPT of yours reads the file.

# %%
if ready(checks.GPTConfig, checks.GPT, checks.load_gpt2_state_dict):
    import tempfile
    from pathlib import Path

    from safetensors.torch import load_file, save_file

    from rnn2gpt.gpt import gpt2_state_dict

    some = held_out[None, :64]
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        before, _ = model(some)
        path = Path(folder) / "model.safetensors"
        save_file(gpt2_state_dict(model), path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB; its first names:")
        weights = load_file(path)
        for name in list(weights)[:4]:
            print(f"    {name} {tuple(weights[name].shape)}")
        model = GPT(config).eval()
        fresh, _ = model(some)
        load_gpt2_state_dict(model, weights)
        after, _ = model(some)
    print(f"fresh model: logits differ by up to {(fresh - before).abs().max():.2f}")
    print(f"filled from the file: {(after - before).abs().max():.1e}")

# %% [markdown]
# It writes. It has no state: for each new character it reads up to 64 again.

# %%
if ready(checks.GPTConfig, checks.GPT, checks.load_gpt2_state_dict):

    @torch.no_grad()
    def write(model, prompt, n_characters=400, temperature=0.8):
        ids, chance = tokenizer.encode(prompt)[None], torch.Generator().manual_seed(2)
        for _ in range(n_characters):
            logits, _ = model(ids[:, -model.config.block_size :])
            p = torch.softmax(logits[:, -1] / temperature, dim=-1)  # (1, V)
            ids = torch.cat([ids, torch.multinomial(p, 1, generator=chance)], dim=1)
        return tokenizer.decode(ids[0])

    print(write(model, "KING RICHARD II:\n"))

# %% [markdown]
# If you have GPT-2 itself, put the path of its `model.safetensors` (548 MB, from Hugging Face) into
# the next cell: the same two functions of yours run it.

# %%
GPT2 = None  # or a path, such as "gpt2/model.safetensors"
if GPT2 and ready(checks.GPTConfig, checks.GPT, checks.load_gpt2_state_dict):
    from safetensors.torch import load_file

    from rnn2gpt.tokenizer import load_gpt2

    tokenizer = load_gpt2()
    gpt2 = GPT(
        GPTConfig(vocab_size=50257, block_size=1024, n_layers=12, n_heads=12, d_model=768)
    ).eval()
    load_gpt2_state_dict(gpt2, load_file(GPT2))
    ids = torch.tensor([tokenizer.encode("The meaning of life is")])
    for _ in range(20):
        logits, _ = gpt2(ids)
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    print(tokenizer.decode(ids[0].tolist()))

# %% [markdown]
# ## 9.6 Your own experiment (2 points, 10 minutes)
#
# The cell below builds fresh models of 2 to 32 layers, once as your `GPT` starts and once with the
# scaling of W_o and W_2 undone, and measures the variance of the stream behind the last block.

# %%
if ready(checks.GPTConfig, checks.GPT):

    @torch.no_grad()
    def stream_variance(n_layers, scaled):
        """The variance of what reaches the last norm of a fresh model."""
        torch.manual_seed(0)
        deep = GPT(
            GPTConfig(vocab_size=64, block_size=32, n_layers=n_layers, n_heads=4, d_model=128)
        )
        for name, parameter in deep.named_parameters():
            if not scaled and name.endswith(("W_o.weight", "W_2.weight")):
                parameter.mul_(math.sqrt(2 * n_layers))
        kept = []
        deep.norm.register_forward_pre_hook(lambda norm, inputs: kept.append(inputs[0]))
        deep(torch.randint(64, (8, 32)))
        return kept[0].var().item()

    depths = (2, 4, 8, 16, 32)
    for scaled in (True, False):
        plt.plot(depths, [stream_variance(n, scaled) for n in depths], "o-",
                 label="scaled" if scaled else "not scaled")  # fmt: skip
    plt.xlabel("layers")
    plt.ylabel("variance behind the last block")
    plt.legend()
    plt.show()

# %% [markdown] written="written_09" points=2
# Before you run the cell above, say how the variance grows with the number of layers in each of the
# two cases, and why. Run it. Then change one thing, the width or the 0.02, predict what happens to
# both curves, and say whether you were right. Three sentences.
#
# ### BEGIN SOLUTION
# A full answer says that each block adds two contributions that are nearly independent, so that
# their variances add: without the scaling the variance grows in proportion to the depth, and with
# W_o and W_2 divided by √(2·n_layers) each of 2·n_layers contributions has 1/(2·n_layers) of the
# variance, so that their sum, and the curve, hardly depends on the depth (it starts from that of
# the embeddings, 2 · 0.02² = 0.0008, and stays near it). The prediction names the direction for
# both curves and is compared with the run: with twice the width the contributions of W_2 and W_o
# have a larger variance (a sum over more terms of the same size), so that the unscaled curve rises
# more steeply; with a larger standard deviation everything grows, and the contributions faster than
# the embeddings.
# ### END SOLUTION

# %%
print(points_so_far(*checks.ASSIGNMENT.exercises))
