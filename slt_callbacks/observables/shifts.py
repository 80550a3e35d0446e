"""Numbers that say what a kernel or an influence matrix looks like, and how it moved since the last measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch


def effective_rank(kernel: torch.Tensor) -> float:
    r"""Exponential of the entropy of the spectrum: how many directions the samples' losses move in.

    .. math:: \exp\Big(-\sum_k p_k \ln p_k\Big), \quad p_k = \lambda_k / \sum_l \lambda_l

    Args:
        kernel: Positive semi-definite, ``(N, N)``.

    Returns:
        Between 1 and N; NaN for a kernel of zeros. From T draws of C chains it cannot exceed C T - 1.

    Source: Roy and Vetterli 2007.

    Example:
        >>> round(effective_rank(torch.eye(3)), 6), round(effective_rank(torch.ones(3, 3)), 3)
        (3.0, 1.0)
    """
    if not bool(kernel.isfinite().all()):
        return math.nan
    spectrum = torch.linalg.eigvalsh(kernel.double()).clamp(min=0.0)
    total = spectrum.sum()
    return float(torch.special.entr(spectrum / total).sum().exp()) if total > 0 else math.nan


def alignment(a: torch.Tensor, b: torch.Tensor) -> float:
    r"""Centred kernel alignment (CKA): 1 for the same geometry, near 0 for unrelated ones.

    .. math:: \frac{\langle HaH, HbH \rangle}{\|HaH\| \|HbH\|}, \quad H = I - \frac{1}{N} 1 1^T

    Args:
        a: Symmetric, ``(N, N)``.
        b: Likewise.

    Returns:
        Within [0, 1] for positive semi-definite kernels; NaN where centring leaves nothing of one.

    Source: Kornblith et al. 2019 (arXiv 1905.00414), equation 4.

    Example:
        >>> kernel = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
        >>> round(alignment(kernel, 5 * kernel), 6)
        1.0
    """
    return cosine(_double_centred(a), _double_centred(b))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Cosine of the angle between two matrices of one shape, each read as a vector; NaN where one is zero.

    Within [-1, 1], which rounding would leave.

    Example:
        >>> cosine(torch.eye(2), torch.ones(2, 2)) == 2 / 2 ** 0.5 / 2
        True
    """
    a, b = a.double(), b.double()
    scale = float(a.norm() * b.norm())
    return float(((a * b).sum() / scale).clamp(-1.0, 1.0)) if scale > 0 else math.nan


def label_kernel(labels: torch.Tensor) -> torch.Tensor:
    """1 where two samples share their class, else 0; ``(N, N)`` float64 from class numbers ``(N,)``.

    Example:
        >>> label_kernel(torch.tensor([0, 1, 0]))[0].tolist()
        [1.0, 0.0, 1.0]
    """
    return (labels[:, None] == labels[None, :]).double()


def class_contrast(correlation: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean correlation of two different samples of one class, minus that of two samples of different classes.

    Args:
        correlation: ``(N, N)``; a sample whose loss never varied counts with its zeros.
        labels: Class numbers ``(N,)``.

    Returns:
        Within [-2, 2]; NaN without pairs of both kinds.

    Example:
        >>> class_contrast(torch.eye(3) + 0.5 * label_kernel(torch.tensor([0, 1, 0])), torch.tensor([0, 1, 0]))
        0.5
    """
    same = label_kernel(labels).bool()
    different = ~same
    same = same & ~torch.eye(len(labels), dtype=torch.bool, device="cpu")
    if not (same.any() and different.any()):
        return math.nan
    return float(correlation[same].mean() - correlation[different].mean())


@dataclass(frozen=True)
class Course:
    """How statistics ``(K,)`` have moved over the measurements: their last certain sign, and their last turn.

    A value is an estimate with a standard error, and what counts is what is certain: a sign whose interval excludes 0;
    a rise or fall whose interval of the difference excludes 0. All of shape ``(K,)``.

    Attributes:
        certain: Last value with a certain sign; 0 where there was none yet.
        direction: Last certain movement, -1, 0 or 1.
        low: Lowest value since the last fall began.
        low_error: Its standard error.
        high: Highest value since the last rise began.
        high_error: Its standard error.
    """

    certain: torch.Tensor
    direction: torch.Tensor
    low: torch.Tensor
    low_error: torch.Tensor
    high: torch.Tensor
    high_error: torch.Tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        """The fields by name, in single precision and `direction` in one byte: 21 bytes a statistic.

        Signs and movements are exact; a value is a millionth part of its standard error off at worst.
        """
        dtypes = {"direction": torch.int8}
        return {item.name: getattr(self, item.name).to(dtypes.get(item.name, torch.float32)) for item in fields(self)}


@dataclass(frozen=True)
class Turns:
    """What a measurement has shown: which statistics flipped their sign or left a peak behind, bool ``(K,)``.

    Attributes:
        flipped: The sign is certain, and the opposite of the last certain one.
        peaked: A certain rise has ended in a certain fall, or the reverse.
        before: What the value has turned from, ``(K,)``: the last certain one at a flip, the extreme one at a peak; NaN
            elsewhere.
    """

    flipped: torch.Tensor
    peaked: torch.Tensor
    before: torch.Tensor


def follow(
    course: Course | None, value: torch.Tensor, error: torch.Tensor, sign_limit: float, turn_limit: float
) -> tuple[Course, Turns | None]:
    """Go on with one more measurement.

    Args:
        course: Before it; None at the first.
        value: Statistics ``(K,)``.
        error: Standard errors ``(K,)``, or NaN where nothing is certain.
        sign_limit: How many standard errors from zero make a certain sign.
        turn_limit: How many standard errors of a difference make a certain rise or fall. It has to be larger, for the
            difference is taken to the highest or lowest of many measurements.

    Returns:
        The course with this measurement, and what it showed; None at the first.

    Example:
        >>> course, error = None, torch.tensor([0.1])
        >>> for value in (0.5, 0.1, -0.5, 0.5):  # 0.1 is not certain, so it neither flips nor shields from a flip
        ...     course, turns = follow(course, torch.tensor([value]), error, 2.0, 3.0)
        ...     print(turns and (turns.flipped.item(), turns.peaked.item()))
        None
        (False, False)
        (True, False)
        (True, True)
    """
    certain = value.abs() > sign_limit * error
    if course is None:
        return Course(torch.where(certain, value, 0.0), torch.zeros_like(value), value, error, value, error), None
    flipped = certain & (value.sign() == -course.certain.sign())
    risen = value - course.low > turn_limit * torch.hypot(error, course.low_error)
    fallen = course.high - value > turn_limit * torch.hypot(error, course.high_error)
    # Where both are certain the movement that goes on is the news.
    up = risen & ((course.direction < 0) | ((course.direction == 0) & ~fallen))
    down = fallen & ((course.direction > 0) | ((course.direction == 0) & ~risen))
    direction = torch.where(up, 1.0, torch.where(down, -1.0, course.direction))
    # A value without an error (NaN) can be no extreme: nothing would ever be certain against it.
    sound = error.isfinite()
    lower = sound & (down | (value < course.low) | course.low_error.isnan())
    higher = sound & (up | (value > course.high) | course.high_error.isnan())
    now = Course(
        torch.where(certain, value, course.certain),
        direction,
        torch.where(lower, value, course.low),
        torch.where(lower, error, course.low_error),
        torch.where(higher, value, course.high),
        torch.where(higher, error, course.high_error),
    )
    peaked = (up | down) & (course.direction != 0)
    extreme = torch.where(peaked, torch.where(down, course.high, course.low), torch.nan)
    return now, Turns(flipped, peaked, torch.where(flipped, course.certain, extreme))


def _double_centred(kernel: torch.Tensor) -> torch.Tensor:
    kernel = kernel.double()
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
