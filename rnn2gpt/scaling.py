"""How a loss falls with parameters and tokens, fitted to measured runs (chapter 10).

The form is Hoffmann et al. 2022, equation 2: L(N, D) = E + A / N^α + B / D^β, in nats per token. E
is what no model could do better, the other two terms are what a finite model and a finite text add.

>>> law = ScalingLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # their appendix D.3
>>> f"{law.loss(70e9, 1.4e12):.2f}"
'1.94'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta, for N parameters and D tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, n_parameters: float, n_tokens: float) -> float:
        """The loss that the law expects, in nats per token."""
        return self.E + self.A / n_parameters**self.alpha + self.B / n_tokens**self.beta

    def optimal(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of the least loss for C = 6 · N · D (Hoffmann et al., equation 4).

        >>> law = ScalingLaw(E=1.0, A=400.0, B=400.0, alpha=0.3, beta=0.3)
        >>> [round(size) for size in law.optimal(6e10)]  # with equal terms, N = D
        [100000, 100000]
        """
        both = self.alpha + self.beta
        lean = (self.alpha * self.A / (self.beta * self.B)) ** (1 / both)
        n_parameters = lean * (flops / 6) ** (self.beta / both)
        return n_parameters, flops / (6 * n_parameters)


def fit_scaling_law(
    n_parameters: Sequence[float],
    n_tokens: Sequence[float],
    losses: Sequence[float],
    exponents: Tensor | None = None,
) -> ScalingLaw:
    """The law with the least squared error on the measured losses; five runs or more.

    For given exponents the law is linear in E, A and B, so every pair of `exponents` (those from
    0.02 to 1.5 in steps of 0.02) gets its least squares, and the best pair with no negative part
    wins. Hoffmann et al. minimize a Huber loss of log L by L-BFGS from many starts instead; with
    few points and no outliers the two differ little, and this one cannot end in a local minimum.
    Raises `ValueError` when no pair fits with E, A and B that are not negative.
    """
    grid = torch.arange(1, 76, dtype=torch.float64) * 0.02 if exponents is None else exponents
    n, d, loss = (torch.tensor(x, dtype=torch.float64) for x in (n_parameters, n_tokens, losses))
    alpha, beta = (part.flatten() for part in torch.meshgrid(grid, grid, indexing="ij"))  # (P,)
    middle_n, middle_d = n.log().mean().exp(), d.log().mean().exp()  # so that columns are near 1
    columns = (
        torch.ones(len(alpha), len(loss), dtype=torch.float64),
        (n / middle_n) ** -alpha[:, None],
        (d / middle_d) ** -beta[:, None],
    )
    x = torch.stack(columns, dim=-1)  # (P, runs, 3)
    parts = torch.linalg.lstsq(x, loss.expand(len(alpha), -1)[..., None]).solution  # (P, 3, 1)
    error = (x @ parts - loss[:, None]).square().sum(dim=(1, 2))  # (P,)
    error[(parts < 0).any(dim=1)[:, 0]] = torch.inf
    best = int(error.argmin())
    if not error[best].isfinite():
        raise ValueError("No law of this form fits: some part would have to be negative")
    e, a, b = parts[best, :, 0].tolist()
    alpha_, beta_ = float(alpha[best]), float(beta[best])
    return ScalingLaw(
        E=e,
        A=a * float(middle_n) ** alpha_,
        B=b * float(middle_d) ** beta_,
        alpha=alpha_,
        beta=beta_,
    )
