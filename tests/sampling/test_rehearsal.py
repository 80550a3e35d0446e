"""A loss function is tried, in every way in which it will be asked, before any training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.losses.rehearsal import Rehearsal
from slt_callbacks.weights.fork import Fork


def rehearsal(loss_fn: Any, reference: Any) -> Rehearsal:
    return Rehearsal(Fork(nn.Linear(3, 2)), loss_fn, draw_reference(reference))


def per_class(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Two losses, whatever the number of samples."""
    return module(x[..., :3]).square().mean(0)


@pytest.mark.parametrize("reference", [[torch.ones(3, 3)], [torch.ones(1, 5), torch.ones(1, 4), torch.ones(3, 3)]])
def test_one_loss_a_class_is_refused_though_it_has_the_shape_of_two_samples(reference: Any) -> None:
    with pytest.raises(ValueError, match=r"one loss a sample, shape \(1,\).*but got \(2,\) for a batch of 1"):
        rehearsal(per_class, reference).samples()


def test_of_one_sample_of_each_shape_nobody_can_tell() -> None:
    assert rehearsal(lambda m, x: m(x[:, :3]).square().mean(), [torch.ones(1, 3), torch.ones(1, 4)]).samples()


def test_a_loss_that_needs_two_samples_has_them() -> None:
    def contrast(module: Any, x: torch.Tensor) -> torch.Tensor:
        if len(x) < 2:
            raise ValueError("nothing to compare with")
        return module(x - x.mean(0)).square().mean(1)

    assert rehearsal(contrast, [torch.arange(12.0).view(4, 3)]).samples()


def test_a_model_that_squeezes_one_sample_is_not_mistaken_for_one_loss_a_class() -> None:
    assert rehearsal(lambda m, x: m(x).repeat(1, 2).square().squeeze(), [torch.ones(4, 3)]).samples()


@pytest.mark.parametrize("size", [1, 2, 3, 70])
def test_a_sound_loss_passes_however_many_samples_there_are(size: int) -> None:
    assert rehearsal(lambda m, x: m(x).square().mean(1), [torch.ones(size, 3)]).samples()
    assert rehearsal(lambda m, x: m(x).square().mean(), [torch.ones(size, 3)]).samples() == (size == 1)


def test_tokens_of_the_whole_set_are_counted_from_two_samples() -> None:
    seen = []

    def loss_fn(module: Any, x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return module(x).square()

    assert rehearsal(loss_fn, [torch.ones(50, 3)]).tokens() == 100
    assert seen == [2]


def test_samples_of_several_lengths_have_no_table_of_tokens() -> None:
    with pytest.raises(ValueError, match="Expected samples of one length for `per_token=True`"):
        rehearsal(lambda m, x: x * m.weight.sum(), [torch.ones(3, 4), torch.ones(3, 5)]).tokens()
