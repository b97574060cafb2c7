"""Which place a number has in a short list, compiled by numba: a hash table with open addressing.

A dense array of all items or features answers as well, but must be filled with zeros each time, and
is too large for the processor's nearest cache.

    slots   -1  2 -1 -1  0  1 -1 -1     places of the list 40, 12, 7, -1 where none is
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kgrank.compiled import compiled

Ints = npt.NDArray[np.int32]


@compiled
def table_of(numbers: Ints) -> Ints:
    """The table of (n) int32 numbers >= 0, for `place_in`; of equal ones the first is found."""
    slots = empty_table(len(numbers))
    for place in range(len(numbers)):
        slot = slot_of(slots, numbers, numbers[place])
        if slots[slot] < 0:
            slots[slot] = place
    return slots


@compiled
def empty_table(most: int) -> Ints:
    """A table without places, for at most so many."""
    size = 8
    while size < 2 * most:
        size *= 2
    return np.full(size, -1, np.int32)


@compiled
def place_in(slots: Ints, numbers: Ints, number: int) -> int:
    """The place of a number in the list that the table is of; -1 where it is not there."""
    return int(slots[slot_of(slots, numbers, number)])


@compiled
def slot_of(slots: Ints, numbers: Ints, number: int) -> int:
    """The slot where a number is, or the empty one where it would be."""
    mask = len(slots) - 1
    slot = ((number * 0x9E3779B1) >> 12) & mask  # Knuth's multiplicative hash
    while slots[slot] >= 0 and numbers[slots[slot]] != number:
        slot = (slot + 1) & mask
    return slot
