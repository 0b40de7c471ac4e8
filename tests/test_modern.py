"""The modern GPT: each switch changes what it says, and none breaks what a GPT promises."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from rnn2gpt.attention import causal_mask, scaled_dot_product_attention
from rnn2gpt.checkpoint import MODELS
from rnn2gpt.gpt import GPT, GPTConfig
from rnn2gpt.kv_cache import KVCache
from rnn2gpt.modern import ModernGPT, ModernGPTConfig, UnitNorm, WindowDropout, _turns
from rnn2gpt.multi_head import merge_heads, split_heads
from rnn2gpt.optim import Muon, muon_groups, orthogonalize
from rnn2gpt.positions import apply_rotary

SIZES = {"vocab_size": 13, "block_size": 11, "n_layers": 3, "n_heads": 2, "d_model": 12}
ON = ModernGPTConfig(**SIZES)
SWITCHES = ("rotary", "rms_norm", "qk_norm", "relu_squared", "mixing", "zero_init")
OFF = replace(ON, tied=True, **dict.fromkeys(SWITCHES, False))
ONE_ON = [replace(OFF, **{switch: True}) for switch in SWITCHES]
ONE_OFF = [replace(ON, **{switch: False}) for switch in SWITCHES]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(5)


def scrambled(config: ModernGPTConfig) -> ModernGPT:
    """A model whose every weight is random, so that nothing hides behind a zero."""
    model = ModernGPT(config).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_with_every_switch_off_it_is_the_courses_gpt(bias: bool) -> None:
    ours, gpt = scrambled(replace(OFF, bias=bias)), GPT(GPTConfig(**SIZES, bias=bias)).double()
    gpt.load_state_dict(ours.state_dict())
    ids = torch.randint(13, (4, 11))
    assert torch.allclose(ours(ids)[0], gpt(ids)[0])
    torch.manual_seed(1)
    fresh = GPT(GPTConfig(**SIZES, bias=bias)).state_dict()
    torch.manual_seed(1)
    for name, weight in ModernGPT(replace(OFF, bias=bias)).state_dict().items():
        assert torch.equal(weight, fresh[name]), name


@pytest.mark.parametrize("config", [ON, OFF, *ONE_ON, *ONE_OFF])
def test_it_sees_no_future(config: ModernGPTConfig) -> None:
    model, ids = scrambled(config), torch.randint(13, (4, 11))
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 13
    before, after = model(ids)[0], model(changed)[0]
    assert torch.allclose(after[:, :7], before[:, :7])
    assert not torch.isclose(after[:, 7:], before[:, 7:]).all(dim=-1).any()


@pytest.mark.parametrize("config", [ON, OFF, *ONE_ON, *ONE_OFF])
def test_cached_logits_are_the_uncached(config: ModernGPTConfig) -> None:
    model, ids = scrambled(config), torch.randint(13, (2, 11))
    cache, logits = KVCache.for_model(model, batch_size=2), []
    for piece in ids.split([4, 1, 1, 3, 2], dim=1):
        logits.append(model(piece, cache=cache)[0])
    assert torch.allclose(torch.cat(logits, dim=1), model(ids)[0])
    with pytest.raises(ValueError, match="12 tokens are longer than block_size=11"):
        model(ids[:, :1], cache=cache)


def test_it_starts_at_chance_exactly_and_its_blocks_as_identities() -> None:
    model, ids, targets = ModernGPT(ON), torch.randint(13, (4, 11)), torch.randint(13, (4, 11))
    targets[0, :5] = -100
    assert model(ids, targets)[1].item() == pytest.approx(math.log(13), abs=1e-6)
    x = torch.randn(2, 11, 12)
    assert torch.equal(model.blocks[0](x), x)
    logits = (model := scrambled(ON).float())(ids)[0]
    real = targets != -100
    by_hand = nn.functional.cross_entropy(logits[real], targets[real])
    assert torch.allclose(model(ids, targets)[1], by_hand)


def test_every_weight_learns() -> None:
    ids = torch.randint(13, (4, 11))
    model = scrambled(ON)
    model(ids, ids.roll(-1, 1))[1].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def count(config: ModernGPTConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in ModernGPT(config).parameters())


def test_parameters_that_each_switch_adds_or_takes() -> None:
    added = {switch: count(replace(OFF, **{switch: True})) - count(OFF) for switch in SWITCHES}
    assert added == {
        "rotary": -11 * 12,  # no table of positions
        "rms_norm": -7 * 12,  # no weights in 2 norms a block and the last
        "qk_norm": 3 * 2,  # one number for each head
        "relu_squared": 0,
        "mixing": 3 * 12,  # one for each channel
        "zero_init": 0,
    }
    assert count(replace(OFF, tied=False)) - count(OFF) == 13 * 12


def test_rotary_is_chapter_sixs() -> None:
    """The block's complex product against `apply_rotary`, and distances are all it knows."""
    attention = scrambled(replace(OFF, rotary=True)).blocks[0].attention
    x, at = torch.randn(2, 11, 12, dtype=torch.float64), torch.arange(11)
    q, k, v = (split_heads(W(x), 2) for W in (attention.W_q, attention.W_k, attention.W_v))
    mixed, _ = scaled_dot_product_attention(
        apply_rotary(q, at), apply_rotary(k, at), v, causal_mask(11)
    )
    expected = attention.W_o(merge_heads(mixed))
    for moved in (at, at + 100):
        assert torch.allclose(attention(x, _turns(moved, 6, torch.float64)), expected)
    assert not torch.allclose(attention(x, _turns(2 * at, 6, torch.float64)), expected)


def test_norms_take_away_scale() -> None:
    x = torch.randn(2, 11, 12, dtype=torch.float64)
    for switch, invariant in ((True, False), (False, True)):  # to a constant that is added
        norm = ModernGPT(replace(ON, rms_norm=switch)).double().norm
        assert torch.allclose(norm(10 * x), norm(x), atol=1e-4)
        assert torch.allclose(norm(x + 3), norm(x)) == invariant
    assert torch.allclose(UnitNorm()(x), nn.functional.rms_norm(x, (12,), eps=1e-6))
    zero = torch.zeros(1, 12, requires_grad=True)
    UnitNorm()(zero).sum().backward()
    assert zero.grad is not None and zero.grad.isfinite().all()
    attention = scrambled(replace(OFF, qk_norm=True)).blocks[0].attention
    before = attention(x)
    with torch.no_grad():
        attention.W_q.weight *= 10
        attention.W_k.weight *= 0.1
    assert torch.allclose(attention(x), before, atol=1e-4)


def test_mixing_starts_at_nothing_and_reads_one_token_back() -> None:
    x = torch.randn(1, 11, 12, dtype=torch.float64)
    attention = ModernGPT(replace(OFF, mixing=True)).double().blocks[0].attention
    plain = ModernGPT(OFF).double().blocks[0].attention
    plain.load_state_dict(attention.state_dict(), strict=False)
    assert torch.allclose(attention(x), plain(x))
    nn.init.normal_(attention.mix)
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
    assert torch.allclose(attention(x), plain(x + attention.mix * before))


def test_dropout_takes_the_same_features_all_along_a_window() -> None:
    torch.manual_seed(3)
    drop, x = WindowDropout(0.25), torch.ones(40, 5, 50)
    y = drop(x)
    assert torch.equal(y, y[:, :1].expand_as(y)) and not torch.equal(y[0], y[1])
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x), x)


def test_the_square_of_relu() -> None:
    activation = ModernGPT(ON).blocks[0].feed_forward.activation
    assert activation(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0.0, 0.0, 9.0]


def test_the_loop_can_train_it() -> None:
    architecture = MODELS["modern-gpt"]
    model = architecture.build(architecture.config(**SIZES))
    assert architecture.run(model, torch.randint(13, (2, 11)), None)[0].shape == (2, 11, 13)


# --- Muon -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_orthogonalize_keeps_singular_vectors_and_levels_their_values(
    dtype: torch.dtype, atol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnn2gpt.optim.pick_precision", lambda *_: dtype)
    for rows, columns in ((7, 7), (5, 17), (17, 5)):
        matrices = torch.randn(3, rows, columns) * 100
        level = orthogonalize(matrices)
        assert level.dtype == dtype
        level = level.float()
        assert (torch.linalg.svdvals(level) - 0.95).abs().max() < 0.35
        u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
        inside = u.mT @ level @ vt.mT  # diagonal, if the vectors are kept
        assert torch.allclose(
            inside, torch.diag_embed(inside.diagonal(dim1=-2, dim2=-1)), atol=atol
        )


def test_muon_takes_pytorchs_step() -> None:
    """PyTorch's own Muon, which rounds to bfloat16, agrees to that precision."""
    weight, gradients = torch.randn(24, 16), torch.randn(3, 24, 16)
    ours, theirs = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    settings = {"lr": 0.02, "weight_decay": 0.1}
    muon = Muon([{"params": [ours], "muon": True}], **settings)
    pytorchs = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        pytorchs.step()
    moved = (theirs - weight).abs().max()
    assert (ours - theirs).abs().max() < 0.03 * moved


def test_other_groups_take_adamws_step() -> None:
    torch.manual_seed(2)
    model, same = ModernGPT(ON), ModernGPT(ON)
    same.load_state_dict(model.state_dict())
    muon = Muon(muon_groups(model, 0.1), lr=0.01)
    adamw = torch.optim.AdamW(same.parameters(), lr=0.01, weight_decay=0.1)
    ids = torch.randint(13, (4, 11))
    for network, optimizer in ((model, muon), (same, adamw)):
        network(ids, ids.roll(-1, 1))[1].backward()
        optimizer.step()
    matrices, rest = muon.param_groups[0]["params"], muon.param_groups[1:]
    assert len(matrices) == 3 * 6 and all(p.grad is None for p in matrices)
    assert [len(group["params"]) for group in rest] == [2, 3 * 2]
    theirs = dict(same.named_parameters())
    taken = {id(p) for p in matrices}
    for name, parameter in model.named_parameters():
        if id(parameter) not in taken and parameter.dim() == 2:
            assert torch.equal(parameter, theirs[name]), name


def test_muon_resumes() -> None:
    """A copy that loads the state goes on as the first would have."""
    ids = torch.randint(13, (4, 11))

    def step(model: nn.Module, optimizer: Muon) -> None:
        model(ids, ids.roll(-1, 1))[1].backward()
        optimizer.step()
        optimizer.zero_grad()

    model, copy = ModernGPT(ON), ModernGPT(ON)
    optimizer, other = (Muon(muon_groups(m, 0.1), lr=0.01) for m in (model, copy))
    step(model, optimizer)
    step(model, optimizer)
    copy.load_state_dict(model.state_dict())
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    step(model, optimizer)
    step(copy, other)
    for a, b in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_muon_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match="matrices only"):
        Muon([{"params": [nn.Parameter(torch.zeros(3))], "muon": True}])


def test_tied_tables_are_no_hidden_matrices() -> None:
    for config, tables in ((OFF, 2), (replace(ON, tied=False), 2)):
        hidden, matrices, _ = muon_groups(ModernGPT(config), 0.1)
        assert len(hidden["params"]) == 3 * 6 and len(matrices["params"]) == tables
