"""On actors of Ray, on this machine or a cluster: training goes on while they measure."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

from slt_callbacks.basics.plain import shown
from slt_callbacks.executors.cluster import Cluster, serve_cluster
from slt_callbacks.executors.elsewhere import Elsewhere, check_count
from slt_callbacks.executors.numerics import Numerics
from slt_callbacks.executors.packing import Packing
from slt_callbacks.executors.processes import Processes


class RayExecutor(Elsewhere):
    """Measures on actors of Ray, on this machine or on a cluster, while training goes on. Needs the extra ``[ray]``.

    What travels: at a trigger the weights and buffers are copied into shared memory, and that is all that training
    waits for. A process beside it, which alone speaks to Ray, puts them into Ray's object store once (``ray.put``), and
    Ray moves them to the node of the actor whose turn it is. Loss function, observables and reference samples travel to
    every actor once, when the fit begins. Functions and classes of a script or a notebook are pickled by value; those
    of modules are imported, so every node needs these modules (`runtime_env`), and Python, torch and slt_callbacks in
    the versions of the training process, or a measurement fails and says which differ.

    Results are published at the step of their fork when they come. A cluster that goes away is a warning and failed
    measurements; training goes on.

    Args:
        num_workers: Actors. One keeps its chains warm. Several take the forks in turn, and each measurement stands
            alone: chains begin at the weights, and what compares with the measurement before is NaN.
        num_cpus: Of an actor, which computes with as many threads.
        num_gpus: Of an actor; with 0 it measures on the CPU, whatever training uses.
        address: Of the cluster, such as "ray://head:10001" or "auto"; None for what the environment variable
            RAY_ADDRESS says, a cluster that runs on this machine, or else one that is started and ended with the fit.
        max_pending: As in `ProcessExecutor`: forks that wait while all actors are busy.
        end_timeout: As in `ProcessExecutor`.
        runtime_env: As ``ray.init`` takes it, such as ``{"working_dir": "."}`` to bring code to the nodes.

    Raises:
        ValueError: If a number is out of range.
        ModuleNotFoundError: If Ray is not installed.

    Example:
        >>> from slt_callbacks import RayExecutor, SLTMonitor
        >>> try:
        ...     monitor = SLTMonitor(every_n_train_steps=500, executor=RayExecutor(num_workers=2))
        ... except ModuleNotFoundError as error:
        ...     print(error)  # doctest: +SKIP
        RayExecutor needs Ray, which is not installed: pip install 'slt-callbacks[ray]'
    """

    def __init__(
        self,
        num_workers: int = 1,
        num_cpus: float = 1,
        num_gpus: float = 0,
        address: str | None = None,
        max_pending: int = 1,
        end_timeout: float | None = 600.0,
        runtime_env: dict[str, Any] | None = None,
    ) -> None:
        check_count("num_workers", num_workers, 1)
        _check_share("num_cpus", num_cpus)
        _check_share("num_gpus", num_gpus)
        if importlib.util.find_spec("ray") is None:
            raise ModuleNotFoundError(
                "RayExecutor needs Ray, which is not installed: pip install 'slt-callbacks[ray]'", name="ray"
            )
        cluster = Cluster(num_workers, num_cpus, num_gpus, address, runtime_env)
        workers = Processes(
            num_workers,
            serve_cluster,
            partial(_arguments, cluster),
            Packing(_pickler, by_value=True),
            behind_one=True,
        )
        super().__init__(workers, num_workers, max_pending, end_timeout)


def _arguments(cluster: Cluster) -> tuple[Numerics, Cluster]:
    return Numerics.here(cluster.num_threads), cluster


def _pickler() -> Any:
    from ray import cloudpickle

    return cloudpickle.Pickler


def _check_share(name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise ValueError(f"Expected `{name}` to be a number of at least 0, but got {shown(value)}.")
