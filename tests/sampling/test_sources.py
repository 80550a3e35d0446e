"""Whatever holds the samples: loaders over anything, DataModules, graphs; what cannot be meant is refused."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from slt_callbacks.data.drawing import draw_reference
from tests.problems import estimate, llc, settings

X, Y = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)), torch.arange(64)
PAIRS = list(zip(X, Y, strict=True))
TOKENS = [torch.arange(16) + index for index in range(64)]


def pairs(samples: list[Any]) -> Any:
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


class Rows(Dataset):  # type: ignore[type-arg]
    """Gives a batch for a list of rows."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, rows: Any) -> Any:
        return X[rows], Y[rows]


class Blocks(Sampler[list[int]]):
    """A sampler of the user's own that names the rows of a batch."""

    def __iter__(self) -> Iterator[list[int]]:
        yield from torch.arange(64).view(8, 8).tolist()

    def __len__(self) -> int:
        return 8


class Table:
    """As a TensorDict: asked for several rows, it gives them as one batch."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, row: int) -> Any:
        return {"x": X[row], "y": Y[row]}

    def __getitems__(self, rows: list[int]) -> Any:
        return {"x": X[rows], "y": Y[rows]}


def of_rows(sampler: Any) -> DataLoader[Any]:
    return DataLoader(Rows(), batch_size=None, sampler=sampler)


LOADERS: dict[str, Any] = {
    "a list of pairs": DataLoader(PAIRS, batch_size=8, collate_fn=pairs),  # type: ignore[arg-type]
    "a list of pairs, default collate": DataLoader(PAIRS, batch_size=8, shuffle=True),  # type: ignore[arg-type]
    "a tuple of pairs": DataLoader(tuple(PAIRS), batch_size=8),  # type: ignore[arg-type]
    "a batch sampler": of_rows(BatchSampler(RandomSampler(Rows()), 8, drop_last=False)),
    "a batch sampler of the user's own": of_rows(Blocks()),
    "a batch sampler as such": DataLoader(PAIRS, batch_sampler=BatchSampler(SequentialSampler(PAIRS), 8, False)),  # type: ignore[arg-type]
    "a table": DataLoader(Table(), batch_size=8, collate_fn=lambda batch: (batch["x"], batch["y"])),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_stands_for_the_samples_of_its_data(name: str) -> None:
    reference = draw_reference(LOADERS[name])
    ((x, y), _), *more = reference.batches()
    assert more == []
    assert (len(reference), reference.source_size) == (64, 64)
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    some = draw_reference(LOADERS[name], 10, seed=3)
    assert torch.equal(some.batches()[0][0][1], some.indices)
    assert torch.equal(some.indices, draw_reference(TensorDataset(X, Y), 10, seed=3).indices)


def test_rows_of_tokens_are_samples() -> None:
    reference = draw_reference(DataLoader(TOKENS, batch_size=4))  # type: ignore[arg-type]
    assert len(reference) == 64
    assert torch.equal(reference.batches()[0][0], torch.stack(TOKENS))


def test_the_llc_of_a_loader_over_a_list_is_that_of_its_data_set() -> None:
    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        return (module(batch[0])[:, 0] - batch[1] / 64).square()

    net = nn.Linear(5, 1)
    expected = llc(estimate(net, TensorDataset(X, Y), loss_fn, sampler=settings(1e-4, nbeta=None)))
    for loader in LOADERS.values():
        assert llc(estimate(net, loader, loss_fn, sampler=settings(1e-4, nbeta=None))) == expected != 0


def test_a_loader_that_makes_no_batches_converts_as_it_would() -> None:
    loader = DataLoader([X[:4].numpy(), X[4:].numpy()], batch_size=None)  # type: ignore[arg-type]
    assert torch.equal(draw_reference(loader).batches()[0][0], X)


@pytest.mark.parametrize("held_out", [SubsetRandomSampler(range(40)), list(range(40)), range(40)])
def test_rows_that_a_sampler_leaves_out_are_left_out(held_out: Any) -> None:
    reference = draw_reference(DataLoader(TensorDataset(X, Y), 8, sampler=held_out))
    assert reference.indices.tolist() == list(range(40))
    assert reference.source_size == 64
    some = draw_reference(DataLoader(TensorDataset(X, Y), 8, sampler=held_out), 30)
    assert torch.equal(some.batches()[0][0][1], some.indices)


class Data(LightningDataModule):
    def setup(self, stage: str) -> None:
        self.data = TensorDataset(X, Y)

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, 8, shuffle=True)


class Both(LightningDataModule):
    def train_dataloader(self) -> Any:
        return {"a": DataLoader(PAIRS), "b": DataLoader(PAIRS)}  # type: ignore[arg-type]


def test_a_data_module_stands_for_its_training_loader() -> None:
    module = Data()
    with pytest.raises(ValueError, match=r"a Data, to give its training loader, but .* raised AttributeError.*setup"):
        draw_reference(module)
    module.setup("fit")
    assert torch.equal(draw_reference(module).batches()[0][0][0], X)


def test_one_loader_in_a_container_is_that_loader() -> None:
    loader = LOADERS["a list of pairs"]
    for one in ([loader], CombinedLoader([loader]), CombinedLoader({"a": loader}), {"a": loader}, [Rows()]):
        assert len(draw_reference(one)) == 64  # type: ignore[arg-type]


LOADER = DataLoader(PAIRS)  # type: ignore[arg-type]
TOLD = (
    r"^Expected `reference` to be a Dataset, a DataLoader, a list of batches or a function that returns one of these, "
)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ([LOADER] * 256, r"\['DataLoader', 'DataLoader', 'DataLoader', ... 256 in all\]: give one of them"),
        ([TensorDataset(X), TensorDataset(X)], r"\['TensorDataset', 'TensorDataset'\]: give one of them"),
        ({"a": LOADER, "b": LOADER}, r"{'a': 'DataLoader', 'b': 'DataLoader'}: give one of them"),
        (CombinedLoader([LOADER, LOADER]), "'CombinedLoader': give one of them"),
        (Both(), r"{'a': 'DataLoader', 'b': 'DataLoader'}: give one of them"),
        (iter(LOADER), r"'_SingleProcessDataLoaderIter', which can be read once: write list\("),
        (X, r"'Tensor\[64, 5\]'. A single batch goes into a list"),
        (nn.Linear(1, 1), "'Linear'. A single batch"),
        ("train/" * 99, "but got '(train/)+trai'...: give the data itself"),
    ],
)
def test_what_cannot_be_meant_is_named_in_one_sentence(source: Any, told: str) -> None:
    with pytest.raises(TypeError, match=f"{TOLD}.*{told}") as caught:
        draw_reference(source)
    assert len(str(caught.value)) < 350


def test_an_error_does_not_print_the_data() -> None:
    for wrong in ([[X.tolist()] * 256], [{str(index): None for index in range(256)}], [{"text": "x" * 9999}]):
        with pytest.raises((TypeError, ValueError), match="Expected") as caught:
            draw_reference([*wrong, {"k": None}])
        assert len(str(caught.value)) < 500


def test_data_in_the_place_of_a_number_is_not_printed() -> None:
    with pytest.raises(
        ValueError, match=r"`num_samples` to be a positive integer or None, but got .*\(a list\)"
    ) as caught:
        draw_reference(LOADER, PAIRS)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 250


class Graph:
    """Nodes and edges of one graph or several, as graph libraries hold them: an object, not a container."""

    def __init__(self, nodes: torch.Tensor, graph: torch.Tensor | None = None, size: int = 1) -> None:
        self.store = {"nodes": nodes, "graph": torch.zeros(len(nodes), dtype=torch.int64) if graph is None else graph}
        self.size = size


def merged(graphs: list[Graph]) -> Graph:
    sizes = torch.tensor([len(graph.store["nodes"]) for graph in graphs])
    number = torch.arange(len(graphs)).repeat_interleave(sizes)
    return Graph(torch.cat([graph.store["nodes"] for graph in graphs]), number, len(graphs))


def graph_losses(module: Any, batch: Graph) -> torch.Tensor:
    values = module(batch.store["nodes"].mul_(2))[:, 0]  # careless code writes into what it is given
    batch.store["graph"] = batch.store["graph"].clone()
    losses: torch.Tensor = torch.zeros(batch.size).index_add(0, batch.store["graph"], values)
    return losses.square()


GRAPHS = [Graph(X[start : start + 2 + start % 3]) for start in range(8)]


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("scalar", [False, True])
def test_a_loader_of_graphs_collates_those_that_are_asked_for(batch_size: int | None, scalar: bool) -> None:
    torch.manual_seed(0)
    net = nn.Linear(5, 1)

    def loss_fn(module: Any, batch: Graph) -> torch.Tensor:
        losses = graph_losses(module, batch)
        return losses.mean() if scalar else losses

    config = settings(1e-4, num_draws=4, batch_size=batch_size)
    loader = DataLoader(GRAPHS, 4, shuffle=True, collate_fn=merged)  # type: ignore[arg-type]
    measurement = estimate(net, loader, loss_fn, sampler=config)
    one_by_one = [merged([graph]) for graph in GRAPHS]
    expected = estimate(net, one_by_one, graph_losses, sampler=config)
    true = sum(float(net(2 * graph.store["nodes"]).detach().sum().square()) for graph in GRAPHS) / 8
    assert measurement["llc"]["reference_loss"] == pytest.approx(true, rel=1e-5)
    if not (scalar and batch_size):  # fixed minibatches, and so other draws
        assert llc(measurement) == pytest.approx(llc(expected), rel=1e-3)
    assert all(torch.equal(graph.store["nodes"], X[row : row + 2 + row % 3]) for row, graph in enumerate(GRAPHS))


def test_a_graph_in_a_batch_of_its_own_is_a_sample() -> None:
    assert len(draw_reference(GRAPHS)) == 8
    assert len(draw_reference([merged(GRAPHS)])) == 1
    net = nn.Linear(5, 1)
    measurement = estimate(net, GRAPHS, lambda m, g: graph_losses(m, g).mean(), sampler=settings(1e-4))
    assert llc(measurement) != 0


def test_some_of_the_graphs_are_those_of_their_rows() -> None:
    reference = draw_reference(DataLoader(GRAPHS, collate_fn=merged), 4, seed=1)  # type: ignore[arg-type]
    ((batch, where),) = reference.batches(torch.tensor([3, 0]))
    wanted = [GRAPHS[int(reference.indices[place])].store["nodes"] for place in (3, 0)]
    assert torch.equal(batch.store["nodes"], torch.cat(wanted))
    assert where.tolist() == [0, 1]
    ((subset, _),) = reference.subset(torch.tensor([3, 0])).batches(torch.tensor([1]))
    assert torch.equal(subset.store["nodes"], wanted[1])
    ((again, _),) = pickle.loads(pickle.dumps(reference)).batches(torch.tensor([3, 0]))
    assert torch.equal(again.store["nodes"], batch.store["nodes"])
    local = draw_reference(DataLoader(GRAPHS, collate_fn=lambda graphs: merged(graphs)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`collate_fn` .* that another process can import.*top of a module"):
        pickle.dumps(local)
