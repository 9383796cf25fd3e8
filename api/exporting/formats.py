"""How rows come out. Postgres writes each of them, as a line: nothing here holds more than one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg import sql


@dataclass(frozen=True)
class Format:
    """`rows` is what is selected from the query; between two lines comes `separator`, and nothing after the last."""

    copy: sql.SQL
    begins: bytes
    separator: bytes
    ends: bytes
    with_header: bool = False

    def statement(self, query: sql.Composable, *, header: bool) -> sql.Composed:
        return self.copy.format(query=query, header=sql.SQL("true" if header and self.with_header else "false"))

    def framed(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        yield self.begins
        between = b""
        for line in lines:
            yield between + line.removesuffix(b"\n")
            between = self.separator
        yield (b"\n" if between else b"") + self.ends


# JSON has no raw control characters, so a quote and a delimiter that are some leave it as it is.
_JSON_LINE: Final[LiteralString] = (
    "copy (select row_to_json(r) from ({query}) as r) to stdout "
    "(format csv, quote e'\\x01', delimiter e'\\x02', header {header})"
)

FORMATS: Final = {
    "csv": Format(sql.SQL("copy ({query}) to stdout (format csv, header {header})"), b"", b"\n", b"", with_header=True),
    "json": Format(sql.SQL(_JSON_LINE), b"[", b",\n ", b"]\n"),
    "ndjson": Format(sql.SQL(_JSON_LINE), b"", b"\n", b""),
}
