"""Whose eyes a preview looks through, and the context that a request of theirs gets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import psycopg
from psycopg import sql

from api.release.catalog import Connection
from api.release.errors import MigrationError
from api.tokens import KEY_CLAIM

KERNEL = "goldleaves_kernel"

_USER = """
select id, subject, email from tenancy.users
where subject = %(named)s or id::text = lower(%(named)s) or lower(email) = lower(%(named)s)
order by subject = %(named)s desc, subject
limit 6
"""
_USERS_LIKE = """
select subject from tenancy.users
where starts_with(lower(subject), lower(left(%(named)s, 2))) or starts_with(lower(email), lower(left(%(named)s, 2)))
order by 1
limit 3
"""
_KEY = "select id, kind, name from tenancy.api_keys where prefix = %s"
_ORGANIZATION = "select o.slug from tenancy.organizations o where o.id = tenancy.find_organization(%s)"
_ORGANIZATIONS_LIKE = (
    "select slug from tenancy.organizations where starts_with(slug, lower(left(%s, 2))) order by 1 limit 3"
)

# What PostgREST does first in the transaction of each request.
_REQUEST = """
select set_config('role', %(role)s, true), set_config('request.jwt.claims', %(claims)s, true),
  set_config('request.headers', %(headers)s, true), set_config('request.method', 'GET', true),
  set_config('request.path', %(path)s, true)
"""
_ENTERED = """
select nullif(current_setting('app.current_org', true), '')::uuid,
  nullif(current_setting('app.current_org_role', true), '')
"""


@dataclass(frozen=True)
class Caller:
    """The role that PostgREST switches to, what their token claims, and how to call them."""

    role: str
    name: str
    claims: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """For which organization a request acts, and as what there: a person's role, or the scopes of a key."""

    organization_id: UUID | None
    organization_role: str | None


def person(conn: Connection, named: str) -> Caller:
    """By subject, id or e-mail address. Raises MigrationError when that is nobody, or several."""
    with acting_as(conn, KERNEL):
        found = conn.execute(_USER, {"named": named}).fetchall()
        if not found:
            near = [subject for (subject,) in conn.execute(_USERS_LIKE, {"named": named})]
            raise MigrationError(f"there is no user with subject, id or e-mail {named!r}{_perhaps(near)}")
    user_id, subject, email = found[0]
    if len(found) > 1 and subject != named and str(user_id) != named.lower():
        raise MigrationError(f"{named} is the address of several users: say which, by subject: {_listed(found)}")
    return Caller("member", subject + (f" ({email})" if email else ""), {"sub": subject})


def key(conn: Connection, named: str) -> Caller:
    """An API key by its prefix, which the key itself begins with. Raises MigrationError when there is none."""
    prefix = re.sub(r"^gl_", "", named)[:12]
    with acting_as(conn, KERNEL):
        found = conn.execute(_KEY, [prefix]).fetchone()
    if found is None:
        raise MigrationError(f"there is no API key with the prefix {prefix}: the view api_keys lists them")
    key_id, kind, name = found
    if kind == "provider":
        return Caller("service", f"key {prefix} of the provider ({name})")
    return Caller("member", f"key {prefix} ({name})", {KEY_CLAIM: str(key_id)})


def require_organization(conn: Connection, named: str) -> str:
    """The slug of the organization with this slug or id. A request would not tell a typo from somebody else's."""
    with acting_as(conn, KERNEL):
        found = conn.execute(_ORGANIZATION, [named]).fetchone()
        if found is None:
            near = [slug for (slug,) in conn.execute(_ORGANIZATIONS_LIKE, [named])]
            raise MigrationError(f"there is no organization {named!r}{_perhaps(near)}")
    return str(found[0])


def slug_of(conn: Connection, organization_id: UUID) -> str:
    return require_organization(conn, str(organization_id))


@contextmanager
def acting_as(conn: Connection, role: str) -> Iterator[None]:
    """Have this role for a while. What is done meanwhile is undone."""
    with conn.transaction(force_rollback=True):
        conn.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
        yield


@contextmanager
def request(conn: Connection, caller: Caller, organization: str | None, path: str) -> Iterator[Context]:
    """Be inside a request of the caller. Raises MigrationError with the refusal that the request would get."""
    claims = {"role": caller.role, **caller.claims}
    headers = {} if organization is None else {"x-organization-id": organization}
    with conn.transaction(force_rollback=True):
        conn.execute(
            _REQUEST,
            {"role": caller.role, "claims": json.dumps(claims), "headers": json.dumps(headers), "path": path},
        )
        try:
            conn.execute("select tenancy.pre_request()")
        except psycopg.Error as error:
            if not (error.sqlstate or "").startswith("PT"):
                raise
            raise MigrationError(f"every request of {caller.name} is refused: {error.diag.message_primary}") from error
        entered = conn.execute(_ENTERED).fetchone()
        assert entered  # noqa: S101 - a select without FROM has a row
        yield Context(*entered)


def _perhaps(near: list[str]) -> str:
    return f". Perhaps {' or '.join(near)}?" if near else ""


def _listed(users: list[tuple[UUID, str, str]]) -> str:
    return ", ".join(subject for _, subject, _ in users[:5]) + (", …" if len(users) > 5 else "")
