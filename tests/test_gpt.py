"""GPT and what it generates with: against closed forms, `transformers`, and exhaustive search."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from autograder.checks import load
from autograder.child import stand_ins
from autograder.engine.exercise import Exercise
from autograder.engine.handle import Local
from autograder.engine.judge import judge
from rnn2gpt import gpt as package
from rnn2gpt.generation import beam_search, filter_logits, sample
from rnn2gpt.gpt import (
    GPT,
    GPTConfig,
    count_parameters,
    flops_per_token,
    gpt2_state_dict,
    load_gpt2_state_dict,
)
from rnn2gpt.kv_cache import KVCache
from rnn2gpt.optim import accumulate_gradients, compute_optimal, parameter_groups
from rnn2gpt.quantization import dequantize, quantize_int8

SMALL = GPTConfig(vocab_size=13, block_size=11, n_layers=3, n_heads=2, d_model=12)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


# --- chapter 09 -----------------------------------------------------------------------------------


def test_gpt_sees_no_future_and_starts_at_chance() -> None:
    model = GPT(SMALL).eval()
    ids = torch.randint(13, (4, 11))
    logits, none = model(ids)
    assert none is None
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 13
    assert torch.allclose(model(changed)[0][:, :7], logits[:, :7], atol=1e-6)
    assert not torch.allclose(model(changed)[0][:, 7:], logits[:, 7:], atol=1e-6)
    targets = torch.randint(13, (4, 11))
    targets[0, :5] = -100
    loss = model(ids, targets)[1]
    real = targets != -100
    by_hand = nn.functional.cross_entropy(logits[real], targets[real])
    assert torch.allclose(loss, by_hand)
    assert loss.item() == pytest.approx(math.log(13), abs=0.1)
    with pytest.raises(ValueError, match="12 tokens are longer than block_size=11"):
        model(torch.zeros(1, 12, dtype=torch.long))


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_counted_in_closed_form(bias: bool) -> None:
    config = GPTConfig(vocab_size=17, block_size=7, n_layers=2, n_heads=3, d_model=12, bias=bias)
    model = GPT(config)
    assert model.head.weight is model.token_embedding.weight
    assert count_parameters(config) == sum(p.numel() for p in model.parameters())
    multiplied = count_parameters(config) - 7 * 12
    assert flops_per_token(config) == 6 * multiplied + 12 * 2 * 12 * 7


@pytest.mark.parametrize(
    ("n_layers", "n_heads", "d_model", "count"),
    [
        (12, 12, 768, 124_439_808),
        (24, 16, 1024, 354_823_168),
        (36, 20, 1280, 774_030_080),
        (48, 25, 1600, 1_557_611_200),
    ],
)
def test_gpt2s_four_sizes(n_layers: int, n_heads: int, d_model: int, count: int) -> None:
    config = GPTConfig(
        vocab_size=50257, block_size=1024, n_layers=n_layers, n_heads=n_heads, d_model=d_model
    )
    assert count_parameters(config) == count


def test_weights_start_small_and_smaller_where_they_are_summed() -> None:
    config = GPTConfig(vocab_size=97, block_size=32, n_layers=8, n_heads=4, d_model=64)
    for name, parameter in GPT(config).named_parameters():
        if name.endswith(("W_o.weight", "W_2.weight")):
            assert parameter.std().item() == pytest.approx(0.02 / 4, rel=0.1)
        elif parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)
        elif name.endswith("bias"):
            assert not parameter.any()


def gpt2() -> tuple[nn.Module, GPT]:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=101, n_positions=33, n_embd=48, n_layer=3, n_head=4, attn_pdrop=0.0
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms that show
    config = GPTConfig(vocab_size=101, block_size=33, n_layers=3, n_heads=4, d_model=48)
    return theirs, GPT(config).eval()


def test_gpt2s_weights_give_gpt2s_logits() -> None:
    theirs, ours = gpt2()
    load_gpt2_state_dict(ours, theirs.state_dict())
    ids = torch.randint(101, (2, 33))
    assert torch.allclose(ours(ids)[0], theirs(ids).logits, atol=1e-4)
    assert ours.head.weight is ours.token_embedding.weight


def test_weights_that_do_not_fit_are_named() -> None:
    theirs, ours = gpt2()
    weights = dict(theirs.state_dict())
    with pytest.raises(ValueError, match=r"No place .* for extra"):
        load_gpt2_state_dict(ours, weights | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="do not fit"):
        load_gpt2_state_dict(ours, weights | {"transformer.ln_f.bias": torch.zeros(7)})
    with pytest.raises(ValueError, match="ties the two"):
        load_gpt2_state_dict(ours, weights | {"lm_head.weight": torch.zeros(101, 48)})
    del weights["transformer.h.1.mlp.c_fc.bias"]
    with pytest.raises(ValueError, match=r"lack h\.1\.mlp\.c_fc\.bias"):
        load_gpt2_state_dict(ours, weights)


def test_our_weights_in_gpt2s_layout_run_in_transformers() -> None:
    theirs, ours = gpt2()
    weights = gpt2_state_dict(ours)
    missing = theirs.load_state_dict(weights, strict=False)
    assert missing.missing_keys == ["lm_head.weight"] and not missing.unexpected_keys
    ids = torch.randint(101, (2, 33))
    assert torch.allclose(ours(ids)[0], theirs(ids).logits, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_gpt2s_layout_goes_there_and_back(bias: bool) -> None:
    config = GPTConfig(vocab_size=13, block_size=5, n_layers=2, n_heads=2, d_model=8, bias=bias)
    one, other = GPT(config), GPT(config)
    load_gpt2_state_dict(other, gpt2_state_dict(one))
    for name, weight in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name


def test_gpt3s_printed_size_is_the_formulas() -> None:
    gpt3 = GPTConfig(vocab_size=50257, block_size=2048, n_layers=96, n_heads=96, d_model=12288)
    assert round(count_parameters(gpt3) / 1e9, 1) == 174.6
    gpt1 = GPTConfig(vocab_size=40478, block_size=512, n_layers=12, n_heads=12, d_model=768)
    assert count_parameters(gpt1) - 2 * 768 == 116_534_784  # it had no final norm


ASSIGNMENT = load("gpt", hidden=True)


@pytest.mark.parametrize("exercise", ASSIGNMENT.exercises, ids=lambda exercise: exercise.name)
def test_package_passes_the_chapters_cases(exercise: Exercise) -> None:
    namespace = {exercise.name: getattr(package, exercise.name)}
    result = judge(exercise, lambda: Local(namespace), hidden=True, secret=b"package")
    assert all(case.passed for case in result.cases), [c for c in result.cases if not c.passed]


@pytest.mark.parametrize("bias", [True, False])
def test_the_stand_in_has_the_models_parameters(bias: bool) -> None:
    sizes = dict(vocab_size=13, block_size=5, n_layers=2, n_heads=2, d_model=8, bias=bias)
    model, empty = GPT(GPTConfig(**sizes)), stand_ins.GPTWeights(stand_ins.GPTConfig(**sizes))
    theirs = {name: weight.shape for name, weight in model.state_dict().items()}
    assert {name: weight.shape for name, weight in empty.state_dict().items()} == theirs
    assert empty.head.weight is empty.token_embedding.weight
    assert vars(model.config) == vars(empty.config)


# --- chapter 10 -----------------------------------------------------------------------------------


def test_matrices_decay_and_each_tensor_stands_once() -> None:
    model = GPT(SMALL)
    model.position_embedding.weight.requires_grad_(False)
    decayed, kept = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1 and kept["weight_decay"] == 0.0
    ours = [id(p) for group in (decayed, kept) for p in group["params"]]
    assert sorted(ours) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all(p.dim() >= 2 for p in decayed["params"]) and all(p.dim() < 2 for p in kept["params"])


def test_accumulated_gradients_are_the_big_batchs() -> None:
    model = GPT(SMALL).double()
    ids, targets = torch.randint(13, (5, 11)), torch.randint(13, (5, 11))
    targets[0, 3:] = -100
    targets[4] = -100  # a micro-batch without a target
    loss = model(ids, targets)[1]
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # what an earlier step left
    cuts = [slice(0, 1), slice(1, 4), slice(4, 5)]
    mean = accumulate_gradients(model, [(ids[cut], targets[cut]) for cut in cuts])
    assert torch.allclose(mean, loss)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient)
    with pytest.raises(ValueError, match="no target"):
        accumulate_gradients(model, [(ids[4:], targets[4:])])


def test_the_optimum_spends_the_budget() -> None:
    n, d = compute_optimal(1e15, tokens_per_parameter=17)
    assert 6 * n * d == pytest.approx(1e15) and d == pytest.approx(17 * n)


# --- chapter 11 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[1] * 11, [5, 1, 1, 1, 3], [11], [4, 7]])
def test_cached_logits_are_the_uncached(pieces: list[int]) -> None:
    model, ids = GPT(SMALL).double().eval(), torch.randint(13, (2, 11))
    cache = KVCache(3, 2, 2, 11, 6, dtype=torch.float64)
    logits, done = [], 0
    for size in pieces:
        logits.append(model(ids[:, done : done + size], cache=cache)[0])
        done += size
        assert cache.length == done
    assert torch.allclose(torch.cat(logits, dim=1), model(ids)[0])
    with pytest.raises(ValueError, match="12 tokens"):
        model(ids[:, :1], cache=cache)
    with pytest.raises(ValueError, match="12 tokens do not fit into a cache of max_len=11"):
        cache.update(0, *torch.zeros(2, 2, 2, 1, 6))


def test_filters_keep_the_likeliest() -> None:
    p = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.97, 0.01, 0.01, 0.01]])
    kept = [row.isfinite().nonzero().flatten().tolist() for row in filter_logits(p.log(), top_k=2)]
    assert kept[0] == [1, 3]
    for top_p, expected in ((0.5, [1, 3]), (0.39, [1]), (0.75, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        rows = filter_logits(p.log(), top_p=top_p)
        assert rows[0].isfinite().nonzero().flatten().tolist() == expected
    # Of the top 2, renormalized to 4/7 and 3/7, the first alone reaches 0.5.
    both = filter_logits(p.log(), top_k=2, top_p=0.5)
    assert both[0].isfinite().nonzero().flatten().tolist() == [1]
    assert filter_logits(p.log(), top_p=1e-9)[1].isfinite().sum() == 1


def test_samples_follow_the_tempered_distribution() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(20_000, 4)
    drawn = sample(logits, 0.5, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor([0.01, 0.16, 0.04, 0.09]) / 0.3
    assert torch.allclose(drawn.bincount(minlength=4) / 20_000, expected, atol=0.015)
    assert set(sample(logits[:50], 3.0, top_k=1).tolist()) == {1}
    assert sample(logits[:3], 0).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="must be 0"):
        sample(logits, -1.0)


def markov(v: int) -> tuple[Tensor, object]:
    """Log-probabilities that depend on the last two tokens, and the scorer that gives them."""
    table = (2 * torch.randn(v, v, v, dtype=torch.float64)).log_softmax(-1)

    def score_next(prefixes: list[list[int]]) -> Tensor:
        return torch.stack([table[([0, *ids])[-2], ids[-1]] for ids in prefixes])

    return table, score_next


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
def test_a_beam_as_wide_as_the_tree_finds_the_best(penalty: float) -> None:
    v, bos, eos, max_len = 5, 0, 1, 4
    for _ in range(10):
        table, score_next = markov(v)
        best = (-math.inf, [])
        for n in range(max_len + 1):
            for body in itertools.product([i for i in range(v) if i != eos], repeat=n):
                ids = [bos, *body] + ([eos] if n < max_len else [])
                total = sum(
                    table[([0, *ids[:i]])[-2], ids[i - 1], ids[i]].item()
                    for i in range(1, len(ids))
                )
                best = max(best, (total / (len(ids) - 1) ** penalty, ids[1:]))
        ids, score = beam_search(score_next, bos, eos, 600, max_len, penalty)
        assert ids == best[1] and score == pytest.approx(best[0])
        narrow = beam_search(score_next, bos, eos, 3, max_len, penalty)
        assert narrow[1] <= score + 1e-12


def test_a_beam_of_one_is_greedy_until_it_may_stop() -> None:
    table, score_next = markov(6)
    table[:, :, 1] = -math.inf  # no end in sight
    ids, _ = beam_search(score_next, 0, 1, 1, 8)
    greedy = [0]
    for _ in range(8):
        greedy.append(score_next([greedy])[0].argmax().item())
    assert ids == greedy[1:]


def test_int8_is_within_half_a_step() -> None:
    weight = torch.randn(7, 31, dtype=torch.float64) * torch.logspace(-6, 6, 7)[:, None]
    weight[3] = 0
    q, scale = quantize_int8(weight)
    assert q.dtype == torch.int8 and scale.shape == (7, 1)
    assert scale.isfinite().all() and (scale > 0).all()
    assert ((dequantize(q, scale) - weight).abs() <= scale / 2 * (1 + 1e-9)).all()
    assert (q.abs().amax(dim=1)[[0, 1, 2, 4, 5, 6]] == 127).all()
