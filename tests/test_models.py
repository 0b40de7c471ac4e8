"""The package's fused models against explicit arithmetic, closed forms and autograd."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rnn2gpt.lstm import LSTM, CharLSTM, detach_state, generate, gru_cell, lstm_cell
from rnn2gpt.metrics import bits_per_character, cross_entropy, perplexity
from rnn2gpt.ngram import KneserNey, KneserNeyConfig, bigram_counts, bigram_probabilities
from rnn2gpt.rnn import CharRNN, clip_grad_norm_, rnn_backward, rnn_cell, rnn_forward
from rnn2gpt.seq2seq import CharLSTMAttention


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def assert_same_values_and_gradients(ours: Tensor, explicit: Tensor, inputs: list[Tensor]) -> None:
    assert torch.allclose(ours, explicit, atol=1e-10)
    weights = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, weights),
        torch.autograd.grad(explicit, inputs, weights),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-10)


# --- metrics ------------------------------------------------------------------------------------


def test_metrics_agree_with_each_other() -> None:
    logits, targets = torch.randn(5, 7, dtype=torch.float64) * 50, torch.tensor([0, 6, 2, 2, 5])
    p = torch.softmax(logits, dim=1)
    by_hand = -sum(math.log(p[n, t]) for n, t in enumerate(targets.tolist())) / 5
    nats = cross_entropy(logits, targets).item()
    assert nats == pytest.approx(by_hand)
    assert perplexity(nats) == pytest.approx(math.exp(by_hand))
    # 100 tokens of 4 characters: bits per character are a quarter of bits per token.
    assert bits_per_character(nats, 100, 400) == pytest.approx(nats / math.log(2) / 4)


# --- counting -----------------------------------------------------------------------------------


def test_bigram_counts_and_probabilities() -> None:
    ids = torch.randint(5, (301,))
    counts = bigram_counts(ids, 6)
    expected = Counter(zip(ids.tolist(), ids.tolist()[1:], strict=False))
    assert all(counts[i, j] == expected[i, j] for i in range(6) for j in range(6))
    p = bigram_probabilities(counts, alpha=0.0)
    assert torch.allclose(p.sum(dim=1), torch.ones(6))
    assert torch.allclose(p[5], torch.full((6,), 1 / 6))  # token 5 was never seen
    assert torch.allclose(p[0], counts[0] / counts[0].sum())
    assert torch.allclose(bigram_probabilities(counts)[0], (counts[0] + 1) / (counts[0].sum() + 6))


def kneser_ney_by_definition(text: list[int], context: list[int], token: int, v: int) -> float:
    """Chen & Goodman's recursion for order len(context) + 1, written out on dicts."""

    def discount(counts: Counter[tuple[int, ...]]) -> list[float]:
        n = [sum(1 for c in counts.values() if c == k) for k in range(5)]
        if n[1] and n[2] and n[3]:
            y = n[1] / (n[1] + 2 * n[2])
            d = [0.0] + [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
            if min(d[1:]) > 0:
                return d
        return [0, 0.5, 1.0, 1.5]

    def grams(k: int) -> list[tuple[int, ...]]:
        return [tuple(text[i : i + k]) for i in range(len(text) - k + 1)]

    def probability(history: tuple[int, ...], top: bool) -> float:
        k = len(history) + 1
        counts = Counter(grams(k) if top else (g[1:] for g in set(grams(k + 1))))
        d = discount(counts)
        lower = probability(history[1:], False) if history else 1 / v
        of_history = {g: c for g, c in counts.items() if g[:-1] == history}
        if not of_history:
            return lower
        total = sum(of_history.values())
        left_over = sum(d[min(c, 3)] for c in of_history.values()) / total
        c = of_history.get((*history, token), 0)
        return (c - d[min(c, 3)]) / total + left_over * lower

    return probability(tuple(context), True)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_kneser_ney_is_its_definition(order: int) -> None:
    v = 6
    text = torch.multinomial(torch.tensor([8.0, 5, 3, 2, 1, 0.3]), 400, replacement=True)
    model = KneserNey.fit(text, KneserNeyConfig(vocab_size=v + 1, order=order))
    for context in [*text.unfold(0, max(1, order - 1), 37)[:8].tolist(), [v] * order]:
        context = context[len(context) - (order - 1) :]
        p = model.next_probabilities(torch.tensor(context, dtype=torch.int64))
        expected = [
            kneser_ney_by_definition(text.tolist(), context, t, v + 1) for t in range(v + 1)
        ]
        assert p.tolist() == pytest.approx(expected)
        assert p.sum().item() == pytest.approx(1)
        assert (p > 0).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=5, max_size=80), st.integers(1, 5))
def test_kneser_ney_is_a_distribution_after_any_text(numbers: list[int], order: int) -> None:
    ids = torch.tensor(numbers)
    model = KneserNey.fit(ids, KneserNeyConfig(vocab_size=4, order=order))
    for end in range(len(ids) + 1):
        p = model.next_probabilities(ids[:end])
        assert p.sum().item() == pytest.approx(1)
        assert (p > 0).all()


def test_kneser_ney_nll_is_the_chain_of_its_predictions() -> None:
    train, held_out = torch.randint(5, (500,)), torch.randint(5, (40,))
    model = KneserNey.fit(train, KneserNeyConfig(vocab_size=5, order=4))
    expected = [
        -model.next_probabilities(held_out[:t]).log()[held_out[t]].item() for t in range(1, 40)
    ]
    assert model.nll(held_out).tolist() == pytest.approx(expected)
    again = KneserNey.from_state_dict(model.config, model.state_dict())
    assert torch.equal(again.nll(held_out), model.nll(held_out))
    # With a carried state, one token at a time, as `generate` calls it.
    logits, state = model(held_out[None, :30])
    stepped, _ = model(held_out[None, 30:31], state)
    whole, _ = model(held_out[None, :31])
    assert torch.allclose(stepped[0, 0], whole[0, 30])
    assert torch.allclose(logits[0], whole[0, :30])


def test_kneser_ney_refuses_what_it_cannot_count() -> None:
    with pytest.raises(ValueError, match="order=0"):
        KneserNeyConfig(vocab_size=5, order=0)
    with pytest.raises(ValueError, match="64 bits"):
        KneserNeyConfig(vocab_size=100, order=10)
    with pytest.raises(ValueError, match="too few"):
        KneserNey.fit(torch.arange(3), KneserNeyConfig(vocab_size=5, order=4))


# --- recurrent ----------------------------------------------------------------------------------


def test_rnn_cell_and_forward_are_the_explicit_recurrence() -> None:
    x, h0, W_xh, W_hh, b = rand(2, 5, 3), rand(2, 7), rand(3, 7), rand(7, 7), rand(7)
    inputs = [x, h0, W_xh, W_hh, b]
    assert_same_values_and_gradients(
        rnn_cell(x[:, 0], h0, W_xh, W_hh, b),
        torch.tanh(x[:, 0] @ W_xh + h0 @ W_hh + b),
        inputs,
    )
    h, hs = h0, []
    for t in range(5):
        h = torch.tanh(x[:, t] @ W_xh + h @ W_hh + b)
        hs.append(h)
    assert_same_values_and_gradients(rnn_forward(*inputs), torch.stack(hs, dim=1), inputs)


def test_rnn_backward_is_autograd() -> None:
    x, h0, W_xh, W_hh, b = rand(2, 11, 3), rand(2, 7), rand(3, 7), rand(7, 7), rand(7)
    hs = rnn_forward(x, h0, W_xh, W_hh, b)
    dhs = torch.randn_like(hs)
    expected = torch.autograd.grad(hs, (x, h0, W_xh, W_hh, b), dhs)
    for ours, auto in zip(rnn_backward(dhs, x, hs, h0, W_xh, W_hh), expected, strict=True):
        assert torch.allclose(ours, auto, atol=1e-10)
        assert not ours.requires_grad


def test_clip_grad_norm_scales_only_when_too_long() -> None:
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert clip_grad_norm_((p for p in (a, b, c)), 10.0).item() == pytest.approx(5)
    assert a.grad.tolist() == [3, 0]
    assert clip_grad_norm_([a, b, c], 1.0).item() == pytest.approx(5)
    assert torch.cat([a.grad, b.grad]).tolist() == pytest.approx([0.6, 0, 0, 0.8], abs=1e-5)


def gates(x: Tensor, h: Tensor, W_ih: Tensor, W_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    return x @ W_ih.T + b_ih + h @ W_hh.T + b_hh


def test_lstm_cell_is_the_explicit_one() -> None:
    x, h, c = rand(2, 3), rand(2, 5), rand(2, 5)
    weights = [rand(20, 3), rand(20, 5), rand(20), rand(20)]
    i, f, g, o = gates(x, h, *weights).chunk(4, dim=1)
    c_next = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h_next = torch.sigmoid(o) * torch.tanh(c_next)
    ours = torch.cat(lstm_cell(x, (h, c), *weights))
    assert_same_values_and_gradients(ours, torch.cat([h_next, c_next]), [x, h, c, *weights])


def test_gru_cell_is_the_explicit_one() -> None:
    x, h = rand(2, 3), rand(2, 5)
    W_ih, W_hh, b_ih, b_hh = weights = [rand(15, 3), rand(15, 5), rand(15), rand(15)]
    from_x = (x @ W_ih.T + b_ih).chunk(3, dim=1)
    from_h = (h @ W_hh.T + b_hh).chunk(3, dim=1)
    r, z = torch.sigmoid(from_x[0] + from_h[0]), torch.sigmoid(from_x[1] + from_h[1])
    n = torch.tanh(from_x[2] + r * from_h[2])
    assert_same_values_and_gradients(
        gru_cell(x, h, *weights), (1 - z) * n + z * h, [x, h, *weights]
    )


def test_lstm_is_the_cell_unrolled_over_layers() -> None:
    layer = LSTM(3, 5, num_layers=2).double()
    x, h0, c0 = rand(2, 6, 3), rand(2, 2, 5), rand(2, 2, 5)
    output, (h, c) = layer(x, (h0, c0))
    below, last = x, []
    for k in range(2):
        weights = [
            getattr(layer, f"{n}_l{k}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        state, outputs = (h0[k], c0[k]), []
        for t in range(6):
            state = lstm_cell(below[:, t], state, *weights)
            outputs.append(state[0])
        below = torch.stack(outputs, dim=1)
        last.append(state)
    explicit = torch.cat([below.flatten(), *(s.flatten() for hc in last for s in hc)])
    fused = torch.cat(
        [output.flatten(), h[0].flatten(), c[0].flatten(), h[1].flatten(), c[1].flatten()]
    )
    assert_same_values_and_gradients(fused, explicit, [x, h0, c0, *layer.parameters()])


@pytest.mark.parametrize(
    "build",
    [
        CharRNN,
        CharLSTM,
        lambda v, d: CharLSTMAttention(v, d, window=20),
        lambda v, d: CharLSTMAttention(v, d, window=3),
    ],
)
def test_language_models_carry_their_state_and_never_see_the_future(
    build: Callable[[int, int], nn.Module],
) -> None:
    model = build(11, 8)
    ids = torch.randint(11, (3, 9))
    logits, state = model(ids)
    assert logits.shape == (3, 9, 11)
    first, carried = model(ids[:, :4])
    rest, end = model(ids[:, 4:], carried)
    assert torch.allclose(torch.cat([first, rest], dim=1), logits, atol=1e-6)
    changed = ids.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 11
    assert torch.equal(model(changed)[0][:, :6], logits[:, :6])
    assert not torch.allclose(model(changed)[0][:, 6:], logits[:, 6:])
    for a, b in zip(end, state, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_lstm_attention_mixes_its_last_states() -> None:
    """The fused attention against a loop over positions, in values and gradients."""
    model, ids = CharLSTMAttention(11, 8, window=3).double(), torch.randint(11, (2, 7))
    logits, _ = model(ids)
    states, _ = model.lstm(model.embedding(ids))
    read = []
    for t in range(7):
        keys = states[:, max(0, t - 2) : t + 1]  # (B, up to 3, D)
        scores = torch.einsum("bd,bsd->bs", model.W_a(states[:, t]), keys)
        context = torch.einsum("bs,bsd->bd", scores.softmax(dim=-1), keys)
        read.append(torch.tanh(model.W_c(torch.cat([context, states[:, t]], dim=-1))))
    explicit = model.head(torch.stack(read, dim=1))
    assert_same_values_and_gradients(logits, explicit, list(model.parameters()))


def test_forget_gates_start_open() -> None:
    model = CharLSTM(11, 8, n_layers=2)
    for k in range(2):
        bias = getattr(model.lstm, f"bias_ih_l{k}")
        assert torch.equal(bias[8:16], torch.ones(8))
        assert not (bias[:8] == 1).any()


def test_detach_state() -> None:
    h, c = rand(2, 3) * 2, rand(2, 3) * 2
    detached = detach_state((h, c))
    assert isinstance(detached, tuple) and not any(s.requires_grad for s in detached)
    assert torch.equal(detached[1], c)
    assert not detach_state(h).requires_grad
    assert detach_state(None) is None


class Successor:
    """Says that i + 1 follows i, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], int | None]] = []

    def __call__(self, ids: Tensor, state: int | None) -> tuple[Tensor, int]:
        self.asked.append((ids[0].tolist(), state))
        return nn.functional.one_hot((ids + 1) % 10, 10) * 4.0, (state or 0) + ids.shape[1]


def test_generate_feeds_each_token_once() -> None:
    model = Successor()
    heard: list[int] = []
    ids = generate(model, torch.tensor([[3, 4]]), 4, 0.0, on_token=lambda t: heard.append(t.item()))
    assert ids.tolist() == [[3, 4, 5, 6, 7, 8]]
    assert model.asked == [([3, 4], None), ([5], 2), ([6], 3), ([7], 4)]
    assert heard == [5, 6, 7, 8]


def test_generate_divides_by_the_temperature() -> None:
    prompt = torch.full((20000, 1), 2)
    generator = torch.Generator().manual_seed(1)
    for temperature in (0.5, 2.0):
        ids = generate(Successor(), prompt, 1, temperature, generator)
        p = math.exp(4 / temperature) / (math.exp(4 / temperature) + 9)
        assert (ids[:, 1] == 3).double().mean().item() == pytest.approx(p, abs=0.015)
    with pytest.raises(ValueError, match="temperature=-1"):
        generate(Successor(), prompt, 1, -1)
    with pytest.raises(ValueError, match="prompt is empty"):
        generate(Successor(), prompt[:, :0], 1)
