"""Closed forms that sampled numbers are tested against: methods, section 4. Plain functions, float64, no framework.

Every function that gives a target for a chain average also gives the variance of that average, so that a test can state
its tolerance in standard errors that do not come from the sample itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class ChainAverage(NamedTuple):
    """What one chain's LLC is: its expectation, its variance, and the covariance of nbeta * excess between draws."""

    mean: float
    variance: float
    draw_means: Array  # (T,)
    draw_covariance: Array  # (T, T)

    def stderr(self, num_chains: int) -> float:
        """Standard error of the mean over independent chains."""
        return math.sqrt(self.variance / num_chains)

    def pooled_variance(self, num_chains: int) -> tuple[float, float]:
        """Expected variance over all draws of all chains (ddof 1), and its standard error for near-Gaussian losses.

        E sum (X - grand mean)^2 = sum (Var X_j + (E X_j)^2) - N (Var grand + (E grand)^2); and, X being a sum over many
        coordinates, Cov of two squares is twice the squared covariance.
        """
        size = num_chains * len(self.draw_means)
        second = float(np.mean(np.diag(self.draw_covariance) + self.draw_means**2))
        expected = (second - self.variance / num_chains - self.mean**2) * size / (size - 1)
        spread = 2 * float(np.mean(self.draw_covariance**2)) / num_chains
        return expected, math.sqrt(spread)


def draw_times(num_draws: int, num_burnin_steps: int, num_steps_bw_draws: int) -> NDArray[np.int64]:
    """SGLD step of every draw: t_j = B + j theta."""
    return num_burnin_steps + num_steps_bw_draws * np.arange(num_draws)


def quadratic_llc(
    h: ArrayLike,
    nbeta: float,
    gamma: float,
    eps: float,
    num_draws: int,
    num_burnin_steps: int = 0,
    num_steps_bw_draws: int = 1,
    *,
    slope: ArrayLike = 0.0,
    preconditioner: ArrayLike = 1.0,
    start: ArrayLike = 0.0,
) -> ChainAverage:
    """LLC of one SGLD chain on L = sum slope_i w_i + h_i w_i^2 / 2 around w* = 0, exact at every step size and length.

    The chain is a Gaussian AR(1) in every coordinate: with k = nbeta h + gamma and a = 1 - eps P k / 2, it has mean
    m_t = m + a^t (start - m), m = -nbeta slope / k, variance v_t = eps P (1 + a^2 + ... + a^(2t - 2)) and covariance
    a^|t - s| v_min(s, t). With c that covariance, Cov(L_s, L_t) = c (g + h m_s)(g + h m_t) + h^2 c^2 / 2.
    """
    h, slope, preconditioner, start = (
        np.asarray(x, float) for x in np.broadcast_arrays(h, slope, preconditioner, start)
    )
    times = draw_times(num_draws, num_burnin_steps, num_steps_bw_draws)
    earlier, apart = np.minimum.outer(times, times), np.abs(np.subtract.outer(times, times))
    means, covariance = np.zeros(num_draws), np.zeros((num_draws, num_draws))
    # Copies of one coordinate are common in tests: work through each kind once.
    kinds, counts = np.unique(np.stack([h, slope, preconditioner, start]).reshape(4, -1), axis=1, return_counts=True)
    for (h_i, g_i, p_i, start_i), count in zip(kinds.T, counts, strict=True):
        k = nbeta * h_i + gamma
        a = 1 - eps * p_i * k / 2
        centre = -nbeta * g_i / k if g_i else 0.0
        mean = centre + a**times * (start_i - centre)
        growth = (1 - a ** (2.0 * earlier)) / (1 - a**2) if abs(1 - a**2) > 1e-12 else earlier
        c = a**apart * eps * p_i * growth
        means += count * nbeta * (g_i * mean + h_i / 2 * (np.diag(c) + mean**2))
        force = g_i + h_i * mean
        covariance += count * nbeta**2 * (c * np.outer(force, force) + h_i**2 * c**2 / 2)
    return ChainAverage(float(means.mean()), float(covariance.mean()), means, covariance)


def stationary_variance(h: ArrayLike, nbeta: float, gamma: float, eps: float, preconditioner: ArrayLike = 1.0) -> Array:
    """s_i = 1 / (k_i (1 - eps P_i k_i / 4)): variance of coordinate i of a chain that has run for ever."""
    k = nbeta * np.asarray(h, float) + gamma
    return 1 / (k * (1 - eps * np.asarray(preconditioner, float) * k / 4))


def stationary_llc(h: ArrayLike, nbeta: float, gamma: float, eps: float) -> float:
    """Sum of nbeta h_i s_i / 2."""
    return float(np.sum(nbeta * np.asarray(h, float) * stationary_variance(h, nbeta, gamma, eps)) / 2)


def exact_llc(h: ArrayLike, nbeta: float, gamma: float) -> float:
    """The same without discretization: the sum of nbeta h_i / (2 k_i)."""
    return stationary_llc(h, nbeta, gamma, 0.0)


def stationary_variance_companion(h: ArrayLike, nbeta: float, gamma: float, eps: float) -> float:
    """Sum of (nbeta h_i s_i)^2 / 2: nbeta^2 Var(L) of a chain that has run for ever."""
    return float(np.sum((nbeta * np.asarray(h, float) * stationary_variance(h, nbeta, gamma, eps)) ** 2) / 2)


def chain_spread(
    h: ArrayLike, nbeta: float, gamma: float, eps: float, num_draws: int, num_steps_bw_draws: int = 1
) -> float:
    """Standard deviation of one long chain's LLC: autocorrelation a^(2 theta) of w_i^2 between draws."""
    h = np.asarray(h, float)
    s = stationary_variance(h, nbeta, gamma, eps)
    r = (1 - eps * (nbeta * h + gamma) / 2) ** (2 * num_steps_bw_draws)
    return math.sqrt(float(np.sum((nbeta * h * s) ** 2 / 2 * (1 + r) / (1 - r))) / num_draws)


def off_minimum_shift(h: ArrayLike, slope: ArrayLike, nbeta: float, gamma: float) -> float:
    """What a slope at w* adds to the stationary LLC: minus the sum of (nbeta g_i)^2 (k_i + gamma) / (2 k_i^2)."""
    k = nbeta * np.asarray(h, float) + gamma
    return -float(np.sum((nbeta * np.asarray(slope, float)) ** 2 * (k + gamma) / (2 * k**2)))


def large_localization_llc(trace_of_hessian: float, gradient_norm: float, nbeta: float, gamma: float) -> float:
    """(nbeta / gamma)(Tr H / 2 - nbeta |grad L|^2), the limit for any network."""
    return nbeta / gamma * (trace_of_hessian / 2 - nbeta * gradient_norm**2)


def tilted_minibatch_llc(
    h: float,
    tilts: Array,
    batch_size: int,
    nbeta: float,
    gamma: float,
    eps: float,
    num_draws: int,
    num_burnin_steps: int = 0,
    num_steps_bw_draws: int = 1,
    preconditioner: float = 1.0,
) -> ChainAverage:
    """LLC with minibatches on l_i(w) = h |w|^2 / 2 + tilts_i . w, w* = 0, the tilts adding up to 0 over the samples.

    The minibatch gradient is h w + c_b, with c_b the mean tilt of the minibatch: real minibatch noise, but additive. An
    epoch uses every sample once, M = N / batch_size minibatches, so that within an epoch the c_b add up to 0: with
    S = Cov(c_b), Cov(c_a, c_b) = -S / (M - 1) for two minibatches of one epoch, and 0 between epochs. The chain is
    w_t = sum over s < t of a^(t - 1 - s) (sqrt(eps) xi_s - (eps nbeta / 2) c_s), and a draw sees h |w|^2 / 2 + c_t . w.
    A preconditioner multiplies eps. The variance treats c as Gaussian.
    """
    eps = eps * preconditioner
    num_samples, dimension = tilts.shape
    num_batches = num_samples // batch_size
    # Sampling without replacement: Cov of a mean of m out of N is S (1 - m / N) / m, S with ddof 1.
    of_mean = np.cov(tilts.T, ddof=1).reshape(dimension, dimension) * (1 - batch_size / num_samples) / batch_size
    times = draw_times(num_draws, num_burnin_steps, num_steps_bw_draws)
    steps = np.arange(times[-1] + 1)
    starts = np.arange(0, len(steps), num_batches)  # of the epochs

    def correlated(rows: Array) -> Array:
        """Times Cov(c_s, c_t) / of_mean, (steps, steps): 1 on the diagonal, -1 / (M - 1) in the rest of an epoch."""
        of_epoch = np.add.reduceat(rows, starts, axis=1)[:, steps // num_batches]
        return rows + (rows - of_epoch) / (num_batches - 1)

    a = 1 - eps * (nbeta * h + gamma) / 2
    lag = times[:, None] - 1 - steps[None, :]
    response = np.where(lag >= 0, a ** np.maximum(lag, 0), 0.0)  # (T, steps)
    push = -eps * nbeta / 2 * response
    # Cov(w_s, w_t) = langevin I + noise of_mean; Cov(w_s, c_t) = with_c of_mean; all (T, T)
    langevin = eps * response @ response.T
    pushed = correlated(push)
    noise = pushed @ push.T
    with_c = pushed[:, times]
    between_c = correlated((steps == times[:, None]).astype(float))[:, times]
    trace = float(np.trace(of_mean))
    square = float((of_mean**2).sum())
    means = nbeta * (h / 2 * (dimension * np.diag(langevin) + trace * np.diag(noise)) + trace * np.diag(with_c))
    # Wick: Cov(w_s.w_s, w_t.w_t) = 2 tr(Cww^2), Cov(w_s.w_s, c_t.w_t) = 2 tr(Cwc Cww), and for c_s.w_s with c_t.w_t
    ww_square = dimension * langevin**2 + 2 * langevin * noise * trace + noise**2 * square
    cross = with_c * (langevin * trace + noise * square)  # (s, t): w_s with c_t
    tilt = between_c * (langevin * trace + noise * square) + with_c * with_c.T * square
    covariance = nbeta**2 * (h**2 / 2 * ww_square + h * (cross + cross.T) + tilt)
    return ChainAverage(float(means.mean()), float(covariance.mean()), means, covariance)


def regression_minimum(x: Array, y: Array) -> tuple[Array, Array]:
    """Least-squares weights and residuals e_i = x_i w* - y_i."""
    weights: Array = np.linalg.lstsq(x, y, rcond=None)[0]
    return weights, x @ weights - y


def regression_minibatch_llc(
    x: Array, y: Array, batch_size: int, nbeta: float, gamma: float, eps: float, num_epochs: int, burnin_epochs: int
) -> float:
    """Expected LLC with minibatches on l_i = (x_i w - y_i)^2 / 2 around least squares, exact; one draw a step.

    Every epoch takes one of the N! orders, all equally likely. Given the order, a step is affine in u = w - w*, so the
    mean and the second moment of u follow a linear recursion; averaging over the orders closes it, epoch by epoch.
    Small N only.
    """
    _, residuals = regression_minimum(x, y)
    num_samples, dimension = x.shape
    steps = []  # for each order: for each of its minibatches (Hessian, gradient at w*)
    for order in itertools.permutations(range(num_samples)):
        batches = [list(order[start : start + batch_size]) for start in range(0, num_samples, batch_size)]
        steps.append([(x[b].T @ x[b] / batch_size, x[b].T @ residuals[b] / batch_size) for b in batches])
    mean, second = np.zeros(dimension), np.zeros((dimension, dimension))
    total, count = 0.0, 0
    for epoch in range(burnin_epochs + num_epochs):
        ends = []
        for batches in steps:
            m, q = mean, second
            for hessian, gradient in batches:
                if epoch >= burnin_epochs:
                    total += nbeta * float(gradient @ m + np.trace(hessian @ q) / 2)
                    count += 1
                a = np.eye(dimension) - eps / 2 * (nbeta * hessian + gamma * np.eye(dimension))
                b = -eps / 2 * nbeta * gradient
                m, q = (
                    a @ m + b,
                    a @ q @ a.T + np.outer(a @ m, b) + np.outer(b, a @ m) + np.outer(b, b) + eps * np.eye(dimension),
                )
            ends.append((m, q))
        mean, second = (np.mean([end[i] for end in ends], axis=0) for i in (0, 1))
    return total / count


def _regression_spread(x: Array, nbeta: float, gamma: float, eps: float) -> Array:
    """S = x Sigma x^T, (N, N): covariance of the predictions of the stationary full-batch chain."""
    k = nbeta * x.T @ x / len(x) + gamma * np.eye(x.shape[1])
    return x @ np.linalg.inv(k @ (np.eye(len(k)) - eps * k / 4)) @ x.T


def regression_losses(x: Array, residuals: Array, nbeta: float, gamma: float, eps: float) -> Array:
    """E l_i of the stationary full-batch chain around least squares, (N,): (S_ii + e_i^2) / 2."""
    return (np.diag(_regression_spread(x, nbeta, gamma, eps)) + residuals**2) / 2


def regression_kernel(x: Array, residuals: Array, nbeta: float, gamma: float, eps: float) -> Array:
    """Cov(l_i, l_j) of the same chain, (N, N): S_ij^2 / 2 + e_i e_j S_ij.

    The influence BIF(i, q) is minus this.
    """
    s = _regression_spread(x, nbeta, gamma, eps)
    return s**2 / 2 + np.outer(residuals, residuals) * s


def grid_llc(
    loss: Callable[[Array], Array],
    slope: Callable[[Array], Array],
    nbeta: float,
    gamma: float,
    eps: float,
    num_draws: int,
    num_burnin_steps: int,
    num_steps_bw_draws: int,
    reach: float,
    num_points: int = 401,
    preconditioner: Callable[[Array], Array] = np.ones_like,
) -> ChainAverage:
    """LLC of an SGLD chain on a loss of one weight, any shape: the transition kernel on a grid of |w| <= reach.

    Exact to quadrature error, which is negligible while the noise is several grid spacings and the chain stays inside.
    A preconditioner G(w) that looks at the present position alone multiplies the drift and the variance of the noise.
    """
    w = np.linspace(-reach, reach, num_points)
    scale = (eps * preconditioner(w))[:, None]
    target = w[:, None] - scale / 2 * (nbeta * slope(w) + gamma * w)[:, None]
    kernel = np.exp(-((w[None, :] - target) ** 2) / (2 * scale))
    kernel /= kernel.sum(axis=1, keepdims=True)
    between = np.linalg.matrix_power(kernel, num_steps_bw_draws)
    start = np.zeros(num_points)
    start[num_points // 2] = 1.0
    distribution = start @ np.linalg.matrix_power(kernel, num_burnin_steps)
    value = nbeta * (loss(w) - loss(np.zeros(1)))
    distributions, futures = [distribution], [value]
    for _ in range(num_draws - 1):
        distributions.append(distributions[-1] @ between)
        futures.append(between @ futures[-1])
    p, f = np.stack(distributions), np.stack(futures)
    means = p @ value
    products = (p * value) @ f.T  # (draw s, lag d): E X_s X_(s + d)
    rows, lags = np.minimum.outer(range(num_draws), range(num_draws)), np.arange(num_draws)
    covariance = products[rows, np.abs(np.subtract.outer(lags, lags))] - np.outer(means, means)
    return ChainAverage(float(means.mean()), float(covariance.mean()), means, covariance)


def power_law_llc(degree: int) -> float:
    """1 / degree for L = w^degree at gamma = 0 (degree 2k: 1 / (2k)), the same for every nbeta; also the variance."""
    return 1 / degree


def deep_linear_llc(widths: Sequence[int], rank: int) -> float:
    """Learning coefficient of a deep linear network with these layer widths at the minimal-rank parameter.

    Source: Aoyagi 2024 (theorem 1); M_s = H_s - r.
    """
    excess = [width - rank for width in widths]
    for size in range(2, len(excess) + 1):
        chosen = sorted(excess)[:size]
        rest = sorted(excess)[size:]
        parts = size - 1
        total = sum(chosen)
        if total >= parts * chosen[-1] and (not rest or total < parts * rest[0]):
            break
    a = total - (math.ceil(total / parts) - 1) * parts
    pairs = sum(p * q for p, q in itertools.combinations(chosen, 2))
    regular = (-(rank**2) + rank * (widths[0] + widths[-1])) / 2
    return regular + a * (parts - a) / (4 * parts) - parts * (parts - 1) / 4 * (total / parts) ** 2 + pairs / 2
