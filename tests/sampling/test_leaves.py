"""Batches whose leaves are no tensors, or whose tensors do not stack: divided and paired rightly, or refused."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, defaultdict
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence, unpack_sequence
from torch.utils.data import DataLoader

from slt_callbacks.data.batches import describe, leaves, map_leaves, num_rows, paths, take_rows
from slt_callbacks.data.drawing import draw_reference
from tests.problems import estimate, llc, settings

N = 10
X = torch.arange(2.0 * N).view(N, 2)
ROWS = torch.tensor([8, 2])


class Opaque:
    """An object like any other of its kind, by its name."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return "Opaque()"


OBJECTS = [Opaque(number) for number in range(N)]
IMAGES = [torch.full((3, 4 + number % 3, 5), float(number)) for number in range(N)]
TARGETS = [{"boxes": torch.full((number % 3, 4), float(number)), "name": f"n{number}"} for number in range(N)]
# By name: what holds one entry a sample, and what the entry says of which sample it is.
PER_SAMPLE: dict[str, tuple[Any, Any]] = {
    "numbers": (list(range(N)), int),
    "tuple of numbers": (tuple(map(float, range(N))), int),
    "strings": ([f"{number}" for number in range(N)], int),
    "array": (np.arange(2 * N).reshape(N, 2), lambda row: int(row[0]) // 2),
    "array of texts": (np.array([str(number) for number in range(N)]), int),
    "objects": (OBJECTS, lambda one: one.number),
    "lists of numbers": ([[number] * (1 + number % 2) for number in range(N)], lambda one: one[0]),
    "dicts": ([{"id": number} for number in range(N)], lambda one: one["id"]),
    "images": (IMAGES, lambda image: int(image.flatten()[0])),
    "targets": (TARGETS, lambda target: int(target["name"][1:])),
    "scalars": (list(torch.arange(N)), int),
}


def divided(whole: Any, sizes: tuple[int, ...] = (4, 1, 5)) -> list[dict[str, Any]]:
    """As batches beside a tensor."""
    ends = np.cumsum(sizes).tolist()
    return [{"x": X[end - size : end], "meta": whole[end - size : end]} for size, end in zip(sizes, ends, strict=True)]


def pairs_of(batch: dict[str, Any], number: Any) -> list[tuple[int, int]]:
    assert len(batch["x"]) == len(batch["meta"])
    return [(int(x[0]) // 2, number(entry)) for x, entry in zip(batch["x"], batch["meta"], strict=True)]


@pytest.mark.parametrize("sizes", [(10,), (4, 1, 5), (3, 3, 4)])
@pytest.mark.parametrize("name", PER_SAMPLE)
def test_what_goes_with_a_sample_stays_with_it(name: str, sizes: tuple[int, ...]) -> None:
    whole, number = PER_SAMPLE[name]
    reference = draw_reference(divided(whole, sizes))  # type: ignore[arg-type]
    found = [pair for batch, _ in reference.batches() for pair in pairs_of(batch, number)]
    assert sorted(found) == [(row, row) for row in range(N)]
    for batch, where in reference.batches(ROWS, limit=1):
        assert pairs_of(batch, number) == [(int(ROWS[where]),) * 2]
    some = draw_reference(divided(whole, sizes), 6, seed=2)  # type: ignore[arg-type]
    found = [pair for batch, _ in some.batches() for pair in pairs_of(batch, number)]
    assert sorted(found) == [(row, row) for row in some.indices.tolist()]
    subset = some.subset(torch.tensor([5, 0]))
    found = [pair for batch, _ in subset.batches() for pair in pairs_of(batch, number)]
    assert sorted(found) == sorted((row, row) for row in some.indices[[5, 0]].tolist())


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_a_loader_that_keeps_them_in_lists_says_the_same(name: str) -> None:
    whole, number = PER_SAMPLE[name]

    def collate(samples: list[Any]) -> dict[str, Any]:
        x, meta = zip(*samples, strict=True)
        return {"x": torch.stack(x), "meta": meta}

    reference = draw_reference(DataLoader(list(zip(X, whole, strict=True)), 3, collate_fn=collate))  # type: ignore[arg-type]
    ((batch, _),) = reference.batches(ROWS)
    assert pairs_of(batch, number) == [(8, 8), (2, 2)]
    assert isinstance(batch["meta"], tuple)


def test_lists_alone_are_counted_by_their_entries() -> None:
    reference = draw_reference([(IMAGES[:4], TARGETS[:4]), (IMAGES[4:], TARGETS[4:])])
    assert len(reference) == N
    ((images, targets), _), *_ = reference.batches(torch.tensor([2]))
    assert (int(images[0].flatten()[0]), targets[0]["name"]) == (2, "n2")


def test_lists_that_may_be_either_are_refused() -> None:
    with pytest.raises(ValueError, match="may hold as many as its lists are long, or as its tensors have rows"):
        draw_reference([(IMAGES[:4], IMAGES[4:8])])


def test_samples_that_were_never_collated_are_counted() -> None:
    samples = list(zip(IMAGES, TARGETS, strict=True))
    for source in ([samples[:4], samples[4:]], DataLoader(samples, 2, collate_fn=list)):  # type: ignore[arg-type]
        reference = draw_reference(source)  # type: ignore[arg-type]
        assert len(reference) == N
        ((((image, target),), _),) = reference.batches(torch.tensor([7]))
        assert int(image.flatten()[0]) == int(target["name"][1:]) == 7


def test_what_a_loss_writes_into_entries_does_not_stay() -> None:
    reference = draw_reference(divided(IMAGES))  # type: ignore[arg-type]
    for _ in range(2):
        ((batch, _),) = reference.batches(torch.tensor([3]))
        assert int(batch["meta"][0].flatten()[0]) == 3
        batch["meta"][0].zero_()
    assert bool(IMAGES[3].any())


def test_entries_move_with_their_samples() -> None:
    double = draw_reference(divided(TARGETS)).to(torch.device("cpu"), torch.float64)  # type: ignore[arg-type]
    ((batch, _),) = double.batches(torch.tensor([4]))
    assert batch["meta"][0]["boxes"].dtype == torch.float64


def test_what_goes_with_all_samples_of_a_batch_stays_with_them() -> None:
    scales = [torch.tensor(1.0), torch.tensor(2.0)]
    config = Opaque(0)
    batches = [{"x": X[:4], "scale": scales[0], "o": config}, {"x": X[4:], "scale": scales[1], "o": config}]
    for batch, where in draw_reference(batches).batches():
        assert torch.equal(batch["scale"], scales[int(where[0] >= 4)])
        assert batch["o"] is config
    assert len(draw_reference([{"x": X[:4], "o": config}, {"x": X[4:], "o": config}]).batches()) == 1
    apart = draw_reference([{"x": X[:4], "o": OBJECTS[0]}, {"x": X[4:], "o": OBJECTS[1]}]).batches()
    assert [(len(batch["x"]), batch["o"].number) for batch, _ in apart] == [(4, 0), (6, 1)]


def test_a_length_that_agrees_once_is_a_coincidence() -> None:
    mask = torch.arange(4.0)
    reference = draw_reference([{"x": X[:4], "mask": mask}, {"x": X[4:], "mask": mask}])
    for batch, _ in reference.batches(torch.tensor([9, 1, 3])):
        assert torch.equal(batch["mask"], mask)


def with_mask(samples: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"x": torch.stack(samples), "mask": torch.ones(N, N).tril()}


def test_a_loader_tells_what_goes_with_samples_from_what_has_their_number() -> None:
    ((batch, _),) = draw_reference(DataLoader(list(X), collate_fn=with_mask)).batches(ROWS)  # type: ignore[arg-type]
    assert batch["mask"].shape == (N, N)
    assert torch.equal(batch["x"], X[ROWS])


def by_time(samples: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"x": torch.stack(samples, 1)[..., None], "y": torch.stack([sample.sum() for sample in samples])}


def test_a_loader_of_tensors_by_time_collates_those_that_are_asked_for() -> None:
    for length in (N, 7):  # as many times as samples, or not
        data = [torch.arange(float(length)) * row for row in range(N)]
        reference = draw_reference(DataLoader(data, 4, collate_fn=by_time))  # type: ignore[arg-type]
        assert len(reference) == N
        ((batch, _),) = reference.batches(ROWS)
        assert batch["x"].shape == (length, 2, 1)
        assert torch.equal(batch["x"].sum((0, 2)), batch["y"])

    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        return (module(batch["x"]).sum((0, 2)) - batch["y"]).square()

    net = nn.Linear(1, 1)
    loader = DataLoader(data, 4, collate_fn=by_time)  # type: ignore[arg-type]
    found = llc(estimate(net, loader, loss_fn, sampler=settings(1e-5, batch_size=5)))
    first = [{"x": torch.stack(data)[..., None], "y": torch.stack(data).sum(1)}]
    expected = llc(
        estimate(
            net,
            first,
            lambda m, b: loss_fn(m, b | {"x": b["x"].transpose(0, 1)}),
            sampler=settings(1e-5, batch_size=5),
        )
    )
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_batch_that_may_go_by_time_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r'batch\["x"\] has the shape \[7, 10, 1\] and batch\["y"\] \[10\].*DataLoader'
    ):
        draw_reference([{"x": torch.zeros(7, 10, 1), "y": torch.zeros(10)}])
    for fine in (
        {"x": torch.zeros(7, 10), "y": torch.zeros(7), "positions": torch.zeros(10)},
        {"x": torch.zeros(7, 10), "mask": torch.zeros(10, 10)},
        {"x": torch.zeros(7, 1), "scale": torch.zeros(1)},
    ):
        assert len(draw_reference([fine])) == 7


class Graph:
    def __init__(self) -> None:
        self.store = {"nodes": torch.zeros(3, 2)}


def test_an_object_with_data_for_several_samples_is_refused_by_its_path() -> None:
    with pytest.raises(ValueError, match=r'batch\["meta"\]\[1\] is a Graph, which cannot be divided among 10 samples'):
        draw_reference([{"x": X, "meta": (torch.zeros(N), Graph())}])
    assert len(draw_reference([{"x": X[:1], "graph": Graph()}, {"x": X[1:2], "graph": Graph()}])) == 2


def packed(samples: list[torch.Tensor]) -> tuple[PackedSequence, torch.Tensor]:
    return pack_sequence(samples, enforce_sorted=False), torch.stack([sample.sum() for sample in samples])


SEQUENCES = [torch.arange(1.0 + row % 4).view(-1, 1) + row for row in range(N)]


@pytest.mark.parametrize("loads", [False, True])
def test_packed_sequences_are_divided(loads: bool) -> None:
    listed: Any = [packed(SEQUENCES[:4]), packed(SEQUENCES[4:])]
    reference = draw_reference(DataLoader(SEQUENCES, 3, collate_fn=packed) if loads else listed)  # type: ignore[arg-type]
    assert len(reference) == N
    (((x, y), _),) = reference.batches(ROWS)
    assert all(torch.equal(a, SEQUENCES[row]) for a, row in zip(unpack_sequence(x), ROWS.tolist(), strict=True))
    assert torch.equal(torch.stack([part.sum() for part in unpack_sequence(x)]), y)
    assert reference.to(torch.device("cpu"), torch.float64).batches()[0][0][0].data.dtype == torch.float64
    assert reference.find(draw_reference([packed([SEQUENCES[5]])])).tolist() == [5]
    x.data.zero_()
    assert bool(reference.batches(ROWS)[0][0][0].data.any())


def test_a_recurrent_net_is_measured_on_packed_sequences() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(1, 3, batch_first=True)

        def forward(self, x: PackedSequence) -> torch.Tensor:
            out, _ = pad_packed_sequence(self.rnn(x)[0], batch_first=True)
            return out.sum((1, 2))

    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        return (module(batch[0]) - batch[1]).square()

    torch.manual_seed(0)
    net = Net()
    found = [
        llc(estimate(net, source, loss_fn, sampler=settings(1e-5, batch_size=size)))
        for source in ([packed(SEQUENCES)], DataLoader(SEQUENCES, 3, collate_fn=packed))  # type: ignore[arg-type]
        for size in (None, 5)
    ]
    assert found[:2] == pytest.approx(found[2:], rel=1e-4)
    assert all(found)


class Validated(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Checked(Validated):
    def __new__(cls, x: Any, y: Any) -> Checked:
        if not isinstance(x, torch.Tensor):
            raise ValueError("x is needed")
        return super().__new__(cls, x, y)


@dataclass
class Strict:
    x: torch.Tensor
    y: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.x is None or self.y is None:
            raise ValueError("both are needed")


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    y: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.x is None or self.y is None:
            raise ValueError("both are needed")


@dataclass(slots=True)
class Slotted:
    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True, slots=True)
class FrozenSlots:
    x: torch.Tensor
    y: torch.Tensor


@dataclass
class Scaled:
    """Changes what it is given, so that it must not be made anew."""

    x: torch.Tensor
    y: torch.Tensor
    factor: InitVar[float]
    computed: torch.Tensor = field(init=False)

    def __post_init__(self, factor: float) -> None:
        self.x = self.x * factor
        self.computed = self.x * 2
        self.twice = self.y * 2

    @cached_property
    def total(self) -> torch.Tensor:
        return self.x.sum(1)


class Output(OrderedDict):  # type: ignore[type-arg]
    """As in transformers: its entries are attributes as well, and not all of them may be None."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if any(value is None for value in self.values()):
            raise ValueError("None given")


class ReadOnly(dict):  # type: ignore[type-arg]
    def __init__(self, x: Any, y: Any) -> None:
        super().__init__(x=x, y=y)


Y = torch.arange(N)
VALIDATED: dict[str, Any] = {
    "dataclass": Strict(X, Y),
    "frozen": Frozen(X, Y),
    "slots": Slotted(X, Y),
    "frozen slots": FrozenSlots(X, Y),
    "init var": Scaled(X, Y, 1.0),
    "named tuple": Checked(X, Y),
    "output": Output(x=X, y=Y),
    "mapping with arguments": ReadOnly(X, Y),
    "default dict": defaultdict(list, x=X, y=Y),
    "user dict": UserDict(x=X, y=Y),
    "mapping proxy": MappingProxyType({"x": X, "y": Y}),
}


def entry(batch: Any, name: str) -> Any:
    return batch[name] if hasattr(batch, "keys") else getattr(batch, name)


@pytest.mark.parametrize("name", VALIDATED)
def test_containers_that_check_what_they_hold_are_never_made_invalid(name: str) -> None:
    batch = VALIDATED[name]
    assert num_rows(batch) == N
    assert describe(batch)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves(batch))
    taken = take_rows(batch, ROWS, N)
    assert type(taken) is type(batch) or name == "mapping proxy"
    assert torch.equal(entry(taken, "x"), X[ROWS])
    assert torch.equal(entry(taken, "y"), ROWS)
    assert torch.equal(entry(batch, "x"), X), "the user's own is as it was"
    ((found, _),) = draw_reference([batch, batch]).batches(ROWS)
    assert torch.equal(entry(found, "y"), ROWS)


def test_what_a_dataclass_has_computed_goes_with_its_samples() -> None:
    batch = Scaled(X, Y, 3.0)
    assert torch.equal(batch.total, 3 * X.sum(1))
    taken = take_rows(batch, ROWS, N)
    assert torch.equal(taken.x, 3 * X[ROWS])
    assert torch.equal(taken.computed, 6 * X[ROWS])
    assert torch.equal(taken.twice, 2 * ROWS)
    assert torch.equal(taken.total, 3 * X[ROWS].sum(1))


def test_a_field_that_was_never_set_is_no_leaf() -> None:
    @dataclass
    class Lazy:
        x: torch.Tensor
        later: torch.Tensor = dataclasses.field(init=False)

    assert len(list(leaves(Lazy(X)))) == 1
    assert not hasattr(map_leaves(lambda leaf: leaf, Lazy(X)), "later")


def test_leaves_are_named_as_they_are_written() -> None:
    batch = {"x": (X, [Strict(X, Y)]), 3: "text"}
    assert [path for path, _ in paths(batch)] == [
        'batch["x"][0]',
        'batch["x"][1][0].x',
        'batch["x"][1][0].y',
        "batch[3]",
    ]


def test_descriptions_are_short() -> None:
    assert describe([X] * 256) == "['Tensor[10, 2]', 'Tensor[10, 2]', 'Tensor[10, 2]', ... 256 in all]"
    assert len(describe({f"key{number}": {"x" * 99: [X] * 9} for number in range(300)})) < 210
    assert describe(object()) == "'object'"
