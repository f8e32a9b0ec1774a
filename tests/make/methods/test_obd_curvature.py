"""Optimal Brain Damage against finite differences on a tiny network: its curvature, its forecast, its choice."""

import torch
from torch import Tensor

from sizewise.make.methods.obd import obd


class Mlp:
    """8 inputs, 6 hidden features, 4 classes, in float64; the loss is that of labels which it gives itself.

    On the average over its own labels a model is at its minimum, and the mean square gradient is the curvature.
    """

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.first = torch.randn(6, 8, generator=draw, dtype=torch.float64) * 0.1
        self.last = torch.randn(4, 6, generator=draw, dtype=torch.float64)
        self.inputs = torch.randn(20, 8, generator=draw, dtype=torch.float64)
        self.labels = self.logits(self.first).softmax(-1)

    def logits(self, first: Tensor) -> Tensor:
        return (self.inputs @ first.T).tanh() @ self.last.T

    def loss(self, first: Tensor) -> float:
        return float(-(self.labels * self.logits(first).log_softmax(-1)).sum(-1).mean())

    def root_mean_square_gradient(self) -> Tensor:
        """Over tokens, and over the labels that each could have."""
        total = torch.zeros_like(self.first)
        for token in range(len(self.inputs)):
            for label in range(4):
                first = self.first.clone().requires_grad_()
                loss = -self.logits(first)[token].log_softmax(-1)[label]
                total += self.labels[token, label] * torch.autograd.grad(loss, first)[0].square()
        return (total / len(self.inputs)).sqrt()

    def moved(self, place: int, by: float) -> Tensor:
        return self.first.flatten().index_add(0, torch.tensor([place]), torch.tensor([by]).double()).view(6, 8)


def test_the_mean_square_gradient_is_the_curvature_of_finite_differences() -> None:
    net, step = Mlp(), 1e-4
    middle = net.loss(net.first)
    found = [
        (net.loss(net.moved(at, step)) - 2 * middle + net.loss(net.moved(at, -step))) / step**2 for at in range(48)
    ]
    expected = torch.tensor(found, dtype=torch.float64).view(6, 8)
    torch.testing.assert_close(net.root_mean_square_gradient().square(), expected, rtol=1e-4, atol=1e-6)


def test_what_goes_is_what_finite_differences_would_drop_and_costs_what_was_said() -> None:
    net = Mlp()
    gradient, middle = net.root_mean_square_gradient(), net.loss(net.first)
    real = torch.tensor([net.loss(net.moved(at, -float(net.first.flatten()[at]))) - middle for at in range(48)])
    said = (net.first * gradient).square().flatten() / 2
    assert ((said - real).abs() <= 0.35 * real).all()  # the rest is of third order in the weight
    assert ((said - real).abs() / real).median() < 0.1
    gone = (obd(net.first, gradient, sparsity=12 / 48) == 0).flatten()
    dropped = net.loss(net.first.masked_fill(gone.view(6, 8), 0.0)) - middle
    least = real.sort().values[:12].sum()
    assert float(real[gone].sum()) <= 1.05 * float(least)
    assert 0 < dropped < 0.25 * float(real.sort().values[-12:].sum())
