"""The fixed reference set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from slt_callbacks.data.batches import leaves
from slt_callbacks.data.drawing import DEFAULT_NUM_SAMPLES, draw_reference

X = torch.arange(20.0).view(10, 2)
Y = torch.arange(10)


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclass
class Record:
    x: torch.Tensor
    name: list[str]


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __init__(self, length: int | None = None) -> None:
        self.length = length

    def __iter__(self) -> Iterator[torch.Tensor]:
        index = 0
        while self.length is None or index < self.length:
            yield torch.tensor([2.0 * index, 2.0 * index + 1])
            index += 1


class Plain:
    """A map-style data set that knows nothing of torch."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        return X[index]


def split(batch: Any) -> list[Any]:
    """In ragged batches of 4, 4 and 2."""
    from slt_callbacks.data.batches import take_rows

    return [take_rows(batch, rows, 10) for rows in torch.arange(10).split(4)]


def first_tensor(reference: Any) -> torch.Tensor:
    """All samples in order, from whatever batches they come in."""
    batches = reference.batches()
    tensor = torch.cat([next(leaf for leaf in leaves(batch) if isinstance(leaf, torch.Tensor)) for batch, _ in batches])
    return tensor[torch.cat([places for _, places in batches]).argsort()]


SOURCES = {
    "dataset": TensorDataset(X, Y),
    "plain data set": Plain(),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True, drop_last=True),
    "batches of a loader": DataLoader(TensorDataset(X, Y), batch_size=None),
    "list of tuples": split((X, Y)),
    "tuple of batches": tuple(split((X, Y))),
    "dicts": split({"x": X, "names": [f"n{i}" for i in range(10)]}),
    "named tuples": split(Pair(X, Y)),
    "dataclasses": split(Record(X, [f"n{i}" for i in range(10)])),
    "tensors": split(X),
    "callable": lambda: TensorDataset(X, Y),
    "callable giving a loader": lambda: DataLoader(TensorDataset(X, Y), shuffle=True),
    "stream": Stream(10),
    "loader of a stream": DataLoader(Stream(10), batch_size=4),
}
SOURCES["batches of a loader"] = DataLoader([(X[:4], Y[:4]), (X[4:], Y[4:])], batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_samples_each_time_in_the_order_of_the_data(name: str) -> None:
    before = torch.get_rng_state()
    whole = draw_reference(SOURCES[name])
    assert torch.equal(first_tensor(whole), X)
    assert whole.indices.tolist() == list(range(10))
    some, again = (draw_reference(SOURCES[name], num_samples=6, seed=1) for _ in range(2))
    assert len(some) == 6
    assert torch.equal(some.indices, again.indices)
    assert torch.equal(some.indices, some.indices.sort().values)
    assert some.indices.dtype == torch.int64
    assert torch.equal(first_tensor(some), X[some.indices])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["dataset", "loader", "list of tuples", "tensors", "callable"])
def test_the_seed_decides_which_samples_whatever_holds_them(name: str) -> None:
    drawn = [tuple(draw_reference(SOURCES[name], 6, seed).indices.tolist()) for seed in range(6)]
    assert len(set(drawn)) > 3
    assert drawn == [tuple(draw_reference(SOURCES["dataset"], 6, seed).indices.tolist()) for seed in range(6)]


def test_every_sample_is_equally_likely() -> None:
    counts = torch.zeros(10)
    for seed in range(600):
        counts[draw_reference([X], 3, seed).indices] += 1
    # Each count is binomial(600, 0.3): 4 standard deviations are 45.
    assert float((counts - 180).abs().max()) < 45


@pytest.mark.parametrize("limit", [None, 1, 3])
def test_requested_places_come_back_with_their_samples(limit: int | None) -> None:
    ragged = [X[:4], torch.arange(6.0).view(2, 3), X[4:]]  # two shapes, interleaved
    reference = draw_reference(ragged)
    rows = [*X[:4], *ragged[1], *X[4:]]
    places = torch.tensor([11, 0, 5, 4, 7])
    seen = []
    for batch, where in reference.batches(places, limit):
        assert limit is None or len(batch) <= limit
        for row, position in zip(batch, where.tolist(), strict=True):
            assert torch.equal(row, rows[int(places[position])])
            seen.append(position)
    assert sorted(seen) == [0, 1, 2, 3, 4]
    everything = [int(place) for _, where in reference.batches(None, limit) for place in where]
    assert sorted(everything) == list(range(12))


def test_strings_and_shared_leaves_go_with_their_samples() -> None:
    batch = {"x": X, "names": [f"n{i}" for i in range(10)], "mask": torch.ones(7), "size": 3}
    ((found, _),) = draw_reference([batch]).batches(torch.tensor([8, 2]))
    assert found["names"] == ["n8", "n2"]
    assert torch.equal(found["x"], X[[8, 2]])
    assert found["mask"].shape == (7,)
    assert found["size"] == 3


@pytest.mark.parametrize("change", ["a value", "a string", "the rows", "the size of the data", "nothing"])
def test_the_fingerprint_tells_other_samples_and_only_these(change: str) -> None:
    def batch(**changes: Any) -> dict[str, Any]:
        return {"x": X.clone(), "y": Y, "half": X.bfloat16(), "names": [f"n{i}" for i in range(10)]} | changes

    first = draw_reference([batch()], 6, seed=1)
    other_x = X.clone()
    other_x[first.indices[3], 1] += 1e-3
    others = {
        "a value": draw_reference([batch(x=other_x)], 6, seed=1),
        "a string": draw_reference([batch(names=["other"] * 10)], 6, seed=1),
        "the rows": draw_reference([batch(x=X * 0, half=X * 0, y=Y * 0, names=["n"] * 10)], 6, seed=1),
        "the size of the data": draw_reference(split(batch())[:2], 6),
        "nothing": draw_reference(split(batch()), 6, seed=1),
    }
    if change == "the rows":
        first = draw_reference([batch(x=X * 0, half=X * 0, y=Y * 0, names=["n"] * 10)], 6, seed=2)
    assert (others[change].fingerprint == first.fingerprint) == (change == "nothing")


class TestFind:
    def test_every_sample_is_found_where_it_stands(self) -> None:
        ragged = [X[:4], torch.arange(6.0).view(2, 3), X[4:]]
        reference = draw_reference(ragged)
        asked = draw_reference([X[[9, 0]], torch.tensor([[3.0, 4.0, 5.0]]), X[[2]] + 1, X[[3]]])
        assert reference.find(asked).tolist() == [11, 0, 5, -1, 3]
        assert reference.find(reference).tolist() == list(range(12))

    @pytest.mark.parametrize("changed", ["x", "label", "name", "mask", "size", "dtype", "shape", "key", "nothing"])
    def test_what_differs_in_anything_is_another_sample(self, changed: str) -> None:
        batch = {"x": X, "label": Y, "name": [f"n{i}" for i in range(10)], "mask": torch.ones(7), "size": 3}
        others: dict[str, Any] = {
            "x": {"x": torch.where(torch.arange(X.numel()).view(X.shape) == 0, X + 1e-6, X)},
            "label": {"label": Y + (torch.arange(10) == 0)},
            "name": {"name": ["other", *batch["name"][1:]]},
            "mask": {"mask": torch.zeros(7)},
            "size": {"size": 4},
            "dtype": {"label": Y.int()},
            "shape": {"x": X[:, None]},
            "key": {"other": Y},
            "nothing": {},
        }
        other = batch | others[changed]
        if changed == "key":
            del other["label"]
        found = draw_reference([batch]).find(draw_reference([other]))
        whole = changed in ("mask", "size", "dtype", "shape", "key")
        expected = [-1] * 10 if whole else [0 if changed == "nothing" else -1, *range(1, 10)]
        assert found.tolist() == expected

    def test_texts_cut_elsewhere_are_others(self) -> None:
        one = {"x": torch.zeros(1), "first": ["ab"], "second": ["c"]}
        other = {"x": torch.zeros(1), "first": ["a"], "second": ["bc"]}
        assert draw_reference([one]).find(draw_reference([other])).tolist() == [-1]

    def test_an_object_that_may_be_equal_or_not_is_never_found(self) -> None:
        reference = draw_reference([(X, torch.nn.Identity())])  # every one of them says "Identity()"
        assert reference.find(reference).tolist() == [-1] * 10

    def test_a_tuple_and_the_list_that_collating_makes_of_it_are_one(self) -> None:
        collated, written = draw_reference(TensorDataset(X, Y)), draw_reference([(X, Y)])
        assert collated.find(written).tolist() == list(range(10))

    def test_a_subset_holds_its_samples_in_the_order_asked_for(self) -> None:
        reference = draw_reference([X[:4], torch.arange(6.0).view(2, 3), X[4:]])
        subset = reference.subset(torch.tensor([11, 4, 0]))
        assert reference.find(subset).tolist() == [11, 4, 0]
        assert subset.indices.tolist() == [11, 4, 0]


def test_a_few_of_each_shape_are_where_they_are_said_to_be() -> None:
    reference = draw_reference([X[:4], torch.arange(6.0).view(2, 3), X[4:]])
    assert sorted(reference.few_of_each(3).tolist()) == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("wrong", [0.5, "0", None, True])
def test_a_seed_of_the_wrong_type_is_named(wrong: Any) -> None:
    with pytest.raises(TypeError, match="Expected `seed` to be an integer, but got"):
        draw_reference([X], seed=wrong)


def test_samples_are_private_copies() -> None:
    data = X.clone()
    reference = draw_reference([data])
    data.fill_(-1)
    assert torch.equal(first_tensor(reference), X)


def test_batches_are_new_containers_each_time() -> None:
    reference = draw_reference([{"x": X, "y": Y}])
    reference.batches()[0][0].pop("y")
    assert set(reference.batches()[0][0]) == {"x", "y"}


def test_floating_tensors_move_to_the_dtype_of_the_fork_and_integers_stay() -> None:
    moved = draw_reference([(X, Y)]).to(torch.device("cpu"), torch.float64).batches()[0][0]
    assert (moved[0].dtype, moved[1].dtype) == (torch.float64, torch.int64)


def test_a_stream_without_end_gives_its_first_samples() -> None:
    reference = draw_reference(Stream())
    assert len(reference) == DEFAULT_NUM_SAMPLES
    assert first_tensor(reference)[-1, 0] == 2 * (DEFAULT_NUM_SAMPLES - 1)
    assert len(draw_reference(Stream(), 5)) == 5


def test_augmentation_is_seeded_and_leaves_the_global_generators_alone() -> None:
    class Augmented(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> torch.Tensor:
            return X[index] + torch.rand(2) + np.random.rand()

    before = torch.get_rng_state(), str(np.random.get_state())
    first = first_tensor(draw_reference(Augmented()))
    torch.rand(3)
    second = first_tensor(draw_reference(Augmented()))
    torch.set_rng_state(before[0])
    assert torch.equal(first, second)
    assert str(np.random.get_state()) == before[1]


def test_the_loaders_own_collate_function_is_used() -> None:
    loader = DataLoader(TensorDataset(X), collate_fn=lambda samples: {"x": torch.stack([s[0] for s in samples]) * 10})
    assert torch.equal(draw_reference(loader).batches()[0][0]["x"], X * 10)


def test_at_most_takes_all_where_there_are_fewer() -> None:
    assert len(draw_reference([X], at_most=4)) == 4
    assert len(draw_reference([X], at_most=400)) == 10


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "3"])
def test_num_samples_has_to_be_a_positive_integer(wrong: Any) -> None:
    with pytest.raises(ValueError, match="Expected `num_samples` to be a positive integer or None, but got"):
        draw_reference([X], wrong)


@pytest.mark.parametrize("name", SOURCES)
def test_more_samples_than_there_are_is_an_error(name: str) -> None:
    with pytest.raises(
        ValueError, match="Expected `num_samples` to be at most the 10 samples of `reference`, but got 11"
    ):
        draw_reference(SOURCES[name], 11)


@pytest.mark.parametrize(
    "empty", [[], TensorDataset(X[:0]), DataLoader(TensorDataset(X[:0])), Stream(0), lambda: [], [X[:0]]]
)
def test_an_empty_reference_is_an_error(empty: Any) -> None:
    with pytest.raises(ValueError, match="Expected `reference` to hold samples, but it is empty: give at least 1"):
        draw_reference(empty)


@pytest.mark.parametrize("wrong", [X, None, 3, {"x": X}, {1, 2}])
def test_a_reference_of_the_wrong_kind_is_an_error(wrong: Any) -> None:
    with pytest.raises(TypeError, match="Expected `reference` to be a"):
        draw_reference(wrong)


def test_the_name_of_the_data_is_not_the_data() -> None:
    with pytest.raises(TypeError, match=r"to be a Dataset, .*, but got 'train': give the data itself, not its name"):
        draw_reference("train")


@pytest.mark.parametrize(
    "source",
    [
        [X.to_sparse()],
        [(X, Y.to_sparse())],
        TensorDataset(X.to_sparse(), Y),
        DataLoader(TensorDataset(X), collate_fn=lambda samples: torch.stack([x for (x,) in samples]).to_sparse()),
    ],
)
def test_a_sparse_tensor_is_refused(source: Any) -> None:
    told = r"`reference` to hold dense tensors, but got one of layout torch.sparse_coo: write tensor.to_dense\(\)"
    with pytest.raises(TypeError, match=told):
        draw_reference(source)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sample_that_is_not_finite_is_named(value: float) -> None:
    bad = X.clone()
    bad[7, 1] = value
    with pytest.raises(ValueError, match="Expected the samples of `reference` to be finite, but sample 7 holds NaN"):
        draw_reference(split((bad, Y)))
    with pytest.raises(ValueError, match="sample 7 holds NaN"):
        draw_reference([torch.where(torch.arange(10) == 7, value, 0.0)])


def test_samples_that_do_not_collate_say_what_to_write() -> None:
    ragged = [torch.zeros(2), torch.zeros(3)]

    class Ragged(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> torch.Tensor:
            return ragged[index]

    with pytest.raises(RuntimeError, match=r"could not be collated into one batch.*`collate_fn`"):
        draw_reference(Ragged())
    with pytest.raises(ValueError, match="Expected `collate_fn` to stack 2 samples"):
        draw_reference(DataLoader(Ragged(), collate_fn=torch.cat))
