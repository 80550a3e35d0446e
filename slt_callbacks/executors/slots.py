"""Memory that two processes share: files that are mapped into both, in RAM where the system has a place for that."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import torch

# Where Linux keeps files in RAM. A container may have little of it: then they lie on the disk, behind its cache.
_IN_MEMORY = Path("/dev/shm")
_SPARE = 1.1  # what a module says beside its weights grows and shrinks a little from fork to fork


@dataclass(frozen=True)
class Slot:
    """A piece of shared memory.

    Attributes:
        path: The file; another process gives it to `mapped`.
        memory: The same in this one, uint8 ``(bytes,)``.
    """

    path: Path
    memory: torch.Tensor = field(repr=False)


class Slots:
    """Hands out shared memory, and uses again what is given back; nothing is left of it after `close`.

    Example:
        >>> slots = Slots()
        >>> slot = slots.take(4)
        >>> _ = slot.memory[:4].copy_(torch.tensor([1, 2, 3, 4]))
        >>> mapped(slot.path)[:4].tolist()  # as another process sees it
        [1, 2, 3, 4]
        >>> slots.give_back(slot)
        >>> slots.take(3) is slot  # used again
        True
        >>> slots.close()
        >>> slot.path.exists()
        False
    """

    def __init__(self) -> None:
        self._free: list[Slot] = []
        self._folders: dict[Path, Path] = {}
        self._numbers = itertools.count()

    @property
    def folders(self) -> list[Path]:
        """Where the files are."""
        return list(self._folders.values())

    def take(self, num_bytes: int) -> Slot:
        """A piece of at least so many bytes.

        Raises:
            OSError: If there is no room for it, neither in memory nor on the disk.
        """
        for slot in self._free:
            if len(slot.memory) >= num_bytes:
                self._free.remove(slot)
                return slot
        while self._free:  # too small: weights have been added
            self._free.pop().path.unlink(missing_ok=True)
        path = self._made(int(max(num_bytes, 1) * _SPARE))
        return Slot(path, mapped(path))

    def give_back(self, slot: Slot) -> None:
        """It is read no more."""
        self._free.append(slot)

    def close(self) -> None:
        """Delete all files; memory goes with the last process that has them mapped."""
        self._free = []
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._folders = {}

    def _made(self, num_bytes: int) -> Path:
        """A file of this size, whose space is really there: to touch memory that is not ends the process."""
        places = [_IN_MEMORY, Path(tempfile.gettempdir())] if _IN_MEMORY.is_dir() else [Path(tempfile.gettempdir())]
        for place in places:
            try:
                return self._made_in(place, num_bytes)
            except OSError as error:
                if place is places[-1] or error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EPERM):
                    raise
        raise AssertionError("unreachable")

    def _made_in(self, place: Path, num_bytes: int) -> Path:
        if place not in self._folders:
            folder = Path(tempfile.mkdtemp(prefix=f"slt-callbacks-{os.getpid()}-", dir=place))
            weakref.finalize(self, _remove, folder, os.getpid())  # also where the process ends without `close`
            self._folders[place] = folder
        path = self._folders[place] / str(next(self._numbers))
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(file, num_bytes)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, num_bytes)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(file)
        return path


def _remove(folder: Path, pid: int) -> None:
    """By the process that has made it, and none that was forked from it."""
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def mapped(path: Path) -> torch.Tensor:
    """The bytes of a file as shared memory, uint8 ``(bytes,)``: what one process writes, the others see."""
    return torch.from_file(str(path), shared=True, size=path.stat().st_size, dtype=torch.uint8)
