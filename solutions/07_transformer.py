# %% [markdown]
# # 7 · The Transformer
#
# What it takes: about 110 minutes, 18 points. Read first: chapter 7 up to and including
# “Label smoothing”.
#
# Why it is worth building: in chapter 6 you wrote attention with several heads, which mixes what
# stands at different places and does nothing else. Here you put it to work. By the end of the
# notebook a whole Transformer of yours, encoder and decoder, turns English number words into
# Chinese numerals.

# %% setup=true
import torch
import torch.nn.functional as F
from torch import nn

from autograder.checks import transformer as checks
from autograder.engine.notebook import points_so_far, ready
from rnn2gpt.attention import causal_mask
from rnn2gpt.multi_head import MultiHeadAttention
from rnn2gpt.positions import sinusoidal_positions

# %% [markdown]
# `MultiHeadAttention(d_model, n_heads, bias=True)` is the package's version of what you wrote in
# chapter 6: `attention(query, key, value, mask)` returns the output, (B, T, D), and the weights.
#
# ## 7.1 `LayerNorm` (2 points, 10 minutes)
#
# Each position's D features are shifted to mean 0, scaled to variance 1, then given a weight and a
# bias of their own. Read “LayerNorm” first. Write the formula out: `layer_norm` and `nn.LayerNorm`
# are not allowed here.
#
# $$\operatorname{LayerNorm}(x) = \text{weight} \odot
# \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \text{bias}$$
#
# Why it is worth building: without it a stack of a dozen blocks does not train.
#
# <!-- hints: LayerNorm -->


# %% answer="LayerNorm"
class LayerNorm(nn.Module):
    """Normalize each position over its features, the last dimension of x.

    Parameters: `weight` (D,), which starts at 1, and `bias` (D,), which starts at 0. The variance
    divides by D, as PyTorch's LayerNorm does.

    Example with D = 2, weight 1, bias 0 and eps = 0: x = [1, 5] has the mean 3 and the variance 4,
    so the result is [−1, 1].
    """

    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        ### BEGIN SOLUTION
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))
        ### END SOLUTION

    def forward(self, x):
        """x: (..., D), any number of leading dimensions. Returns the same shape."""
        ### BEGIN SOLUTION
        mean = x.mean(dim=-1, keepdim=True)  # (..., 1)
        variance = x.var(dim=-1, correction=0, keepdim=True)  # (..., 1)
        return self.weight * (x - mean) / torch.sqrt(variance + self.eps) + self.bias
        ### END SOLUTION


# %% check="LayerNorm"
checks.LayerNorm.check(LayerNorm)

# %% [markdown]
# ## 7.2 `RMSNorm` (1 point, 5 minutes)
#
# The same without the mean and without the bias. Read “RMSNorm” first.
#
# <!-- hints: RMSNorm -->


# %% answer="RMSNorm"
class RMSNorm(nn.Module):
    """Divide each position by the root of the mean of its squared features.

    One parameter, `weight` (D,), which starts at 1. eps is added to the mean square.

    Example with D = 2, weight 1 and eps = 0: x = [1, 7] has the mean square 25, so the result is
    [0.2, 1.4].
    """

    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        ### BEGIN SOLUTION
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        ### END SOLUTION

    def forward(self, x):
        """x: (..., D), any number of leading dimensions. Returns the same shape."""
        ### BEGIN SOLUTION
        mean_square = x.pow(2).mean(dim=-1, keepdim=True)  # (..., 1)
        return self.weight * x / torch.sqrt(mean_square + self.eps)
        ### END SOLUTION


# %% check="RMSNorm"
checks.RMSNorm.check(RMSNorm)

# %% [markdown]
# The two side by side: what each leaves of a vector that is shifted, and of one that is scaled.

# %%
if ready(checks.LayerNorm, checks.RMSNorm):
    x = torch.tensor([1.0, 2.0, 4.0])
    for name, changed in (("x", x), ("x + 10", x + 10), ("10 x", 10 * x)):
        layer, rms = LayerNorm(3)(changed).tolist(), RMSNorm(3)(changed).tolist()
        print(f"{name:>6}: LayerNorm", *(f"{v:6.2f}" for v in layer), end="   ")
        print("RMSNorm", *(f"{v:6.2f}" for v in rms))

# %% [markdown]
# ## 7.3 `FeedForward` (1 point, 5 minutes)
#
# Two linear maps with an activation between them, applied to each position alone. Read “The
# feed-forward layer” first.
#
# <!-- hints: FeedForward -->


# %% answer="FeedForward"
class FeedForward(nn.Module):
    """W_2 · dropout(activation(W_1 · x)).

    `W_1` maps D to d_ff, `W_2` maps back; both are `nn.Linear`, without biases if bias is False.
    activation: "relu"; "gelu", the exact one (`F.gelu`); or "gelu_tanh", GPT-2's approximation
    (`F.gelu(…, approximate="tanh")`). dropout: the share of hidden values that is dropped in
    training, after the activation.

    Example with D = d_ff = 1, W_1 = 2, W_2 = 3 and no biases: x = 1 gives 6, x = −1 gives 0.
    """

    def __init__(self, d_model, d_ff, activation="relu", dropout=0.0, bias=True):
        super().__init__()
        ### BEGIN SOLUTION
        self.W_1 = nn.Linear(d_model, d_ff, bias)
        self.W_2 = nn.Linear(d_ff, d_model, bias)
        self.dropout = nn.Dropout(dropout)
        self.activation = {
            "relu": F.relu,
            "gelu": F.gelu,
            "gelu_tanh": lambda hidden: F.gelu(hidden, approximate="tanh"),
        }[activation]
        ### END SOLUTION

    def forward(self, x):
        """x: (B, T, D). Returns (B, T, D)."""
        ### BEGIN SOLUTION
        hidden = self.activation(self.W_1(x))  # (B, T, d_ff)
        return self.W_2(self.dropout(hidden))
        ### END SOLUTION


# %% check="FeedForward"
checks.FeedForward.check(FeedForward)

# %% [markdown]
# ## 7.4 `TransformerBlock` (3 points, 20 minutes)
#
# Self-attention, then the feed-forward layer, each added to what came in. Read “The block” and
# “Before or after” first.
#
# $$\text{pre-norm: } x \leftarrow x + \operatorname{layer}(\operatorname{norm}(x)) \qquad
# \text{post-norm: } x \leftarrow \operatorname{norm}(x + \operatorname{layer}(x))$$
#
# Use your `LayerNorm` and your `FeedForward`. If your `LayerNorm` is not right yet, `nn.LayerNorm`
# will do here.
#
# <!-- hints: TransformerBlock -->


# %% answer="TransformerBlock"
class TransformerBlock(nn.Module):
    """The layer of an encoder, or of a GPT when the mask is causal.

    Parts by name: `attention` (a MultiHeadAttention), `feed_forward`, `norm_1` for the attention,
    `norm_2` for the feed-forward layer.

    norm_first: True is pre-norm, False is the 2017 paper's post-norm. dropout: the share that is
    dropped, in training, of what each of the two layers returns, before it is added; the
    feed-forward layer gets the same dropout. bias=False: no biases in the linear maps; the norms
    may keep theirs.

    Example: if attention and feed-forward layer both return zeros, a pre-norm block returns x.
    """

    def __init__(
        self, d_model, n_heads, d_ff, dropout=0.0, norm_first=True, activation="relu", bias=True
    ):
        super().__init__()
        ### BEGIN SOLUTION
        self.norm_first = norm_first
        self.attention = MultiHeadAttention(d_model, n_heads, bias)
        self.feed_forward = FeedForward(d_model, d_ff, activation, dropout, bias)
        self.norm_1, self.norm_2 = LayerNorm(d_model), LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        ### END SOLUTION

    def forward(self, x, mask=None):
        """x: (B, T, D). mask: None, or boolean and broadcastable to (B, H, T, T), True = may
        attend. Returns (B, T, D).
        """
        ### BEGIN SOLUTION
        if self.norm_first:
            y = self.norm_1(x)
            x = x + self.dropout(self.attention(y, y, y, mask)[0])
            return x + self.dropout(self.feed_forward(self.norm_2(x)))
        x = self.norm_1(x + self.dropout(self.attention(x, x, x, mask)[0]))
        return self.norm_2(x + self.dropout(self.feed_forward(x)))
        ### END SOLUTION


# %% check="TransformerBlock"
checks.TransformerBlock.check(TransformerBlock, LayerNorm=LayerNorm, FeedForward=FeedForward)

# %% [markdown]
# Your block, stacked 24 times, fresh from the constructor, in both orders: how large is the
# gradient of a loss at the end of the stack for the weights of each block?

# %%
if ready(checks.TransformerBlock):
    import matplotlib.pyplot as plt

    for norm_first in (True, False):
        torch.manual_seed(0)
        stack = nn.ModuleList(TransformerBlock(32, 4, 64, 0.0, norm_first) for _ in range(24))
        x = torch.randn(8, 16, 32)
        for block in stack:
            x = block(x)
        x = LayerNorm(32)(x) if norm_first else x  # a pre-norm stack ends with a norm of its own
        (x @ torch.randn(32, 10)).logsumexp(-1).mean().backward()
        sizes = [block.feed_forward.W_2.weight.grad.norm().item() for block in stack]
        plt.plot(range(1, 25), sizes, "o-", label="pre-norm" if norm_first else "post-norm")
    plt.yscale("log")
    plt.xlabel("block, from the input up")
    plt.ylabel("gradient norm of W_2")
    plt.legend()
    plt.show()

# %% [markdown]
# ## 7.5 `DecoderBlock` (3 points, 15 minutes)
#
# The block you have, with one layer more in the middle, which reads the encoder. Read “The decoder
# reads twice” first.
#
# <!-- hints: DecoderBlock -->


# %% answer="DecoderBlock"
class DecoderBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward layer, each added to the stream.

    Parts by name: `self_attention`, `cross_attention`, `feed_forward`, and `norm_1`, `norm_2`,
    `norm_3` for the three in this order. Arguments and dropout as in TransformerBlock.

    In the cross-attention the stream asks; memory is key and value, and no norm of this block
    touches it.

    Example: if all three layers return zeros, a pre-norm block returns x, whatever memory holds.
    """

    def __init__(
        self, d_model, n_heads, d_ff, dropout=0.0, norm_first=True, activation="relu", bias=True
    ):
        super().__init__()
        ### BEGIN SOLUTION
        self.norm_first = norm_first
        self.self_attention = MultiHeadAttention(d_model, n_heads, bias)
        self.cross_attention = MultiHeadAttention(d_model, n_heads, bias)
        self.feed_forward = FeedForward(d_model, d_ff, activation, dropout, bias)
        self.norm_1, self.norm_2, self.norm_3 = (LayerNorm(d_model) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        ### END SOLUTION

    def forward(self, x, memory, self_mask=None, memory_mask=None):
        """x: (B, T, D). memory: (B, S, D). self_mask broadcasts to (B, H, T, T), memory_mask to
        (B, H, T, S); both boolean or None. Returns (B, T, D).
        """
        ### BEGIN SOLUTION
        layers = (
            (self.norm_1, lambda y: self.self_attention(y, y, y, self_mask)[0]),
            (self.norm_2, lambda y: self.cross_attention(y, memory, memory, memory_mask)[0]),
            (self.norm_3, self.feed_forward),
        )
        for norm, layer in layers:
            if self.norm_first:
                x = x + self.dropout(layer(norm(x)))
            else:
                x = norm(x + self.dropout(layer(x)))
        return x
        ### END SOLUTION


# %% check="DecoderBlock"
checks.DecoderBlock.check(DecoderBlock, LayerNorm=LayerNorm, FeedForward=FeedForward)

# %% [markdown]
# ## 7.6 `Transformer` (4 points, 25 minutes)
#
# All of it: two embeddings, positions, two stacks, three masks, one head. Read “Encoder and
# decoder” first.
#
# The names of the parts are yours, and so are two choices: pre-norm or post-norm, and whether
# positions are sinusoids (`sinusoidal_positions(max_len, d_model)`, (max_len, D)) or learned. Two
# things are easy to miss, and training shows them, not the check: a pre-norm stack ends with a
# norm, and with sinusoids words and waves should be about equally large. `nn.Embedding` starts with
# standard deviation 1, which is large enough; the paper starts at 1/√D and multiplies by √D.
#
# <!-- hints: Transformer -->


# %% answer="Transformer"
class Transformer(nn.Module):
    """Encoder and decoder, n_layers blocks each.

    Both vocabularies use the id pad_id for padding, which stands after a sentence's last word and
    which no word may read. Sentences have at most max_len words. dropout acts in the blocks and on
    the embeddings, in training.

    Example: Transformer(11, 13, 8, 2, 16, 1, 9, pad_id=0)(source, target_in) with source of (3, 5)
    and target_in of (3, 7) gives logits of (3, 7, 13).
    """

    def __init__(
        self,
        source_vocab,
        target_vocab,
        d_model,
        n_heads,
        d_ff,
        n_layers,
        max_len,
        pad_id,
        dropout=0.0,
    ):
        super().__init__()
        ### BEGIN SOLUTION
        self.pad_id, self.scale = pad_id, d_model**0.5
        self.source_embedding = nn.Embedding(source_vocab, d_model)
        self.target_embedding = nn.Embedding(target_vocab, d_model)
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=1 / self.scale)
        self.register_buffer("positions", sinusoidal_positions(max_len, d_model))  # (max_len, D)
        sizes = d_model, n_heads, d_ff, dropout
        self.encoder = nn.ModuleList(TransformerBlock(*sizes) for _ in range(n_layers))
        self.decoder = nn.ModuleList(DecoderBlock(*sizes) for _ in range(n_layers))
        self.encoder_norm, self.decoder_norm = LayerNorm(d_model), LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(d_model, target_vocab)
        ### END SOLUTION

    def encode(self, source):
        """source: (B, S), int64. Returns memory, (B, S, D), and its mask, (B, 1, 1, S), True where
        a word stands.
        """
        ### BEGIN SOLUTION
        memory_mask = (source != self.pad_id)[:, None, None]  # (B, S) → (B, 1, 1, S)
        x = self.scale * self.source_embedding(source) + self.positions[: source.shape[1]]
        x = self.dropout(x)  # (B, S, D)
        for block in self.encoder:
            x = block(x, memory_mask)
        return self.encoder_norm(x), memory_mask
        ### END SOLUTION

    def decode(self, target_in, memory, memory_mask):
        """target_in: (B, T), int64; memory and memory_mask from `encode`. Returns logits,
        (B, T, V): at each position those of the token after it, from the tokens up to it and all
        of the source.
        """
        ### BEGIN SOLUTION
        mask = causal_mask(target_in.shape[1], device=target_in.device)  # (T, T)
        x = self.scale * self.target_embedding(target_in) + self.positions[: target_in.shape[1]]
        x = self.dropout(x)  # (B, T, D)
        for block in self.decoder:
            x = block(x, memory, mask, memory_mask)
        return self.head(self.decoder_norm(x))
        ### END SOLUTION

    def forward(self, source, target_in):
        """source: (B, S), target_in: (B, T). Returns logits, (B, T, V)."""
        ### BEGIN SOLUTION
        return self.decode(target_in, *self.encode(source))
        ### END SOLUTION


# %% check="Transformer"
checks.Transformer.check(
    Transformer,
    LayerNorm=LayerNorm,
    FeedForward=FeedForward,
    TransformerBlock=TransformerBlock,
    DecoderBlock=DecoderBlock,
)

# %% [markdown]
# ## 7.7 `label_smoothed_cross_entropy` (2 points, 10 minutes)
#
# The loss that the paper trained with. Read “Label smoothing” first. The target of a position is
# not 1 for the right class and 0 elsewhere, but $1 - \varepsilon + \varepsilon/V$ and
# $\varepsilon/V$. Build it from tensor operations: `log_softmax` is allowed, `cross_entropy` and
# `nll_loss` are not.
#
# <!-- hints: label_smoothed_cross_entropy -->


# %% answer="label_smoothed_cross_entropy"
def label_smoothed_cross_entropy(logits, targets, smoothing, pad_id):
    """Cross-entropy in nats against smoothed targets, the mean over targets that are not padding.

    logits: (B, T, V). targets: (B, T), int64. smoothing: ε, from 0 to 1; ε/V goes to every one of
    the V classes, the right one included, and 1 − ε to the right one besides. pad_id marks targets
    that do not count; it may be negative. Returns a 0-dim tensor.

    Example with V = 2 and ε = 0.5: logits [[[0, 0]]] give ln 2 = 0.6931, whatever the target.
    """
    ### BEGIN SOLUTION
    log_p = logits.log_softmax(dim=-1)  # (B, T, V)
    real = targets != pad_id  # (B, T)
    own = log_p.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)  # (B, T)
    losses = -(1 - smoothing) * own - smoothing * log_p.mean(dim=-1)  # (B, T)
    return (losses * real).sum() / real.sum()
    ### END SOLUTION


# %% check="label_smoothed_cross_entropy"
checks.label_smoothed_cross_entropy.check(label_smoothed_cross_entropy)

# %% [markdown]
# Your model, trained with your loss on chapter 4's task: English number words in, Chinese numerals
# out. 300 steps take some 20 seconds, and see fewer than half of the training pairs once.

# %%
if ready(checks.Transformer, checks.label_smoothed_cross_entropy):
    from rnn2gpt.seq2seq import shift_right
    from rnn2gpt.translation import BOS, PAD, PairTokenizer, load_pairs, pad_pairs
    from rnn2gpt.translator import translate

    splits = load_pairs("numbers")
    tokenizer = PairTokenizer.of("numbers", splits)
    pairs = tokenizer.encode(splits["train"])

    def train(smoothing, steps, rows=32, rate=3e-3):
        """A trained model of yours, ready to translate, and its loss step by step."""
        torch.manual_seed(0)
        vocabularies = len(tokenizer.source), len(tokenizer.target)
        model, losses = Transformer(*vocabularies, 64, 4, 128, 2, 32, PAD), []
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
        for step in range(steps):
            # Up for 30 steps, then level, and down to 0 over the last three quarters.
            optimizer.param_groups[0]["lr"] = rate * min(
                1, (step + 1) / 30, 4 / 3 * (steps - step) / steps
            )
            source, _, target = pad_pairs(pairs[step * rows : (step + 1) * rows])
            logits = model(source, shift_right(target, BOS))  # (B, T, V)
            loss = label_smoothed_cross_entropy(logits, target, smoothing, PAD)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return model.eval(), losses

    model, losses = train(smoothing=0.1, steps=300)
    plt.plot(losses)
    plt.xlabel("step")
    plt.ylabel("smoothed loss (nats per character)")
    plt.show()

# %% [markdown]
# Everything you built, at work on numbers that it has never seen. Where it is wrong, how is it
# wrong?

# %%
if ready(checks.Transformer, checks.label_smoothed_cross_entropy):
    test = splits["test"][:100]
    outputs = translate(model, tokenizer, [source for source, _ in test], max_len=30)
    right = sum(output == reference for output, (_, reference) in zip(outputs, test, strict=True))
    print(f"{right} of {len(test)} held-out numbers right\n")
    for (source, reference), output in list(zip(test, outputs, strict=True))[:6]:
        print(f"{source}\n  → {output}", "" if output == reference else f"(right: {reference})")

# %% [markdown]
# ## 7.8 Your own experiment (2 points, 10 minutes)
#
# What does smoothing do to how sure the model is, and to how often it is right? The cell below
# trains two more models, without smoothing and with much of it, and measures both on held-out
# numbers.

# %%
if ready(checks.Transformer, checks.label_smoothed_cross_entropy):
    source, _, target = pad_pairs(tokenizer.encode(splits["validation"][:200]))
    real = target != PAD
    for smoothing in (0.0, 0.4):
        trained, _ = train(smoothing, steps=150)
        with torch.no_grad():
            p = trained(source, shift_right(target, BOS)).softmax(dim=-1)  # (B, T, V)
        sure = p.amax(dim=-1)[real].mean().item()
        right = (p.argmax(dim=-1) == target)[real].double().mean().item()
        print(
            f"smoothing {smoothing}: mean top probability {sure:.3f}, characters right {right:.3f}"
        )

# %% [markdown] written="written_07" points=2
# Before you run the cell above, write down what you expect the mean top probability to be for each
# of the two, from the loss alone (V is 18), and which of the two you expect to be right more
# often. Then run it, and compare what you measured with what you expected, in two sentences.
#
# ### BEGIN SOLUTION
# The smoothed loss is smallest where the model gives the right character
# 1 − ε + ε/V, so a model that knows should be near 0.6 + 0.4/18 = 0.62 sure with ε = 0.4, and near
# 1 with ε = 0; while it still makes mistakes both are below that. A full answer gives the measured
# numbers, finds the certainty of the smoothed model near 0.62 while the shares of right characters
# are much closer to each other, and says that smoothing changes how sure the model is far more than
# which character it puts first: the argmax of the smoothed target is still the right character.
# ### END SOLUTION

# %%
print(points_so_far(*checks.ASSIGNMENT.exercises))
