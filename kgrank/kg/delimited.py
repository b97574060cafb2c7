"""Delimited text (CSV and its kin), read by pyarrow with every value as text, to the letter."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from kgrank.errors import DataError, Fault


@dataclass(frozen=True, eq=False)
class Columns:
    """What a format's reader hands on: Arrow columns, and what was wrong.

    Attributes:
        rows: (n_rows,) the data row of the file that each row is, where some were left out; None
            where the rows are 1 … n_rows.
        unread: the file's other columns.
    """

    table: pa.Table
    rows: NDArray[np.int64] | None
    faults: list[Fault]
    unread: tuple[str, ...] = ()


def read_bytes(path: Path) -> bytes:
    """Read a file whole, unpacked where its name ends in .gz.

    Raises:
        OSError, EOFError, zlib.error: the file is missing, damaged or cut short.
    """
    data = path.read_bytes()
    return gzip.decompress(data) if path.name.endswith(".gz") else data


def read_text(
    path: Path,
    *,
    delimiter: str = ",",
    quoted: bool = False,
    header: Sequence[str] | None = None,
    encoding: str = "utf-8",
) -> pd.DataFrame:
    """Read published delimited text as columns of str; the index is the data row, 1 = the first.

    Args:
        path: the file.
        delimiter: what stands between two values.
        quoted: whether `"` encloses values, as in CSV.
        header: the columns' names where the file has no header line.
        encoding: the file's encoding.

    Raises:
        DataError: the file is missing or cannot be read, or a row has too many or few values.
    """
    try:
        data = read_bytes(path)
        if encoding != "utf-8":
            data = data.decode(encoding).encode()
        if len(delimiter) > 1:  # Arrow knows one character
            data, delimiter = data.replace(delimiter.encode(), b"\x1f"), "\x1f"
        columns = delimited(data, path.name, delimiter=delimiter, quoted=quoted, header=header)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError([unreadable(path.name, error)]) from None
    if columns.faults:
        raise DataError(columns.faults)
    frame = pd.DataFrame(
        {n: text_series(columns.table.column(n)) for n in columns.table.column_names}
    )
    return frame.set_axis(pd.RangeIndex(1, len(frame) + 1))


def delimited(
    data: bytes,
    file: str,
    *,
    delimiter: str = ",",
    quoted: bool = True,
    header: Sequence[str] | None = None,
    wanted: Sequence[str] | None = None,
) -> Columns:
    """Read delimited text, every value as text to the letter.

    Args:
        data: the file's bytes, in UTF-8.
        file: its name, for messages.
        delimiter: one character.
        quoted: whether `"` encloses values, as in CSV.
        header: the columns' names where the file has no header line.
        wanted: read these columns only; None = all.

    Raises:
        DataError: not UTF-8, no header, a column twice, or quotes that do not close.
    """
    first = 1 if header is None else 0  # the record of the file that is data row 1, from 0
    text = _decode(data, file, first)
    if quoted and '"' in text:
        _check_quotes(text, file)
    names = list(header) if header is not None else _header(text, file, delimiter, quoted)
    # To take none would mean all to Arrow.
    taken = [name for name in names if wanted is None or name in wanted] or names
    unread = tuple(name for name in names if name not in taken)
    ragged: list[pa.csv.InvalidRow] = []

    def keep_apart(row: pa.csv.InvalidRow) -> str:
        ragged.append(row)
        return "skip"

    table = pa.csv.read_csv(
        pa.BufferReader(data),
        # One thread, because only then does Arrow know a broken row's number.
        read_options=pa.csv.ReadOptions(use_threads=False, column_names=header, block_size=1 << 24),
        parse_options=pa.csv.ParseOptions(
            delimiter=delimiter,
            quote_char='"' if quoted else False,
            newlines_in_values=quoted,
            invalid_row_handler=keep_apart,
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=False,
            include_columns=taken,
        ),
    )
    if not ragged:
        return Columns(table, None, [], unread)
    skipped = np.array([row.number - first for row in ragged])
    rows = np.setdiff1d(np.arange(1, table.num_rows + len(skipped) + 1), skipped)
    fault = Fault(
        file=file,
        row=int(skipped[0]),
        column=None,
        found=f"{ragged[0].actual_columns} values",
        allowed=f"{ragged[0].expected_columns} values, one for each column",
        mend="Give the row all its values; put values that hold the delimiter in quotes.",
        count=len(ragged),
    )
    return Columns(table, rows, [fault], unread)


def _header(text: str, file: str, delimiter: str, quoted: bool) -> list[str]:
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )
    names = next((row for row in reader if row), None)
    if names is None:
        raise DataError([empty_file(file)])
    check_names(names, file)
    return names


def check_names(names: Sequence[str], file: str) -> None:
    """Raise a DataError where a column's name stands twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            [
                Fault(file, None, name, "two columns of this name", "one", "Rename or drop one.")
                for name in twice
            ]
        )


def _decode(data: bytes, file: str, first: int) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig") + "?"
        row = sum(1 for line in csv.reader(io.StringIO(before, newline="")) if line) - first
        fault = Fault(
            file=file,
            row=row or None,
            column=None,
            found=f"the byte 0x{data[error.start]:02x}, which is not UTF-8",
            allowed="text in UTF-8",
            mend="Save the file in the encoding UTF-8.",
        )
        raise DataError([fault]) from None


def _check_quotes(text: str, file: str) -> None:
    """Arrow swallows the rest of a file after a quote that never closes; `csv` tells."""
    limit = csv.field_size_limit(max(len(text), 1 << 17))
    row = 0
    try:
        for record in csv.reader(io.StringIO(text, newline=""), strict=True):
            row += bool(record)
    except csv.Error as error:
        fault = Fault(
            file=file,
            row=row or None,
            column=None,
            found=f"a quote out of place ({error})",
            allowed='values in quotes that close, with a quote inside written ""',
            mend="Close the quote, or write the file anew with a CSV writer.",
        )
        raise DataError([fault]) from None
    finally:
        csv.field_size_limit(limit)


def text_series(array: pa.ChunkedArray) -> pd.Series[Any]:
    """Arrow strings as a Series of str, "" for null."""
    return pd.Series(pd.array(array.fill_null(""), dtype="str"))


def empty_file(file: str) -> Fault:
    """The fault of a file without a letter in it."""
    return Fault(file, None, None, "an empty file", "a header and rows", "Fill or remove the file.")


def unreadable(file: str, error: Exception) -> Fault:
    """The fault of a file that breaks while it is read."""
    mend = "Write or copy the file again: it is cut short, damaged or of another format."
    found = f"a file that cannot be read ({error})"
    return Fault(file, None, None, found, "a whole file of the format that its name says", mend)
