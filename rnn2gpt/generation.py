"""Choosing what to write, given a model's probabilities (chapter 11; beam search from 07 on)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rnn2gpt.kv_cache import KVCache


def filter_logits(
    logits: Float[Tensor, "B V"], top_k: int | None = None, top_p: float | None = None
) -> Float[Tensor, "B V"]:
    """Put −inf at the tokens that may not be drawn.

    `top_k` keeps the k largest of a row (Fan et al. 2018). `top_p` keeps, of what is left, the
    smallest set of the likeliest tokens whose probabilities reach p, at least one (Holtzman et al.
    2020, section 3.1).

    >>> filter_logits(torch.tensor([[0.5, 0.3, 0.2]]).log(), top_p=0.6).exp()
    tensor([[0.5000, 0.3000, 0.0000]])
    """
    if top_k is not None:
        smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < smallest, -math.inf)
    if top_p is not None:
        falling, order = logits.sort(descending=True)  # (B, V)
        p = falling.softmax(dim=-1)
        drop = p.cumsum(dim=-1) - p >= top_p  # the likelier ones reach p without it
        drop[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -math.inf)
    return logits


def sample(
    logits: Float[Tensor, "B V"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int64[Tensor, " B"]:
    """One token for each row: logits divided by the temperature, filtered, drawn. 0 is greedy.

    Raises `ValueError` when the temperature is negative.
    """
    if temperature < 0:
        raise ValueError(f"temperature={temperature}: it must be 0 (greedy) or more")
    if temperature == 0:
        return logits.argmax(dim=-1)
    p = filter_logits(logits / temperature, top_k, top_p).softmax(dim=-1)
    # Drawn on the CPU, where the generator lives, so that a seed means one text anywhere.
    drawn = torch.multinomial(p.float().cpu(), 1, generator=generator)  # (B, 1)
    return drawn[:, 0].to(logits.device)


@torch.no_grad()
def generate(
    model: Any,
    ids: Int64[Tensor, "B T"],
    n_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    on_token: Callable[[Int64[Tensor, "B 1"]], None] = lambda token: None,
    end_id: int | None = None,
) -> Int64[Tensor, "B T+n_tokens"]:
    """Continue each row of `ids` with a GPT; the prompt is part of what is returned.

    The prompt is read at once and each new token once, its keys and values kept. The text may
    outgrow the model's window: when that is full, its last half is read again, from position 0 on,
    and what stood before is forgotten. Without `use_cache` the window is read anew for every token,
    which gives the same logits. Put the model in `eval()` first, or its dropout stays on. Given an
    `end_id`, a row that drew it draws nothing more: it is filled up with it, and where all rows
    have ended the text stops. Raises `ValueError` when the prompt is empty.
    """
    (batch, prompt), window = ids.shape, model.block_size
    if prompt == 0:
        raise ValueError("The prompt is empty: give at least one token to start from")
    text = torch.cat([ids, ids.new_empty(batch, n_tokens)], dim=1)
    cache = KVCache.for_model(model, batch) if use_cache else None
    start = max(0, prompt - window)  # where the model's window begins in the text
    ended = torch.zeros(batch, dtype=torch.bool, device=ids.device)
    for at in range(prompt, prompt + n_tokens):
        if at - start > window:
            start = at - max(1, window // 2)
            if cache is not None:
                cache.length = 0
        read = 0 if cache is None else cache.length
        logits, _ = model(text[:, start + read : at], cache=cache)
        text[:, at] = sample(logits[:, -1], temperature, top_k, top_p, generator)
        if end_id is not None:
            text[ended, at] = end_id
            ended |= text[:, at] == end_id
        on_token(text[:, at : at + 1])
        if end_id is not None and ended.all():
            return text[:, : at + 1]
    return text


def arrange_for_writing(model: nn.Module) -> None:
    """Store the tall matrices of linear maps by columns, in place; shapes and values stay.

    A token written alone costs the reading of every weight, and a CPU reads a float32 matrix (O, I)
    for one vector faster along its longer side. Other devices and dtypes are left as they are: in
    bfloat16 rows are faster. Sums are taken in another order, so a logit's last bits may differ.
    """
    for layer in model.modules():
        if not isinstance(layer, nn.Linear) or layer.out_features < layer.in_features:
            continue
        weight = layer.weight
        if weight.device.type == "cpu" and weight.dtype == torch.float32:
            weight.data = weight.data.t().contiguous().t()  # (O, I) with strides (1, O)


def next_scores(
    model: Any, prompt: Int64[Tensor, " T"]
) -> Callable[[list[list[int]]], Float[Tensor, "n V"]]:
    """`score_next` of a GPT for `beam_search`, where `bos_id` is the last token of the prompt.

    One cache serves all beams: those of each call go on from rows of the call before.
    """
    cache, rows = KVCache.for_model(model, 1), dict[tuple[int, ...], int]()

    @torch.no_grad()
    def score_next(sequences: list[list[int]]) -> Tensor:
        nonlocal rows
        if rows:
            cache.select([rows[tuple(ids[:-1])] for ids in sequences])
        elif len(prompt) > 1:
            model(prompt[None, :-1], cache=cache)
        rows = {tuple(ids): row for row, ids in enumerate(sequences)}
        last = torch.tensor(sequences, device=prompt.device)[:, -1:]  # (n, 1)
        return model(last, cache=cache)[0][:, -1].log_softmax(dim=-1)

    return score_next


def beam_search(
    score_next: Callable[[list[list[int]]], Float[Tensor, "n V"]],
    bos_id: int,
    eos_id: int,
    beam_size: int,
    max_len: int,
    length_penalty: float = 0.0,
) -> tuple[list[int], float]:
    """The best sequence found, without BOS and with EOS if it ended, and its score.

    `score_next` takes sequences of one length that begin with BOS and gives log p of every next
    token. In each step all continuations of the sequences at hand compete for `beam_size` places;
    one that ends in EOS keeps its place and is extended no more. The score is
    Σ log p / length^`length_penalty` with a length that counts EOS and not BOS: 0 prefers short
    sequences, 1 is the mean log p (Wu et al. 2016, section 7, with another formula for length).
    A beam of 1 is greedy decoding. Nothing is longer than `max_len`.
    """
    if beam_size < 1 or max_len < 1:
        raise ValueError(f"beam_size={beam_size}, max_len={max_len}: both must be at least 1")

    def score(total: float, length: int) -> float:
        return total / length**length_penalty

    live: list[tuple[list[int], float]] = [([], 0.0)]
    ended: list[tuple[list[int], float]] = []  # with scores, where `live` has sums of log p
    for length in range(1, max_len + 1):
        log_p = score_next([[bos_id, *ids] for ids, _ in live])  # (n, V)
        so_far = torch.tensor([total for _, total in live], dtype=torch.float64)  # (n,)
        totals = so_far[:, None] + log_p.double().cpu()  # (n, V)
        best, at = totals.flatten().topk(min(beam_size - len(ended), totals.numel()))
        grown = [
            ([*live[i // totals.shape[1]][0], i % totals.shape[1]], total)
            for total, i in zip(best.tolist(), at.tolist(), strict=True)
        ]
        ended += [(ids, score(total, length)) for ids, total in grown if ids[-1] == eos_id]
        live = [(ids, total) for ids, total in grown if ids[-1] != eos_id]
        # log p is at most 0: all that the rest can still reach is its sum over the longest length
        reachable = max((score(total, max_len) for _, total in live), default=-float("inf"))
        if not live or (ended and max(s for _, s in ended) >= reachable):
            break
    ended += [(ids, score(total, len(ids))) for ids, total in live]
    return max(ended, key=lambda item: item[1])
