# %% [markdown]
# # 16 · Reading critically
#
# What it takes: about 75 minutes, 20 points. Read first: chapter 16, all of it.
#
# Why it is worth building: you will read more code than you write, and some of it will be wrong and
# still run. The six functions below are a GPT as popular articles print it. There are twelve bugs
# in them, none of which stops the program. Every one stands, in this form or nearly, in an article
# that this chapter is about. When all of them are gone, your six functions run a trained GPT.
#
# How to hunt: before you run a check, read the docstring, write the shape of every tensor behind
# its line, and note what you suspect. Then mend the code. Each bug that is gone earns one point, in
# whatever order you find them, and each function earns one more when it is right as a whole: a fix
# that breaks something else costs that one. The cells earn nothing as they stand.

# %% setup=true
import math

import torch
import torch.nn.functional as F

from autograder.checks import reading_critically as checks
from autograder.engine.notebook import points_so_far, ready

# %% [markdown]
# ## 16.1 `embed` (3 points, 10 minutes, two bugs)
#
# What a GPT's first block reads. Read “Where positions go in” first.
#
# <!-- hints: embed -->


# %% answer="embed" broken=true
def embed(ids, tokens, positions):
    """The vector of each token plus the vector of the place where it stands.

    ids: (B, T), int64. tokens: (V, D). positions: (P, D) with P ≥ T; the first token of each text
    stands at position 0. Returns (B, T, D).

    Example: with tokens [[1, 2], [3, 4]] and positions [[10, 20], [30, 40]] the text [[1, 0]] is
    [[[13, 24], [31, 42]]].
    """
    ### BEGIN SOLUTION
    return tokens[ids] + positions[: ids.shape[1]]  # (B, T, D) + (T, D)
    ### END SOLUTION
    places = torch.arange(ids.shape[1], device=ids.device)[:, None]
    return tokens[ids] * positions[places]


# %% check="embed"
checks.embed.check(embed)

# %% [markdown]
# A text of four tokens, read forward and backward. With positions the two give different sets of
# vectors; without them attention would get the same set.

# %%
if ready(checks.embed):
    torch.manual_seed(0)
    tokens, positions = torch.randn(5, 3), torch.randn(4, 3)
    for ids in ([[1, 2, 3, 4]], [[4, 3, 2, 1]]):
        x = embed(torch.tensor(ids), tokens, positions)
        print(ids[0], "→ the sum of the vectors' squares is", round(x.pow(2).sum().item(), 3))

# %% [markdown]
# ## 16.2 `attention` (4 points, 15 minutes, three bugs)
#
# One head. Read “Which way attention looks” first. `F.scaled_dot_product_attention` would be one
# line and is what you should not use here.
#
# <!-- hints: attention -->


# %% answer="attention" broken=true
def attention(q, k, v):
    """Causal attention: each query reads the values at its own place and before it.

    q, k: (B, T, d_k). v: (B, T, d_v). The weights of query t over keys 0 … t are
    softmax(q_t · k_s / √d_k) and sum to 1. Returns (B, T, d_v).

    Example: with all of q and k zero, the result at t is the mean of v_0 … v_t.
    """
    ### BEGIN SOLUTION
    t, d_k = q.shape[1:]
    scores = q @ k.transpose(1, 2) / math.sqrt(d_k)  # (B, T, T), queries down, keys across
    future = torch.ones(t, t, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(dim=-1) @ v
    ### END SOLUTION
    weights = (q @ k.transpose(1, 2) / math.sqrt(k.shape[1])).softmax(dim=1)
    return weights @ v


# %% check="attention"
checks.attention.check(attention)

# %% [markdown]
# What one query reads, drawn: identity matrices for values give back the weights themselves.

# %%
if ready(checks.attention):
    import matplotlib.pyplot as plt

    torch.manual_seed(1)
    q, k = torch.randn(2, 1, 12, 4)
    weights = attention(q, k, torch.eye(12)[None])[0]
    plt.imshow(weights, cmap="cividis")
    plt.xlabel("key")
    plt.ylabel("query")
    plt.title(f"every row sums to {weights.sum(1).mean():.2f}, and the upper right is empty")
    plt.show()

# %% [markdown]
# ## 16.3 `feed_forward` (3 points, 10 minutes, two bugs)
#
# Read “One activation, and which” first. The layer is GPT-2's.
#
# <!-- hints: feed_forward -->


# %% answer="feed_forward" broken=true
def feed_forward(x, W_1, b_1, W_2, b_2):
    """GPT-2's feed-forward layer: two linear maps and the tanh form of GELU between them.

    x: (B, T, D). W_1: (D, F), b_1: (F,), W_2: (F, D), b_2: (D,). Returns (B, T, D).

    Example: with x = [[[1, 0]]], W_1 and W_2 the 2 × 2 identity, b_1 = [0, -1] and b_2 = [0, 0]
    the result is [[[0.8412, -0.1588]]].
    """
    ### BEGIN SOLUTION
    return F.gelu(x @ W_1 + b_1, approximate="tanh") @ W_2 + b_2
    ### END SOLUTION
    hidden = torch.relu(x @ W_1 + b_1)  # (B, T, F)
    return torch.relu(hidden @ W_2) + b_2


# %% check="feed_forward"
checks.feed_forward.check(feed_forward)

# %% [markdown]
# The smallest value that a layer with random weights puts out, in a thousand tries. Below 0, it can
# take something away from the stream.

# %%
if ready(checks.feed_forward):
    torch.manual_seed(2)
    sizes = (8, 32), (32,), (32, 8), (8,)
    outputs = torch.stack(
        [
            feed_forward(torch.randn(1, 1, 8), *(torch.randn(size) / 4 for size in sizes))
            for _ in range(1000)
        ]
    )
    print(f"from {outputs.min():.2f} to {outputs.max():.2f}, mean {outputs.mean():.2f}")

# %% [markdown]
# ## 16.4 `block` (3 points, 10 minutes, two bugs)
#
# Read “The stream stays open” first. Norms and layers come as functions from (B, T, D) to
# (B, T, D), so the block is only about what is added to what.
#
# <!-- hints: block -->


# %% answer="block" broken=true
def block(x, norm_1, attend, norm_2, feed):
    """A GPT's block, pre-norm: each layer reads a norm of the stream and adds to the stream.

    x: (B, T, D), the stream. norm_1, attend, norm_2, feed: functions (B, T, D) → (B, T, D).
    attend reads norm_1 of the stream, feed reads norm_2 of the stream as attention left it.
    Returns the stream (B, T, D) after both; x itself stays as it was.

    Example: if both norms change nothing, attend doubles and feed returns ones, then x = [[[3]]]
    gives 3 + 6 + 1 = [[[10]]].
    """
    ### BEGIN SOLUTION
    x = x + attend(norm_1(x))
    return x + feed(norm_2(x))
    ### END SOLUTION
    x = norm_1(x)
    x = x + attend(x)
    return feed(norm_2(x))


# %% check="block"
checks.block.check(block)

# %% [markdown]
# A signal through forty blocks whose layers have been trained to nothing, the worst case: what
# arrives must be what went in.

# %%
if ready(checks.block):
    x = torch.arange(4.0).view(1, 1, 4)
    stream = x
    for _ in range(40):
        stream = block(stream, torch.tanh, torch.zeros_like, torch.tanh, torch.zeros_like)
    print(f"in: {x.flatten().tolist()}, out: {stream.flatten().tolist()}")

# %% [markdown]
# ## 16.5 `lm_loss` (3 points, 10 minutes, two bugs)
#
# Read “Hidden states are no predictions” first.
#
# <!-- hints: lm_loss -->


# %% answer="lm_loss" broken=true
def lm_loss(hidden, W_embedding, targets):
    """The mean of −ln p(target), with the token table as the head.

    hidden: (B, T, D), behind the last norm. W_embedding: (V, D); the logit of token j is the dot
    product of the hidden vector with its row j. targets: (B, T), int64, each the token that follows
    (they are shifted already, and all of them count). Returns a scalar in nats.

    Example: if all rows of W_embedding are equal, the loss is ln V.
    """
    ### BEGIN SOLUTION
    logits = hidden @ W_embedding.T  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    ### END SOLUTION
    probabilities = hidden.softmax(dim=-1)
    return F.cross_entropy(probabilities.flatten(0, 1), targets.flatten())


# %% check="lm_loss"
checks.lm_loss.check(lm_loss)

# %% [markdown]
# ## 16.6 `greedy` (2 points, 5 minutes, one bug)
#
# Read “A text takes many passes” first.
#
# <!-- hints: greedy -->


# %% answer="greedy" broken=true
def greedy(next_logits, ids, n_tokens):
    """The text with its n_tokens likeliest continuations, one token after another.

    next_logits(ids: (B, T)) returns (B, T, V): at each place the logits of the token after it. It
    remembers nothing, so it must see the text whole each time. ids: (B, T), the prompts. Returns
    (B, T + n_tokens), prompts included, and leaves ids alone.

    Example: a model that expects i + 1 after token i makes [[3, 4]] with n_tokens=2 into
    [[3, 4, 5, 6]].
    """
    ### BEGIN SOLUTION
    for _ in range(n_tokens):
        new = next_logits(ids)[:, -1].argmax(dim=-1)  # (B,)
        ids = torch.cat([ids, new[:, None]], dim=1)
    return ids
    ### END SOLUTION
    predicted = next_logits(ids).argmax(dim=-1)  # (B, T)
    return torch.cat([ids, predicted[:, -n_tokens:]], dim=1)


# %% check="greedy"
checks.greedy.check(greedy)

# %% [markdown]
# ## 16.7 The proof
#
# A small GPT of the package, trained on the plays for some ten seconds.

# %%
ALL = checks.ASSIGNMENT.exercises
if ready(*ALL):
    from rnn2gpt.data import CharTokenizer, get_batch, load_text, split
    from rnn2gpt.gpt import GPT, GPTConfig
    from rnn2gpt.training import cosine_schedule

    text = load_text()
    characters = CharTokenizer(text)
    train, held_out = split(characters.encode(text))

    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=characters.vocab_size, block_size=64, n_layers=3, n_heads=4, d_model=64
    )
    model, chance = GPT(config), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    for step in range(350):
        optimizer.param_groups[0]["lr"] = cosine_schedule(step, 6e-3, 0.0, 30, 350)
        _, loss = model(*get_batch(train, 64, 16, chance))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"trained to {loss.item():.2f} nats per character")

# %% [markdown]
# Now its weights in your functions. Heads are folded into the batch, so your `attention` sees each
# of them as a text of its own, T tokens long and D / 4 wide. The logits must be the package's.

# %%
if ready(*ALL):
    weight = {name: tensor.detach() for name, tensor in model.named_parameters()}

    def hidden_states(ids):
        """The trained model's last hidden states, by your functions."""
        x = embed(ids, weight["token_embedding.weight"], weight["position_embedding.weight"])
        for n in range(config.n_layers):

            def linear(name, y, part=f"blocks.{n}."):
                return y @ weight[f"{part}{name}.weight"].T + weight[f"{part}{name}.bias"]

            def attend(y, linear=linear):
                b, t, d = y.shape
                q, k, v = (
                    linear(f"attention.W_{one}", y).view(b, t, 4, -1).transpose(1, 2).flatten(0, 1)
                    for one in "qkv"
                )
                heads = attention(q, k, v)  # (B·H, T, d)
                heads = heads.view(b, 4, t, -1).transpose(1, 2).reshape(b, t, d)
                return linear("attention.W_o", heads)

            def feed(y, part=f"blocks.{n}.feed_forward."):
                inner = weight[f"{part}W_1.weight"].T, weight[f"{part}W_1.bias"]
                outer = weight[f"{part}W_2.weight"].T, weight[f"{part}W_2.bias"]
                return feed_forward(y, *inner, *outer)

            x = block(x, model.blocks[n].norm_1, attend, model.blocks[n].norm_2, feed)
        return model.norm(x)

    def logits_of(ids):
        return hidden_states(ids[:, -64:]) @ weight["token_embedding.weight"].T

    with torch.no_grad():
        x, y = get_batch(held_out, 64, 32, chance)
        theirs, loss = model(x, y)
        ours = lm_loss(hidden_states(x), weight["token_embedding.weight"], y)
        off = (logits_of(x) - theirs).abs().max()
        print(f"logits differ by at most {off:.0e}; loss {ours:.4f} (yours), {loss:.4f} (package)")

# %% [markdown]
# And it writes. The likeliest character again and again makes a dull text; chapter 11 says why.

# %%
if ready(*ALL):
    with torch.no_grad():
        prompt = characters.encode("KING RICHARD II:\nWhat")[None]
        print(characters.decode(greedy(logits_of, prompt, 200)[0]))

# %% [markdown]
# ## 16.8 Five sentences (2 points, 15 minutes)
#
# Here are five sentences of the kind that such articles contain.
#
# 1. GPT-4 has about a hundred times as many parameters as GPT-3.
# 2. GPT-2 was trained to predict the next token, so its training needed labeled text.
# 3. With eight heads, each head attends to one eighth of the positions.
# 4. GPT-3 was trained on 300 billion tokens.
# 5. A Transformer encoder compresses a sentence into one vector, from which a decoder unfolds it.

# %% [markdown] written="written_16" points=2
# For each of the five sentences above, write whether it is right, wrong, or cannot be known; what
# kind of statement it is (a number, a mechanism, a secret); and how you would check it in five
# minutes: which source and which table, or which line of code.
#
# ### BEGIN SOLUTION
# A full answer: 1 cannot be known, a secret: the GPT-4 Technical Report, section 2, withholds the
# size, so every number is a rumor. 2 is wrong, a mechanism: the label is the next token itself,
# read off the text; one line of get_batch shows it. 3 is wrong, a mechanism: heads split the D
# features, and each sees all positions; print the shape of the weights, (B, H, T, T). 4 is right, a
# number: Brown et al. 2020, table 2.1, gives 300 billion tokens for every model. 5 is wrong, a
# mechanism: a Transformer encoder gives a vector for each position, and the single vector belongs
# to the RNN encoder–decoder before attention; print the encoder's output shape. Full points ask for
# all five verdicts and for a check of each that could come out the other way.
# ### END SOLUTION

# %%
print(points_so_far(*ALL))
