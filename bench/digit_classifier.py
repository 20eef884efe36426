"""Which digit a small picture shows: logistic regression on its pixels, to judge pictures that a model has drawn.

Letters: N pictures, P pixels of each, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class DigitClassifier:
    """Fitted weights, for pixels in -1 .. 1."""

    weight: Tensor  # [C, P]
    bias: Tensor  # [C]

    def scores(self, pictures_NP: Tensor) -> Tensor:
        """[N, C]: log-probabilities."""
        return torch.log_softmax(functional.linear(pictures_NP, self.weight, self.bias), dim=1)

    def labels(self, pictures_NP: Tensor) -> Tensor:
        """int64 [N]: the most probable class of each."""
        return self.scores(pictures_NP).argmax(1)

    def accuracy(self, pictures_NP: Tensor, labels_N: Tensor) -> float:
        return (self.labels(pictures_NP) == labels_N).double().mean().item()


def fit(pictures_NP: Tensor, labels_N: Tensor, classes: int = 10, decay: float = 1e-3) -> DigitClassifier:
    """The minimum of the mean cross-entropy and a penalty on the weights, which is one point: no seed is needed."""
    inputs = pictures_NP.double()
    weight = torch.zeros(classes, inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = functional.cross_entropy(functional.linear(inputs, weight, bias), labels_N)
        loss = loss + decay * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    return DigitClassifier(weight.detach().to(pictures_NP.dtype), bias.detach().to(pictures_NP.dtype))
