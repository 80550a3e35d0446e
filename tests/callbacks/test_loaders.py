"""The size of a training batch: known from the loader, and what a loss that compares samples is taken in."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from slt_callbacks import SLTMonitor
from slt_callbacks.callbacks.loaders import batch_size_of
from tests.problems import settings
from tests.sampling.test_togetherness import X, contrast, in_batches_of, network
from tests.training import QUIET

LOADER = DataLoader(X, 5)  # type: ignore[arg-type, var-annotated]


class OwnBatches:
    """A batch sampler that says nothing of a size."""

    def __iter__(self) -> Any:
        return iter([[0, 1], [2, 3, 4]])

    def __len__(self) -> int:
        return 2


class TestKnown:
    @pytest.mark.parametrize(
        "loaders",
        [
            LOADER,
            [LOADER],
            {"images": LOADER},
            CombinedLoader({"images": LOADER}),
            DataLoader(X, batch_sampler=BatchSampler(SequentialSampler(X), 5, drop_last=False)),  # type: ignore[arg-type]
        ],
        ids=["a loader", "a list of one", "a dict of one", "combined", "a batch sampler"],
    )
    def test_it_is_that_of_the_one_loader(self, loaders: Any) -> None:
        assert batch_size_of(loaders) == 5

    @pytest.mark.parametrize(
        "loaders",
        [
            [LOADER, LOADER],
            DataLoader(X, batch_size=None),  # type: ignore[arg-type]
            DataLoader(X, batch_sampler=OwnBatches()),  # type: ignore[arg-type]
            [X[:5], X[5:]],
            None,
        ],
        ids=["two loaders", "no batches", "batches of one's own", "tensors", "nothing"],
    )
    def test_it_is_not_guessed(self, loaders: Any) -> None:
        assert batch_size_of(loaders) is None


class Contrastive(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, x: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return contrast(self.net, x).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def measured(loader: Any, reference: Any = X, **options: Any) -> float:
    """The loss at the fork, where nothing has moved."""
    samples: dict[str, Any] = {"num_samples": 10} if reference is None else {"reference": [reference]}
    watched = SLTMonitor(sampler=settings(1e-4, **options), every_n_train_steps=4, max_overhead=None, **samples)
    otherwise = "5, the size of a training batch" if loader.batch_size == 5 else "32: set one of them"
    with pytest.warns(UserWarning, match=f"compares the samples of a batch .*, or else of {otherwise}"):
        pl.Trainer(max_steps=4, callbacks=[watched], **QUIET).fit(Contrastive(), loader)
    (found,) = watched.history
    assert not found.failed
    return float(found["llc"]["reference_loss"])


class TestAContrastiveLoss:
    def of_batches(self, size: int, x: torch.Tensor = X) -> float:
        return in_batches_of(size, contrast, network(), x)

    def test_it_is_measured_in_batches_of_the_size_it_is_trained_in(self) -> None:
        assert measured(LOADER) == pytest.approx(self.of_batches(5), rel=1e-5)
        assert self.of_batches(5) != pytest.approx(self.of_batches(20), rel=0.1)

    def test_the_first_batches_are_measured_as_they_were_trained(self) -> None:
        assert measured(LOADER, None) == pytest.approx(self.of_batches(5, X[:10]), rel=1e-5)

    def test_what_the_sampler_says_comes_first(self) -> None:
        assert measured(LOADER, batch_size=10) == pytest.approx(self.of_batches(10), rel=1e-5)
        assert measured(LOADER, block_size=4) == pytest.approx(self.of_batches(4), rel=1e-5)

    def test_without_a_size_it_is_as_before(self) -> None:
        loader = DataLoader(X, batch_sampler=OwnBatches())  # type: ignore[arg-type, var-annotated]
        assert measured(loader) == pytest.approx(self.of_batches(20), rel=1e-5)

    def test_the_next_fit_s_loader_counts_for_the_next_fit(self) -> None:
        watched = SLTMonitor([X], sampler=settings(1e-4), every_n_train_steps=4, max_overhead=None)
        for size in (5, 10):
            order = RandomSampler(X, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
            loader = DataLoader(X, size, sampler=order)  # type: ignore[arg-type, var-annotated]
            with pytest.warns(UserWarning, match="compares the samples of a batch"):
                pl.Trainer(max_steps=4, callbacks=[watched], **QUIET).fit(Contrastive(), loader)
            found = watched.history[-1]["llc"]["reference_loss"]
            assert found == pytest.approx(self.of_batches(size), rel=1e-5)
