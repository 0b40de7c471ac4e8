"""Right answers to chapter 03, each written another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

State = tuple[Tensor, Tensor]
Cell = Callable[..., State]

# --- lstm_cell ----------------------------------------------------------------------------------


def lstm_by_chunks(
    x: Tensor, state: State, W_ih: Tensor, W_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> State:
    h, c = state
    i, f, g, o = (F.linear(x, W_ih, b_ih) + F.linear(h, W_hh, b_hh)).chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm_gate_by_gate(
    x: Tensor, state: State, W_ih: Tensor, W_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> State:
    h, c = state
    n = h.shape[1]
    gates = []
    for k in range(4):
        rows = slice(k * n, (k + 1) * n)
        gates.append(x @ W_ih[rows].T + h @ W_hh[rows].T + b_ih[rows] + b_hh[rows])
    i, f, o = (1 / (1 + torch.exp(-gates[k])) for k in (0, 1, 3))
    new = f * c + i * gates[2].tanh()
    return o * new.tanh(), new


def lstm_by_einsum(
    x: Tensor, state: State, W_ih: Tensor, W_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> State:
    h, c = state
    both = torch.cat([x, h], dim=1)  # (B, I + H)
    weights = torch.cat([W_ih, W_hh], dim=1).reshape(4, h.shape[1], -1)  # (4, H, I + H)
    gates = torch.einsum("bk,ghk->gbh", both, weights) + (b_ih + b_hh).reshape(4, 1, -1)
    c = torch.addcmul(gates[1].sigmoid() * c, gates[0].sigmoid(), gates[2].tanh())
    return gates[3].sigmoid() * c.tanh(), c


# --- gru_cell -----------------------------------------------------------------------------------


def gru_by_chunks(
    x: Tensor, h: Tensor, W_ih: Tensor, W_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    a_r, a_z, a_n = F.linear(x, W_ih, b_ih).chunk(3, dim=1)
    u_r, u_z, u_n = F.linear(h, W_hh, b_hh).chunk(3, dim=1)
    r, z = torch.sigmoid(a_r + u_r), torch.sigmoid(a_z + u_z)
    n = torch.tanh(a_n + r * u_n)
    return n + z * (h - n)


def gru_gate_by_gate(
    x: Tensor, h: Tensor, W_ih: Tensor, W_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    n = h.shape[1]

    def affine(v: Tensor, W: Tensor, b: Tensor, k: int) -> Tensor:
        return v @ W[k * n : (k + 1) * n].T + b[k * n : (k + 1) * n]

    r = torch.sigmoid(affine(x, W_ih, b_ih, 0) + affine(h, W_hh, b_hh, 0))
    z = torch.sigmoid(affine(x, W_ih, b_ih, 1) + affine(h, W_hh, b_hh, 1))
    new = torch.tanh(affine(x, W_ih, b_ih, 2) + r * affine(h, W_hh, b_hh, 2))
    return (1 - z) * new + z * h


def gru_by_einsum(
    x: Tensor, h: Tensor, W_ih: Tensor, W_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    n = h.shape[-1]
    of_x = torch.einsum("bi,khi->kbh", x, W_ih.reshape(3, n, -1)) + b_ih.reshape(3, 1, n)
    of_h = torch.einsum("bj,khj->kbh", h, W_hh.reshape(3, n, n)) + b_hh.reshape(3, 1, n)
    r, z = (of_x[:2] + of_h[:2]).sigmoid()
    return torch.lerp((of_x[2] + r * of_h[2]).tanh(), h, z)


# --- LSTM ---------------------------------------------------------------------------------------


class LayerByLayer(nn.Module):
    """Each layer over the whole text before the next; parameters registered by name."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_layers, self.hidden_size, self.p = num_layers, hidden_size, dropout
        for k in range(num_layers):
            width = input_size if k == 0 else hidden_size
            for name, shape in (
                ("weight_ih", (4 * hidden_size, width)),
                ("weight_hh", (4 * hidden_size, hidden_size)),
                ("bias_ih", (4 * hidden_size,)),
                ("bias_hh", (4 * hidden_size,)),
            ):
                parameter = nn.Parameter(torch.randn(shape) * hidden_size**-0.5)
                self.register_parameter(f"{name}_l{k}", parameter)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        if state is None:
            zeros = x.new_zeros(self.num_layers, len(x), self.hidden_size)
            state = zeros, zeros
        last = []
        for k in range(self.num_layers):
            here = state[0][k], state[1][k]
            weights = (
                getattr(self, f"weight_ih_l{k}"),
                getattr(self, f"weight_hh_l{k}"),
                getattr(self, f"bias_ih_l{k}"),
                getattr(self, f"bias_hh_l{k}"),
            )
            outputs = []
            for x_t in x.unbind(dim=1):
                here = lstm_by_chunks(x_t, here, *weights)
                outputs.append(here[0])
            x = torch.stack(outputs, dim=1)
            if k < self.num_layers - 1:
                x = F.dropout(x, self.p, self.training)
            last.append(here)
        return x, (torch.stack([h for h, _ in last]), torch.stack([c for _, c in last]))


class StepByStep(nn.Module):
    """All layers at one time step before the next step; parameters set as attributes."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers, self.width = range(num_layers), hidden_size
        self.between = nn.Dropout(dropout)
        for k in self.layers:  # biases first: the order of parameters is free
            setattr(self, f"bias_hh_l{k}", nn.Parameter(torch.zeros(4 * hidden_size)))
            setattr(self, f"bias_ih_l{k}", nn.Parameter(torch.zeros(4 * hidden_size)))
            weight = torch.empty(4 * hidden_size, hidden_size)
            setattr(self, f"weight_hh_l{k}", nn.Parameter(nn.init.orthogonal_(weight)))
            weight = torch.empty(4 * hidden_size, hidden_size if k else input_size)
            setattr(self, f"weight_ih_l{k}", nn.Parameter(nn.init.xavier_uniform_(weight)))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        n = self.width
        if state is None:
            state = (
                torch.zeros(len(self.layers), x.size(0), n, dtype=x.dtype, device=x.device),
                torch.zeros(len(self.layers), x.size(0), n, dtype=x.dtype, device=x.device),
            )
        h, c = list(state[0]), list(state[1])
        outputs = []
        for t in range(x.size(1)):
            below = x[:, t]
            for k in self.layers:
                if k > 0:
                    below = self.between(below)
                gates = (
                    below @ getattr(self, f"weight_ih_l{k}").T
                    + h[k] @ getattr(self, f"weight_hh_l{k}").T
                    + getattr(self, f"bias_ih_l{k}")
                    + getattr(self, f"bias_hh_l{k}")
                )
                i, f, g, o = gates.split(n, dim=-1)
                c[k] = f.sigmoid() * c[k] + i.sigmoid() * g.tanh()
                h[k] = o.sigmoid() * c[k].tanh()
                below = h[k]
            outputs.append(below)
        return torch.stack(outputs, 1), (torch.stack(h), torch.stack(c))


class InputsFirst(nn.Module):
    """The input's product for all steps at once, time first inside, PyTorch's cell for a step."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_layers, self.dropout = num_layers, dropout
        twin = nn.ParameterDict()
        for k in range(num_layers):
            twin[f"weight_ih_l{k}"] = torch.rand(4 * hidden_size, hidden_size if k else input_size)
            twin[f"weight_hh_l{k}"] = torch.rand(4 * hidden_size, hidden_size)
            twin[f"bias_ih_l{k}"] = torch.rand(4 * hidden_size)
            twin[f"bias_hh_l{k}"] = torch.rand(4 * hidden_size)
        for name, parameter in twin.items():
            self.register_parameter(name, nn.Parameter((2 * parameter - 1) / hidden_size**0.5))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        weights = dict(self.named_parameters())
        x = x.transpose(0, 1)  # (B, T, I) → (T, B, I)
        hs, cs = [], []
        for k in range(self.num_layers):
            W_hh, bias = weights[f"weight_hh_l{k}"], weights[f"bias_hh_l{k}"]
            from_x = F.linear(x, weights[f"weight_ih_l{k}"], weights[f"bias_ih_l{k}"])  # (T, B, 4H)
            h = c = x.new_zeros(x.shape[1], W_hh.shape[1])
            if state is not None:
                h, c = state[0][k], state[1][k]
            outputs = []
            for row in from_x:
                i, f, g, o = (row + F.linear(h, W_hh, bias)).chunk(4, -1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                outputs.append(h)
            x = torch.stack(outputs)  # (T, B, H)
            if k + 1 < self.num_layers and self.training and self.dropout > 0:
                kept = torch.rand_like(x) >= self.dropout
                x = x * kept / (1 - self.dropout)
            hs.append(h)
            cs.append(c)
        return x.transpose(0, 1), (torch.stack(hs), torch.stack(cs))


# --- detach_state -------------------------------------------------------------------------------


def detach_by_kind(state: Any) -> Any:
    if state is None:
        return None
    if isinstance(state, tuple):
        return tuple(part.detach() for part in state)
    return state.detach()


def detach_by_recursion(state: Any) -> Any:
    if isinstance(state, tuple):
        return tuple(map(detach_by_recursion, state))
    return state if state is None else state.detach().clone()


def detach_by_tree(state: Any) -> Any:
    return tree_map(lambda x: x.data.requires_grad_() if torch.is_tensor(x) else x, state)


# --- generate -----------------------------------------------------------------------------------


@torch.no_grad()
def by_multinomial(
    model: Callable[..., Any],
    ids: Tensor,
    n_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    text, token, state = [ids], ids, None
    for _ in range(n_tokens):
        logits, state = model(token, state)
        if temperature == 0:
            token = logits[:, -1].argmax(dim=-1, keepdim=True)
        else:
            p = F.softmax(logits[:, -1] / temperature, dim=-1).cpu()
            token = torch.multinomial(p, num_samples=1, generator=generator).to(ids.device)
        text.append(token)
    return torch.cat(text, dim=1)


def by_gumbel(
    model: Callable[..., Any],
    ids: Tensor,
    n_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The argmax of logits / temperature + Gumbel noise; reads one token more than it needs."""
    logits, state = model(ids, None)
    for _ in range(n_tokens):
        scores = logits[:, -1].detach()
        if temperature > 0:
            noise = torch.rand(scores.shape, generator=generator, dtype=torch.float64)
            scores = scores / temperature - torch.log(-torch.log(noise)).to(scores.device)
        token = scores.argmax(-1)[:, None]
        ids = torch.cat([ids, token], dim=1)
        logits, state = model(token, state=state)
    return ids


def by_cumulative(
    model: Callable[..., Any],
    ids: Tensor,
    n_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One uniform number a row, looked up in the cumulative distribution."""
    n_rows, n_prompt = ids.shape
    text = ids.new_empty(n_rows, n_prompt + n_tokens)
    text[:, :n_prompt] = ids
    new, state = ids, None
    for t in range(n_prompt, n_prompt + n_tokens):
        logits, state = model(new, state)
        last = logits[:, -1, :].double()
        if temperature == 0.0:
            text[:, t] = last.max(dim=1).indices
        else:
            weights = ((last - last.amax(1, keepdim=True)) / temperature).exp()
            sums = weights.cumsum(1)  # (B, V)
            u = torch.rand(n_rows, 1, generator=generator, dtype=torch.float64).to(ids.device)
            index = torch.searchsorted(sums, u * sums[:, -1:], right=True)
            text[:, t] = index.squeeze(1).clamp(max=last.shape[1] - 1)
        new = text[:, t : t + 1]
    return text


ANSWERS = {
    "lstm_cell": [lstm_by_chunks, lstm_gate_by_gate, lstm_by_einsum],
    "gru_cell": [gru_by_chunks, gru_gate_by_gate, gru_by_einsum],
    "LSTM": [LayerByLayer, StepByStep, InputsFirst],
    "detach_state": [detach_by_kind, detach_by_recursion, detach_by_tree],
    "generate": [by_multinomial, by_gumbel, by_cumulative],
}
