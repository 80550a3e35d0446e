"""What a dotted path on the command line names: the user's own class or function."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def imported(option: str, path: str) -> Any:
    """What a dotted path such as ``package.module.Class`` names.

    Args:
        option: Where it was given, for the message.
        path: The names, with dots between them; a colon before the last will do.

    Raises:
        ValueError: If there is no such module, it cannot be imported, or it has nothing of that name.

    Example:
        >>> imported("--module", "torch.nn.Linear").__name__
        'Linear'
    """
    parts = path.replace(":", ".").split(".")
    for size in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:size])
        try:
            found = import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                continue
            raise ValueError(f"Importing `{name}` for {option} failed: {error}. Install what it needs.") from error
        for part in parts[size:]:
            if not hasattr(found, part):
                raise ValueError(
                    f"Expected {option} to name something in `{name}`, but it has no `{part}`{_like(found)}"
                )
            found = getattr(found, part)
        return found
    raise ValueError(
        f"Expected {option} to be an import path such as package.module.name, but there is no module to import in "
        f"`{path}`: call the command in the folder that holds it, or name that folder in PYTHONPATH."
    )


def _like(module: Any) -> str:
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return f": it has {', '.join(sorted(own)[:8])}." if own else "."
