"""The settings of a run's measurements, in builtins: what is told, and what must not change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from slt_callbacks.basics.plain import to_builtins
from slt_callbacks.data.checksums import short_digest
from slt_callbacks.data.drawing import check_seed
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.posterior import LocalPosterior, default_nbeta


@dataclass(frozen=True)
class Settings:
    """What decides a measurement beside the module and the observables.

    Args:
        config: Of the chains.
        reference: The samples.
        seed: Of the choice of samples and of the chains.

    Example:
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> import torch
        >>> settings = Settings(SamplerConfig(localization=5.0), draw_reference([torch.zeros(8, 1)]), seed=0)
        >>> settings.of_chains()["localization"], round(settings.nbeta, 2)
        (5.0, 3.85)
    """

    config: SamplerConfig
    reference: ReferenceSet
    seed: int

    def __post_init__(self) -> None:
        check_seed(self.seed)

    @property
    def posterior(self) -> LocalPosterior:
        """The target of the chains."""
        return LocalPosterior(self.nbeta, self.config.localization)

    @property
    def nbeta(self) -> float:
        """The number in force."""
        return default_nbeta(len(self.reference)) if self.config.nbeta is None else float(self.config.nbeta)

    def of_chains(self) -> dict[str, Any]:
        """What chains cannot survive a change of."""
        return {
            "dynamics": repr(self.config.dynamics),
            "nbeta": self.nbeta,
            "localization": float(self.config.localization),
            "num_chains": self.config.num_chains,
            "batch_size": self.config.batch_size,
            **self.of_samples(),
        }

    def of_samples(self) -> dict[str, Any]:
        """What tells the reference set from another: a change means other rows, even where their number is the same."""
        return {"num_samples": len(self.reference), "checksum": self.reference.fingerprint}

    def of_curve(self, module: type, loss_fn: Any, observables: Mapping[str, Any]) -> dict[str, Any]:
        """What two measurements must share to be points of one curve.

        Args:
            module: The class.
            loss_fn: The loss function, or None.
            observables: By key.
        """
        config = {field.name: getattr(self.config, field.name) for field in fields(self.config)}
        samples = short_digest((batch for batch, _ in self.reference.batches()), self.reference.indices)
        dynamics = config.pop("dynamics")
        return {
            "module": _name(module),
            "loss_fn": None if loss_fn is None else _name(loss_fn),
            "observables": ",".join(sorted(observables)),
            # the repr of an object of one's own may hold its address
            "dynamics": repr(dynamics) if is_dataclass(dynamics) else _name(type(dynamics)),
            **config,
            "seed": self.seed,
            "reference": f"{len(self.reference)} samples {samples}",
        }

    def told(self) -> dict[str, Any]:
        """What a person wants to read of them in the run's config."""
        return {
            "sampler": to_builtins(self.config, tag="name"),
            "nbeta": self.nbeta,
            "num_samples": len(self.reference),
            "seed": self.seed,
        }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is known of both and differs, in words.

    Example:
        >>> changes({"nbeta": 1.0}, {"nbeta": 2.0, "seed": 0})
        ['`nbeta` was 1.0 and is 2.0']
    """
    return [
        f"`{name}` was {before[name]!r} and is {value!r}"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
