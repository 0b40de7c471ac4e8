"""Checks of chapter 11: filters, sampling, the key-value cache, beam search, weights in int8."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autograder.checks.lstm import fits
from autograder.child.protocol import Seed
from autograder.engine.exercise import Assignment, Exercise, Rng
from autograder.engine.expect import expect, fail, same
from autograder.engine.guards import (
    DEVICE,
    DEVICE_TITLE,
    DTYPE,
    DTYPE_TITLE,
    MUTATES,
    MUTATION_TITLE,
    guard,
)
from autograder.engine.handle import Handle, StudentError
from rnn2gpt.gpt import GPT, GPTConfig

ASSIGNMENT = Assignment(
    name="11-generation",
    notebook="generation",
    page="11_generation",
    sections={
        "greedy-loops": "The likeliest token, again and again",
        "drawing-tokens": "Drawing a token",
        "cutting-the-tail": "Cutting the tail",
        "beams": "Beam search",
        "kv-cache": "Keys and values, kept",
        "int8": "Weights in eight bits",
    },
    minutes=90,
    modules=(
        "data", "metrics", "ngram", "rnn", "lstm", "attention", "multi_head", "positions",
        "transformer", "tokenizer",
    ),
)  # fmt: skip


def _mistake(
    exercise: Exercise, name: str, see: str, did: str, causes: str, wrong: Callable[..., Any]
) -> None:
    exercise.misconception(did=did, causes=causes, see=see, name=name)(wrong)


# --- filter_logits ------------------------------------------------------------------------------

filter_logits = ASSIGNMENT.exercise(
    "filter_logits",
    points=3,
    hints=(
        "A token may be drawn, or it may not. Which logit makes its probability exactly 0, whatever"
        " the others are?",
        "top_k needs each row's k-th largest logit. top_p needs each row sorted, likeliest first,"
        " and running sums of the probabilities; what is decided there has to find its way back to"
        " the tokens' own places.",
        "A token stays if the sum of the probabilities *before* it is still less than p: cumsum − p"
        " of shape (B, V). `Tensor.scatter` or a second `argsort` undoes a sort.",
    ),
)


def allowed(row: Tensor, top_k: int | None, top_p: float | None) -> list[int]:
    """The tokens of one row that may be drawn, one after another, likeliest first."""
    order = sorted(range(len(row)), key=lambda i: -row[i].item())
    order = order[:top_k]  # None: all
    if top_p is None:
        return order
    kept, total = list[int](), 0.0
    for i, p in zip(order, row[order].softmax(0).tolist(), strict=True):
        if kept and total >= top_p:
            break
        kept.append(i)
        total += p
    return kept


def filtered(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """The logits of the allowed tokens, and minus infinity elsewhere."""
    result = torch.full_like(logits, -math.inf)
    for b, row in enumerate(logits):
        kept = allowed(row, top_k, top_p)
        result[b, kept] = row[kept]
    return result


def share_of_first(row: Tensor, n: float, top_k: int | None = None) -> float:
    """The probability that the n likeliest tokens have together; n may end in a half."""
    p = row.sort(descending=True).values[:top_k].softmax(0)
    whole = int(n)
    return (p[:whole].sum() + (n - whole) * p[whole]).item()


def expect_filtered(student: Handle, logits: Tensor, **options: Any) -> None:
    name = ", ".join(f"{key}={value:.4g}" for key, value in options.items())
    result = student(logits, **options)
    expect(result, f"the logits with {name}").close_to(filtered(logits, **options))


@filter_logits.case("keeps the top_k largest logits of each row")
def _(student: Handle, rng: Rng) -> None:
    logits = 2 * rng.strided(3, 11)
    for top_k in (4, 1):
        expect_filtered(student, logits, top_k=top_k)


@filter_logits.case("keeps the smallest set of the likeliest tokens that reaches top_p")
def _(student: Handle, rng: Rng) -> None:
    logits = 2 * rng.strided(3, 11)
    for n in (2.5, 4.2):
        expect_filtered(student, logits, top_p=share_of_first(logits[0], n))


@filter_logits.case("keeps at least one token, and all of them at top_p=1")
def _(student: Handle, rng: Rng) -> None:
    logits = rng.normal(2, 7)
    for top_p in (1e-9, 1.0):
        expect_filtered(student, logits, top_p=top_p)


@filter_logits.case("measures top_p on what top_k left, made to sum to 1 again")
def _(student: Handle, rng: Rng) -> None:
    logits = rng.normal(3, 13)
    expect_filtered(student, logits, top_k=5, top_p=share_of_first(logits[1], 2.5, top_k=5))


@filter_logits.case("keeps everything when top_k is larger than the vocabulary")
def _(student: Handle, rng: Rng) -> None:
    expect_filtered(student, rng.normal(2, 5), top_k=9)


@filter_logits.case("returns the logits as they are when no filter is asked for")
def _(student: Handle, rng: Rng) -> None:
    logits = rng.normal(2, 5)
    expect(student(logits), "the logits without a filter").close_to(logits)


@filter_logits.case("works far from 0, where every logit is below −10,000")
def _(student: Handle, rng: Rng) -> None:
    logits = rng.normal(2, 7) - 30000
    expect_filtered(student, logits, top_k=3)
    expect_filtered(student, logits, top_p=share_of_first(logits[0], 2.5))


def _both_filters(rng: Rng, dtype: torch.dtype) -> Any:
    return rng.normal(3, 11, dtype=dtype), 7, 0.6


guard(filter_logits, _both_filters, gradient=False)

Rule = Callable[[Tensor, Tensor, float], Tensor]


def _kth(logits: Tensor, k: int) -> Tensor:
    """(B, 1), the k-th largest logit of each row."""
    return logits.sort(dim=-1, descending=True).values[:, min(k, logits.shape[-1]) - 1, None]


def _first_k(logits: Tensor, k: int) -> Tensor:
    return torch.where(logits >= _kth(logits, k), logits, -math.inf)


def _nucleus(logits: Tensor, p: float, rule: Rule, down: bool = True, dim: int = -1) -> Tensor:
    """Keep where `rule(shares, running sums, p)` says so, the tokens sorted by their logits."""
    order = logits.argsort(dim=dim, descending=down)
    shares = logits.softmax(dim).gather(dim, order)
    keep = rule(shares, shares.cumsum(dim), p)
    keep.select(dim, 0).fill_(True)
    return torch.where(torch.zeros_like(keep).scatter(dim, order, keep), logits, -math.inf)


def _reaches(shares: Tensor, sums: Tensor, p: float) -> Tensor:
    return sums - shares < p


def _first_p(logits: Tensor, p: float) -> Tensor:
    return _nucleus(logits, p, _reaches)


def _filter(
    first: Callable[[Tensor, int], Tensor] = _first_k,
    second: Callable[[Tensor, float], Tensor] = _first_p,
    finish: Callable[[Tensor], Tensor] = lambda logits: logits,
) -> Callable[..., Tensor]:
    """Filters with one thing wrong."""

    def wrong(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
        if top_k is not None:
            logits = first(logits, top_k)
        if top_p is not None:
            logits = second(logits, top_p)
        return finish(logits)

    return wrong


def _filter_mistake(name: str, did: str, causes: str, wrong: Callable[..., Tensor]) -> None:
    _mistake(filter_logits, name, "cutting-the-tail", did, causes, wrong)


_filter_mistake(
    "drops_the_token_that_crosses",
    "Your top-p drops the token with which the sum reaches p.",
    "What is left has less than p. A token with a probability above p is cut out of its own row,"
    " so the surest predictions are the first to go.",
    _filter(second=lambda logits, p: _nucleus(logits, p, lambda shares, sums, p: sums < p)),
)
_filter_mistake(
    "keeps_one_too_many",
    "Your top-p keeps one token after p has been reached.",
    "The set is no longer the smallest one: where a single token is nearly certain, a second one"
    " may still be drawn.",
    _filter(
        second=lambda logits, p: _nucleus(
            logits, p, lambda shares, sums, p: (sums - shares).roll(1, -1) < p
        )
    ),
)
_filter_mistake(
    "each_share_against_p",
    "You compare each token's own probability with top_p; it is the running sum that counts.",
    "With p = 0.9 only a token of 90 % and more would stay, which is greedy decoding.",
    _filter(second=lambda logits, p: _nucleus(logits, p, lambda shares, sums, p: shares >= p)),
)


def _unsorted_mask(logits: Tensor, p: float) -> Tensor:
    falling = logits.sort(dim=-1, descending=True).values.softmax(-1)
    drop = falling.cumsum(-1) - falling >= p
    drop[:, 0] = False
    return logits.masked_fill(drop, -math.inf)


_filter_mistake(
    "sort_not_undone",
    "Your top-p decides in the sorted order and applies it to the unsorted tokens.",
    "The first ids of the vocabulary stay, whatever they are, and the likeliest token may be"
    " dropped.",
    _filter(second=_unsorted_mask),
)


def _sorted_result(logits: Tensor, p: float) -> Tensor:
    return _nucleus(logits.sort(dim=-1, descending=True).values, p, _reaches)


_filter_mistake(
    "returns_them_sorted",
    "Your top-p returns the logits in sorted order.",
    "A drawn index is then a rank and not a token: the text is made of the first ids of the"
    " vocabulary.",
    _filter(second=_sorted_result),
)
_filter_mistake(
    "sorted_upward",
    "Your top-p sums from the least likely token upward.",
    "It keeps the tail that it should cut, and drops the tokens that matter.",
    _filter(second=lambda logits, p: _nucleus(logits, p, _reaches, down=False)),
)
_filter_mistake(
    "over_the_batch",
    "Your filters run over the rows of the batch; they must run along the vocabulary.",
    "The texts of a batch then compete for each token, and a text alone keeps everything.",
    _filter(
        first=lambda logits, k: _first_k(logits.T, k).T,
        second=lambda logits, p: _nucleus(logits, p, _reaches, dim=0),
    ),
)


def _one_threshold(logits: Tensor, k: int) -> Tensor:
    kth = logits.flatten().sort(descending=True).values[min(k, logits.numel()) - 1]
    return logits.masked_fill(logits < kth, -math.inf)


_filter_mistake(
    "one_threshold_for_all_rows",
    "Your top-k looks for the k largest logits of the whole batch; each row has its own k.",
    "A row whose logits lie lower loses all its tokens, and its softmax is NaN.",
    _filter(first=_one_threshold),
)
_filter_mistake(
    "drops_the_kth",
    "Your top-k drops the k-th largest logit itself: k − 1 are left.",
    "With k = 1, which is greedy, nothing is left to draw.",
    _filter(first=lambda logits, k: torch.where(logits > _kth(logits, k), logits, -math.inf)),
)
_filter_mistake(
    "k_beyond_the_vocabulary",
    "You ask `topk` for more tokens than the vocabulary has.",
    "The program stops where there is nothing to cut: take the smaller of k and V.",
    _filter(
        first=lambda logits, k: logits.masked_fill(
            logits < logits.topk(k).values[:, -1:], -math.inf
        )
    ),
)


def _not_renormalized(
    logits: Tensor, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    by_p = logits if top_p is None else _first_p(logits, top_p)
    return by_p if top_k is None else torch.minimum(by_p, _first_k(logits, top_k))


_filter_mistake(
    "p_of_the_whole_vocabulary",
    "With both filters, your top-p is measured on the whole vocabulary; measure it on what top-k"
    " left, after those probabilities sum to 1 again.",
    "Too many tokens stay: the k survivors may not even have p together.",
    _not_renormalized,
)
_filter_mistake(
    "filled_with_zero",
    "A dropped logit becomes 0; it must be minus infinity.",
    "e⁰ is 1: a dropped token can still be drawn, and where the logits are negative it is the"
    " likeliest.",
    _filter(finish=lambda logits: logits.nan_to_num(neginf=0.0)),
)
_filter_mistake(
    "filled_with_a_finite_number",
    "A dropped logit becomes a large negative number; it must be minus infinity.",
    "Where all logits are lower than that number, exactly the dropped tokens are drawn.",
    _filter(finish=lambda logits: logits.nan_to_num(neginf=-1e4)),
)
_filter_mistake(
    "returns_probabilities",
    "You return probabilities; logits are asked for.",
    "The softmax that follows makes of 0 a share as large as any: e⁰ is 1.",
    _filter(finish=lambda logits: logits.softmax(-1)),
)
_filter_mistake(
    "sums_the_logits",
    "Your top-p adds up logits; it is probabilities that sum to 1.",
    "A sum of logits means nothing: with negative ones it never reaches p and nothing is cut.",
    _filter(
        second=lambda logits, p: _nucleus(
            logits,
            p,
            lambda shares, sums, p: logits.sort(-1, descending=True).values.cumsum(-1) < p,
        )
    ),
)

# --- sample -------------------------------------------------------------------------------------

sample = ASSIGNMENT.exercise(
    "sample",
    points=2,
    needs=("filter_logits",),
    hints=(
        "Three things happen to the logits before a token is drawn. Which of them changes how many"
        " tokens reach top_p, and must therefore come first?",
        "At temperature 0 nothing is drawn: take the likeliest token and be done. Otherwise divide,"
        " filter, turn into probabilities, draw.",
        "`torch.multinomial(p, 1, generator=generator)` draws (B, 1) from probabilities (B, V); the"
        " result asked for is (B,).",
    ),
)


def tempered(logits: Tensor, temperature: float, **options: Any) -> Tensor:
    """What a row of logits is drawn with: the probabilities (V,)."""
    return filtered(logits[None] / temperature, **options)[0].softmax(-1)


def expect_draws(
    student: Handle, rng: Rng, logits: Tensor, temperature: float, **options: Any
) -> None:
    """4,000 draws fit the row's probabilities; half of the rows have its tokens moved by one."""
    rows = torch.stack([logits, logits.roll(1)]).repeat(2000, 1)  # (4000, V)
    drawn = student(rows, temperature, generator=Seed(rng.integer(0, 1000)), **options)
    expect_tokens(drawn, 4000, len(logits))
    if bool((drawn == drawn[0]).all()):
        fail(f"all 4,000 rows got the token {drawn[0]}.", "one_row_for_all")
    drawn = (drawn - torch.tensor([0, 1]).repeat(2000)) % len(logits)
    share = torch.bincount(drawn, minlength=len(logits)).double() / 4000
    right = tempered(logits, temperature, **options)
    if fits(share, right):
        return
    suspects = {
        "temperature_after_filtering": (filtered(logits[None], **options)[0] / temperature).softmax(
            -1
        ),
        "temperature_multiplies": tempered(logits, 1 / temperature, **options),
        "temperature_lost": tempered(logits, 1.0, **options),
        "filters_ignored": tempered(logits, temperature),
        "always_greedy": (logits == logits.max()).double(),
    }
    worst = int((share - right).abs().argmax())
    fail(
        f"at temperature {temperature:g}, token {worst} has probability {right[worst]:.3f} and was"
        f" drawn in {share[worst]:.3f} of 4,000 draws.",
        next((name for name, p in suspects.items() if fits(share, p)), None),
    )


def expect_tokens(drawn: Any, rows: int, vocab_size: int) -> None:
    expect(drawn, "the drawn tokens").has_shape(rows)
    expect(drawn, "the drawn tokens").has_dtype(torch.int64)
    if bool(((drawn < 0) | (drawn >= vocab_size)).any()):
        fail(f"a drawn token is not an id from 0 to {vocab_size - 1}.")


@sample.case("takes the likeliest token at temperature 0")
def _(student: Handle, rng: Rng) -> None:
    logits = rng.strided(5, 7)
    try:
        drawn = student(logits, 0.0)
    except StudentError as error:
        if error.kind in ("RuntimeError", "ZeroDivisionError"):
            fail(f"temperature 0 stops with {error.kind}: {error.message}", "divides_by_zero")
        raise
    expect(drawn, "the tokens at temperature 0").equals(logits.argmax(-1))


@sample.case("divides the logits by the temperature")
def _(student: Handle, rng: Rng) -> None:
    logits = torch.tensor([-0.5, 1.1, 0.4, -1.0, 0.8], dtype=torch.float64)[rng.permutation(5)]
    for temperature in (0.4, 2.5):
        expect_draws(student, rng, logits, temperature)


@sample.case("draws among the top_k, and among the tokens that reach top_p")
def _(student: Handle, rng: Rng) -> None:
    logits = torch.tensor([1.0, 0.7, 0.5, 0.1, -0.2], dtype=torch.float64)[rng.permutation(5)]
    expect_draws(student, rng, logits, 1.0, top_k=3)
    expect_draws(student, rng, logits, 1.0, top_p=share_of_first(logits, 1.5))


@sample.case("applies the temperature before the filters")
def _(student: Handle, rng: Rng) -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()[rng.permutation(4)]
    expect_draws(student, rng, logits, 2.0, top_p=0.75)  # three tokens; two at temperature 1


@sample.case("draws for each row from that row's own logits")
def _(student: Handle, rng: Rng) -> None:
    right = rng.permutation(11)
    logits = rng.normal(11, 11).scatter_add(1, right[:, None], torch.full((11, 1), 60.0).double())
    drawn = student(logits, 1.0, generator=Seed(rng.integer(0, 1000)))
    expect_tokens(drawn, 11, 11)
    expect(drawn, "the drawn tokens, each all but certain").equals(right)


@sample.case("draws from `generator` alone: one seed, one result")
def _(student: Handle, rng: Rng) -> None:
    logits, seed = rng.normal(30, 7), rng.integer(0, 1000)
    one = student(logits, generator=Seed(seed))
    again = student(logits, generator=Seed(seed))
    other = student(logits, generator=Seed(seed + 1))
    expect_tokens(one, 30, 7)
    if not torch.equal(one, again):
        fail("two generators with the same seed gave different tokens.", "ignores_the_generator")
    if torch.equal(one, other):
        fail(
            "two different seeds gave the same tokens.",
            "always_greedy" if torch.equal(one, logits.argmax(-1)) else None,
        )


@sample.case(MUTATION_TITLE, guard=True)
def _(student: Handle, rng: Rng) -> None:
    logits = rng.normal(3, 7)
    after = student.after(logits, 0.7, 5, 0.8)
    if not same(after.args[0], logits):
        fail(MUTATES)


@sample.case(DEVICE_TITLE, guard=True)
def _(student: Handle, rng: Rng) -> None:
    for temperature in (0.0, 0.8):
        logits = rng.normal(3, 7, dtype=torch.float32)
        reason = student.on_fake_device(logits, temperature, 5, 0.9, differentiate=False)
        if reason is not None:
            fail(DEVICE.get(reason, DEVICE["mixed"]))


def _sampler(
    p: Callable[..., Tensor] = lambda logits, t, k, p: _filter()(logits / t, k, p).softmax(-1),
    *,
    greedy_at_zero: bool = True,
    shape: Callable[[Tensor], Tensor] = lambda drawn: drawn[:, 0],
    generator_used: bool = True,
) -> Callable[..., Tensor]:
    """A sampler with one thing wrong."""

    def wrong(logits, temperature=1.0, top_k=None, top_p=None, generator=None):  # type: ignore[no-untyped-def]
        if temperature == 0 and greedy_at_zero:
            return logits.argmax(-1)
        chances = p(logits, temperature, top_k, top_p)
        return shape(torch.multinomial(chances, 1, generator=generator if generator_used else None))

    return wrong


def _sample_mistake(name: str, did: str, causes: str, wrong: Callable[..., Tensor]) -> None:
    _mistake(sample, name, "drawing-tokens", did, causes, wrong)


_sample_mistake(
    "divides_by_zero",
    "You divide by the temperature when it is 0.",
    "The probabilities become NaN and nothing can be drawn; 0 means: take the likeliest token.",
    _sampler(greedy_at_zero=False),
)
_sample_mistake(
    "temperature_after_filtering",
    "You filter first and divide by the temperature afterwards.",
    "top-p then cuts by probabilities that are never drawn from: at a high temperature too few"
    " tokens stay, at a low one too many.",
    _sampler(lambda logits, t, k, p: (_filter()(logits, k, p) / t).softmax(-1)),
)
_sample_mistake(
    "temperature_multiplies",
    "You multiply the logits by the temperature; divide them.",
    "A low temperature then makes the text wilder, and a high one tamer.",
    _sampler(lambda logits, t, k, p: _filter()(logits * t, k, p).softmax(-1)),
)
_sample_mistake(
    "temperature_lost",
    "Your temperature has no effect: divided probabilities are drawn from as if they were not.",
    "The text is as wild at temperature 0.1 as at 1.",
    _sampler(lambda logits, t, k, p: _filter()(logits, k, p).softmax(-1) / t),
)
_sample_mistake(
    "filters_ignored",
    "`top_k` and `top_p` are accepted and never used.",
    "Every token of the vocabulary can still be drawn, the absurd ones too.",
    _sampler(lambda logits, t, k, p: (logits / t).softmax(-1)),
)
_sample_mistake(
    "always_greedy",
    "You always take the likeliest token, whatever the temperature.",
    "The text soon runs in a circle, and every seed gives the same one.",
    _sampler(lambda logits, t, k, p: (logits == logits.amax(-1, keepdim=True)).double()),
)
_sample_mistake(
    "one_row_for_all",
    "You draw from the first row and give the token to every row.",
    "The texts of a batch become copies of each other after their prompts.",
    _sampler(shape=lambda drawn: drawn[:1, 0].repeat(len(drawn))),
)
_sample_mistake(
    "one_axis_too_many",
    "Your result has shape (B, 1); one token for each row is asked for, (B,).",
    "`torch.multinomial` keeps an axis for the number of draws. Added to a column of ids, it"
    " broadcasts to (B, B) without an error.",
    _sampler(shape=lambda drawn: drawn),
)
_sample_mistake(
    "ignores_the_generator",
    "You draw from PyTorch's global source of chance and ignore `generator`.",
    "The same seed gives another text each time, so no result can be repeated.",
    _sampler(generator_used=False),
)

# --- KVCache ------------------------------------------------------------------------------------

KVCache = ASSIGNMENT.exercise(
    "KVCache",
    points=4,
    hints=(
        "Two layers are updated in one pass of the model. Which of them still needs the old length,"
        " and which is the first that may see it grow?",
        "Each layer has keys and values of its own, (B, H, length, d_head). New ones belong behind"
        " the old ones, along axis 2. Ask whether they fit before you change anything.",
        "Either rooms (n_layers, B, H, max_len, d_head), made like k when the first k comes and"
        " written at length : length + T, or for each layer the tensors so far and"
        " `torch.cat([old, new], dim=2)`.",
    ),
)
CACHE_SIZES = (2, 3, 2, 7, 5)  # n_layers, batch_size, n_heads, max_len, d_head


def keys_and_values(rng: Rng, sizes: tuple[int, ...], t: int) -> tuple[Tensor, Tensor]:
    """k and v of t tokens for one layer, (B, H, t, d_head); v does not lie contiguously."""
    _, batch, heads, _, d_head = sizes
    return rng.normal(batch, heads, t, d_head), rng.strided(batch, heads, t, d_head)


def length_of(cache: Handle) -> int:
    length = cache.get("length")
    if not isinstance(length, int) or isinstance(length, bool):
        fail(f"`length` must be a whole number, the tokens held; it is {length!r}.")
    return length


def expect_kept(student: Handle, rng: Rng, sizes: tuple[int, ...], pieces: tuple[int, ...]) -> None:
    """Layer by layer and piece by piece, the cache gives back all that it was given."""
    cache = student.hold(*sizes)
    given = [keys_and_values(rng, sizes, 0) for _ in range(sizes[0])]
    for piece in pieces:
        for layer in range(sizes[0]):
            new = keys_and_values(rng, sizes, piece)
            pairs = zip(given[layer], new, strict=True)
            given[layer] = tuple(torch.cat(pair, dim=2) for pair in pairs)  # type: ignore[assignment]
            kept = cache.method("update")(layer, *new)
            expect(kept, f"layer {layer}: all keys, all values").close_to(given[layer])


@KVCache.case("gives back all keys and all values of a layer, in order")
def _(student: Handle, rng: Rng) -> None:
    expect_kept(student, rng, CACHE_SIZES, (3, 1, 2))


@KVCache.case("grows in length when the last layer is updated, and not before")
def _(student: Handle, rng: Rng) -> None:
    cache, lengths = student.hold(*CACHE_SIZES), []
    lengths.append(length_of(cache))
    for piece in (4, 1):
        for layer in range(CACHE_SIZES[0]):
            cache.method("update")(layer, *keys_and_values(rng, CACHE_SIZES, piece))
            lengths.append(length_of(cache))
    expect(lengths, "the length at first and after each of four updates").equals([0, 0, 4, 4, 5])


class Kept:
    """The student's cache as a GPT sees it."""

    def __init__(self, cache: Handle):
        self.cache = cache

    @property
    def length(self) -> int:
        return length_of(self.cache)

    def update(self, layer: int, k: Tensor, v: Tensor) -> Any:
        return self.cache.method("update")(layer, k, v)


def small_gpt(rng: Rng) -> GPT:
    """A GPT of two layers with random weights; it runs beside the check, not beside the cache."""
    config = GPTConfig(vocab_size=11, block_size=9, n_layers=2, n_heads=3, d_model=6, bias=False)
    model = GPT(config).double().eval()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    model.load_state_dict(rng.like(shapes), strict=False)  # the head is tied
    return model


@torch.no_grad()
def expect_same_logits(student: Handle, rng: Rng, *texts: tuple[int, ...]) -> None:
    """A GPT that reads a text through the student's cache, in pieces of these sizes, gives the
    logits of one that reads it at once."""
    model = small_gpt(rng)
    for pieces in texts:
        ids, cache = rng.integers(0, 11, 2, sum(pieces)), Kept(student.hold(2, 2, 3, 9, 2))
        right, _ = model(ids)
        start = 0
        for piece in pieces:
            end = start + piece
            logits, _ = model(ids[:, start:end], cache=cache)  # type: ignore[arg-type]
            name = f"the logits of tokens {start + 1} to {end}"
            expect(logits, name).close_to(right[:, start:end])
            start = end


@KVCache.case("gives a GPT the same logits as without it, after a prompt of one and of many")
def _(student: Handle, rng: Rng) -> None:
    expect_same_logits(student, rng, (1, 1), (4, 1))


@KVCache.case("takes several tokens at once behind others")
def _(student: Handle, rng: Rng) -> None:
    expect_same_logits(student, rng, (3, 4))


@KVCache.case("holds max_len tokens and refuses more by a ValueError, keeping what it had")
def _(student: Handle, rng: Rng) -> None:
    sizes = (1, 2, 1, 5, 3)
    cache, given = student.hold(*sizes), keys_and_values(rng, sizes, 3)
    cache.method("update")(0, *given)
    try:
        result = cache.method("update")(0, *keys_and_values(rng, sizes, 3))
    except StudentError as error:
        if "ValueError" not in error.kinds:
            fail(
                f"3 tokens more than max_len − 2 stop it with {error.kind}, not with a ValueError"
                f" that says why: {error.message}",
                "another_error",
            )
    else:
        n = result[0].shape[2]
        fail(f"6 tokens are taken where max_len is 5, and {n} keys come back.")
    expect(length_of(cache), "the length after what was refused").equals(3)
    new = keys_and_values(rng, sizes, 2)
    whole = tuple(torch.cat(pair, dim=2) for pair in zip(given, new, strict=True))
    expect(cache.method("update")(0, *new), "a full cache: all keys, all values").close_to(whole)


@KVCache.case("works with one of everything")
def _(student: Handle, rng: Rng) -> None:
    expect_kept(student, rng, (1, 1, 1, 2, 1), (1, 1))


@KVCache.case(MUTATION_TITLE, guard=True)
def _(student: Handle, rng: Rng) -> None:
    new = keys_and_values(rng, CACHE_SIZES, 2)
    after = student.hold(*CACHE_SIZES).method("update").after(0, *new)
    if not same(after.args[1:], new):
        fail(MUTATES)


@KVCache.case(DTYPE_TITLE, guard=True)
def _(student: Handle, rng: Rng) -> None:
    for kind in (torch.float32, torch.float64):
        new = [x.to(kind) for x in keys_and_values(rng, CACHE_SIZES, 2)]
        kept = student.hold(*CACHE_SIZES).method("update")(0, *new)
        if any(x.dtype is not kind for x in kept):
            fail(DTYPE)


@KVCache.case(DEVICE_TITLE, guard=True)
def _(student: Handle, rng: Rng) -> None:
    new = [x.float() for x in keys_and_values(rng, CACHE_SIZES, 2)]
    update = student.method("update")
    reason = update.on_fake_device(0, *new, build=CACHE_SIZES, differentiate=False)
    if reason is not None:
        fail(DEVICE.get(reason, DEVICE["mixed"]))


class Cache:
    """What the wrong caches below have in common; each spoils one of the small methods."""

    def __init__(
        self, n_layers: int, batch_size: int, n_heads: int, max_len: int, d_head: int
    ) -> None:
        self.n_layers, self.max_len, self.length = n_layers, max_len, 0
        empty = batch_size, n_heads, 0, d_head
        self.kept: list[Any] = [[torch.empty(empty), torch.empty(empty)] for _ in range(n_layers)]

    def update(self, layer: int, k: Tensor, v: Tensor) -> Any:
        self.fit(k.shape[2])
        place = self.place(layer)
        old = [x.to(new) for x, new in zip(self.kept[place], (k, v), strict=True)]
        self.kept[place] = [self.join(*pair) for pair in zip(old, (k, v), strict=True)]
        self.grow(layer, k.shape[2])
        return self.answer(old, [k, v], self.kept[place])

    def fit(self, t: int) -> None:
        if self.length + t > self.max_len:
            raise ValueError(f"no room for {t} more")

    def place(self, layer: int) -> int:
        return layer

    def join(self, old: Tensor, new: Tensor) -> Tensor:
        return torch.cat([old, new], dim=2)

    def grow(self, layer: int, t: int) -> None:
        self.length += t if layer == self.n_layers - 1 else 0

    def answer(self, old: list[Tensor], new: list[Tensor], both: list[Tensor]) -> Any:
        return tuple(both)


def _cache(name: str, did: str, causes: str) -> Callable[[type[Cache]], type[Cache]]:
    return KVCache.misconception(did=did, causes=causes, see="kv-cache", name=name)


@_cache(
    "positions_restart",
    "Your `length` is the number of tokens of the last update; it must be that of all tokens held.",
    "The model reads its positions off it, so every new token is told that it stands near the"
    " start.",
)
class PositionsRestart(Cache):
    def grow(self, layer: int, t: int) -> None:
        self.length = t if layer == self.n_layers - 1 else self.length


@_cache(
    "never_grows",
    "Your `length` stays 0.",
    "Every new token gets position 0, and a cache that is full never says so.",
)
class NeverGrows(Cache):
    def grow(self, layer: int, t: int) -> None:
        pass


@_cache(
    "grows_with_every_layer",
    "Your `length` grows with every layer that is updated; it must grow once for each token.",
    "After one pass of 12 layers a token counts as 12: the positions run away and the cache is full"
    " long before the text is.",
)
class GrowsWithEveryLayer(Cache):
    def grow(self, layer: int, t: int) -> None:
        self.length += t


@_cache(
    "grows_with_the_first_layer",
    "Your `length` grows with the first layer; the layers above it still have to be updated with"
    " the same tokens.",
    "They then see a length that already counts what they are about to store: in a buffer, their"
    " keys land one piece too far to the right.",
)
class GrowsWithTheFirstLayer(Cache):
    def grow(self, layer: int, t: int) -> None:
        self.length += t if layer == 0 else 0


@_cache(
    "stale",
    "You return what was there before the update.",
    "A token that cannot read itself: the model answers one token late, and the very first one has"
    " nothing to attend to.",
)
class Stale(Cache):
    def answer(self, old: list[Tensor], new: list[Tensor], both: list[Tensor]) -> Any:
        return tuple(old)


@_cache(
    "new_ones_only",
    "You return only the new keys and values.",
    "The newest token then reads nothing but itself: the model has forgotten the text.",
)
class NewOnesOnly(Cache):
    def answer(self, old: list[Tensor], new: list[Tensor], both: list[Tensor]) -> Any:
        return tuple(new)


@_cache(
    "layers_share_one_place",
    "All your layers are kept in one place.",
    "Layer 2 then attends to layer 1's keys as if they were its own; each layer has projections of"
    " its own and needs a place of its own.",
)
class LayersShareOnePlace(Cache):
    def place(self, layer: int) -> int:
        return 0


@_cache(
    "values_first",
    "You return the values first; the order is keys, values.",
    "Queries are then compared with values, and the shares mix keys.",
)
class ValuesFirst(Cache):
    def answer(self, old: list[Tensor], new: list[Tensor], both: list[Tensor]) -> Any:
        return both[1], both[0]


@_cache(
    "newest_first",
    "You put the new keys in front of the old ones.",
    "The causal mask counts from the left: it then hides the oldest tokens and shows the future.",
)
class NewestFirst(Cache):
    def join(self, old: Tensor, new: Tensor) -> Tensor:
        return torch.cat([new, old], dim=2)


@_cache(
    "along_the_heads",
    "You join old and new along the heads; time is axis 2 of (B, H, T, d_head).",
    "The number of heads grows with the text, and no head knows more than one piece of it.",
)
class AlongTheHeads(Cache):
    def join(self, old: Tensor, new: Tensor) -> Tensor:
        return torch.cat([old, new], dim=1) if old.numel() else new


@_cache(
    "the_whole_room",
    "You return the whole room of max_len places, filled or not.",
    "Queries attend to keys that nobody wrote: a key of zeros has a score of 0, which is a share"
    " like any other.",
)
class TheWholeRoom(Cache):
    def answer(self, old: list[Tensor], new: list[Tensor], both: list[Tensor]) -> Any:
        missing = self.max_len - both[0].shape[2]
        return tuple(torch.nn.functional.pad(x, (0, 0, 0, missing)) for x in both)


@_cache(
    "always_written_at_the_start",
    "Each update writes at position 0, over what was there.",
    "The old keys are lost, and the places behind them hold zeros that are attended to.",
)
class AlwaysWrittenAtTheStart(Cache):
    def join(self, old: Tensor, new: Tensor) -> Tensor:
        t = new.shape[2]
        zeros = torch.zeros_like(new[:, :, :1]).expand(-1, -1, old.shape[2], -1)
        return torch.cat([new, old[:, :, t:], zeros], dim=2)[:, :, : old.shape[2] + t]


@_cache(
    "overflow_unreported",
    "More than max_len tokens are taken without a word.",
    "Memory grows on, and the model is asked for positions that it has not learned.",
)
class OverflowUnreported(Cache):
    def fit(self, t: int) -> None:
        pass


@_cache(
    "oldest_dropped",
    "When the cache is full, your oldest keys are dropped silently.",
    "The positions of all others are then off, and nobody knows that the beginning was forgotten.",
)
class OldestDropped(Cache):
    def fit(self, t: int) -> None:
        pass

    def join(self, old: Tensor, new: Tensor) -> Tensor:
        return torch.cat([old, new], dim=2)[:, :, -self.max_len :]


@_cache(
    "full_is_too_much",
    "You refuse the token that would fill the last place.",
    "A cache for max_len tokens then holds one fewer, and the model's window is never used up.",
)
class FullIsTooMuch(Cache):
    def fit(self, t: int) -> None:
        if self.length + t >= self.max_len:
            raise ValueError(f"no room for {t} more")


@_cache(
    "another_error",
    "What does not fit stops your cache with an error other than ValueError.",
    "A message about tensor sizes deep inside an assignment tells no one that the text has become"
    " too long.",
)
class AnotherError(Cache):
    def fit(self, t: int) -> None:
        room = torch.empty(max(0, self.max_len - self.length))
        if t > len(room):
            room[:t] = torch.empty(t)


@_cache(
    "spoiled_by_a_refusal",
    "An update that you refuse has already changed the cache.",
    "Whoever catches the error and goes on with fewer tokens continues another text.",
)
class SpoiledByARefusal(Cache):
    def update(self, layer: int, k: Tensor, v: Tensor) -> Any:
        kept = super().update(layer, k, v)
        if self.length > self.max_len:
            raise ValueError(f"{self.length} tokens")
        return kept

    def fit(self, t: int) -> None:
        pass


# --- beam_search --------------------------------------------------------------------------------

beam_search = ASSIGNMENT.exercise(
    "beam_search",
    points=4,
    hints=(
        "Every live sequence has V continuations. Among how many do the beam_size best have to be"
        " found?",
        "Keep two lists: live sequences with the sums of their log-probabilities, and finished ones"
        " with their scores. A continuation that ends in EOS moves from the first to the second,"
        " and is never shown to score_next again.",
        "sums (n, 1) + log p (n, V) → (n, V); entry (row, token) is number row · V + token of"
        " the flat tensor; the score is Σ log p / length ** length_penalty.",
    ),
)
BOS, EOS = 0, 1


class Table:
    """Log-probabilities that depend on the last two tokens; notes what it was asked."""

    def __init__(self, log_p: Tensor):
        self.log_p = log_p.log_softmax(-1)  # (V, V, V)
        self.asked: list[list[list[int]]] = []

    def __call__(self, sequences: Any) -> Tensor:
        rows = [[int(token) for token in ids] for ids in sequences]
        self.asked.append(rows)
        return torch.stack([self.after(ids) for ids in rows])

    def after(self, ids: list[int]) -> Tensor:
        return self.log_p[([BOS, *ids])[-2], ids[-1]]

    def score(self, ids: list[int], penalty: float) -> float:
        """The score of a sequence without BOS."""
        whole = [BOS, *ids]
        steps = range(1, len(whole))
        total = sum(self.after(whole[:n])[whole[n]].item() for n in steps)
        return total / len(ids) ** penalty

    def best(self, max_len: int, penalty: float) -> tuple[list[int], float]:
        """The best of all sequences, each of them looked at."""
        body = [token for token in range(len(self.log_p)) if token != EOS]
        ended = [[*ids, EOS] for n in range(max_len) for ids in itertools.product(body, repeat=n)]
        cut = [list(ids) for ids in itertools.product(body, repeat=max_len)]
        ids = max(ended + cut, key=lambda ids: self.score(ids, penalty))
        return ids, self.score(ids, penalty)

    def pruned(self, size: int, max_len: int) -> tuple[list[int], float]:
        """What a beam of this size finds where nothing ends before max_len."""
        live: list[list[int]] = [[]]
        for _ in range(max_len):
            grown = [
                [*ids, token] for ids in live for token in range(len(self.log_p)) if token != EOS
            ]
            live = sorted(grown, key=lambda ids: -self.score(ids, 0.0))[:size]
        return live[0], self.score(live[0], 0.0)


def some_table(rng: Rng, vocab_size: int, end: float) -> Table:
    """Random bets; `end` is added to the logit of EOS: −inf means that nothing ends."""
    logits = 1.5 * rng.normal(vocab_size, vocab_size, vocab_size)
    logits[..., EOS] += end
    return Table(logits)


def search(
    student: Handle, table: Table, size: int, max_len: int, penalty: float | None = None
) -> tuple[list[int], float]:
    """What the student's search finds, its form checked."""
    options = {} if penalty is None else {"length_penalty": penalty}
    result = student(table, BOS, EOS, size, max_len, **options)
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        fail("a pair is asked for: the ids as a list, and their score.")
    ids, score = result
    if not isinstance(ids, (list, tuple)):
        fail(f"the ids are to be a list of ints; they are a {type(ids).__name__}.")
    return [int(token) for token in ids], score


def expect_found(student: Handle, table: Table, right: tuple[list[int], float], *how: Any) -> None:
    ids, score = search(student, table, *how)
    expect(ids, "the ids").equals(right[0])
    expect(score, "the score").close_to(right[1], rtol=1e-5)


@beam_search.case("finds the best of all sequences when the beam is wide enough")
def _(student: Handle, rng: Rng) -> None:
    for _ in range(3):
        table = some_table(rng, 4, end=0.5)
        expect_found(student, table, table.best(3, 0.0), 64, 3)


@beam_search.case("divides the score by length^length_penalty, EOS counted and BOS not")
def _(student: Handle, rng: Rng) -> None:
    for penalty in (0.6, 1.0, 2.0):
        table = some_table(rng, 4, end=1.0)
        expect_found(student, table, table.best(3, penalty), 64, 3, penalty)


def tempting_table(rng: Rng, first: float = 0.6, then: float = 0.9) -> Table:
    """The likelier first token leads to a toss-up, the other one to a near certainty."""
    p = torch.full((5, 5, 5), 1e-6, dtype=torch.float64)
    a, b, c = (int(token) for token in 2 + rng.permutation(3))
    p[BOS, BOS, a], p[BOS, BOS, b] = first, 1 - first
    p[BOS, a, b], p[BOS, a, c] = 0.5, 0.5 - 1e-3
    p[BOS, b, c], p[BOS, b, a] = then, 1 - then
    p[:, :, EOS] = torch.where(p.sum(-1) < 0.01, 1.0, p[:, :, EOS])
    return Table(p.log())


@beam_search.case("goes on with a first token that is not the likeliest")
def _(student: Handle, rng: Rng) -> None:
    table = tempting_table(rng)
    expect_found(student, table, table.best(3, 0.0), 2, 3)


@beam_search.case("keeps the beam_size best continuations of all live sequences together")
def _(student: Handle, rng: Rng) -> None:
    for size in (1, 2, 3):
        table = some_table(rng, 6, end=-math.inf)
        expect_found(student, table, table.pruned(size, 5), size, 5)
        widest = max(len(rows) for rows in table.asked)
        if widest > size:
            fail(
                f"with beam_size={size}, score_next was once asked about {widest} sequences.",
                "never_pruned",
            )


@beam_search.case("never shows score_next a sequence that has ended")
def _(student: Handle, rng: Rng) -> None:
    table = some_table(rng, 4, end=2.0)
    search(student, table, 3, 5)
    for rows in table.asked:
        for ids in rows:
            if EOS in ids:
                fail(
                    f"score_next was asked what follows {ids}, where EOS is {EOS}.", "extends_ended"
                )
            expect(ids[0], "the first token of what score_next is asked about").equals(BOS)


@beam_search.case("returns what it has at max_len when nothing has ended")
def _(student: Handle, rng: Rng) -> None:
    table = some_table(rng, 5, end=-math.inf)
    ids, score = search(student, table, 2, 4, 1.0)
    expect(len(ids), "the number of ids").equals(4)
    expect(score, "the score").close_to(table.score(ids, 1.0), rtol=1e-5)


@beam_search.case("stops at one token when max_len is 1")
def _(student: Handle, rng: Rng) -> None:
    table = some_table(rng, 5, end=0.0)
    expect_found(student, table, table.best(1, 0.0), 3, 1)


def _beam(
    *,
    size: Callable[[int], int] = lambda size: size,
    extend: bool = False,
    penalize: Callable[[float, int, float], float] = lambda total, n, power: total / n**power,
    add: Callable[[float, Tensor], Tensor] = lambda total, log_p: total + log_p,
    alone: bool = False,
    first_end: bool = False,
    cut_counts: bool = True,
    longest: int = 0,
    show: Callable[[list[int]], list[int]] = lambda ids: ids,
) -> Callable[..., Any]:
    """A beam search with one thing wrong."""

    def wrong(score_next, bos_id, eos_id, beam_size, max_len, length_penalty=0.0):  # type: ignore[no-untyped-def]
        width, ended = size(beam_size), []
        live: list[tuple[list[int], float]] = [([], 0.0)]
        for _ in range(max_len + longest):
            rows = score_next([[bos_id, *ids] for ids, _ in live])
            grown = []
            for (ids, total), log_p in zip(live, rows, strict=True):
                sums = add(total, log_p).tolist()
                mine = [([*ids, token], value) for token, value in enumerate(sums)]
                mine.sort(key=lambda item: -item[1])
                grown += mine[:1] if alone and len(live) > 1 else mine
            grown = sorted(grown, key=lambda item: -item[1])[:width]
            ended += [item for item in grown if item[0][-1] == eos_id]
            live = grown if extend else [item for item in grown if item[0][-1] != eos_id]
            if not live or (first_end and ended):
                break
        found = ended + (live if (cut_counts and not first_end) or not ended else [])
        scored = [(ids, penalize(total, len(ids), length_penalty)) for ids, total in found]
        ids, score = max(scored, key=lambda item: item[1])
        return show(ids), score

    return wrong


def _beam_mistake(name: str, did: str, causes: str, wrong: Callable[..., Any]) -> None:
    _mistake(beam_search, name, "beams", did, causes, wrong)


_beam_mistake(
    "greedy",
    "Only one sequence is kept, whatever beam_size says: this is greedy decoding.",
    "A first token that looks best and leads nowhere is never taken back.",
    _beam(size=lambda size: 1),
)
_beam_mistake(
    "extends_ended",
    "Sequences that have ended are extended further.",
    "What follows EOS is not part of the text, yet its log-probabilities are added to the score,"
    " and it takes places from those that still live.",
    _beam(extend=True),
)
_beam_mistake(
    "penalty_multiplies",
    "You multiply by length^length_penalty; divide by it.",
    "Sums of log-probabilities are negative: a long sequence then becomes worse still, where the"
    " penalty should make up for its length.",
    _beam(penalize=lambda total, n, power: total * n**power),
)
_beam_mistake(
    "penalty_ignored",
    "`length_penalty` is accepted and never used.",
    "Each further token costs, so the shortest sequence wins, and the empty one where it may end"
    " at once.",
    _beam(penalize=lambda total, n, power: total),
)
_beam_mistake(
    "bos_counted",
    "Your length counts BOS.",
    "BOS was given and not predicted. Counted, it makes short sequences look better than they are.",
    _beam(penalize=lambda total, n, power: total / (n + 1) ** power),
)
_beam_mistake(
    "eos_not_counted",
    "Your length leaves out EOS.",
    "EOS was predicted and its log-probability is in the sum; a sequence of EOS alone would be"
    " divided by 0.",
    _beam(penalize=lambda total, n, power: total / max(1, n - 1) ** power),
)
_beam_mistake(
    "each_beam_alone",
    "Each sequence goes on with its own best token; the continuations of all must compete.",
    "The beams never meet: a poor one keeps its place although another has ten better"
    " continuations.",
    _beam(alone=True),
)
_beam_mistake(
    "never_pruned",
    "All continuations are kept; only the beam_size best may stay.",
    "Their number grows by a factor V with every token: after three tokens of GPT-2's vocabulary it"
    " is 10¹⁴.",
    _beam(size=lambda size: 10**9),
)
_beam_mistake(
    "stops_at_the_first_end",
    "You stop as soon as one sequence has ended.",
    "A longer one that is still alive may have the better score.",
    _beam(first_end=True),
)
_beam_mistake(
    "scores_the_last_token",
    "Your score is that of the last token alone; the log-probabilities must be added up.",
    "A sequence is then as good as its last step, whatever it took to get there.",
    _beam(add=lambda total, log_p: log_p),
)
_beam_mistake(
    "returns_bos",
    "Your ids begin with BOS.",
    "It was the caller's, and stands in the text twice when the two are joined.",
    _beam(show=lambda ids: [BOS, *ids]),
)
_beam_mistake(
    "returns_without_eos",
    "Your ids leave out EOS where the sequence ended with it.",
    "Nobody can tell then whether the text was finished or cut off at max_len.",
    _beam(show=lambda ids: [token for token in ids if token != EOS]),
)
_beam_mistake(
    "only_what_ended_counts",
    "Sequences that reached max_len without EOS are thrown away when another one has ended.",
    "The contract lets them compete: a text cut off may be far likelier than one that ended early.",
    _beam(cut_counts=False),
)
_beam_mistake(
    "one_token_too_many",
    "Your sequences grow to max_len + 1 tokens.",
    "A caller who has room for max_len tokens gets one more.",
    _beam(longest=1),
)

# --- quantize_int8 ------------------------------------------------------------------------------

quantize_int8 = ASSIGNMENT.exercise(
    "quantize_int8",
    points=2,
    forbidden=("quantize_per_channel", "quantize_per_tensor"),
    hints=(
        "The largest number of a row, in size, must become 127 or −127. Which step does that give,"
        " and how many rows are there to give one to?",
        "Divide each row by its own step, go to the nearest whole number, then change the type. A"
        " row of zeros has no largest number: which steps would do for it?",
        "scale = max over a row of |w|, divided by 127, shape (O, 1): `amax` with keepdim. q ="
        " round(w / scale), torch.int8.",
    ),
)


def expect_quantized(student: Handle, weight: Tensor) -> None:
    """Whole numbers within ±127, steps of max|w|/127, and no error above half a step."""
    result = student(weight)
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        fail("a pair is asked for: q and scale.")
    q, scale = result
    expect(q, "q").has_shape(*weight.shape)
    expect(q, "q").has_dtype(torch.int8)
    expect(scale, "scale").has_shape(len(weight), 1)
    whole = bool(scale.isfinite().all()) and bool((scale > 0).all())
    expect(scale, "scale").holds(whole, "every scale must be finite and greater than 0.")
    largest = weight.abs().amax(1, keepdim=True)
    filled = largest > 0
    right = torch.where(filled, largest / 127, scale)
    expect(scale, "scale").close_to(right, rtol=1e-3, atol=0.0)
    steps = (q.to(weight.dtype) * scale - weight).abs() / scale
    row, column = divmod(int(steps.argmax()), weight.shape[1])
    expect(q, "q").holds(
        steps.max().item() <= 0.5 + 1e-6,
        f"the weight {weight[row, column]:.6g} at [{row}, {column}] becomes {q[row, column]} steps"
        f" of {scale[row, 0]:.6g}: {steps[row, column]:.3f} steps off, where half a step is the"
        " most.",
    )


@quantize_int8.case("rounds each row to whole steps of its own scale, max|w| / 127")
def _(student: Handle, rng: Rng) -> None:
    expect_quantized(student, rng.strided(5, 37))


@quantize_int8.case("gives rows of any size the same number of steps")
def _(student: Handle, rng: Rng) -> None:
    sizes = torch.tensor([0.03, 1.0, 400.0, 8.0], dtype=torch.float64)[rng.permutation(4)]
    expect_quantized(student, sizes[:, None] * rng.normal(4, 13))


@quantize_int8.case("uses both ends: the largest weight becomes 127, its negative −127")
def _(student: Handle, rng: Rng) -> None:
    weight = rng.uniform(3, 7) - 0.5
    weight[:, 2], weight[:, 5] = 1.0, -1.0
    weight[1] = -weight[1].abs()
    q, _ = student(weight)
    expect_quantized(student, weight)
    expect(q[[0, 2], 2], "q of the largest weights").equals(torch.full((2,), 127, dtype=torch.int8))
    expect(q[:, 5], "q of the smallest weights").equals(torch.full((3,), -127, dtype=torch.int8))


@quantize_int8.case("gives a row of zeros a scale that is finite and greater than 0")
def _(student: Handle, rng: Rng) -> None:
    weight = rng.normal(3, 5)
    weight[1] = 0.0
    expect_quantized(student, weight)


@quantize_int8.case("works on a single weight")
def _(student: Handle, rng: Rng) -> None:
    expect_quantized(student, -rng.uniform(1, 1) - 0.1)


guard(quantize_int8, lambda rng, dtype: (rng.normal(3, 7, dtype=dtype),), gradient=False)


def _quantizer(
    *,
    largest: Callable[[Tensor], Tensor] = lambda w: w.abs().amax(1, keepdim=True),
    steps: float = 127,
    zero: bool = True,
    nearest: Callable[[Tensor], Tensor] = torch.round,
    pack: Callable[[Tensor, Tensor], Any] = lambda q, scale: (q.to(torch.int8), scale),
) -> Callable[[Tensor], Any]:
    """A quantizer with one thing wrong."""

    def wrong(weight: Tensor) -> Any:
        scale = largest(weight) / steps
        if zero:
            scale = torch.where(scale > 0, scale, 1.0)
        q = nearest(weight / scale).nan_to_num(0.0)
        return pack(q, scale.expand(len(weight), 1) if scale.ndim == 2 else scale)

    return wrong


def _quantize_mistake(name: str, did: str, causes: str, wrong: Callable[[Tensor], Any]) -> None:
    _mistake(quantize_int8, name, "int8", did, causes, wrong)


_quantize_mistake(
    "per_tensor",
    "You take one scale for the whole matrix; each row needs its own.",
    "One row with a large weight makes the step so wide that the small rows round to zeros.",
    _quantizer(largest=lambda w: w.abs().amax().expand(1, 1)),
)
_quantize_mistake(
    "zero_scale",
    "A row of zeros gets the scale 0.",
    "0 / 0 is NaN. Any scale above 0 gives that row back.",
    _quantizer(zero=False),
)
_quantize_mistake(
    "truncates",
    "You cut off what follows the point; round to the nearest whole number.",
    "The error grows to a whole step, and always toward 0: the layer's output shrinks.",
    _quantizer(nearest=torch.trunc),
)
_quantize_mistake(
    "rounds_down",
    "You round down; round to the nearest whole number.",
    "The error grows to a whole step, always in one direction, and adds up over a row's sum.",
    _quantizer(nearest=torch.floor),
)
_quantize_mistake(
    "divided_by_128",
    "Your scale is max|w| / 128.",
    "The largest weight then becomes +128, which int8 does not have: it wraps around to −128.",
    _quantizer(steps=128, pack=lambda q, scale: (q.to(torch.int32).to(torch.int8), scale)),
)
_quantize_mistake(
    "divided_by_255",
    "Your scale divides by 255, as if all steps lay on one side of 0.",
    "±max|w| become ±255, outside of int8, and wrap around to ±1.",
    _quantizer(steps=255, pack=lambda q, scale: (q.to(torch.int32).to(torch.int8), scale)),
)
_quantize_mistake(
    "signs_ignored",
    "Your scale comes from the largest weight, not from the largest size: negative ones are left"
    " out.",
    "A row whose largest weight is negative overflows; a row of negative numbers has no scale at"
    " all.",
    _quantizer(
        largest=lambda w: w.amax(1, keepdim=True),
        nearest=lambda x: x.round().clamp(-127, 127),
    ),
)
_quantize_mistake(
    "per_column",
    "Your scales belong to the columns; each output row needs one.",
    "A column's scale cannot be taken out of the sum x·w over the inputs, a row's can.",
    lambda w: (
        (w / (c := w.abs().amax(0).clamp(min=1e-9) / 127)).round().to(torch.int8),
        c[:, None],
    ),
)
_quantize_mistake(
    "inverse_scale",
    "Your scale is 127 / max|w|, the inverse of the step.",
    "`dequantize` multiplies by it and gives numbers of another size altogether.",
    _quantizer(pack=lambda q, scale: (q.to(torch.int8), 1 / scale)),
)
_quantize_mistake(
    "axis_lost",
    "Your scale has shape (O,); (O, 1) is asked for.",
    "Multiplied with q of (O, I) it is matched to the columns: an error, or wrong numbers where"
    " O = I.",
    _quantizer(pack=lambda q, scale: (q.to(torch.int8), scale[:, 0])),
)
_quantize_mistake(
    "not_int8",
    "Your q holds whole numbers in a floating-point type.",
    "They take four or eight bytes each, as the weights did: nothing is saved.",
    _quantizer(pack=lambda q, scale: (q, scale)),
)

# --- dequantize ---------------------------------------------------------------------------------

dequantize = ASSIGNMENT.exercise(
    "dequantize",
    points=1,
    hints=(
        "q counts steps. How long is one?",
        "Leave int8 before you multiply: its largest number is 127.",
        "(O, I) in scale's type, times (O, 1).",
    ),
)


def quantized(rng: Rng, rows: int, columns: int, dtype: torch.dtype = torch.float64) -> Any:
    """q (O, I) and scale (O, 1) that could have come from a matrix."""
    q = rng.integers(-127, 128, rows, columns).to(torch.int8)
    return q, 0.01 + rng.uniform(rows, 1, dtype=dtype)


def expect_weights(student: Handle, q: Tensor, scale: Tensor) -> None:
    right = torch.tensor(
        [[step * s for step in row] for row, [s] in zip(q.tolist(), scale.tolist(), strict=True)],
        dtype=scale.dtype,
    )
    expect(student(q, scale), "the weights").close_to(right)


@dequantize.case("multiplies each row of q by its scale")
def _(student: Handle, rng: Rng) -> None:
    expect_weights(student, *quantized(rng, 5, 13))


@dequantize.case("works where there are as many rows as columns")
def _(student: Handle, rng: Rng) -> None:
    expect_weights(student, *quantized(rng, 7, 7))


@dequantize.case("works with steps larger than 1")
def _(student: Handle, rng: Rng) -> None:
    q, scale = quantized(rng, 3, 5)
    expect_weights(student, q, 5 * scale)


guard(dequantize, lambda rng, dtype: quantized(rng, 3, 5, dtype), gradient=False)


def _dequantize_mistake(name: str, did: str, causes: str, wrong: Callable[..., Tensor]) -> None:
    _mistake(dequantize, name, "int8", did, causes, wrong)


_dequantize_mistake(
    "in_int8",
    "You multiply in int8.",
    "A scale below 1 becomes 0 there, and products beyond 127 wrap around.",
    lambda q, scale: (q * scale.to(torch.int8)).to(scale.dtype),
)
_dequantize_mistake(
    "divides",
    "You divide by the scale; multiply by it.",
    "The scale is the length of a step, and q counts steps.",
    lambda q, scale: q.to(scale.dtype) / scale,
)
_dequantize_mistake(
    "scale_along_columns",
    "Your scales are laid along the columns; scale[i] belongs to row i.",
    "Every weight gets the step of another row, which is seen at once only if O and I differ.",
    lambda q, scale: q.to(scale.dtype) * scale[:, 0],
)
_dequantize_mistake(
    "one_scale_for_all",
    "You use the first row's scale for all rows.",
    "The other rows come out too large or too small as a whole.",
    lambda q, scale: q.to(scale.dtype) * scale[0],
)
_dequantize_mistake(
    "divided_by_127",
    "You divide by 127 once more.",
    "The scale is max|w| / 127 already, so all weights come out 127 times too small.",
    lambda q, scale: q.to(scale.dtype) * scale / 127,
)
