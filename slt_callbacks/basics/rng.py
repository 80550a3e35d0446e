"""Randomness that nobody else notices: seeds from a key, and global generators put back as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_from(*key: int) -> int:
    """A 64-bit seed from integers: other keys, unrelated seeds.

    Example:
        >>> seed_from(0, 1, 2) == seed_from(0, 1, 2) != seed_from(0, 2, 1)
        True
    """
    # SeedSequence takes unsigned words and reads a missing one as 0: two words a part (two's complement keeps negative
    # seeds distinct) and their count in front keep (1,) apart from (1, 0), and (5, 1) from (2**32 + 5,).
    words = [len(key), *(word for part in key for word in divmod(part % 2**64, 2**32))]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def generator(device: torch.device, *key: int) -> torch.Generator:
    """A private generator on `device`, seeded by `seed_from`.

    Example:
        >>> cpu = torch.device("cpu")
        >>> first, again, other = (torch.rand(3, generator=generator(cpu, *key)) for key in ((0, 1), (0, 1), (1, 0)))
        >>> bool((first == again).all()), bool((first == other).any())
        (True, False)
    """
    return torch.Generator(device=device).manual_seed(seed_from(*key))


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Run a block with the global generators of torch, numpy and random seeded, and put them back whatever happens.

    The block is somebody else's code (a data set with augmentation, a loss function that draws): it gets numbers that
    depend on `seed` alone, and training sees none of it.

    Example:
        >>> before = torch.get_rng_state()
        >>> with isolated_rng(0):
        ...     _ = torch.randn(3)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        # `torch.manual_seed` would also seed CUDA, at once or when it is first used, and so reach into training.
        torch.default_generator.manual_seed(seed)
        if cuda_states:
            torch.cuda.manual_seed_all(seed)
        np.random.seed(seed % 2**32)  # the user's code reads the legacy generator
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
