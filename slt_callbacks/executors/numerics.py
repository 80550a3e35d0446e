"""How a process computes: what decides the last bits of a number, carried to another process."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Numerics:
    """Settings of PyTorch that are global to a process.

    Example:
        >>> Numerics.here(num_threads=1).matmul_precision == torch.get_float32_matmul_precision()
        True
    """

    num_threads: int
    default_dtype: torch.dtype
    matmul_precision: str
    deterministic: bool
    warn_only: bool
    cudnn_deterministic: bool
    cudnn_benchmark: bool
    cudnn_tf32: bool

    @classmethod
    def here(cls, num_threads: int) -> Numerics:
        """Those of this process, with another number of threads."""
        return cls(
            num_threads,
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.allow_tf32,
        )

    def apply(self) -> None:
        """Compute like that from here on."""
        torch.set_num_threads(self.num_threads)
        torch.set_default_dtype(self.default_dtype)
        torch.set_float32_matmul_precision(self.matmul_precision)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        torch.backends.cudnn.deterministic = self.cudnn_deterministic
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        torch.backends.cudnn.allow_tf32 = self.cudnn_tf32
