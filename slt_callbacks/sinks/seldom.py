"""What costs as much as the whole of a list is told ever more rarely as the list grows."""

from __future__ import annotations

_ALWAYS = 16  # lists this short are told whenever they have grown
_GROWTH = 1.25


class Seldom:
    """Says when a list that grows is to be told again, so that the cost of an entry does not grow with their number.

    A list of n entries is told at each of the first 16 lengths, and then when it has grown by a quarter.

    Example:
        >>> seldom = Seldom()
        >>> [length for length in range(14, 40) if seldom.due(length)]
        [14, 15, 16, 20, 25, 32]
    """

    def __init__(self) -> None:
        self._last = 0

    def due(self, length: int) -> bool:
        """Whether a list of this length is to be told; then it counts as told.

        Args:
            length: Of a list that has grown.
        """
        if length > _ALWAYS and length < _GROWTH * self._last:
            return False
        self._last = length
        return True
