"""The audit log seen from the command line: whether its chains are whole, and erasing what it knows of people.

What a whole chain and an erasure are is said in sql/audit/. `url` is that of goldleaves_migrator, or of a superuser.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

PLATFORM = UUID(int=0)

Row = TypeVar("Row")


class AuditError(Exception):
    """What was asked of the audit log cannot be done: the reason, in one line."""


@dataclass(frozen=True)
class End:
    """The last entry of a chain. `hash` is in hex."""

    organization_id: UUID
    position: int
    hash: str

    def __str__(self) -> str:
        return f"{self.organization_id} {self.position} {self.hash}"


@dataclass(frozen=True)
class Broken:
    """The first entry of a chain that is not what was written. `id` is None when the entry is gone."""

    organization_id: UUID
    position: int
    id: UUID | None
    problem: str

    def __str__(self) -> str:
        whose = "the platform" if self.organization_id == PLATFORM else f"organization {self.organization_id}"
        entry = f"entry {self.position}" + (f" ({self.id})" if self.id else "")
        return f"{whose}, {entry}: {self.problem}"


@dataclass(frozen=True)
class Verdict:
    """`unwatched` are tables on which somebody has disabled or dropped a trigger of the audit log."""

    ends: tuple[End, ...]
    broken: tuple[Broken, ...]
    unwatched: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        return not self.broken and not self.unwatched

    def as_json(self) -> str:
        return json.dumps({"whole": self.is_whole, **asdict(self)}, default=str, indent=2)


def verify(url: str, organization: str | None = None, anchor: Path | None = None) -> Verdict:
    """Compute the chains anew, all of them or one organization's (id or slug).

    `anchor` is what `as_json` said earlier: a chain has to lead through the ends that it had then. Raises AuditError.
    """
    anchored = None if anchor is None else _read_ends(anchor)
    # One snapshot, so that the ends are those of the chains that were verified.
    with _connected(url, psycopg.IsolationLevel.REPEATABLE_READ) as conn:
        organization_id = None if organization is None else _organization_id(conn, organization)
        if anchored is not None and organization_id is not None:
            anchored = [end for end in anchored if end["organization_id"] == str(organization_id)]
        found = [
            *_rows(conn, Broken, "verify", organization_id),
            *_rows(conn, Broken, "verify_ends", Jsonb(anchored or [])),
        ]
        first = {each.organization_id: each for each in sorted(found, key=lambda each: each.position, reverse=True)}
        return Verdict(
            ends=tuple(_rows(conn, End, "ends", organization_id)),
            broken=tuple(first[chain] for chain in sorted(first)),
            unwatched=tuple(name for (name,) in conn.execute("select table_name from audit.unwatched()")),
        )


def erase(url: str, *, email: str | None = None, user: str | None = None, organization: str | None = None) -> int:
    """Erase what the log knows of one of these, and log that. Returns how many parts of entries were erased.

    `user` is an id or the subject of a token. Raises AuditError.
    """
    if sum(given is not None for given in (email, user, organization)) != 1:
        raise AuditError("Say whose: --email, --user or --organization, one of them.")
    with _connected(url, psycopg.IsolationLevel.READ_COMMITTED) as conn:
        if email is not None:
            if "@" not in email.strip("@ "):
                raise AuditError(f"{email!r} is no e-mail address")
            return _erased(conn, "erase_email", email.strip())
        if user is not None:
            return _erased(conn, "erase_user", user)
        return _erased(conn, "erase_organization", _organization_id(conn, str(organization)))


def _erased(conn: psycopg.Connection[Any], function: str, argument: object) -> int:
    row = conn.execute(sql.SQL("select audit.{}(%s)").format(sql.Identifier(function)), [argument]).fetchone()
    return int(row[0]) if row else 0


def _rows(conn: psycopg.Connection[Any], kind: type[Row], function: str, argument: object) -> list[Row]:
    with conn.cursor(row_factory=class_row(kind)) as cursor:
        return cursor.execute(
            sql.SQL("select * from audit.{}(%s)").format(sql.Identifier(function)), [argument]
        ).fetchall()


def _organization_id(conn: psycopg.Connection[Any], named: str) -> UUID:
    """By slug only while it exists; by id for ever, since its log outlives it."""
    try:
        return UUID(named)
    except ValueError:
        pass
    conn.execute("set local role goldleaves_kernel")
    row = conn.execute("select tenancy.find_organization(%s)", [named]).fetchone()
    conn.execute("reset role")
    if row is None or row[0] is None:
        raise AuditError(f"There is no organization {named!r}. Of one that was deleted, give the id.")
    return UUID(str(row[0]))


def _read_ends(path: Path) -> list[dict[str, Any]]:
    try:
        ends = json.loads(path.read_text(encoding="utf-8"))["ends"]
        return [
            {"organization_id": str(UUID(e["organization_id"])), "position": int(e["position"]), "hash": str(e["hash"])}
            for e in ends
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise AuditError(f"{path} is not what `goldleaves audit verify --json` printed") from error


@contextmanager
def _connected(url: str, isolation_level: psycopg.IsolationLevel) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, application_name="goldleaves audit") as conn:
        conn.isolation_level = isolation_level
        row = conn.execute("select to_regprocedure('audit.verify(uuid)') is not null").fetchone()
        if not row or not row[0]:
            raise AuditError("This database has no audit log yet. Run `goldleaves migrate` first.")
        yield conn
