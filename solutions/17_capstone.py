# %% [markdown]
# # 17 · Capstone: your own GPT
#
# What it takes: about 100 minutes, 18 points. Read first: chapter 17 up to “The entry”.
#
# Why it is worth building: in sixteen chapters you wrote every part of a GPT. Here they become one
# model that you can prove, fill, train, publish and enter in the class's leaderboard.
#
# First put your parts together. In a shell, from the folder that holds your notebooks:
#
#     rnn2gpt assemble exercises --out exercises/17-capstone/my_gpt
#
# It makes the package `my_gpt` out of your graded cells, beside this notebook. A part that you have
# not written, or that its check turns down, is taken from ours and marked so. You can run it again
# whenever you mended one. Without `my_gpt` this notebook works too, on the course's parts.

# %% setup=true
import json
import math
from pathlib import Path

import torch
from torch import nn

from autograder.checks import capstone as checks
from autograder.engine.notebook import points_so_far, ready
from rnn2gpt.data import CharTokenizer, get_batch, load_text, split
from rnn2gpt.gpt import GPT, GPTConfig

# %%
try:
    import my_gpt as parts

    yours = [part["name"] for part in parts.MANIFEST["parts"] if part["by"] == "you"]
    print(f"{len(yours)} of {len(parts.MANIFEST['parts'])} parts are yours: {', '.join(yours)}")
except ImportError:
    from rnn2gpt.capstone import OURS as parts

    print("There is no my_gpt beside this notebook: the course's parts stand in for it.")

# %% [markdown]
# ## 17.1 `parity` (4 points, 25 minutes)
#
# The proof that two implementations are one model. Read “Two models that should be one” first.
#
# <!-- hints: parity -->


# %% answer="parity"
def parity(mine, ours, ids, targets):
    """How far two models are apart that should compute the same.

    mine, ours: modules; `model(ids, targets)` returns logits (B, T, V) and the mean loss. ids,
    targets: (B, T); targets of −100 do not count. First every parameter of ours is copied into the
    parameter of mine with the same name, as listed by `named_parameters()`. Then both run in
    evaluation mode. The weights of ours stay as they are, and the two share no memory.

    Returns a dict with three numbers: "logits" and "loss", the largest absolute difference of each,
    and "gradient", the largest absolute difference of the loss's gradient over all parameters. A
    difference that is not finite (NaN, infinity) is returned as math.inf or math.nan. Raises
    ValueError when the names or shapes of the parameters differ.

    Example: for two of the course's GPTs of equal sizes in float64, all three are below 1e-12.
    """
    ### BEGIN SOLUTION
    here, theirs = dict(mine.named_parameters()), dict(ours.named_parameters())
    if {n: p.shape for n, p in here.items()} != {n: p.shape for n, p in theirs.items()}:
        raise ValueError("the parameters of the two models differ in name or shape")
    with torch.no_grad():
        for name, parameter in here.items():
            parameter.copy_(theirs[name])
    found = []
    for model, named in ((mine, here), (ours, theirs)):
        logits, loss = model.eval()(ids, targets)
        gradients = torch.autograd.grad(loss, [named[name] for name in here])
        found.append([logits, loss, *gradients])
    apart = [(one - other).abs().max().item() for one, other in zip(*found, strict=True)]
    apart = [most if math.isfinite(most) else math.inf for most in apart]
    return {"logits": apart[0], "loss": apart[1], "gradient": max(apart[2:])}
    ### END SOLUTION


# %% check="parity"
checks.parity.check(parity)

# %% [markdown]
# Your assembled model against the course's, in float64, and what a proof is worth: the same, with
# one number of yours moved by a millionth.

# %%
if ready(checks.parity):
    sizes = {"vocab_size": 64, "block_size": 32, "n_layers": 2, "n_heads": 4, "d_model": 32}
    mine = parts.GPT(parts.GPTConfig(**sizes)).double()
    ours = GPT(GPTConfig(**sizes)).double()
    ids, targets = (torch.randint(64, (4, 32)) for _ in range(2))
    print("as it is:      ", {k: f"{v:.1e}" for k, v in parity(mine, ours, ids, targets).items()})
    where = mine.blocks[0].norm_1.register_forward_hook(lambda norm, inputs, y: y + 1e-6)
    print("1e-6 in a norm:", {k: f"{v:.1e}" for k, v in parity(mine, ours, ids, targets).items()})
    where.remove()

# %% [markdown]
# ## 17.2 `from_gpt2` (3 points, 20 minutes)
#
# Any checkpoint in GPT-2's layout, read into sizes and weights that your model takes. Read “Weights
# from outside” first; chapter 9 has the table of names. Nothing of `rnn2gpt` is needed.
#
# <!-- hints: from_gpt2 -->


# %% answer="from_gpt2"
def from_gpt2(described, state_dict):
    """Our sizes and our weights, from what a GPT-2 on the Hugging Face hub consists of.

    described: a dict, its config.json: vocab_size, n_positions, n_layer, n_head, n_embd and, if it
    is there, activation_function; there are other entries. state_dict: a dict of tensors of any
    floating-point type, in GPT-2's layout, which stays as it is. Names may begin with
    "transformer." or not. Those that end in ".attn.bias" or ".attn.masked_bias" are stored masks
    and are passed over; "lm_head.weight" may be there or not.

    Returns (sizes, weights). sizes: a dict of vocab_size, block_size, n_layers, n_heads, d_model.
    weights: a dict of float32 tensors that `GPT(GPTConfig(**sizes)).load_state_dict` takes, the
    head under its own name too. Raises ValueError when activation_function is there and not
    "gelu_new", when a weight is missing, left over or of a shape that the sizes do not allow, and
    when lm_head.weight is there and differs from wte.weight.

    Example: "h.3.attn.c_attn.weight" of shape (D, 3·D) becomes three weights of (D, D), of which
    the second is "blocks.3.attention.W_k.weight".
    """
    ### BEGIN SOLUTION
    if described.get("activation_function", "gelu_new") != "gelu_new":
        raise ValueError(f"the activation is {described['activation_function']}, not gelu_new")
    v, t, n, d = (described[name] for name in ("vocab_size", "n_positions", "n_layer", "n_embd"))
    left = {name.removeprefix("transformer."): w.float() for name, w in state_dict.items()}
    left = {name: w for name, w in left.items() if not name.endswith((".attn.bias", "masked_bias"))}
    head, weights = left.pop("lm_head.weight", None), {}

    def take(theirs, *ours, shape):
        """Move one tensor of theirs, of this shape once it is turned, to one name or three."""
        if theirs not in left:
            raise ValueError(f"{theirs} is missing")
        tensor = left.pop(theirs)
        tensor = tensor.T if ".c_" in theirs and tensor.dim() == 2 else tensor
        if tensor.shape != torch.Size(shape):
            raise ValueError(f"{theirs} has the wrong shape")
        for name, part in zip(ours, tensor.chunk(len(ours)), strict=True):
            weights[name] = part.clone()

    take("wte.weight", "token_embedding.weight", shape=(v, d))
    take("wpe.weight", "position_embedding.weight", shape=(t, d))
    for i in range(n):
        maps = {
            "attn.c_attn": (["attention.W_q", "attention.W_k", "attention.W_v"], (3 * d, d)),
            "attn.c_proj": (["attention.W_o"], (d, d)),
            "mlp.c_fc": (["feed_forward.W_1"], (4 * d, d)),
            "mlp.c_proj": (["feed_forward.W_2"], (d, 4 * d)),
            "ln_1": (["norm_1"], (d,)),
            "ln_2": (["norm_2"], (d,)),
        }
        for theirs, (ours, shape) in maps.items():
            for kind, size in (("weight", shape), ("bias", shape[:1])):
                names = [f"blocks.{i}.{name}.{kind}" for name in ours]
                take(f"h.{i}.{theirs}.{kind}", *names, shape=size)
    for kind in ("weight", "bias"):
        take(f"ln_f.{kind}", f"norm.{kind}", shape=(d,))
    weights["head.weight"] = weights["token_embedding.weight"]
    if left:
        raise ValueError(f"there is no place for {sorted(left)[:3]}")
    if head is not None and not torch.equal(head, weights["head.weight"]):
        raise ValueError("lm_head.weight is a table of its own; this model has one at both ends")
    sizes = {"vocab_size": v, "block_size": t, "n_layers": n}
    return sizes | {"n_heads": described["n_head"], "d_model": d}, weights
    ### END SOLUTION


# %% check="from_gpt2"
checks.from_gpt2.check(from_gpt2)

# %% [markdown]
# A GPT-2 as the `transformers` library builds it, small and with random weights, in your model. The
# same lines read OpenAI's: give `from_pretrained` the name `gpt2`, which downloads half a gigabyte.

# %%
if ready(checks.from_gpt2):
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        print("transformers is not installed here; `pip install transformers` brings it.")
    else:
        theirs = GPT2LMHeadModel(
            GPT2Config(vocab_size=101, n_positions=32, n_embd=48, n_layer=3, n_head=4)
        ).eval()
        sizes, weights = from_gpt2(theirs.config.to_dict(), theirs.state_dict())
        mine = parts.GPT(parts.GPTConfig(**sizes)).eval()
        mine.load_state_dict(weights)
        ids = torch.randint(101, (2, 32))
        with torch.no_grad():
            apart = (mine(ids)[0] - theirs(ids).logits).abs().max()
        print(f"{sizes}\nlogits of yours and of theirs differ by at most {apart:.1e}")

# %% [markdown]
# ## 17.3 `train_steps` (3 points, 15 minutes)
#
# The loop that everything else was for. Read “A few steps” first.
#
# <!-- hints: train_steps -->


# %% answer="train_steps"
def train_steps(model, batches, learning_rate):
    """One step of AdamW for each batch.

    model: a module; `model(ids, targets)` returns logits and the mean loss. batches: a list of
    (ids, targets). The optimizer is PyTorch's AdamW over all parameters, with this learning_rate, a
    weight_decay of 0.1 and its other settings as they are. Before each step the gradients are
    clipped to a joint norm of 1.0, with PyTorch's `clip_grad_norm_`. The model trains in training
    mode and is left in evaluation mode.

    Returns a list of floats: the loss of each batch before the step that it causes.

    Example: a fresh GPT with V = 64 and one batch gives a list of one number near ln 64 = 4.16.
    """
    ### BEGIN SOLUTION
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.1)
    losses = []
    model.train()
    for ids, targets in batches:
        _, loss = model(ids, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses
    ### END SOLUTION


# %% check="train_steps"
checks.train_steps.check(train_steps)

# %% [markdown]
# Your assembled model and the course's, from the same weights on the same batches of the plays. Two
# models that are one stay one while they learn.

# %%
text = load_text()
tokenizer = CharTokenizer(text)
train, held_out = split(tokenizer.encode(text))

if ready(checks.parity, checks.train_steps):
    sizes = {"vocab_size": 64, "block_size": 32, "n_layers": 2, "n_heads": 4, "d_model": 48}
    torch.manual_seed(0)
    mine, ours = parts.GPT(parts.GPTConfig(**sizes)), GPT(GPTConfig(**sizes))
    chance = torch.Generator().manual_seed(0)
    batches = [get_batch(train, 32, 16, chance) for _ in range(60)]
    parity(mine, ours, *batches[0])  # which copies the weights
    curves = {"yours": train_steps(mine, batches, 3e-3), "ours": train_steps(ours, batches, 3e-3)}
    apart = max(abs(a - b) for a, b in zip(*curves.values(), strict=True))
    print(f"after 60 steps: {curves['yours'][-1]:.3f} nats; the two differ by at most {apart:.0e}")

# %% [markdown]
# ## 17.4 `pack_entry` (2 points, 10 minutes)
#
# A model as two files that a stranger can open without fear. Read “The entry” first.
#
# <!-- hints: pack_entry -->


# %% answer="pack_entry"
def pack_entry(model):
    """What goes into weights.safetensors and into config.json.

    model: a GPT with its `config`, which has the seven fields of a GPTConfig. Returns (weights,
    config): weights, the bytes of a safetensors file of all parameters in float32 under their
    names, the table that embedding and head share once, as "token_embedding.weight"; config, a str,
    the JSON of a dict of the seven fields. Raises ValueError when a weight is not finite.

    Example: for GPTConfig(vocab_size=64, block_size=7, n_layers=1, n_heads=3, d_model=12) config is
    '{"vocab_size": 64, "block_size": 7, "n_layers": 1, "n_heads": 3, "d_model": 12, "dropout": 0.0,
    "bias": true}', in whatever order.
    """
    from safetensors.torch import save  # a dict of tensors → bytes

    ### BEGIN SOLUTION
    weights = {n: p.detach().float().cpu().contiguous() for n, p in model.named_parameters()}
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise ValueError(f"{name} is not finite: this run diverged")
    fields = ("vocab_size", "block_size", "n_layers", "n_heads", "d_model", "dropout", "bias")
    return save(weights), json.dumps({name: getattr(model.config, name) for name in fields})
    ### END SOLUTION


# %% check="pack_entry"
checks.pack_entry.check(pack_entry)

# %% [markdown]
# ## 17.5 `entry` (4 points, 20 minutes)
#
# Your entry: a GPT over the 64 characters of the nine plays, of at most a million parameters. Train
# it however you like, here or on a GPU, with the recipe below or with `python -m my_gpt.train`.
# What counts are the two files beside this notebook, which you hand in with it. Whoever grades
# computes the loss of your weights anew, on the beginning of the held-out text:
#
# | nats per character, at most | points | what it means |
# |---|---|---|
# | 4.16 | 1 | better than an even guess |
# | 3.36 | 2 | better than counting characters |
# | 2.47 | 3 | better than counting pairs |
# | 2.30 | 4 | better than pairs by a good margin |
#
# The leaderboard goes on below that. Train on `train_ids` alone: the held-out text is public, so a
# model that learned it by heart would top the list and mean nothing.
#
# <!-- hints: entry -->


# %% answer="entry"
def entry(train_ids, vocab_size):
    """A trained GPT, in evaluation mode.

    train_ids: (N,), the training part of the plays. vocab_size: 64. The model has at most 1,000,000
    parameters, block_size at most 256, n_layers and n_heads at most 16, d_model at most 512.
    """
    ### BEGIN SOLUTION
    config = GPTConfig(vocab_size=vocab_size, block_size=32, n_layers=2, n_heads=4, d_model=96)
    torch.manual_seed(0)
    model, chance, n_steps = GPT(config), torch.Generator().manual_seed(0), 400
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min((step + 1) / 20, 1 - step / n_steps)
        _, loss = model(*get_batch(train_ids, config.block_size, 16, chance))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()
    ### END SOLUTION


# %% [markdown]
# This trains it and writes the two files. Keep what you have and try something else as often as you
# like: the files that lie there when you hand in are your entry.

# %%
best = None
if ready(checks.pack_entry):
    try:
        best = entry(train, tokenizer.vocab_size)
    except NotImplementedError:
        print("Write `entry`, then come back.")
if best is not None:
    weights, config = pack_entry(best)
    Path("weights.safetensors").write_bytes(weights)
    Path("config.json").write_text(config, encoding="utf-8")
    print(f"{len(weights):,} bytes of weights; {config}")

# %% check="entry"
checks.entry.check(entry)

# %% [markdown]
# It writes, with your sampler if `my_gpt` has one.

# %%
if best is not None:
    with torch.no_grad():
        ids, chance = (
            tokenizer.encode("KING RICHARD III:\n")[None],
            torch.Generator().manual_seed(1),
        )
        for _ in range(400):
            logits, _ = best(ids[:, -best.config.block_size :])
            token = parts.sample(logits[:, -1], temperature=0.8, top_p=0.95, generator=chance)
            ids = torch.cat([ids, token[:, None]], dim=1)
    print(tokenizer.decode(ids[0]))

# %% [markdown]
# ## 17.6 The card (2 points, 10 minutes)
#
# `rnn2gpt assemble` wrote `my_gpt/MODEL_CARD.md`, filled in as far as a program can. Read “A card
# for your model”, then read yours.

# %% [markdown] written="written_17" points=2
# Write the three parts of the card that no program can write for you, two sentences each. What is
# your model for, and what should nobody use it for? What of it did you verify, and what do you
# merely believe? What would you have to measure before somebody else might rely on it?
#
# ### BEGIN SOLUTION
# A full answer names a use that fits a model of some hundred thousand parameters and a million
# characters of Shakespeare (teaching, a base for experiments, imitating the layout of a play) and a
# use that does not (facts, advice, any text that is taken for a person's). It separates what was
# verified (parity with the course's model in logits, loss and gradient; the held-out loss computed
# anew) from what is believed (that the held-out text is like other text, that the samples are not
# copied from the plays). It names a measurement with a number: loss on a text by somebody else, the
# share of generated 20-character runs that stand in the training text, the spread over seeds.
# ### END SOLUTION

# %%
print(points_so_far(*checks.ASSIGNMENT.exercises))
