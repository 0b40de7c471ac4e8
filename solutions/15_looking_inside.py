# %% [markdown]
# # 15 · Looking inside, and judging
#
# What it takes: about 90 minutes, 17 points. Read first: chapter 15 up to and including “Pairs of
# prompts”.
#
# Why it is worth building: a loss says that a model is good and not why. Here you build five
# instruments and point them at the course's small GPT: a lens that reads every layer, a score that
# finds the heads that copy, a switch for single heads, a test of honesty, and a test of prejudice
# with an interval around it.

# %% setup=true
import functools
from contextlib import contextmanager

import torch

from autograder.checks import looking_inside as checks
from autograder.engine.notebook import points_so_far, ready

# %% [markdown]
# In what follows `model` is the package's GPT of chapter 9. Its parts: `token_embedding`,
# `position_embedding`, `blocks` (a list; `block(x, "causal")` takes and returns (B, T, D)), `norm`,
# `head`; in a block, `attention.W_q`, `W_k`, `W_v` and `W_o`. `model.config` holds the sizes, and
# `model(ids)` of (B, T) returns (logits, loss).
#
# ## 15.1 `logit_lens` (3 points, 15 minutes)
#
# What would the model say if it stopped after two layers? Read “A lens on every layer” first.
#
# <!-- hints: logit_lens -->


# %% answer="logit_lens"
def logit_lens(model, ids):
    """The logits that the model would give after each of its blocks.

    ids: (T,), int64, left alone. The stream after a block goes through model.norm and model.head,
    whatever the block. Returns (layers, T, V), one row of logits for each block and token; the last
    layer's are the model's own. The model is as it was afterwards.

    Example: a model of 4 blocks and V = 1024 gives (4, 7, 1024) for 7 tokens, and [-1] equals
    model(ids[None])[0][0].
    """
    ### BEGIN SOLUTION
    positions = torch.arange(len(ids), device=ids.device)
    x = (model.token_embedding(ids) + model.position_embedding(positions))[None]  # (1, T, D)
    rows = []
    for block in model.blocks:
        x = block(x, "causal")
        rows.append(model.head(model.norm(x))[0])  # (T, V)
    return torch.stack(rows)
    ### END SOLUTION


# %% check="logit_lens"
checks.logit_lens.check(logit_lens)

# %% [markdown]
# A GPT to look into: three layers of four heads over 512 byte-level tokens. The first demonstration
# that needs it trains it on the plays, for some ten seconds; the later ones find it trained.


# %%
@functools.cache
def small_gpt():
    """The model, its tokenizer, and rows of 65 tokens of plays that it never read."""
    from rnn2gpt.data import get_batch, load_text
    from rnn2gpt.gpt import GPT, GPTConfig
    from rnn2gpt.tokenizer import BPETokenizer, train_bpe
    from rnn2gpt.training import cosine_schedule

    text = load_text()
    bpe = BPETokenizer(train_bpe(text[: len(text) // 4], 512))
    ids = torch.tensor(bpe.encode(text))
    train, held_out = ids[: 9 * len(ids) // 10], ids[9 * len(ids) // 10 :]
    T, n_steps = 64, 350

    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=512, block_size=T, n_layers=3, n_heads=4, d_model=64))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.95))
    chance = torch.Generator().manual_seed(0)
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = cosine_schedule(step, 1e-2, 0.0, 30, n_steps)
        _, loss = model(*get_batch(train, T, 16, chance))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval(), bpe, held_out[: 40 * (T + 1)].view(40, T + 1)


@torch.no_grad()
def held_out_loss():
    """Its loss on those rows, in nats per token."""
    model, _, rows = small_gpt()
    return model(rows[:, :-1], rows[:, 1:])[1].item()


# %% [markdown]
# It reads a line, and your lens says after each layer what it would bet on next. Look for the layer
# at which the bet becomes the final one.

# %%
if ready(checks.logit_lens):
    model, bpe, _ = small_gpt()
    print(f"{held_out_loss():.2f} nats per token on held-out text")
    line = torch.tensor(bpe.encode("My lord, I have done nothing but in"))
    with torch.no_grad():
        lens = logit_lens(model, line)
    for t, token in enumerate(line.tolist()):
        bets = [bpe.decode([i]) for i in lens[:, t].argmax(-1).tolist()]
        print(f"{bpe.decode([token])!r:>10} →", " ".join(f"{bet!r:>8}" for bet in bets))

# %% [markdown]
# ## 15.2 `induction_score` (2 points, 15 minutes)
#
# A number that says whether a head looks for what came after the last time. Read “Heads that look
# for the last time” first.
#
# <!-- hints: induction_score -->


# %% answer="induction_score"
def induction_score(weights, period):
    """How much each head reads the token that followed the last time.

    weights: (H, T, T), attention weights of H heads on a text that starts again after `period`
    tokens; weights[h, i, j] is how much position i reads position j. 1 ≤ period < T. Returns (H,):
    the mean over all positions i ≥ period of the weight on position i − period + 1.

    Example: T = 4, period = 2, the text "a b a b". Position 2 holds the second a, and what followed
    the first stands at 1; position 3 should look at 2. With weights[0, 2, 1] = 1.0 and
    weights[0, 3, 2] = 0.5 the score is 0.75.
    """
    ### BEGIN SOLUTION
    rows = torch.arange(period, weights.shape[-1], device=weights.device)
    return weights[:, rows, rows - period + 1].mean(dim=1)
    ### END SOLUTION


# %% check="induction_score"
checks.induction_score.check(induction_score)

# %% [markdown]
# A small model that is trained to have one: two layers of nothing but attention, one head each, on
# random letters that start again after 8 to 24. Some six seconds. Watch the two scores and the loss
# where the letters come again; guessing would cost ln 26 = 3.26 nats.

# %%
if ready(checks.induction_score):
    import torch.nn.functional as F

    from rnn2gpt.attention import CharAttention
    from rnn2gpt.positions import sinusoidal_positions

    def repeated(n, period, length, chance):
        """n rows of random letters that start again after `period`: (n, length)."""
        once = torch.randint(26, (n, period), generator=chance)
        return once.repeat(1, -(-length // period))[:, :length]

    torch.manual_seed(0)
    copier = CharAttention(vocab_size=26, d_model=48, n_layers=2, block_size=48)
    copier.position_embedding.weight.data = 0.5 * sinusoidal_positions(48, 48)
    optimizer, chance = torch.optim.AdamW(copier.parameters()), torch.Generator().manual_seed(0)
    judged = repeated(64, 20, 40, torch.Generator().manual_seed(1))
    for step in range(501):
        if step % 50 == 0:
            with torch.no_grad():
                logits, maps = copier(judged[:, :-1], need_weights=True)
            scores = [induction_score(w.mean(0, keepdim=True), 20).item() for w in maps]
            again = F.cross_entropy(logits[:, 19:].flatten(0, 1), judged[:, 20:].flatten()).item()
            print(
                f"step {step:3}: layer 0 {scores[0]:.2f}, layer 1 {scores[1]:.2f}, {again:.2f} nats"
            )
        periods = torch.randint(8, 25, (16,), generator=chance).tolist()
        batch = torch.cat([repeated(4, period, 49, chance) for period in periods])
        loss = F.cross_entropy(copier(batch[:, :-1])[0].flatten(0, 1), batch[:, 1:].flatten())
        optimizer.param_groups[0]["lr"] = 3e-3 * min((step + 1) / 50, 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %% [markdown]
# ## 15.3 `ablate_heads` (4 points, 25 minutes)
#
# A switch. Read “Leaving heads out” first. A context manager is written most easily as a function
# with one `yield`, under `@contextmanager`: what stands before the `yield` happens on the way in,
# what stands in its `finally` on the way out.
#
# <!-- hints: ablate_heads -->


# %% answer="ablate_heads"
@contextmanager
def ablate_heads(model, heads):
    """Switch heads off inside a with block.

    heads: a list of (layer, head), both from 0; it may be empty. Inside the block these heads'
    outputs are zeros where they enter their layer's output projection `attention.W_o`; all else
    runs as before. When the block ends, by an error too, the model is as it was, its weights as
    well, and the error passes on. Nothing changes before the block is entered. Raises ValueError
    (at the call or on the way in) for a layer or head that the model does not have. What `as` gives
    is free.

    Example: with ablate_heads(model, [(2, 0), (2, 3)]): logits, _ = model(ids)
    """
    ### BEGIN SOLUTION
    n_heads = model.config.n_heads
    for layer, head in heads:
        if not (0 <= layer < len(model.blocks) and 0 <= head < n_heads):
            raise ValueError(f"The model has no head {head} in layer {layer}")

    def silence(head):
        def hook(module, args):
            parts = args[0].unflatten(-1, (n_heads, -1)).clone()  # (B, T, D) → (B, T, H, D/H)
            parts[..., head, :] = 0.0
            return (parts.flatten(-2),)

        return hook

    hooks = [
        model.blocks[layer].attention.W_o.register_forward_pre_hook(silence(head))
        for layer, head in heads
    ]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()
    ### END SOLUTION


# %% check="ablate_heads"
checks.ablate_heads.check(ablate_heads)

# %% [markdown]
# What is each head worth? The loss on plays that the model never read, with each head off in turn.

# %%
if ready(checks.ablate_heads):
    model, whole = small_gpt()[0], held_out_loss()
    print(f"whole model: {whole:.3f} nats a token")
    for layer in range(model.config.n_layers):
        added = []
        for head in range(model.config.n_heads):
            with ablate_heads(model, [(layer, head)]):
                added.append(held_out_loss() - whole)
        print(f"layer {layer}:", " ".join(f"{value:+.3f}" for value in added))

# %% [markdown]
# ## 15.4 `expected_calibration_error` (3 points, 15 minutes)
#
# When the model says 70 %, is it right seven times in ten? Read “Does it know what it does not
# know?” first.
#
# <!-- hints: expected_calibration_error -->


# %% answer="expected_calibration_error"
def expected_calibration_error(probabilities, labels, n_bins):
    """How far confidence and accuracy are apart, on average.

    probabilities: (N, C), rows that sum to 1. labels: (N,), int64, the right classes. A row's
    confidence is its largest probability, and it is right if that class is the label. n_bins bins
    of equal width over (0, 1]: a confidence p belongs to the bin (lo, hi] with lo < p ≤ hi. Returns
    Σ (predictions in the bin / N) · |share of right ones − mean confidence|, over the bins that
    hold any. A number; the inputs are left alone.

    Example: n_bins = 2, rows [0.75, 0.25], [0.75, 0.25] and [0.5, 0.5], labels 0, 1, 0. In (0.5, 1]
    two predictions of 0.75, one right: a gap of 0.25. In (0, 0.5] one of 0.5, right: 0.5. Together
    2/3 · 0.25 + 1/3 · 0.5 = 0.333.
    """
    ### BEGIN SOLUTION
    confidence, guess = probabilities.max(dim=-1)
    right = (guess == labels).to(confidence.dtype)
    which = (confidence * n_bins).ceil().clamp(min=1)
    error = 0.0
    for b in which.unique():
        mine = which == b
        gap = (right[mine].mean() - confidence[mine].mean()).abs().item()
        error += mine.double().mean().item() * gap
    return error
    ### END SOLUTION


# %% check="expected_calibration_error"
checks.expected_calibration_error.check(expected_calibration_error)

# %% [markdown]
# The model's bets on the next token. A temperature changes how sure it is and never which token it
# likes best: try which one makes it honest.

# %%
if ready(checks.expected_calibration_error):
    model, _, rows = small_gpt()
    with torch.no_grad():
        logits = model(rows[:, :-1])[0].flatten(0, 1)  # (40 · 64, V)
    targets = rows[:, 1:].flatten()
    for temperature in (0.5, 0.8, 1.0, 1.25, 2.0):
        p = (logits / temperature).softmax(-1)
        error = float(expected_calibration_error(p, targets, 15))
        print(f"temperature {temperature:4}: confidence {p.amax(-1).mean():.3f}, error {error:.3f}")
    print(f"right: {(logits.argmax(-1) == targets).double().mean():.3f}")

# %% [markdown]
# ## 15.5 `paired_prompt_bias` (3 points, 15 minutes)
#
# Change one word, keep the rest, subtract, and say how sure you are. Read “Pairs of prompts” and
# “How sure is that number?” first.
#
# <!-- hints: paired_prompt_bias -->


# %% answer="paired_prompt_bias"
def paired_prompt_bias(score, pairs, level=0.95, generator=None):
    """What changing one word of a prompt does to a score, with an interval.

    score: a function from a prompt, a string, to a number; each prompt is scored once. pairs: a
    list of (a, b). Returns (effect, (low, high)): the mean of score(a) − score(b) over the pairs,
    and the percentile bootstrap's interval: draw 2,000 resamples, each of as many pairs as there
    are, with replacement; low and high cut (1 − level)/2 of the resamples' means off at either end.
    generator: a CPU torch.Generator, the only source of chance; None is PyTorch's own.

    Example: two pairs with the differences 1 and 3 give the effect 2. A quarter of the resamples
    has the mean 1, a quarter 3, the rest 2: at level = 0.95 the interval is (1, 3), at 0.3 (2, 2).
    """
    ### BEGIN SOLUTION
    differences = torch.tensor([score(a) - score(b) for a, b in pairs], dtype=torch.float64)
    n = len(differences)
    drawn = torch.randint(n, (2000, n), generator=generator)
    means = differences[drawn].mean(dim=1)
    tail = (1 - level) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail]).double()).tolist()
    return differences.mean().item(), (low, high)
    ### END SOLUTION


# %% check="paired_prompt_bias"
checks.paired_prompt_bias.check(paired_prompt_bias)

# %% [markdown]
# A king or a queen, and which words the model expects next: those of war or those of love? A
# control belongs to every such number. Here it deals the same twelve words into two lists by
# chance: whatever effect such lists show has no meaning.

# %%
if ready(checks.paired_prompt_bias):
    model, bpe, _ = small_gpt()
    contexts = ("The {} is", "O {}, thou art", "I saw the {}, so", "Our {} looks", "A {} must be",
                "The {} was ever", "My {} is too", "And the {} so", "Call the {} most",
                "The {}'s heart is")  # fmt: skip
    pairs = [(text.format("king"), text.format("queen")) for text in contexts]
    war = (" great", " strong", " bloody", " proud", " angry", " brave")
    love = (" fair", " sweet", " gentle", " kind", " tender", " beautiful")

    @torch.no_grad()
    def log_p(prompt, word):
        """What the model gives the word after the prompt, in nats."""
        before, after = bpe.encode(prompt), bpe.encode(word)
        logits = model(torch.tensor([before + after]))[0][0, len(before) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(after)[:, None]).sum().item()

    table = {prompt: torch.tensor([log_p(prompt, word) for word in (*war, *love)])
             for pair in pairs for prompt in pair}  # fmt: skip
    chance = torch.Generator().manual_seed(0)

    def preference(order):
        """A score: how much likelier the first six words of the order are than the others."""
        return lambda prompt: (table[prompt][order[:6]] - table[prompt][order[6:]]).mean().item()

    dealt = [("dealt by chance", torch.randperm(12, generator=chance)) for _ in range(5)]
    for name, order in (("war against love", torch.arange(12)), *dealt):
        effect, (low, high) = paired_prompt_bias(preference(order), pairs, generator=chance)
        print(f"{name:>16}, king against queen: {effect:+.2f} nats ({low:+.2f} to {high:+.2f})")

# %% [markdown]
# ## 15.6 Your own measurement (2 points, 10 minutes)
#
# An effect is worth as much as its control. The cell below switches off each pair of heads of the
# layer you choose, and sets what both together cost beside the sum of what each costs alone.

# %%
if ready(checks.ablate_heads):
    LAYER = 0

    def cost(*heads):
        with ablate_heads(model, [(LAYER, head) for head in heads]):
            return held_out_loss() - whole

    alone = [cost(head) for head in range(4)]
    for one in range(4):
        for other in range(one + 1, 4):
            both = cost(one, other)
            summed = alone[one] + alone[other]
            print(f"heads {one} and {other}: {both:+.3f} together, {summed:+.3f} summed")

# %% [markdown] written="written_15" points=2
# Before you run the cell above, write down whether you expect two heads together to cost more or
# less than the sum. Then run it for two layers, and explain in three sentences what you see, what a
# head's effect of nearly 0 proves about the head, and which control you would want before you tell
# someone what a head is for.
#
# ### BEGIN SOLUTION
# A full answer gives the numbers of two layers. Together may cost more than the sum: each of two
# heads can do the work while the other is off, so that each alone looks superfluous; or less: both
# carry the same information, or later layers repair it. An effect of nearly 0 proves that the rest
# of the model can do without the head on this text; it does not prove that the head does nothing,
# nor that it would do nothing on other text. Controls that count: another head of the same layer,
# the head's mean output in place of zeros, a text on which the supposed job does not come up, an
# interval over windows.
# ### END SOLUTION

# %%
print(points_so_far(*checks.ASSIGNMENT.exercises))
