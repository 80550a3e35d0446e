"""Reading the reference set leaves what training reads from as it was, or says that it could not."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Subset

from slt_callbacks.data.drawing import draw_reference
from tests.passivity.runs import Case, compare
from tests.training import data

X = torch.arange(20.0).view(10, 2)
AT_MODULE_LEVEL = random.Random(5)


class Noise:
    """A transform that draws from a generator of its own."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.draw()


class Compose:
    def __init__(self, transforms: list[Any]) -> None:
        self.transforms = transforms

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        for transform in self.transforms:
            x = transform(x)
        return x


class Augmented(Dataset):  # type: ignore[type-arg]
    def __init__(self, transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(X[index])


class Slotted:
    __slots__ = ("rng",)

    def __init__(self) -> None:
        self.rng = np.random.RandomState(3)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.rng.rand()


def shared_rng(x: torch.Tensor) -> torch.Tensor:
    return x + helper()


def helper() -> float:
    return AT_MODULE_LEVEL.random()


class OfTheClass:
    rng = np.random.default_rng(1)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.rng.random()


def closure() -> Callable[[torch.Tensor], torch.Tensor]:
    rng = torch.Generator().manual_seed(4)
    return lambda x: x + torch.rand((), generator=rng)


def with_keyword(x: torch.Tensor, rng: Any) -> torch.Tensor:
    return x + rng.random()


TRANSFORMS: dict[str, Callable[[], Any]] = {
    "torch": lambda: Noise(functools.partial(torch.rand, (), generator=torch.Generator().manual_seed(1))),
    "python": lambda: Noise(random.Random(1).random),
    "numpy": lambda: Noise(np.random.default_rng(1).random),
    "legacy numpy": Slotted,
    "composed": lambda: Compose([lambda x: x * 2, Compose([Noise(np.random.default_rng(1).normal)])]),
    "closure": closure,
    "partial": lambda: functools.partial(with_keyword, rng=random.Random(2)),
    "of the class": OfTheClass,
    "of the module": lambda: shared_rng,
}


def batches(loader: DataLoader[Any]) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.cat([batch for _ in range(2) for batch in loader])


def rewind() -> None:
    AT_MODULE_LEVEL.seed(5)
    OfTheClass.rng = np.random.default_rng(1)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_training_reads_the_same_samples_after_the_reference_was_drawn(name: str, num_workers: int) -> None:
    found = []
    for drawn in (False, True):
        rewind()
        dataset = Subset(Augmented(TRANSFORMS[name]()), list(range(8)))
        loader = DataLoader(dataset, 4, shuffle=True, num_workers=num_workers)
        if drawn:
            first, again = draw_reference(loader, 4), draw_reference(dataset, 4)
            assert torch.equal(first.batches()[0][0], again.batches()[0][0])
            assert not torch.equal(first.batches()[0][0], X[first.indices]), "it is augmented"
        found.append(batches(loader))
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", ["sampler", "loader", "collate", "a function that makes it"])
def test_generators_of_a_loader_are_put_back(kind: str) -> None:
    def made() -> tuple[Any, DataLoader[Any]]:
        rng = torch.Generator().manual_seed(3)

        def noisy(samples: list[torch.Tensor]) -> torch.Tensor:
            return torch.stack(samples) + torch.rand((), generator=rng)

        dataset = Augmented(lambda x: x)
        if kind == "collate":
            return (loader := DataLoader(dataset, 5, collate_fn=noisy)), loader
        if kind == "loader":
            return (loader := DataLoader(dataset, 5, shuffle=True, generator=rng)), loader
        loader = DataLoader(dataset, 5, sampler=RandomSampler(dataset, generator=rng))

        def make() -> Any:
            next(iter(loader))
            return dataset

        return (make if kind == "a function that makes it" else loader), loader

    (_, plain), (source, watched) = made(), made()
    draw_reference(source)
    assert torch.equal(batches(plain), batches(watched))


def test_a_data_set_that_raises_is_put_back() -> None:
    rng = random.Random(1)

    def fails(x: torch.Tensor) -> torch.Tensor:
        rng.random()
        raise ZeroDivisionError

    state = rng.getstate()
    with pytest.raises(ZeroDivisionError):
        draw_reference(Augmented(fails))
    assert rng.getstate() == state


class Counting(Augmented):
    def __init__(self) -> None:
        super().__init__(lambda x: x)
        self.calls, self.cache, self.file, self.ready = 0, {}, None, False  # type: ignore[var-annotated]

    def __getitem__(self, index: int) -> torch.Tensor:
        self.calls += 1
        return X[index]


class Caching(Counting):
    def __getitem__(self, index: int) -> torch.Tensor:
        self.file, self.ready = 7, True
        return self.cache.setdefault(index, X[index])


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Its samples come from an iterator, which does not start again."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from self.samples


def test_a_counter_that_reading_moves_is_told_of() -> None:
    with pytest.warns(UserWarning, match=r"changed `Counting.calls` \(0 -> 10\).*copy.deepcopy\(data\)"):
        draw_reference(Counting())


@pytest.mark.parametrize("kind", ["list_iterator", "generator"])
def test_an_iterator_that_was_read_from_is_told_of(kind: str) -> None:
    samples = iter(list(X)) if kind == "list_iterator" else (x for x in X)
    with pytest.warns(UserWarning, match=f"has changed a {kind} that it holds"):
        draw_reference(Stream(samples), 4)


@pytest.mark.parametrize("source", [Caching(), Stream(list(X)), Augmented(shared_rng)])
def test_caches_files_and_streams_that_start_again_are_nothing_to_tell_of(source: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_reference(source)


class Noisy(Dataset):  # type: ignore[type-arg]
    def __init__(self) -> None:
        self.samples, self.rng = data(), np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        x, y = self.samples[index]
        return x + 0.1 * float(self.rng.normal()), y


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_monitor_on_the_training_data_leaves_training_bit_identical(num_workers: int, tmp_path: Path) -> None:
    made: list[Noisy] = []

    def loader() -> DataLoader[Any]:
        made.append(Noisy())
        return DataLoader(made[-1], 8, shuffle=True, num_workers=num_workers)

    case = Case(loader=loader, monitor={"reference": lambda: made[-1]})
    assert compare(case, tmp_path).problems == []
