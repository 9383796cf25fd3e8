"""The files of a release: `sql/<domain>/*.sql` and `policies/<schema>.<table>.sql`, from disk or as recorded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from api.release.errors import MigrationError

API = "sql/api/"
POLICIES = "policies/"

# What may hide words that look like commands: bodies, strings, quoted names, comments.
_QUOTED = re.compile(r"""(\$\w*\$).*?\1|'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/""", re.DOTALL)
_TRANSACTION = re.compile(
    r"(?:^|;)\s*(begin(?!\s+atomic)|start\s+transaction|commit|rollback|abort|savepoint|prepare\s+transaction)\b",
    re.IGNORECASE,
)
# END is COMMIT, too, but for the one that ends a body.
_END = re.compile(r"\bbegin\s+atomic\b|(?:^|;)\s*end\b(?=\s*(?:work\b|transaction\b|and\b|;|$))", re.IGNORECASE)
_VIEW = re.compile(r"^create\s+(or\s+replace\s+)?view\b", re.IGNORECASE | re.MULTILINE)
_SCHEMA_GRANT = re.compile(r"(?:^|;)\s*(?:grant|revoke)\b[^;]*\bon\s+schema\b", re.IGNORECASE)


@dataclass(frozen=True)
class Tree:
    """Paths relative to the project, with their text. Paths sort in the order in which files run, as far as they
    can."""

    files: Mapping[str, str]

    @classmethod
    def read(cls, root: Path) -> Tree:
        """Every .sql file below sql/ and policies/, but not the drafts of editors, whose names begin with a dot.

        Raises MigrationError for a policy file not named after a table.
        """
        found = sorted(
            path for folder in ("sql", "policies") for path in (root / folder).rglob("*.sql") if not is_draft(path.name)
        )
        if not found:
            raise MigrationError(f"there is nothing in {root / 'sql'}: is this the project's directory?")
        tree = cls({path.relative_to(root).as_posix(): _read(path) for path in found})
        for path, text in tree.files.items():
            refuse_transaction_commands(path, text)
            if not path.startswith(API):
                _refuse_grants_on_schemas(path, text)
        for path in tree.policies:
            if len(table_of(path).split(".")) != 2:
                raise MigrationError(f"{path}: a policy file is named <schema>.<table>.sql")
        return tree

    @property
    def domains(self) -> list[str]:
        return sorted(path for path in self.files if not path.startswith((API, POLICIES)))

    @property
    def api(self) -> list[str]:
        """Views first: functions return their rows, and a file that misses what it needs starts everything over."""
        paths = [path for path in self.files if path.startswith(API)]
        return sorted(paths, key=lambda path: (_VIEW.search(self.files[path]) is None, path))

    @property
    def policies(self) -> list[str]:
        return sorted(path for path in self.files if path.startswith(POLICIES))

    @cached_property
    def hashes(self) -> dict[str, str]:
        return {path: hashlib.sha256(text.encode()).hexdigest() for path, text in self.files.items()}

    @cached_property
    def fingerprint(self) -> str:
        lines = "".join(f"{path}\0{digest}\n" for path, digest in sorted(self.hashes.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def is_draft(path: str) -> bool:
    """Whether it is what an editor keeps beside a file, which is never released."""
    return Path(path).name.startswith(".")


def refuse_transaction_commands(path: str, text: str) -> None:
    """Raise MigrationError when a file begins or ends a transaction: a COMMIT would leave a release half loaded."""
    bare = _QUOTED.sub(" ", text)
    word = found[1] if (found := _TRANSACTION.search(bare)) else "end" if _ends_a_transaction(bare) else None
    if word is not None:
        raise MigrationError(f"{path}: it says {word}, but a file must not begin or end a transaction")


def _ends_a_transaction(bare: str) -> bool:
    bodies = 0
    for found in _END.finditer(bare):
        bodies += 1 if found[0].lower().startswith("begin") else -1
        if bodies < 0:
            return True
    return False


def _read(path: Path) -> str:
    """Its text, without the mark that some editors begin a file with."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MigrationError(f"{path}: byte {error.start + 1} is not UTF-8") from error


def without_comments(text: str) -> str:
    """What the server is told by a file."""
    return _QUOTED.sub(lambda found: "" if found[0].startswith(("--", "/*")) else found[0], text).strip()


def _refuse_grants_on_schemas(path: str, text: str) -> None:
    """Only schema api goes with its files. A grant on another one would stay when the file is gone."""
    if _SCHEMA_GRANT.search(_QUOTED.sub(" ", text)):
        raise MigrationError(f"{path}: a grant on a schema would outlive this file: put it into a migration")


def table_of(path: str) -> str:
    """`policies/app.cases.sql` speaks of `app.cases`."""
    return Path(path).stem
