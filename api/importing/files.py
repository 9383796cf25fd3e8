"""CSV as spreadsheets and databases write it: UTF-8, commas, a first row of column names. Read row by row."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from api.importing.errors import ImportFailed

if TYPE_CHECKING:
    from _csv import Reader

Cells = Mapping[str, str | None]  # None: the cell is empty


@dataclass(frozen=True, slots=True)
class Columns:
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    others: bool = False  # may there be columns of any other name


@dataclass(frozen=True, slots=True)
class Row:
    line: int  # where it begins
    cells: Cells
    problem: str | None  # why it cannot be read


@dataclass(frozen=True, slots=True)
class CsvFile:
    path: Path
    columns: Columns

    @contextmanager
    def open(self) -> Iterator[tuple[Sequence[str], Iterator[Row]]]:
        """The names of its columns, and its rows. Raises ImportFailed for a file that is not what it should be."""
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                header = [name.strip() for name in next(reader, [])]
                self._check(header)
                yield header, self._rows(reader, header)
            except UnicodeDecodeError:
                raise self._failed(f"near line {reader.line_num + 1}: it is not UTF-8") from None
            except csv.Error as error:
                raise self._failed(f"line {reader.line_num}: it is no CSV: {error}") from None

    def _check(self, header: Sequence[str]) -> None:
        known = (*self.columns.required, *self.columns.optional)
        expected = f"expected the columns {', '.join(self.columns.required)}"
        if self.columns.optional:
            expected += f", and any of {', '.join(self.columns.optional)}"
        for name in self.columns.required:
            if name not in header:
                raise self._failed(f"line 1: there is no column {name}; {expected}")
        for name in header:
            if header.count(name) > 1 or not name:
                raise self._failed(f"line 1: the column {name or 'without a name'} is there twice or has no name")
            if name not in known and not self.columns.others:
                raise self._failed(f"line 1: there is a column {name}; {expected}")

    def _rows(self, reader: Reader, header: Sequence[str]) -> Iterator[Row]:
        line = reader.line_num + 1
        for fields in reader:
            if fields:
                problem = None
                if len(fields) != len(header):
                    problem = f"the row has {len(fields)} cells and the header {len(header)}"
                elif any("\0" in field for field in fields):
                    problem = "the row has a NUL character"
                yield Row(
                    line, {name: cell.strip() or None for name, cell in zip(header, fields, strict=False)}, problem
                )
            line = reader.line_num + 1

    def _failed(self, text: str) -> ImportFailed:
        return ImportFailed(f"{self.path}, {text}.")
