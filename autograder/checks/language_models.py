"""Checks of chapter 01: counting, smoothing, cross-entropy, bits per character, batches."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autograder.child.protocol import Seed
from autograder.engine.exercise import Assignment, Rng
from autograder.engine.expect import expect, fail
from autograder.engine.guards import DETACHED, guard
from autograder.engine.handle import Handle, Missing, StudentError

ASSIGNMENT = Assignment(
    name="01-language-models",
    notebook="language_models",
    page="01_language_models",
    minutes=65,
    sections={
        "counting-pairs": "Counting pairs",
        "from-counts-to-probabilities": "From counts to probabilities",
        "cross-entropy": "Cross-entropy",
        "bits-per-character": "Bits per character",
        "batches": "Batches",
    },
)

# --- bigram_counts ------------------------------------------------------------------------------

bigram_counts = ASSIGNMENT.exercise(
    "bigram_counts",
    points=2,
    hints=(
        "Which two slices of `ids` line up each character with the one that follows it?",
        "A pair that occurs three times must be counted three times. What does `counts[i, j] += 1`"
        " do when the index `(i, j)` stands three times in one indexing operation?",
        "A pair (i, j) can be written as the single number `i * vocab_size + j`, and there is a"
        " PyTorch function that counts how often each number occurs.",
    ),
)


def pairs_by_hand(ids: Tensor, vocab_size: int) -> Tensor:
    counter = Counter(itertools.pairwise(ids.tolist()))
    rows = [[counter[i, j] for j in range(vocab_size)] for i in range(vocab_size)]
    return torch.tensor(rows)


def expect_counts(counts: Any, ids: Tensor, vocab_size: int) -> None:
    """Counts may be of any number type, so they are compared as numbers."""
    expect(counts, "the counts").has_shape(vocab_size, vocab_size)
    expect(counts.double(), "the counts").equals(pairs_by_hand(ids, vocab_size).double())


@bigram_counts.case("counts each adjacent pair of a text")
def _(student: Handle, rng: Rng) -> None:
    ids = rng.integers(0, 5, 82)[::2]  # not contiguous
    expect_counts(student(ids, 7), ids, 7)  # more symbols than occur, on purpose


@bigram_counts.case("counts a pair as often as it occurs")
def _(student: Handle, rng: Rng) -> None:
    ids = torch.tensor([0, 1] * rng.integer(4, 9))
    expect_counts(student(ids, 2), ids, 2)


@bigram_counts.case("counts a doubled character as a pair")
def _(student: Handle, rng: Rng) -> None:
    ids = torch.full((rng.integer(3, 8),), 2)
    expect_counts(student(ids, 3), ids, 3)


guard(
    bigram_counts,
    lambda rng, dtype: (rng.integers(0, 6, 29), 6),
    gradient=False,
    dtype=False,
)


@bigram_counts.misconception(
    did="Your table is transposed: entry [i, j] counts how often i follows j.",
    causes="A model built on it predicts the character before, not the one after.",
    see="counting-pairs",
)
def transposed(ids: Tensor, vocab_size: int) -> Tensor:
    return pairs_by_hand(ids, vocab_size).T


@bigram_counts.misconception(
    did="You count the last character and the first one as a pair.",
    causes="The text is no circle: one count that was never observed enters the table.",
    see="counting-pairs",
)
def wraps_around(ids: Tensor, vocab_size: int) -> Tensor:
    return pairs_by_hand(torch.cat([ids, ids[:1]]), vocab_size)


@bigram_counts.misconception(
    did="A pair that occurs many times is counted once.",
    causes="`counts[i, j] += 1` with index tensors writes each place once, however often it is"
    " named, so frequent and rare pairs look alike.",
    see="counting-pairs",
)
def counts_once(ids: Tensor, vocab_size: int) -> Tensor:
    counts = torch.zeros(vocab_size, vocab_size, dtype=torch.int64)
    counts[ids[:-1], ids[1:]] += 1
    return counts


@bigram_counts.misconception(
    did="You cut the text into separate pairs: characters 1 and 2, then 3 and 4.",
    causes="Each character but the ends belongs to two pairs, so half of the pairs go uncounted.",
    see="counting-pairs",
)
def separate_pairs(ids: Tensor, vocab_size: int) -> Tensor:
    counts = torch.zeros(vocab_size, vocab_size, dtype=torch.int64)
    for i, j in zip(ids[::2].tolist(), ids[1::2].tolist(), strict=False):
        counts[i, j] += 1
    return counts


@bigram_counts.misconception(
    did="Your table is only as large as the ids that occur in this text.",
    causes="A text that lacks the last symbols gets a smaller table, which fits no other text's."
    " The size is `vocab_size`.",
    see="counting-pairs",
)
def sized_by_the_text(ids: Tensor, vocab_size: int) -> Tensor:
    return pairs_by_hand(ids, int(ids.max()) + 1)


# --- bigram_probabilities -----------------------------------------------------------------------

bigram_probabilities = ASSIGNMENT.exercise(
    "bigram_probabilities",
    points=2,
    hints=(
        "Which sum turns the counts of one row into shares of one? How many sums do you need?",
        "Add alpha to every entry before you sum, so that the total grows by V times alpha. Then"
        " ask what a row holds that was never seen, when alpha is 0.",
        "The totals must have shape (V, 1) to divide the rows of a (V, V) table. The uniform row"
        " is 1 / V.",
    ),
)


def shares_by_hand(counts: Tensor, alpha: float) -> Tensor:
    rows = []
    for row in counts.tolist():
        total = sum(row) + alpha * len(row)
        rows.append([(c + alpha) / total if total else 1 / len(row) for c in row])
    return torch.tensor(rows, dtype=torch.float64)


def expect_shares(table: Any, counts: Tensor, alpha: float) -> None:
    expect(table, "the table").has_shape(*counts.shape)
    expect(table, "the table").holds(
        table.is_floating_point(), f"expected a floating-point dtype, got {table.dtype}."
    )
    expect(table, "the table").close_to(shares_by_hand(counts, alpha))


@bigram_probabilities.case("turns each row of counts into shares of one")
def _(student: Handle, rng: Rng) -> None:
    counts = rng.integers(1, 10, 5, 5).T  # not contiguous; no zero
    expect_shares(student(counts, 0.0), counts, 0.0)


@bigram_probabilities.case("adds alpha to every count")
def _(student: Handle, rng: Rng) -> None:
    counts = rng.integers(0, 4, 7, 7)
    counts[2, 3] = 0
    expect_shares(student(counts, 0.3), counts, 0.3)


@bigram_probabilities.case("takes alpha as 1 unless told otherwise")
def _(student: Handle, rng: Rng) -> None:
    counts = rng.integers(0, 6, 3, 3)
    counts[0, 2] = 0
    expect_shares(student(counts), counts, 1.0)


@bigram_probabilities.case("makes a row uniform that was never seen, without smoothing")
def _(student: Handle, rng: Rng) -> None:
    counts = rng.integers(1, 9, 5, 5)
    counts[rng.integer(0, 5)] = 0
    expect_shares(student(counts, alpha=0.0), counts, 0.0)


guard(
    bigram_probabilities,
    lambda rng, dtype: ((9 * rng.uniform(4, 4)).floor().to(dtype), 0.5),
    gradient=False,  # counts are data: nothing is learned through them
)


@bigram_probabilities.misconception(
    did="You normalize the columns of the table.",
    causes="A column sums to one, so entry [i, j] says where j came from; what follows i is the"
    " row, and rows no longer sum to one.",
    see="from-counts-to-probabilities",
)
def normalizes_columns(counts: Tensor, alpha: float = 1.0) -> Tensor:
    smoothed = counts + alpha
    return smoothed / smoothed.sum(dim=0, keepdim=True)


@bigram_probabilities.misconception(
    did="Your row totals have shape (V,), so broadcasting divides column j by the total of row j.",
    causes="Entry [i, j] is divided by the wrong row's total, and no row sums to one. Keep the"
    " summed dimension.",
    see="from-counts-to-probabilities",
)
def loses_the_dimension(counts: Tensor, alpha: float = 1.0) -> Tensor:
    smoothed = counts + alpha
    return smoothed / smoothed.sum(dim=1)


@bigram_probabilities.misconception(
    did="You divide by the sum of the whole table.",
    causes="Entry [i, j] is then the probability of the pair, not of j given i: the row of a rare"
    " character is nearly zero.",
    see="from-counts-to-probabilities",
)
def joint(counts: Tensor, alpha: float = 1.0) -> Tensor:
    smoothed = counts + alpha
    return smoothed / smoothed.sum()


@bigram_probabilities.misconception(
    did="You add alpha to the zeros only.",
    causes="An unseen pair then counts as much as one seen alpha times, and more than one seen"
    " less often. Every count gets alpha.",
    see="from-counts-to-probabilities",
)
def alpha_on_zeros(counts: Tensor, alpha: float = 1.0) -> Tensor:
    smoothed = torch.where(counts == 0, alpha, counts.to(torch.get_default_dtype()))
    return smoothed / smoothed.sum(dim=1, keepdim=True)


@bigram_probabilities.misconception(
    did="You add alpha to every count, but only once to the total.",
    causes="V entries grew by alpha, so the row sums to more than one and is no distribution.",
    see="from-counts-to-probabilities",
)
def alpha_once_in_the_total(counts: Tensor, alpha: float = 1.0) -> Tensor:
    return (counts + alpha) / (counts.sum(dim=1, keepdim=True) + alpha)


@bigram_probabilities.misconception(
    did="You always add 1, whatever alpha is.",
    causes="Smoothing can then be neither tuned nor switched off.",
    see="from-counts-to-probabilities",
)
def always_adds_one(counts: Tensor, alpha: float = 1.0) -> Tensor:
    smoothed = counts + 1
    return smoothed / smoothed.sum(dim=1, keepdim=True)


@bigram_probabilities.misconception(
    did="You never add alpha.",
    causes="A pair that the training text lacks has probability 0, and one such pair in another"
    " text makes its cross-entropy infinite.",
    see="from-counts-to-probabilities",
)
def ignores_alpha(counts: Tensor, alpha: float = 1.0) -> Tensor:
    return (counts / counts.sum(dim=1, keepdim=True)).nan_to_num(nan=1 / counts.shape[1])


@bigram_probabilities.misconception(
    did="A row that was never seen is NaN when alpha is 0: you divide 0 by 0.",
    causes="One such row makes every loss and every sample that reads it NaN. Make it uniform.",
    see="from-counts-to-probabilities",
)
def nan_row(counts: Tensor, alpha: float = 1.0) -> Tensor:
    smoothed = counts + alpha
    return smoothed / smoothed.sum(dim=1, keepdim=True)


@bigram_probabilities.misconception(
    did="A row that was never seen stays all zeros when alpha is 0.",
    causes="It sums to zero, so nothing can be drawn from it and its loss is infinite. Make it"
    " uniform.",
    see="from-counts-to-probabilities",
)
def zero_row(counts: Tensor, alpha: float = 1.0) -> Tensor:
    smoothed = counts + alpha
    totals = smoothed.sum(dim=1, keepdim=True)
    return smoothed / torch.where(totals > 0, totals, 1)


@bigram_probabilities.misconception(
    did="You take the softmax of the counts.",
    causes="Softmax exponentiates: ten more occurrences make a pair e¹⁰ = 22,026 times as likely,"
    " so the most frequent pair of a row takes nearly all of it.",
    see="from-counts-to-probabilities",
)
def softmax_of_counts(counts: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.softmax((counts + alpha).to(torch.get_default_dtype()), dim=1)


# --- cross_entropy ------------------------------------------------------------------------------

cross_entropy = ASSIGNMENT.exercise(
    "cross_entropy",
    points=3,
    forbidden=(
        "cross_entropy",
        "nll_loss",
        "log_softmax",
        "CrossEntropyLoss",
        "NLLLoss",
        "LogSoftmax",
        "Categorical",
    ),
    hints=(
        "Which one of the V probabilities of a row does the loss look at?",
        "Write ln p of the target with p = exp(z) / Σ exp(z) and simplify before you code: one"
        " exponential disappears. What is left that can overflow, and what can be subtracted from"
        " every logit without changing p?",
        "ln p = z[target] − logsumexp(z), one number for each of the N rows;"
        " rows `torch.arange(N)` and columns `targets` pick one entry of each row.",
    ),
)


@cross_entropy.case("is the mean of −ln p over the rows")
def _(student: Handle, rng: Rng) -> None:
    logits, targets = 2 * rng.strided(7, 5), rng.integers(0, 5, 7)
    expect(student(logits, targets), "the loss").close_to(F.cross_entropy(logits, targets))


@cross_entropy.case("charges ln V for equal logits")
def _(student: Handle, rng: Rng) -> None:
    logits = torch.full((3, 11), float(rng.normal()), dtype=torch.float64)
    targets = rng.integers(0, 11, 3)
    expect(student(logits, targets), "the loss").close_to(
        torch.tensor(math.log(11), dtype=torch.float64)
    )


@cross_entropy.case("survives logits around 1,000")
def _(student: Handle, rng: Rng) -> None:
    logits, targets = 1000 + rng.normal(5, 3), rng.integers(0, 3, 5)
    loss = student(logits, targets)
    if not math.isfinite(float(loss)):
        expect(loss, "the loss").holds(
            False, f"the logits are finite, the loss is {float(loss)}.", "exponentiates_raw_logits"
        )
    expect(loss, "the loss").close_to(F.cross_entropy(logits, targets))


@cross_entropy.case("is exact for a target that the model thinks impossible")
def _(student: Handle, rng: Rng) -> None:
    logits, targets = rng.normal(3, 5), rng.integers(0, 5, 3)
    # Only who is right on ordinary logits can be wrong here for the reason looked for.
    right = F.cross_entropy(logits, targets)
    expect(student(logits, targets), "the loss").close_to(right, rtol=1e-3)
    logits[torch.arange(3), targets] -= 3000.0
    right = F.cross_entropy(logits, targets)  # about 3,000 nats
    loss = float(student(logits, targets))
    message = f"expected {float(right):.6g}, got {loss:.6g}."
    if loss == math.inf:
        fail(f"the loss: {message}", mistake="log_of_softmax")
    if 5 < loss < 800:  # −ln of any small number that float64 can hold
        fail(f"the loss: {message}", mistake="adds_epsilon")
    expect(loss, "the loss").close_to(float(right))


@cross_entropy.case("has the gradient (softmax − one-hot) / N")
def _(student: Handle, rng: Rng) -> None:
    logits, targets = rng.normal(5, 7), rng.integers(0, 7, 5)
    one = torch.tensor(1.0, dtype=torch.float64)
    try:
        pulled = student.vjp(logits, targets, cotangent=one, wrt=(0,))
    except StudentError as error:
        if error.kind == "NoGradient":
            fail(DETACHED)
        raise
    right = (torch.softmax(logits, dim=1) - F.one_hot(targets, 7)) / 5
    # Loose: what is rounded to float32 on the way is the dtype guard's to name.
    expect(pulled.inputs[0], "the gradient for the logits").close_to(right, 1e-4, 1e-6)


guard(cross_entropy, lambda rng, dtype: (rng.normal(5, 3, dtype=dtype), rng.integers(0, 3, 5)))


def row_losses(logits: Tensor, targets: Tensor) -> Tensor:
    picked = logits[torch.arange(len(targets)), targets]
    return torch.logsumexp(logits, dim=1) - picked


@cross_entropy.misconception(
    did="You add up the rows' losses and do not average them.",
    causes="The loss and its gradient grow with the batch, so every batch size needs another"
    " learning rate.",
    see="cross-entropy",
)
def sums(logits: Tensor, targets: Tensor) -> Tensor:
    return row_losses(logits, targets).sum()


@cross_entropy.misconception(
    did="You return one loss for each row.",
    causes="Training needs one number to differentiate: take the mean over the rows.",
    see="cross-entropy",
)
def no_reduction(logits: Tensor, targets: Tensor) -> Tensor:
    return row_losses(logits, targets)


@cross_entropy.misconception(
    did="Your mean runs over all N · V entries, the zeros of the one-hot rows included.",
    causes="The loss is V times too small, and models of different vocabularies no longer compare.",
    see="cross-entropy",
)
def averages_over_the_vocabulary(logits: Tensor, targets: Tensor) -> Tensor:
    log_p = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    return -(F.one_hot(targets, logits.shape[1]) * log_p).mean()


@cross_entropy.misconception(
    did="Your logarithm is to base 2.",
    causes="The loss is in bits, 1.44 times too large: training and the conversion to bits per"
    " character both expect nats.",
    see="cross-entropy",
)
def base_two(logits: Tensor, targets: Tensor) -> Tensor:
    return row_losses(logits, targets).mean() / math.log(2)


@cross_entropy.misconception(
    did="The minus sign is missing: you return the mean log-probability.",
    causes="Minimizing it makes the true characters less and less likely.",
    see="cross-entropy",
)
def sign(logits: Tensor, targets: Tensor) -> Tensor:
    return -row_losses(logits, targets).mean()


@cross_entropy.misconception(
    did="You exponentiate the logits as they are.",
    causes="exp(89) overflows in float32 and exp(710) in float64: the loss becomes infinite or NaN,"
    " and training stops for good. Subtract the row's largest logit first, or use `logsumexp`.",
    see="cross-entropy",
)
def exponentiates_raw_logits(logits: Tensor, targets: Tensor) -> Tensor:
    p = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    return -p[torch.arange(len(targets)), targets].log().mean()


@cross_entropy.misconception(
    did="You take the logarithm of a softmax that has already been rounded to 0.",
    causes="A target 1,000 nats behind has p = 0 in floating point, so its loss is infinite and its"
    " gradient NaN. Simplify ln(exp(z) / Σ exp(z)) on paper first.",
    see="cross-entropy",
)
def log_of_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    p = torch.softmax(logits, dim=1)
    return -p[torch.arange(len(targets)), targets].log().mean()


@cross_entropy.misconception(
    did="You add a small number to p, or clamp it, before the logarithm.",
    causes="It hides log(0) and caps the loss: with 1e-9 no mistake costs more than 20.7 nats, and"
    " where the loss is flat the gradient is 0, just where the model is most wrong.",
    see="cross-entropy",
)
def adds_epsilon(logits: Tensor, targets: Tensor) -> Tensor:
    p = torch.softmax(logits, dim=1)
    return -(p[torch.arange(len(targets)), targets] + 1e-9).log().mean()


@cross_entropy.misconception(
    did="Your softmax runs over the batch: each column sums to one, not each row.",
    causes="A row's loss then depends on which other rows share its batch.",
    see="cross-entropy",
)
def wrong_axis(logits: Tensor, targets: Tensor) -> Tensor:
    log_p = logits - torch.logsumexp(logits, dim=0, keepdim=True)
    return -log_p[torch.arange(len(targets)), targets].mean()


@cross_entropy.misconception(
    did="`log_p[:, targets]` picks every row's entry for every target: N · N numbers.",
    causes="Each row is graded on its neighbors' targets too. Pair row n with target n alone.",
    see="cross-entropy",
)
def every_row_with_every_target(logits: Tensor, targets: Tensor) -> Tensor:
    log_p = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    return -log_p[:, targets].mean()


@cross_entropy.misconception(
    did="You take the softmax twice: probabilities go in where logits belong.",
    causes="Numbers between 0 and 1 make a nearly uniform softmax, so even a perfect model pays"
    " about ln((V − 1 + e) / e), never 0.",
    see="cross-entropy",
)
def softmax_twice(logits: Tensor, targets: Tensor) -> Tensor:
    return row_losses(torch.softmax(logits, dim=1), targets).mean()


# --- bits_per_character -------------------------------------------------------------------------

bits_per_character = ASSIGNMENT.exercise(
    "bits_per_character",
    points=1,
    hints=(
        "How many nats does the model spend on the whole text?",
        "The text costs the same however it was cut into tokens. Change the unit of that total,"
        " then share it among the characters.",
        "One bit is ln 2 ≈ 0.693 nats.",
    ),
)


@bits_per_character.case("gives one bit when every character is a fair coin")
def _(student: Handle, rng: Rng) -> None:
    n = rng.integer(10, 99)
    expect(student(math.log(2), n, n), "the bits").close_to(1.0)


@bits_per_character.case("adds up −log₂ p over the tokens and shares it among the characters")
def _(student: Handle, rng: Rng) -> None:
    p = 0.05 + 0.9 * rng.uniform(13)  # what a model gave to each of 13 tokens
    lengths = rng.integers(2, 6, 13)  # and how many characters each covers
    nll = float(-p.log().mean())
    right = float(-p.log2().sum() / lengths.sum())
    expect(student(nll, 13, int(lengths.sum())), "the bits").close_to(right)


@bits_per_character.case("does not depend on how the text is cut into tokens")
def _(student: Handle, rng: Rng) -> None:
    nats, characters = 100 + 50 * float(rng.uniform()), 60
    for n_tokens in (60, 30, 12):
        bits = student(nats / n_tokens, n_tokens, characters)
        expect(bits, f"the bits with {n_tokens} tokens").close_to(math.log2(math.e) * nats / 60)


@bits_per_character.misconception(
    did="You forget ln 2: the result is in nats per character.",
    causes="It is 0.693 times what it should be, and a model looks 31 % better than it is.",
    see="bits-per-character",
)
def forgets_ln_2(nll_nats_per_token: float, n_tokens: int, n_characters: int) -> float:
    return nll_nats_per_token * n_tokens / n_characters


@bits_per_character.misconception(
    did="Your result is bits per token.",
    causes="Longer tokens then look worse, and two tokenizers cannot be compared: the same text"
    " costs the same number of bits however it is cut.",
    see="bits-per-character",
)
def per_token(nll_nats_per_token: float, n_tokens: int, n_characters: int) -> float:
    return nll_nats_per_token / math.log(2)


@bits_per_character.misconception(
    did="You multiply by ln 2, where one divides.",
    causes="A bit is smaller than a nat, so there are more bits than nats, not fewer.",
    see="bits-per-character",
)
def multiplies_by_ln_2(nll_nats_per_token: float, n_tokens: int, n_characters: int) -> float:
    return nll_nats_per_token * n_tokens / n_characters * math.log(2)


@bits_per_character.misconception(
    did="Your ratio is upside down: characters over tokens.",
    causes="A tokenizer with longer tokens is charged more bits for the same text.",
    see="bits-per-character",
)
def ratio_upside_down(nll_nats_per_token: float, n_tokens: int, n_characters: int) -> float:
    return nll_nats_per_token * n_characters / n_tokens / math.log(2)


@bits_per_character.misconception(
    did="You return perplexity per character.",
    causes="Perplexity is 2 to the power of the bits: the number of equal choices, not their cost.",
    see="bits-per-character",
)
def perplexity_instead(nll_nats_per_token: float, n_tokens: int, n_characters: int) -> float:
    return math.exp(nll_nats_per_token * n_tokens / n_characters)


# --- get_batch ----------------------------------------------------------------------------------

get_batch = ASSIGNMENT.exercise(
    "get_batch",
    points=3,
    hints=(
        "A window and its last target together are how many characters long? At how many places of"
        " a text of N characters can that begin?",
        "Draw one start for each row, with the generator, on the CPU. Then build x and y from the"
        " same starts, and move them last.",
        "Starts (B, 1) plus offsets (T,) broadcast to the (B, T) positions that x reads from `ids`;"
        " y reads one position further.",
    ),
)


def starts_of(batch: Any, ids: Tensor, block_size: int, batch_size: int) -> Tensor:
    """Where each row begins; every id stands once in `ids`, so a row gives its place away."""
    expect(batch, "the result").holds(
        isinstance(batch, (tuple, list)) and len(batch) == 2, "expected two tensors, x and y."
    )
    x, y = batch
    for name, part in (("x", x), ("y", y)):
        short = isinstance(part, Tensor) and tuple(part.shape) == (batch_size, block_size - 1)
        if short and len(ids) > 2 * block_size:  # else the end of the text may be the reason
            fail(f"{name} has {block_size - 1} columns, not {block_size}.", mistake="one_short")
        if isinstance(part, Tensor) and 0 < len(part) == len(ids) - block_size < batch_size:
            fail(f"{name} has only {len(part)} rows.", mistake="without_replacement")
        expect(part, name).has_shape(batch_size, block_size)
        if part.dtype is not torch.int64:
            fail(f"{name} has dtype {part.dtype}, not torch.int64.", mistake="keeps_the_dtype")
        known = bool(torch.isin(part, ids).all())
        expect(part, name).holds(known, "some entries do not occur in the text.")
    place = torch.empty(int(ids.max()) + 1, dtype=torch.int64)
    place[ids.long()] = torch.arange(len(ids))
    _expect_windows(place[x], place[y], len(ids))
    return place[x][:, 0]


def _expect_windows(x_at: Tensor, y_at: Tensor, n: int) -> None:
    """Each row of x is a run of the text, and each target stands one place further."""
    run = x_at[:, :1] + torch.arange(x_at.shape[1])  # (B, T)
    if not torch.equal(x_at, run) and torch.equal(x_at, run % n):
        fail("a window goes on at the start of the text.", mistake="reads_past_the_end")
    if not torch.equal(x_at, run):
        fail("a row of x is not a run of the text: its characters do not follow each other there.")
    if torch.equal(y_at, x_at):
        fail("y equals x.", mistake="not_shifted")
    if torch.equal(y_at, x_at - 1):
        fail("y[b, t] is the character before x[b, t].", mistake="shifted_back")
    if torch.equal(y_at, x_at.roll(-1, dims=1)):
        fail("the last column of y is the first column of x.", mistake="rolls")
    if not torch.equal(y_at, x_at + 1) and torch.equal(y_at, (x_at + 1) % n):
        fail("a last target is the start of the text.", mistake="reads_past_the_end")
    if not torch.equal(y_at, x_at + 1):
        fail("y[b, t] is not the character that follows x[b, t] in the text.")


def expect_independent(starts: Tensor) -> None:
    """Rows of one batch over a long text; by chance these would happen once in 10⁹ batches."""
    steps = starts.diff()
    if bool((steps == 0).all()):
        fail("all rows are the same window.", mistake="one_window")
    if bool((steps == steps[0]).all()):
        fail(f"each row starts {int(steps[0])} after the one above.", mistake="consecutive_windows")


LONG, BLOCK, BATCH = 997, 7, 5  # a text in which chance repeats no batch


@get_batch.case("cuts rows of x out of the text, with y one step ahead")
def _(student: Handle, rng: Rng) -> None:
    ids = rng.permutation(2 * LONG)[::2]  # not contiguous
    starts_of(student(ids, BLOCK, BATCH, Seed(rng.integer(0, 999))), ids, BLOCK, BATCH)


@get_batch.case("draws the rows of a batch independently of each other")
def _(student: Handle, rng: Rng) -> None:
    ids = rng.permutation(LONG)
    batch = student(ids, BLOCK, BATCH, generator=Seed(rng.integer(0, 999)))
    expect_independent(starts_of(batch, ids, BLOCK, BATCH))


@get_batch.case("draws all N − T starts alike, the last one too, and none beyond")
def _(student: Handle, rng: Rng) -> None:
    ids, seed = rng.permutation(LONG), rng.integer(0, 999)
    expect_independent(starts_of(student(ids, BLOCK, BATCH, Seed(seed)), ids, BLOCK, BATCH))
    n_starts, draws = 7, 3500
    short = rng.permutation(n_starts + 4)
    try:
        batch = student(short, 4, draws, Seed(seed + 1))
    except StudentError as error:
        fail(f"on a text of {len(short)} characters: {error}", mistake="reads_past_the_end")
    starts = starts_of(batch, short, 4, draws)
    drawn = torch.bincount(starts, minlength=n_starts).tolist()
    never = [start for start in range(n_starts) if drawn[start] == 0]
    if never == [n_starts - 1]:
        fail(f"start {n_starts - 1} was never drawn.", mistake="last_window_never_drawn")
    if never == [start for start in range(n_starts) if start % 4]:
        fail(f"starts {never} were never drawn.", mistake="only_multiples_of_the_block")
    # 500 of each are expected, with a standard deviation of 21.
    uneven = [start for start in range(n_starts) if not 350 < drawn[start] < 650]
    expect(drawn, "the starts").holds(
        not uneven, f"of {draws} draws over {n_starts} starts each gets about 500, not {drawn}."
    )


@get_batch.case("finds the one window of a text of T + 1 characters")
def _(student: Handle, rng: Rng) -> None:
    ids = rng.permutation(6)
    starts_of(student(ids, 5, 2, Seed(rng.integer(0, 999))), ids, 5, 2)


@get_batch.case("draws anew at each call, as the generator says")
def _(student: Handle, rng: Rng) -> None:
    ids, seed = rng.permutation(LONG), rng.integer(0, 999)

    def draw(*generator: Any) -> list[int]:
        batch = student(ids, BLOCK, BATCH, *generator)
        return starts_of(batch, ids, BLOCK, BATCH).tolist()

    if draw(Seed(seed)) != draw(Seed(seed)):
        fail("one seed gave two different batches.", mistake="ignores_the_generator")
    kept = student.keep(Seed(seed))
    if draw(kept) == draw(kept):
        fail("two calls with one generator gave the same batch.", mistake="same_batch_each_time")
    if draw() == draw():
        fail("two calls without a generator gave the same batch.", mistake="same_batch_each_time")


@get_batch.case("gives int64, in whatever integer type the text is kept")
def _(student: Handle, rng: Rng) -> None:
    ids = rng.permutation(101).to(torch.uint8)
    starts_of(student(ids, BLOCK, BATCH, Seed(rng.integer(0, 999))), ids, BLOCK, BATCH)


@get_batch.case("puts x and y on the device asked for")
def _(student: Handle, rng: Rng) -> None:
    ids = rng.permutation(LONG)
    # The device "meta" holds no data, so every machine has it. Only the tensors' device is read.
    try:
        batch = student.hold(ids, BLOCK, BATCH, Seed(rng.integer(0, 999)), "meta")
        parts = [batch.method("__getitem__").hold(i) for i in (0, 1)]
        devices = [str(part.get("device")) for part in parts]
    except (StudentError, Missing) as error:
        fail(f"with another device than the CPU the call stops: {error}")
    if devices != ["meta", "meta"]:
        fail(f"asked for the device meta, got {devices}.", mistake="ignores_the_device")


guard(
    get_batch,
    lambda rng, dtype: (rng.permutation(53), 5, 3),
    gradient=False,
    dtype=False,
    device=False,  # its own case above: the text stays on the CPU and the batch moves
)


def windows(ids: Tensor, starts: Tensor, length: int) -> Tensor:
    return torch.stack([ids[i : i + length] for i in starts.tolist()]).long()


def draw_starts(n: int, batch_size: int, generator: torch.Generator | None) -> Tensor:
    return torch.randint(n, (batch_size,), generator=generator)


Batch = tuple[Tensor, Tensor]


@get_batch.misconception(
    did="Your y is x, not x moved by one.",
    causes="The model is paid for copying the character it has just read: the loss falls to 0 and"
    " nothing is predicted.",
    see="batches",
)
def not_shifted(
    ids: Tensor, block_size: int, batch_size: int, generator: Any = None, device: str = "cpu"
) -> Batch:
    x = windows(ids, draw_starts(len(ids) - block_size, batch_size, generator), block_size)
    return x.to(device), x.to(device)


@get_batch.misconception(
    did="Your y holds the character before each one of x.",
    causes="The model is paid for remembering what it has read, and never predicts.",
    see="batches",
)
def shifted_back(
    ids: Tensor, block_size: int, batch_size: int, generator: Any = None, device: str = "cpu"
) -> Batch:
    starts = draw_starts(len(ids) - block_size, batch_size, generator)
    rows = windows(ids, starts, block_size + 1).to(device)
    return rows[:, 1:], rows[:, :-1]


@get_batch.misconception(
    did="You roll x to make y, so the last target is the window's own first character.",
    causes="One target in T is wrong, and it is the one with the most context.",
    see="batches",
)
def rolls(
    ids: Tensor, block_size: int, batch_size: int, generator: Any = None, device: str = "cpu"
) -> Batch:
    starts = draw_starts(len(ids) - block_size, batch_size, generator)
    x = windows(ids, starts, block_size).to(device)
    return x, x.roll(-1, dims=1)


@get_batch.misconception(
    did="Your rows are T − 1 long: you cut T characters and then split off the targets.",
    causes="T inputs and their T targets need T + 1 characters of the text.",
    see="batches",
)
def one_short(
    ids: Tensor, block_size: int, batch_size: int, generator: Any = None, device: str = "cpu"
) -> Batch:
    starts = draw_starts(len(ids) - block_size, batch_size, generator)
    rows = windows(ids, starts, block_size).to(device)
    return rows[:, :-1], rows[:, 1:]


@get_batch.misconception(
    did="The last window is never drawn: your starts end one too early.",
    causes="There are N − T starts, 0 to N − T − 1, and `torch.randint(n, …)` already stops before"
    " n. The text's last character is never a target.",
    see="batches",
)
def last_window_never_drawn(
    ids: Tensor, block_size: int, batch_size: int, generator: Any = None, device: str = "cpu"
) -> Batch:
    starts = draw_starts(len(ids) - block_size - 1, batch_size, generator)
    rows = windows(ids, starts, block_size + 1).to(device)
    return rows[:, :-1], rows[:, 1:]


@get_batch.misconception(
    did="Some of your starts leave no room for a window and its last target.",
    causes="Now and then a batch reads past the end of the text, which stops the run or glues the"
    " end to the beginning. The last start is N − T − 1.",
    see="batches",
)
def reads_past_the_end(
    ids: Tensor, block_size: int, batch_size: int, generator: Any = None, device: str = "cpu"
) -> Batch:
    starts = draw_starts(len(ids) - block_size + 1, batch_size, generator)
    rows = windows(ids, starts, block_size + 1).to(device)
    return rows[:, :-1], rows[:, 1:]


@get_batch.misconception(
    did="Every row of the batch is the same window: you draw one start for all.",
    causes="A batch of B rows then carries the gradient of one, at B times its cost.",
    see="batches",
)
def one_window(
    ids: Tensor, block_size: int, batch_size: int, generator: Any = None, device: str = "cpu"
) -> Batch:
    start = draw_starts(len(ids) - block_size, 1, generator)
    rows = windows(ids, start.repeat(batch_size), block_size + 1).to(device)
    return rows[:, :-1], rows[:, 1:]


@get_batch.misconception(
    did="Your rows lie at equal steps behind one start.",
    causes="Neighbors share a scene and its speakers, so the batch's gradient is noisier than that"
    " of B independent windows.",
    see="batches",
)
def consecutive_windows(
    ids: Tensor, block_size: int, batch_size: int, generator: Any = None, device: str = "cpu"
) -> Batch:
    start = draw_starts(len(ids) - batch_size * block_size, 1, generator)
    starts = start + block_size * torch.arange(batch_size)
    rows = windows(ids, starts, block_size + 1).to(device)
    return rows[:, :-1], rows[:, 1:]


@get_batch.misconception(
    did="Your windows begin only at multiples of T.",
    causes="A window's last characters always fall at the same places of the text, so most contexts"
    " are never seen at full length.",
    see="batches",
)
def only_multiples_of_the_block(
    ids: Tensor, block_size: int, batch_size: int, generator: Any = None, device: str = "cpu"
) -> Batch:
    n = (len(ids) - 1) // block_size
    rows = windows(ids, block_size * draw_starts(n, batch_size, generator), block_size + 1)
    return rows[:, :-1].to(device), rows[:, 1:].to(device)


@get_batch.misconception(
    did="You draw each start at most once.",
    causes="A batch that is larger than the number of starts comes back with too few rows. Rows are"
    " independent draws.",
    see="batches",
)
def without_replacement(
    ids: Tensor, block_size: int, batch_size: int, generator: Any = None, device: str = "cpu"
) -> Batch:
    starts = torch.randperm(len(ids) - block_size, generator=generator)[:batch_size]
    rows = windows(ids, starts, block_size + 1).to(device)
    return rows[:, :-1], rows[:, 1:]


@get_batch.misconception(
    did="Your batch stays on the CPU, whatever `device` says.",
    causes="A model on a GPU stops at the first batch.",
    see="batches",
)
def ignores_the_device(
    ids: Tensor, block_size: int, batch_size: int, generator: Any = None, device: str = "cpu"
) -> Batch:
    starts = draw_starts(len(ids) - block_size, batch_size, generator)
    rows = windows(ids, starts, block_size + 1)
    return rows[:, :-1], rows[:, 1:]


@get_batch.misconception(
    did="You draw from the global source of chance and not from `generator`.",
    causes="A run cannot be repeated from its seed, and a resumed one sees other batches.",
    see="batches",
)
def ignores_the_generator(
    ids: Tensor, block_size: int, batch_size: int, generator: Any = None, device: str = "cpu"
) -> Batch:
    starts = draw_starts(len(ids) - block_size, batch_size, None)
    rows = windows(ids, starts, block_size + 1).to(device)
    return rows[:, :-1], rows[:, 1:]


@get_batch.misconception(
    did="You seed inside the function, or make a new generator there.",
    causes="Every call returns the same batch, so the model learns a few windows by heart and never"
    " sees the rest of the text.",
    see="batches",
)
def same_batch_each_time(
    ids: Tensor, block_size: int, batch_size: int, generator: Any = None, device: str = "cpu"
) -> Batch:
    fixed = torch.Generator().manual_seed(1337)
    starts = draw_starts(len(ids) - block_size, batch_size, fixed)
    rows = windows(ids, starts, block_size + 1).to(device)
    return rows[:, :-1], rows[:, 1:]


@get_batch.misconception(
    did="Your batch keeps the integer type in which the text is stored.",
    causes="An embedding takes int64 indices and refuses uint8 ones, so the first layer stops.",
    see="batches",
)
def keeps_the_dtype(
    ids: Tensor, block_size: int, batch_size: int, generator: Any = None, device: str = "cpu"
) -> Batch:
    starts = draw_starts(len(ids) - block_size, batch_size, generator)
    rows = torch.stack([ids[i : i + block_size + 1] for i in starts.tolist()]).to(device)
    return rows[:, :-1], rows[:, 1:]
