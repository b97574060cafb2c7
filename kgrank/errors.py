"""What can go wrong, as one tree.

KgrankError
├── DataError      the tables are at fault: carries every fault found
├── ConfigError    a setting is unknown or out of range
├── ModelError     a model cannot be fitted or used as asked
│   ├── BundleError  a saved bundle is damaged, unknown or missing
│   └── StoreError   an embedding store, an exported graph or a graph server is damaged, unknown,
│                    missing, in use or not to be reached
└── UnknownIdError a user or item id that the model has never seen
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ROW = "#row"  # a column of events: each one's data row in the file, for messages


class KgrankError(Exception):
    """The root of every error that kgrank raises on purpose."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong in the tables, and how to mend it.

    Attributes:
        file: the file (or table, where there is no file) the fault is in.
        row: the data row, 1 = the first row below the header; None when the whole table is meant.
        column: the column; None when the whole row or table is meant.
        found: what stands there.
        allowed: what may stand there.
        mend: what to do.
        count: in how many rows the same fault was found (`row` is the first of them).
    """

    file: str
    row: int | None
    column: str | None
    found: str
    allowed: str
    mend: str
    count: int = 1

    def __str__(self) -> str:
        where = self.file
        if self.row is not None:
            where += f", row {self.row}"
        if self.column is not None:
            where += f", column {self.column!r}"
        more = f" (and {self.count - 1} more rows)" if self.count > 1 else ""
        return f"{where}{more}: found {self.found}; allowed: {self.allowed}. {self.mend}"


class DataError(KgrankError):
    """The input tables are at fault. `faults` lists everything that was found."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        shown = [str(fault) for fault in self.faults[:20]]
        if len(self.faults) > 20:
            shown.append(f"… and {len(self.faults) - 20} more faults")
        super().__init__("\n".join(shown))


class ConfigError(KgrankError):
    """A setting is unknown, of the wrong type or out of range."""


class ModelError(KgrankError):
    """A model cannot be fitted or used as asked."""


class BundleError(ModelError):
    """A saved bundle is damaged, of an unknown format, or missing."""


class StoreError(ModelError):
    """A store of vectors or graphs is damaged, of an unknown format, missing, or in use.

    Or the server that holds it cannot be reached, or refuses.
    """


class UnknownIdError(KgrankError):
    """A user or item id that the model has never seen."""
