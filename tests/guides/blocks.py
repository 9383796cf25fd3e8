"""The fenced blocks of a guide. What stands behind the language, which readers never see, says how a block is run:

```sh                      run it; it has to succeed
```sh fails                run it; it has to fail
```sh until                run it again until it prints what is shown
```sh not run: why         for the reader alone
```sql file=policies/x.sql write it to that file of the project
```output                  what the block before prints; `…` stands for anything
```text                    a drawing, no command
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt

RUN: Final = frozenset({"sh", "js", "python", "sql"})
_FLAGS: Final = frozenset({"fails", "until"})
_SPACE: Final = re.compile(r"\s+")
_RULE: Final = re.compile(r"-{2,}")  # of a table of psql: as wide as values that the guide does not show


@dataclass(frozen=True)
class Block:
    guide: str
    line: int
    language: str
    text: str
    file: str | None = None
    not_run: str | None = None
    fails: bool = False
    until: bool = False
    shown: str | None = None

    def __str__(self) -> str:
        return f"{self.guide}:{self.line} ({self.language})"

    def prints(self, output: str) -> bool:
        """Whether the guide shows this output. Space does not count, so that a guide may break long lines."""
        return self.shown is None or matches(self.shown, output)


def matches(shown: str, output: str) -> bool:
    parts = (re.escape(_plain(part)) for part in shown.split("…"))
    return re.fullmatch(".*?".join(parts), _plain(output), re.DOTALL) is not None


def links(path: Path) -> set[str]:
    """Where the links of a page lead."""
    inline = [
        child
        for token in MarkdownIt("gfm-like", {"linkify": False}).parse(path.read_text("utf-8"))
        for child in token.children or ()
    ]
    return {str(child.attrs["href"]) for child in inline if child.type == "link_open"}


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def languages(path: Path) -> set[str]:
    """Those of a guide's fenced blocks."""
    tokens = MarkdownIt().parse(path.read_text(encoding="utf-8"))
    return {token.info.partition(" ")[0] for token in tokens if token.type == "fence"}


def read_blocks(path: Path, name: str) -> Iterator[Block]:
    """The blocks of a guide in order. Raises ValueError for one of which nobody could say whether it is run."""
    text = path.read_text(encoding="utf-8")
    fences = [token for token in MarkdownIt().parse(text) if token.type in ("fence", "code_block")]
    found: list[Block] = []
    for token in fences:
        line = token.map[0] + 1 if token.map else 0
        language, _, info = token.info.strip().partition(" ")
        if language == "text":
            continue
        if language == "output":
            if not found or found[-1].shown is not None or found[-1].file or found[-1].not_run:
                raise ValueError(f"{name}:{line}: output of nothing")
            found[-1] = _with_output(found[-1], token.content)
        elif language in RUN or " file=" in f" {info}":
            found.append(_block(name, line, language, token.content, info))
        else:
            raise ValueError(f"{name}:{line}: a block of {language or 'no language'}; use one of {sorted(RUN)} or text")
    for block in found:
        if block.file and f"`{block.file}`" not in text:
            raise ValueError(f"{block}: the reader is not told that this is {block.file}")
        if block.until and block.shown is None:
            raise ValueError(f"{block}: until what?")
        yield block


def _block(guide: str, line: int, language: str, text: str, info: str) -> Block:
    if info.startswith("not run: "):
        return Block(guide, line, language, text, not_run=info.removeprefix("not run: "))
    if info.startswith("file="):
        return Block(guide, line, language, text, file=info.removeprefix("file="))
    flags = frozenset(info.split())
    if flags - _FLAGS:
        raise ValueError(f"{guide}:{line}: nobody knows {sorted(flags - _FLAGS)}")
    return Block(guide, line, language, text, fails="fails" in flags, until="until" in flags)


def _with_output(block: Block, shown: str) -> Block:
    return Block(block.guide, block.line, block.language, block.text, fails=block.fails, until=block.until, shown=shown)


def _plain(text: str) -> str:
    return _RULE.sub("--", _SPACE.sub("", text))
