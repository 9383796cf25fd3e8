"""docs/errors.md: every code that a client can meet, made of the catalogue and of the sources that raise them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

from api.codes import CODES, PASSED_ON, Code
from api.settings import PROJECT

_CODE: Final = r"([A-Z]+(?:_[A-Z]+)+)"
# In SQL, a text that is a code or begins with one and a colon; in Python, what goes to problem() or begins a message.
_RAISED_IN_SQL: Final = (re.compile(rf"'{_CODE}(?=[:'])"),)
_RAISED_IN_PYTHON: Final = (re.compile(rf'problem\(\s*"{_CODE}"'), re.compile(rf'"{_CODE}: '))
_NO_CODES: Final = frozenset({"YYYY_MM"})  # a format of to_char

_HEAD: Final = """\
# Errors

Made by `goldleaves errors --write` from `api/codes.py`; do not edit it.

Every error, whoever answers, is JSON of one shape:

```json
{
  "code": "PT403",
  "message": "NOT_A_MEMBER: you are not a member of organization acme",
  "details": null,
  "hint": "GET /organizations without X-Organization-ID lists yours."
}
```

Match the word before the colon of `message`, which never changes; the text behind it may. `code` is `PT` and the HTTP
status where `message` has such a word. Where it has none, `code` is PostgREST's or Postgres' own: see
[the second list](#codes-of-postgrest-and-postgres). Each answer has `X-Request-ID`, which finds the request in usage
events and logs. An answer 503 has `Retry-After`, in seconds: GET, and POST /v1/events, are safe to repeat as they are.

"""

_PASSED_ON: Final = """\
## Codes of PostgREST and Postgres

The gateway passes these on as they come, in the same shape. They are the ones that a client meets; PostgREST's and
Postgres' documentation have all of them. `details` and `hint` often name the column, key or function that it is about.

"""


def error_reference() -> str:
    raised = raised_codes()
    parts = [_HEAD, "## Stable codes\n\n"]
    parts += (_stable(code, meaning, raised.get(code, ())) for code, meaning in sorted(CODES.items()))
    parts += [_PASSED_ON, "| code | status | when | what to do |\n|---|---|---|---|\n"]
    parts += (f"| `{code}` | {m.status} | {_cell(m.when)} | {_cell(m.remedy)} |\n" for code, m in PASSED_ON.items())
    return "".join(parts)


def raised_codes() -> Mapping[str, tuple[str, ...]]:
    """Each code that the sources raise, with the files that do."""
    found: dict[str, list[str]] = {}
    for path, codes in _scan():
        for code in sorted(codes):
            found.setdefault(code, []).append(path)
    return {code: tuple(sorted(paths)) for code, paths in found.items()}


def _scan() -> Iterator[tuple[str, set[str]]]:
    for path in sorted(PROJECT.glob("sql/**/*.sql")):
        yield _named(path), _codes(path, _RAISED_IN_SQL)
    for path in sorted(PROJECT.glob("api/**/*.py")):
        if "demo" not in path.parts and path != Path(__file__):  # which raise none
            yield _named(path), _codes(path, _RAISED_IN_PYTHON)


def _named(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def _codes(path: Path, patterns: tuple[re.Pattern[str], ...]) -> set[str]:
    text = path.read_text()
    return {code for pattern in patterns for code in pattern.findall(text)} - _NO_CODES


def _stable(code: str, meaning: Code, raised_in: tuple[str, ...]) -> str:
    if meaning.status == HTTPStatus.OK:
        status = "Beside an event in the outcome of POST /v1/events, never an answer of its own"
    else:
        status = f"HTTP {meaning.status}"
    sources = ", ".join(f"[{path}](../{path})" for path in raised_in)
    return (
        f"### `{code}`\n\n{status}.\n\n{meaning.when}\n\n**What to do:** {meaning.remedy}\n\n"
        f"<sub>Raised in {sources}</sub>\n\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
