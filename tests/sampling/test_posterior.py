"""The gradient is the gradient of minus the log density."""

import torch

from slt_callbacks.sampling.posterior import LocalPosterior


def test_gradient_is_that_of_minus_the_log_density_and_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    weights, anchor = (torch.randn(5, dtype=torch.float64, generator=generator) for _ in range(2))
    posterior = LocalPosterior(nbeta=7.0, localization=3.0)
    leaf = weights.clone().requires_grad_()
    loss = leaf.pow(3).sum()
    minus_log_density = 7.0 * loss + 1.5 * (leaf - anchor).square().sum()
    (expected,) = torch.autograd.grad(minus_log_density, leaf)
    slope = 3 * weights**2
    inputs = slope.clone(), weights.clone(), anchor.clone()
    torch.testing.assert_close(posterior.gradient(*inputs), expected)
    assert all(torch.equal(one, other) for one, other in zip(inputs, (slope, weights, anchor), strict=True))


def test_gradient_takes_chains_in_front() -> None:
    posterior = LocalPosterior(nbeta=2.0, localization=1.0)
    weights, slope, anchor = torch.randn(3, 5), torch.randn(3, 5), torch.randn(5)
    together = posterior.gradient(slope, weights, anchor)
    for chain in range(3):
        torch.testing.assert_close(together[chain], posterior.gradient(slope[chain], weights[chain], anchor))
