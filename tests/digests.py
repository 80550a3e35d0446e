"""A digest of everything that some thirty measurements and short fits give: `python -m tests.digests`.

Two versions of the package that print the same lines give the same numbers, events, pictures, files and checkpoints to
the last bit, on this machine. What the clock decides is left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from slt_callbacks import (
    LLC,
    SGLD,
    Estimator,
    FileSink,
    Influence,
    LossKernel,
    MemorySink,
    RMSPropSGLD,
    SamplerConfig,
    calibrate,
    estimate,
    log_linear_steps,
    replay_checkpoints,
)
from slt_callbacks.data.drawing import draw_reference
from tests.problems import Everything, Quadratic, Weights, settings, squared_error
from tests.processes import on_ranks
from tests.training import Regression, data, fit, monitor, square_error

_CLOCK = ("seconds", "overhead")  # names of what the clock decides
_LATER = ("num_parameters",)  # names of numbers that earlier versions did not give
Case = Callable[[Path], Any]


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that two values share if they are equal to the last bit."""
    found = hashlib.sha256()
    for part in _parts(value):
        found.update(part)
    return found.hexdigest()[:12]


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode() + value.tobytes()
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            if not str(name).endswith(_CLOCK + _LATER):
                yield str(name).encode()
                yield from _parts(value[name])
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _parts({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(value, (list, tuple)):
        yield str(len(value)).encode()
        for item in value:
            yield from _parts(item)
    elif isinstance(value, float):
        yield b"nan" if math.isnan(value) else value.hex().encode()
    else:
        yield repr(value).encode()


def found(*measurements: Any) -> list[Any]:
    """The numbers of measurements; what else a record carries is told by those who publish it."""
    return [[one.step, dict(one.results), one.error] for one in measurements]


def pairs(size: int = 12, seed: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, 3, generator=generator), torch.randn(size, 1, generator=generator))]


def network(step: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The same one every time, as after so many training steps."""
    generator = torch.Generator().manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1 + 0.1 * step))
    return module.to(dtype)


def quick(**changes: Any) -> SamplerConfig:
    return settings(**({"num_chains": 3, "num_draws": 12, "num_burnin_steps": 20, "engine": "sequential"} | changes))


def everything_of() -> dict[str, Any]:
    labels = [0, 1, 0, 1, 2, 2] * 2
    return {
        "llc": LLC(),
        "kernel": LossKernel(labels),
        "influence": Influence([*pairs(4, 6), *pairs(3)], labels, ["a", "b", "a", "b", "b", "a", "a"]),
    }


def measured(config: SamplerConfig, loss_fn: Any = squared_error, observables: Any = None, steps: int = 1) -> Case:
    """Measurements of one network at so many training steps, warm from the second on, and the state after them."""

    def run(_: Path) -> Any:
        one = Estimator(draw_reference(pairs()), loss_fn, observables and observables(), config, 3, persistent=True)
        measurements = found(*(one.measure(network(step), step) for step in range(1, steps + 1)))
        return measurements, without_orders(one.state_dict())

    return run


def without_orders(state: Any) -> Any:
    """Without the order of a picture's rows: that of the first picture, which only a fit made once."""
    if isinstance(state, Mapping):
        return {name: without_orders(value) for name, value in state.items() if not str(name).endswith("order")}
    return state


def once(module: Callable[[], nn.Module], reference: Any, loss_fn: Any, **options: Any) -> Case:
    def run(_: Path) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return found(estimate(module(), reference, loss_fn, **options))

    return run


def per_token(module: Any, batch: Any) -> torch.Tensor:
    inputs, targets = batch
    return (module(inputs) - targets).square().expand(-1, 3) * torch.tensor([1.0, 2.0, 3.0])  # type: ignore[no-any-return]


def mean_only(module: Any, batch: Any) -> torch.Tensor:
    return squared_error(module, batch).mean()


def steep(module: Any, batch: torch.Tensor) -> torch.Tensor:
    """Diverges for some chains and not for others."""
    return (module.w.square().sum() / 2 + 10.0 * module.w.pow(4).sum()).expand(len(batch))


def hopeless(module: Any, batch: torch.Tensor) -> torch.Tensor:
    return (-1e9 * module.w.square().sum()).expand(len(batch))


def on_two_ranks(_: Path) -> Any:
    def work(ranks: Any) -> Any:
        one = Estimator(
            draw_reference(pairs()), squared_error, everything_of(), quick(), 3, persistent=True, ranks=ranks
        )
        return found(*(one.measure(network(step), step) for step in (1, 2)))

    return on_ranks(2, work)


def resumed_estimator(_: Path) -> Any:
    def make() -> Estimator:
        return Estimator(draw_reference(pairs()), squared_error, everything_of(), quick(), 3, persistent=True)

    first, second = make(), make()
    first.measure(network(1), 1)
    second.load_state_dict(first.state_dict())
    return found(second.measure(network(2), 2)), second.state_dict()


def growing_curvature(_: Path) -> Any:
    """An "auto" step that has to be halved on the way."""
    config, findings = quick(eps="auto"), []
    one: Estimator | None = None
    for step, size in enumerate((1.0, 2.0, 8.0), 1):
        loss_fn = Quadratic(torch.tensor([1.0, 3.0]))
        one = one or Estimator(draw_reference([torch.zeros(2, 1)]), _Scaled(loss_fn), None, config, persistent=True)
        findings.append(one.measure(_Stiff(size), step))
    return found(*findings), one.state_dict() if one else None


class _Stiff(Weights):
    def __init__(self, size: float) -> None:
        super().__init__(2)
        self.register_buffer("size", torch.tensor(size))


class _Scaled:
    def __init__(self, loss_fn: Any) -> None:
        self.loss_fn = loss_fn

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        return self.loss_fn(module, batch) * module.size  # type: ignore[no-any-return]


class Planted:
    """An LLC that jumps and rises as we say, whatever the draws are."""

    def reset(self, reference: Any) -> None:
        self.step = reference.step

    def update(self, draw: Any) -> None:
        """The draws do not matter."""

    def compute(self) -> dict[str, float]:
        up = 30.0 * (self.step > 24) + 2.0 * max(self.step - 36, 0)
        return {"mean": 10.0 + up + math.sin(3.0 * self.step), "stderr": 0.5, "reference_loss": 5.0 - self.step / 20}


class RaisesOnce:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls == 60:
            raise RuntimeError("no such column")
        return square_error(module, batch)


def told(live: Any, sink: MemorySink, folder: Path | None = None) -> list[Any]:
    """Everything that a fit has made known."""
    content: list[Any] = [found(*live.history), live.events, live.stages, live.state_dict(), sink.config]
    for one in sink.publications:
        pictures = {key: [picture.matrix, picture.caption] for key, picture in one.pictures.items()}
        content.append([one.scalars, one.log_step, one.events, one.stages, pictures, one.matrices, one.tables])
    if sink.report is not None:
        report = sink.report
        content.append([found(*report.history), report.stages, report.events, report.rows, report.observable])
    return [*content, files_in(folder)] if folder else content


def files_in(folder: Path) -> dict[str, Any]:
    """Names and contents; of tables without the columns of the clock, of archives the arrays in them."""
    content: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".csv":
            rows = [line.split(",") for line in path.read_text().splitlines()]
            keep = [place for place, name in enumerate(rows[0] if rows else []) if not name.endswith(_CLOCK + _LATER)]
            content[path.name] = [[row[place] for place in keep if place < len(row)] for row in rows]
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                content[path.name] = dict(arrays)
        elif path.suffix == ".pt":
            content[path.name] = torch.load(path, weights_only=True)
        elif path.is_file() and path.suffix in (".json", ".png"):
            content[path.name] = path.read_bytes()
    return content


def fitted(
    observables: Any = None, reference: Any = "data", fits: Mapping[str, Any] | None = None, **options: Any
) -> Case:
    def run(folder: Path) -> Any:
        sink = MemorySink()
        sinks = [sink, FileSink(folder / "files")]
        live = monitor(reference, observables=observables and observables(), sinks=sinks, **options)
        fit(live, **(fits or {}))
        return told(live, sink, folder)

    return run


def fits_all() -> dict[str, Any]:
    labels = [row % 3 for row in range(48)]
    return {"llc": LLC(), "kernel": LossKernel(labels), "influence": Influence(data(6), labels)}


def logged(folder: Path) -> Any:
    """The default sinks: what Lightning's own logger gets, and the files beside it."""
    live = monitor(observables=fits_all())
    fit(live, logger=CSVLogger(folder), max_steps=12, log_every_n_steps=1)
    return [found(*live.history), files_in(folder)]


def resumed_fit(folder: Path) -> Any:
    kept = ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    fit(monitor(observables=fits_all()), kept, max_steps=3, enable_checkpointing=True)
    live, sink = None, MemorySink()
    live = monitor(observables=fits_all(), sinks=[sink])
    fit(live, max_steps=8, ckpt_path=str(folder / "step=3.ckpt"))
    return told(live, sink)


def replayed(folder: Path) -> Any:
    kept = ModelCheckpoint(folder / "saved", every_n_train_steps=2, save_top_k=-1, filename="{step}")
    fit(monitor(), kept, max_steps=8, enable_checkpointing=True)
    arguments: dict[str, Any] = {
        "observables": fits_all(),
        "sampler": quick(),
        "output": folder / "replay",
        "progress": False,
    }
    paths = sorted((folder / "saved").glob("*.ckpt"))
    replay_checkpoints(paths[:2], Regression, data(), square_error, **arguments)
    again = replay_checkpoints(paths, Regression, data(), square_error, **(arguments | {"observables": fits_all()}))
    return found(*again), files_in(folder / "replay")


def calibrated(_: Path) -> Any:
    config = SamplerConfig(SGLD(), num_chains=2, num_draws=20, num_burnin_steps=10, engine="sequential")
    return calibrate(network(), pairs(), squared_error, sampler=config, nbetas=[5.0], localizations=[1.0, 10.0])


CASES: dict[str, Case] = {
    "sequential": measured(quick(), steps=3),
    "minibatches": measured(quick(batch_size=4), steps=3),
    "vectorized": measured(quick(engine="vectorized"), steps=3),
    "vectorized minibatches": measured(quick(engine="vectorized", batch_size=4), steps=3),
    "blocks": measured(quick(block_size=5), steps=2),
    "steps between draws": measured(quick(num_steps_bw_draws=4)),
    "one chain": measured(quick(num_chains=1)),
    "rmsprop": measured(quick(dynamics=RMSPropSGLD(1e-3)), steps=2),
    "rmsprop, vectorized": measured(quick(dynamics=RMSPropSGLD(1e-3), engine="vectorized"), steps=2),
    "auto step": measured(quick(eps="auto"), steps=3),
    "auto step, halved": growing_curvature,
    "kernel and influence": measured(quick(), observables=everything_of, steps=3),
    "kernel and influence, minibatches": measured(quick(batch_size=4), observables=everything_of, steps=2),
    "kernel and influence, vectorized": measured(quick(engine="vectorized"), observables=everything_of, steps=2),
    "token losses": measured(quick(), per_token),
    "token kernel": measured(quick(), per_token, lambda: {"kernel": LossKernel(per_token=True)}, steps=2),
    "scalar loss": measured(quick(), mean_only),
    "scalar loss, minibatches": measured(quick(batch_size=4), mean_only, steps=2),
    "training step, kernel": once(
        lambda: torch.manual_seed(2) and Regression(),
        data(8),
        None,
        observables={"llc": LLC(), "kernel": LossKernel()},
        sampler=quick(),
    ),
    "failed chains": once(
        lambda: Weights(2), [torch.zeros(2, 1)], steep, sampler=quick(eps=0.03, num_chains=6, num_draws=40)
    ),
    "all chains failed": once(lambda: Weights(2), [torch.zeros(2, 1)], hopeless, sampler=quick(eps=0.1)),
    "float64": once(lambda: network(dtype=torch.float64), pairs(), squared_error, sampler=quick()),
    "bfloat16": once(lambda: network(dtype=torch.bfloat16), pairs(), squared_error, sampler=quick()),
    "tied, frozen, buffers": once(
        lambda: torch.manual_seed(2) and Everything(),
        [torch.ones(5, 4)],
        lambda m, x: m(x).square().mean(1),
        sampler=quick(eps=1e-4),
    ),
    "shapes": once(
        lambda: torch.manual_seed(2) and nn.Linear(3, 1),
        [torch.ones(2, 4, 3), torch.ones(3, 2, 3)],
        lambda m, x: m(x).square().flatten(1).mean(1),
        observables={"llc": LLC(), "kernel": LossKernel()},
        sampler=quick(batch_size=2),
    ),
    "two ranks": on_two_ranks,
    "resumed estimator": resumed_estimator,
    "calibration": calibrated,
    "fit": fitted(),
    "fit, kernel and influence": fitted(fits_all, fits={"max_steps": 10}),
    "fit, first batches": fitted(reference=None, num_samples=16),
    "fit, epochs": fitted(every_n_epochs=1, fits={"max_steps": 12}),
    "fit, schedule": fitted(schedule=log_linear_steps(6, 3, 2).__call__),
    "fit, cold": fitted(persistent_chains=False),
    "fit, jump and stages": fitted(
        lambda: {"llc": Planted()}, every_n_train_steps=1, fits={"max_steps": 60}, sampler=quick(num_chains=1)
    ),
    "fit, a loss that raises": fitted(loss_fn=RaisesOnce(), fits={"max_steps": 8}),
    "fit, loggers": logged,
    "fit, resumed": resumed_fit,
    "replay": replayed,
}


def main() -> None:
    torch.set_num_threads(1)
    chosen = sys.argv[1:]
    warnings.simplefilter("ignore")
    for name, case in CASES.items():
        if not chosen or any(part in name for part in chosen):
            with tempfile.TemporaryDirectory() as folder:
                print(f"{name:<36} {digest(case(Path(folder)))}", flush=True)


if __name__ == "__main__":
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    main()
