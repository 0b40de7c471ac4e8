"""Attention to Transformer: fused against explicit, and against PyTorch's layers by copied weights.

What a property can say (causality, padding, distance alone) is said as a property.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnn2gpt.attention import (
    CharAttention,
    SelfAttention,
    causal_mask,
    online_softmax_attention,
    padding_mask,
    scaled_dot_product_attention,
)
from rnn2gpt.multi_head import MultiHeadAttention, merge_heads, split_heads
from rnn2gpt.positions import alibi_bias, apply_rotary, sinusoidal_positions
from rnn2gpt.transformer import (
    DecoderBlock,
    FeedForward,
    LayerNorm,
    RMSNorm,
    Transformer,
    TransformerBlock,
    label_smoothed_cross_entropy,
)


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.manual_seed(11)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def assert_same_values_and_gradients(ours: Tensor, other: Tensor, inputs: list[Tensor]) -> None:
    assert torch.allclose(ours, other, atol=1e-9)
    weights = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, weights, retain_graph=True),
        torch.autograd.grad(other, inputs, weights, retain_graph=True),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-9)


# --- chapter 05 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_is_the_explicit_one(masked: bool) -> None:
    q, k, v = rand(2, 3, 5, 7), rand(2, 3, 11, 7), rand(2, 3, 11, 13)
    mask = causal_mask(5, 11) if masked else None
    explicit, weights = scaled_dot_product_attention(q, k, v, mask)
    fused, none = scaled_dot_product_attention(q, k, v, mask, need_weights=False)
    assert none is None and weights is not None
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 5, dtype=torch.float64))
    assert_same_values_and_gradients(explicit, fused, [q, k, v])


@pytest.mark.parametrize(("t", "s"), [(7, 7), (3, 7), (1, 7), (1, 1)])
@pytest.mark.parametrize("need_weights", [False, True])
def test_causal_is_the_causal_mask(t: int, s: int, need_weights: bool) -> None:
    q, k, v = rand(2, 3, t, 5), rand(2, 3, s, 5), rand(2, 3, s, 11)
    by_mask, _ = scaled_dot_product_attention(q, k, v, causal_mask(t, s))
    by_name, weights = scaled_dot_product_attention(q, k, v, "causal", need_weights)
    assert (weights is None) != need_weights
    assert_same_values_and_gradients(by_mask, by_name, [q, k, v])


@pytest.mark.parametrize(
    ("dtype", "t", "training", "fused"),
    [
        (torch.bfloat16, 64, True, False),
        (torch.bfloat16, 64, False, True),
        (torch.bfloat16, 1024, True, True),
        (torch.float32, 64, True, True),
    ],
)
def test_the_faster_way_is_taken(
    dtype: torch.dtype, t: int, training: bool, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training in bfloat16 on a CPU PyTorch's kernel is the slower one, up to long windows."""
    kernel, calls = nn.functional.scaled_dot_product_attention, []

    def watched(*args: Any, **settings: Any) -> Tensor:
        calls.append(settings)
        return kernel(*args, **settings)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched)
    q, k, v = (torch.randn(1, 2, t, 16, requires_grad=training) for _ in range(3))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        ours, weights = scaled_dot_product_attention(q, k, v, "causal", need_weights=False)
    assert weights is None and len(calls) == fused
    assert torch.allclose(ours.float(), kernel(q, k, v, is_causal=True), atol=0.03)


@pytest.mark.parametrize("block_size", [1, 3, 11, 64])
def test_online_softmax_is_attention_also_at_huge_scores(block_size: int) -> None:
    q, k, v = rand(2, 5, 7), rand(2, 11, 7), rand(2, 11, 3)
    ours = online_softmax_attention(100 * q, k, v, block_size)
    explicit, _ = scaled_dot_product_attention(100 * q, k, v)
    assert_same_values_and_gradients(ours, explicit, [q, k, v])


def test_masks_say_who_may_read_whom() -> None:
    assert causal_mask(3).tolist() == [[j <= i for j in range(3)] for i in range(3)]
    assert causal_mask(2, 5).tolist() == [[j <= i + 3 for j in range(5)] for i in range(2)]
    with pytest.raises(ValueError, match="s=2 positions cannot hold t=3"):
        causal_mask(3, 2)
    mask = padding_mask(torch.tensor([2, 0, 4]), 4)
    assert mask.shape == (3, 1, 1, 4)
    assert mask[:, 0, 0].sum(-1).tolist() == [2, 0, 4]
    assert mask[0, 0, 0].tolist() == [True, True, False, False]


def test_self_attention_is_permutation_equivariant() -> None:
    layer, x, order = SelfAttention(7, 5, 3).double(), rand(2, 11, 7), torch.randperm(11)
    output, _ = layer(x)
    shuffled, _ = layer(x[:, order])
    assert torch.allclose(shuffled, output[:, order])
    fused, _ = layer(x, need_weights=False)
    assert torch.allclose(fused, output)


def test_char_attention_sees_its_window_and_never_the_future() -> None:
    model = CharAttention(vocab_size=13, d_model=12, n_layers=2, block_size=9)
    ids = torch.randint(13, (2, 9))
    logits, _ = model(ids)
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 13
    other, weights = model(changed, need_weights=True)
    assert torch.allclose(logits[:, :5], other[:, :5], atol=1e-6)
    assert not torch.allclose(logits[:, 5:], other[:, 5:], atol=1e-6)
    assert all(w.shape == (2, 9, 9) and not w.triu(1).any() for w in weights)
    with pytest.raises(ValueError, match="10 tokens do not fit into a window of 9"):
        model(torch.zeros(1, 10, dtype=torch.long))


# --- chapter 06 -----------------------------------------------------------------------------------


def test_heads_are_cut_by_channel_and_merged_back() -> None:
    x = torch.randn(2, 5, 12)
    heads = split_heads(x, 3)
    assert torch.equal(heads[1, 2], x[1, :, 8:12])
    assert torch.equal(merge_heads(heads), x)
    with pytest.raises(ValueError, match="12 cannot be split into 5"):
        split_heads(x, 5)
    with pytest.raises(ValueError, match="12 cannot be split into 5"):
        MultiHeadAttention(12, 5)


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    """PyTorch keeps the three projections in one matrix."""
    maps = (ours.W_q, ours.W_k, ours.W_v)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([m.weight for m in maps]))
        theirs.out_proj.weight.copy_(ours.W_o.weight)
        if theirs.in_proj_bias is not None:
            theirs.in_proj_bias.copy_(torch.cat([m.bias for m in maps]))
            theirs.out_proj.bias.copy_(ours.W_o.bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention_is_pytorchs(bias: bool, need_weights: bool) -> None:
    ours = MultiHeadAttention(12, 3, bias).double()
    theirs = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True).double()
    copy_attention(ours, theirs)
    q, k, v, mask = rand(2, 5, 12), rand(2, 7, 12), rand(2, 7, 12), causal_mask(5, 7)
    output, weights = ours(q, k, v, mask, need_weights)
    expected, expected_weights = theirs(q, k, v, attn_mask=~mask, average_attn_weights=False)
    assert_same_values_and_gradients(output, expected, [q, k, v])
    if need_weights:
        assert torch.allclose(weights, expected_weights)
    else:
        assert weights is None


def test_sinusoids_are_the_papers() -> None:
    table = sinusoidal_positions(50, 7)
    assert table.shape == (50, 7) and table.dtype == torch.float32
    for p, channel in ((0, 0), (0, 1), (3, 2), (49, 5), (49, 6)):
        angle = p / 10000 ** (2 * (channel // 2) / 7)
        wave = math.cos(angle) if channel % 2 else math.sin(angle)
        assert table[p, channel].item() == pytest.approx(wave, abs=1e-6)


def test_rotary_products_depend_on_distance_alone() -> None:
    q, k = rand(1, 8), rand(1, 8)

    def product(m: int, n: int) -> Tensor:
        rotated = apply_rotary(q, torch.tensor([m])), apply_rotary(k, torch.tensor([n]))
        return (rotated[0] * rotated[1]).sum()

    assert torch.allclose(product(3, 1), product(103, 101))
    assert not torch.allclose(product(3, 1), product(4, 1))
    x, positions = rand(2, 3, 5, 8), torch.arange(5)
    pairs = torch.view_as_complex(x.detach().unflatten(-1, (4, 2)).contiguous())
    angles = positions[:, None] / 100.0 ** (torch.arange(4, dtype=torch.float64) / 4)
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    assert torch.allclose(apply_rotary(x, positions, base=100.0), turned)
    with pytest.raises(ValueError, match="7 cannot be cut into pairs"):
        apply_rotary(torch.zeros(1, 7), torch.zeros(1))


def test_alibi_falls_with_distance() -> None:
    bias = alibi_bias(8, 2, 4)
    assert bias.shape == (8, 2, 4)
    assert bias[0, 1].tolist() == [-1.5, -1.0, -0.5, 0.0]
    assert bias[7, 0].tolist() == [-2 / 256, -1 / 256, 0.0, 0.0]


# --- chapter 07 -----------------------------------------------------------------------------------


def test_norms_are_their_formulas() -> None:
    x = rand(2, 3, 7)
    centered = x - x.mean(-1, keepdim=True)
    layer = LayerNorm(7).double()
    assert torch.allclose(
        layer(x), centered / (centered.pow(2).mean(-1, keepdim=True) + 1e-5) ** 0.5
    )
    rms = RMSNorm(7).double()
    assert torch.allclose(rms(x), x / (x.pow(2).mean(-1, keepdim=True) + 1e-6) ** 0.5)
    assert LayerNorm(7, bias=False).bias is None


def fill(module: nn.Module) -> None:
    """Weights that are nowhere 0 or 1, so that none can be left out unseen."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.1, 0.3)


def copy_linear(ours: nn.Module, theirs: nn.Module) -> None:
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize(("activation", "bias"), [("relu", True), ("gelu", False)])
def test_blocks_are_pytorchs(norm_first: bool, activation: str, bias: bool) -> None:
    ours = TransformerBlock(12, 3, 20, 0.1, norm_first, activation, bias).double().eval()
    theirs = nn.TransformerEncoderLayer(
        12, 3, 20, 0.1, activation, batch_first=True, norm_first=norm_first, bias=bias
    ).double()
    theirs.eval()
    fill(ours)
    copy_attention(ours.attention, theirs.self_attn)
    copy_linear(ours.feed_forward.W_1, theirs.linear1)
    copy_linear(ours.feed_forward.W_2, theirs.linear2)
    copy_linear(ours.norm_1, theirs.norm1)
    copy_linear(ours.norm_2, theirs.norm2)
    x, mask = rand(2, 5, 12), causal_mask(5)
    assert_same_values_and_gradients(ours(x, mask), theirs(x, src_mask=~mask), [x])


@pytest.mark.parametrize("norm_first", [True, False])
def test_decoder_block_is_pytorchs(norm_first: bool) -> None:
    ours = DecoderBlock(12, 3, 20, 0.1, norm_first).double().eval()
    theirs = nn.TransformerDecoderLayer(12, 3, 20, 0.1, batch_first=True, norm_first=norm_first)
    theirs.double().eval()
    fill(ours)
    copy_attention(ours.self_attention, theirs.self_attn)
    copy_attention(ours.cross_attention, theirs.multihead_attn)
    copy_linear(ours.feed_forward.W_1, theirs.linear1)
    copy_linear(ours.feed_forward.W_2, theirs.linear2)
    for i in (1, 2, 3):
        copy_linear(getattr(ours, f"norm_{i}"), getattr(theirs, f"norm{i}"))
    x, memory, lengths = rand(2, 5, 12), rand(2, 7, 12), torch.tensor([7, 4])
    mask = padding_mask(lengths, 7)
    output = ours(x, memory, causal_mask(5), mask)
    expected = theirs(x, memory, tgt_mask=~causal_mask(5), memory_key_padding_mask=~mask[:, 0, 0])
    assert_same_values_and_gradients(output, expected, [x, memory])


def test_feed_forward_refuses_an_unknown_activation() -> None:
    with pytest.raises(ValueError, match="choose one of relu, gelu, gelu_tanh"):
        FeedForward(4, 8, "swish")


def translator() -> Transformer:
    return Transformer(11, 13, 12, 3, 20, 2, 16, pad_id=2, dropout=0.1).double().eval()


def test_transformer_reads_no_padding_and_no_future() -> None:
    model = translator()
    source, target = torch.randint(3, 11, (2, 5)), torch.randint(3, 13, (2, 7))
    logits = model(source, target)
    padded = torch.cat([source, torch.full((2, 3), 2)], dim=1)
    assert torch.allclose(model(padded, target), logits)
    longer = torch.cat([target, torch.randint(3, 13, (2, 2))], dim=1)
    assert torch.allclose(model(source, longer)[:, :7], logits)
    assert torch.allclose(model.decode(target, *model.encode(source)), logits)
    assert not torch.allclose(model(source.flip(1), target), logits)  # order matters
    with pytest.raises(ValueError, match="17 tokens are longer than max_len=16"):
        model.encode(torch.ones(1, 17, dtype=torch.long))


def test_transformer_learns_twenty_pairs() -> None:
    model = Transformer(11, 13, 24, 2, 48, 1, 8, pad_id=0)
    source, target = torch.randint(1, 11, (20, 5)), torch.randint(1, 13, (20, 5))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(120):
        logits = model(source, torch.cat([torch.ones(20, 1).long(), target[:, :-1]], dim=1))
        loss = label_smoothed_cross_entropy(logits, target, 0.0, pad_id=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_is_cross_entropy_against_softened_targets(smoothing: float) -> None:
    logits, targets = rand(2, 5, 7), torch.randint(7, (2, 5))
    targets[1, 3:] = 4  # the padding
    wanted = torch.full((2, 5, 7), smoothing / 7, dtype=torch.float64)
    wanted.scatter_add_(2, targets[..., None], torch.full((2, 5, 1), 1 - smoothing).double())
    each = -(wanted * logits.log_softmax(-1)).sum(-1)
    expected = each[targets != 4].mean()
    ours = label_smoothed_cross_entropy(logits, targets, smoothing, pad_id=4)
    assert torch.allclose(ours, expected)
    nothing = label_smoothed_cross_entropy(logits, torch.full((2, 5), 4), smoothing, pad_id=4)
    assert nothing.item() == 0.0
