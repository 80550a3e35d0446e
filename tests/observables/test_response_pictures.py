"""What is shown of susceptibilities: the numbers behind the pictures."""

import math
from typing import Any

import pytest
import torch

from slt_callbacks import Refinement, SamplerConfig, Susceptibility, estimate
from slt_callbacks.observables.media import Picture, Scatter
from slt_callbacks.observables.response_pictures import response_pictures
from slt_callbacks.observables.responses import components, standardize

PARTS = ["h0", "h1", "h2"]
LABELS = torch.tensor([0, 0, 1, 1, 1, 0])


def standardized(*missing: int) -> torch.Tensor:
    raw = torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    raw[:, list(missing)] = math.nan
    return standardize(raw)[0]


def means(matrix: torch.Tensor) -> torch.Tensor:
    return torch.stack([matrix[number == LABELS].mean(0) for number in (0, 1)])


def shown(matrix: torch.Tensor, **labels: Any) -> tuple[Picture, Scatter]:
    found = response_pictures(matrix, PARTS, **labels)
    assert list(found) == ["map", "components"]
    picture, scatter = found["map"], found["components"]
    assert isinstance(picture, Picture)
    assert isinstance(scatter, Scatter)
    return picture, scatter


def test_with_labels_the_map_is_of_their_means_and_the_points_have_their_classes() -> None:
    matrix = standardized()
    picture, scatter = shown(matrix, label_names=["cat", "dog"], labels=LABELS, means=means(matrix))
    assert torch.equal(picture.matrix, means(matrix))
    assert (list(picture.row_names), list(picture.column_names)) == (["cat", "dog"], PARTS)
    assert picture.ends == ("part works for the data", "part works against the data")
    coordinates, shares = components(matrix, 2)
    assert torch.equal(scatter.points, coordinates)
    assert scatter.classes is not None
    assert torch.equal(scatter.classes, LABELS)
    assert list(scatter.class_names) == ["cat", "dog"]
    assert scatter.axis_labels == (
        f"1st component, {round(100 * shares[0])} % of the variance",
        f"2nd component, {round(100 * shares[1])} % of the variance",
    )


def test_without_labels_samples_are_sorted_by_the_first_component() -> None:
    matrix = standardized()
    picture, scatter = shown(matrix)
    order = components(matrix, 1)[0][:, 0].argsort()
    assert torch.equal(picture.matrix, matrix[order])
    assert (list(picture.row_names), list(picture.column_names)) == ([], PARTS)
    assert "6 samples, sorted by the first component" in picture.caption
    assert scatter.classes is None


def test_parts_that_were_not_measured_stay_nan_and_are_told() -> None:
    matrix = standardized(1)
    picture, scatter = shown(matrix, label_names=["cat", "dog"], labels=LABELS, means=means(matrix))
    assert picture.matrix.isnan().any(0).tolist() == [False, True, False]
    assert picture.caption.endswith("grey: not measured this time")
    assert bool(scatter.points.isfinite().all())
    assert "grey" not in shown(standardized())[0].caption


def test_of_one_part_there_is_a_map_and_no_plane() -> None:
    assert list(response_pictures(standardized(0, 1), PARTS)) == ["map"]


def test_of_no_part_there_is_nothing() -> None:
    assert response_pictures(torch.full((6, 3), math.nan), PARTS) == {}
    assert response_pictures(torch.zeros(0, 3), PARTS) == {}


@pytest.mark.parametrize(
    ("largest", "limit"), [(0.9, 1.0), (1.0, 1.0), (1.1, 2.0), (2.5, 5.0), (7.0, 10.0), (0.013, 0.02), (0.0, 1.0)]
)
def test_the_scale_ends_at_one_two_or_five(largest: float, limit: float) -> None:
    matrix = torch.tensor([[largest, -largest / 2], [-largest, largest / 2]])
    picture = response_pictures(matrix, PARTS[:2], ["a", "b"], torch.tensor([0, 1]), matrix)["map"]
    assert isinstance(picture, Picture)
    assert picture.limit == pytest.approx(limit, rel=1e-12)


def test_of_many_samples_a_few_large_entries_do_not_set_the_scale() -> None:
    matrix = torch.full((100, 2), 0.7)
    matrix[::2] = -0.7
    matrix[0] = 30.0
    picture = response_pictures(matrix, PARTS[:2])["map"]
    assert isinstance(picture, Picture)
    assert picture.limit == 1.0


def test_of_very_many_samples_an_even_choice_is_shown() -> None:
    matrix = standardize(torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)))[0]
    labels = torch.arange(5000) % 7
    found = response_pictures(matrix, PARTS[:2], labels=labels)
    picture, scatter = found["map"], found["components"]
    assert isinstance(picture, Picture)
    assert isinstance(scatter, Scatter)
    coordinates, _ = components(matrix, 2)
    assert torch.equal(picture.matrix, matrix[coordinates[:, 0].argsort()[::3]])
    assert torch.equal(scatter.points, coordinates[::3])
    assert scatter.classes is not None
    assert torch.equal(scatter.classes, labels[::3])
    assert "1667 of 5000 samples" in picture.caption
    assert "1667 of 5000 samples" in scatter.caption


class Net(torch.nn.Module):
    """One weight a feature."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))


def loss_fn(net: Net, batch: torch.Tensor) -> torch.Tensor:
    return (net.a * batch[:, 0]) ** 2 + (net.b * batch[:, 1]) ** 2


CONFIG = SamplerConfig(nbeta=9.0, localization=1.0, num_chains=2, num_draws=50)
SAMPLES = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])


def test_a_measurement_carries_its_pictures() -> None:
    found = estimate(
        Net(),
        [SAMPLES],
        loss_fn,
        observables={"chi": Susceptibility(labels=["a", "a", "b", "b"])},
        sampler=CONFIG,
        refinements={name: Refinement(name) for name in "ab"},
    )
    assert set(found.pictures) == {"chi/map", "chi/components"}
    picture = found.pictures["chi/map"]
    assert isinstance(picture, Picture)
    assert (picture.matrix < 0).tolist() == [[True, False], [False, True]], "a part works for the samples it sees"
    for row, label in enumerate("ab"):
        for column, part in enumerate("ab"):
            assert found["chi"][f"{label}_to_{part}"] == float(picture.matrix[row, column])


def test_a_failed_measurement_has_none() -> None:
    with pytest.warns(UserWarning, match="not finite"):
        found = estimate(
            Net(),
            [SAMPLES],
            lambda net, batch: loss_fn(net, batch) * math.nan,
            observables={"chi": Susceptibility()},
            sampler=CONFIG,
            refinements={"a": Refinement("a")},
        )
    assert found.pictures == {}


@pytest.mark.parametrize(("names", "what"), [({"row_names": "abc"}, "2 rows"), ({"column_names": "a"}, "3 columns")])
def test_names_that_do_not_fit_are_refused(names: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=f"to name each of the {what}, but got {len(next(iter(names.values())))}"):
        Picture(torch.zeros(2, 3), "own", **names)


def test_points_are_two_numbers_each_with_one_class() -> None:
    with pytest.raises(ValueError, match=r"shape \(N, 2\), but got \(3, 1\)"):
        Scatter(torch.zeros(3, 1), "own", ("x", "y"))
    with pytest.raises(ValueError, match="`classes` of 3 points, but got 2"):
        Scatter(torch.zeros(3, 2), "own", ("x", "y"), torch.zeros(2))
