"""Two organizations with people of every role and an API key of each scope, and everybody who tries what they may."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from secrets import token_hex
from uuid import uuid4

import psycopg
from psycopg import sql

from api.policies.matrix import catalog
from api.release.catalog import Connection
from api.release.errors import MigrationError

# Roles that requests come as, and those that connect themselves. PUBLIC is a role that holds only what everybody does.
REQUEST_ROLES = ("anon", "service", "platform_admin")
DIRECT_ROLES = ("sidecar", "monitor", "authenticator", "goldleaves_kernel", "goldleaves_owner")
STRANGER = "stranger"
PUBLIC = "public"
OF_DATABASE = " (database)"


class Kind(StrEnum):
    ROLE = "role in the organization"
    KEY = "API key with the scope"
    STRANGER = "signed in, no member"
    REQUEST = "database role of requests"
    DIRECT = "database role"


@dataclass(frozen=True)
class Actor:
    """Somebody who tries. `claims` are those of the token; `problem`: why nothing can be tried as them."""

    name: str
    kind: Kind
    database_role: str
    claims: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None

    @property
    def declared_as(self) -> str:
        """What headers call them. A role of the database may be called like one in organizations."""
        return self.name.removesuffix(OF_DATABASE)

    @property
    def is_of_organization(self) -> bool:
        return self.kind in (Kind.ROLE, Kind.KEY)


@dataclass(frozen=True)
class Organization:
    id: str
    owner_id: str


def make_people(conn: Connection) -> tuple[Organization, Organization, list[Actor]]:
    """Make the organizations, and people and keys of the first. What exists is read from the checks on its columns."""
    token = token_hex(6)
    roles = catalog.values_of_check(conn, "tenancy.memberships", "role")
    people = {role: _user(conn, f"matrix-{token}|{role}") for role in {"owner", *roles, STRANGER}}
    own = _organization(conn, f"matrix-{token}-own", people["owner"])
    other = _organization(conn, f"matrix-{token}-other", _user(conn, f"matrix-{token}|other"))
    enter_as_owner(conn, own)
    for role in roles:
        if role != "owner":
            _membership(conn, own, people[role], role)
    actors = [
        Actor(role, Kind.ROLE, "member", {"sub": f"matrix-{token}|{role}", "role": "member"})
        for role in dict.fromkeys(("owner", *roles))
    ]
    actors += [
        Actor(scope, Kind.KEY, "member", {"goldleaves_key": key, "role": "member"}) for scope, key in _keys(conn, own)
    ]
    actors.append(Actor(STRANGER, Kind.STRANGER, "member", {"sub": f"matrix-{token}|{STRANGER}", "role": "member"}))
    return own, other, actors


def database_actors(conn: Connection, tables: Iterable[str], named: Iterable[str]) -> list[Actor]:
    """Those of Goldleaves, those that a grant, a policy or a header names, and PUBLIC."""
    known = (*REQUEST_ROLES, *DIRECT_ROLES)
    found, superusers = catalog.database_roles(conn, tables, [*known, *named])
    actors = [Actor(name, Kind.REQUEST, name, {"role": name}) for name in REQUEST_ROLES if name in found]
    others = [name for name in DIRECT_ROLES if name in found]
    others += sorted(found - {*known, "member"} - superusers - {conn.info.user})
    actors += [Actor(name, Kind.DIRECT, name) for name in others]
    nobody = f"goldleaves_matrix_{token_hex(6)}"
    conn.execute(sql.SQL("create role {} nologin").format(sql.Identifier(nobody)))
    return [*actors, Actor(PUBLIC, Kind.DIRECT, nobody)]


def allow(conn: Connection, role: str) -> str | None:
    """Let this transaction `set local role`, or say why it may not."""
    right = "set" if conn.info.server_version >= 160000 else "member"
    row = conn.execute("select pg_has_role(session_user, %s, %s)", [role, right]).fetchone()
    if row and row[0]:
        return None
    try:
        with conn.transaction():
            conn.execute(sql.SQL("grant {} to current_user").format(sql.Identifier(role)))
    except psycopg.errors.InsufficientPrivilege:
        user = conn.info.user
        return f"{user} may not act as {role}: as a superuser, grant {role} to {user} with admin option"
    return None


def enter_as_owner(conn: Connection, organization: Organization) -> None:
    """The context in which rows are made: where no policy lets whoever is connected in, one may let the owner in."""
    conn.execute(
        """
        select set_config('app.current_org', %(org)s, true), set_config('app.current_user_id', %(user)s, true),
          set_config('app.current_org_role', 'owner', true)
        """,
        {"org": organization.id, "user": organization.owner_id},
    )


def _user(conn: Connection, subject: str) -> str:
    user = str(uuid4())
    conn.execute("insert into tenancy.users (id, subject) values (%s, %s)", [user, subject])
    return user


def _organization(conn: Connection, slug: str, owner: str) -> Organization:
    made = Organization(str(uuid4()), owner)
    conn.execute(
        "insert into tenancy.organizations (id, name, slug, owner_user_id) values (%s, %s, %s, %s)",
        [made.id, slug, slug, owner],
    )
    _offer_everything(conn, made)
    _membership(conn, made, owner, "owner")
    return made


def _offer_everything(conn: Connection, organization: Organization) -> None:
    """Each feature that a plan has or a policy asks for, without a limit: rights are tried, not plans."""
    conn.execute("set local role goldleaves_kernel")
    conn.execute(
        r"""
        insert into billing.entitlement_overrides (organization_id, feature, kind, created_by)
        select %s, f.feature, 'limit', 'matrix'
        from (
          select feature from billing.plan_features
          union
          select (regexp_matches(concat(qual, with_check), '_feature\(''([a-z0-9_.]{1,64})''', 'g'))[1] from pg_policies
        ) as f
        """,
        [organization.id],
    )
    conn.execute("reset role")


def _membership(conn: Connection, organization: Organization, user: str, role: str) -> None:
    conn.execute(
        "insert into tenancy.memberships (organization_id, user_id, role) values (%s, %s, %s)",
        [organization.id, user, role],
    )
    conn.execute("update tenancy.users set default_organization_id = %s where id = %s", [organization.id, user])


def _keys(conn: Connection, organization: Organization) -> list[tuple[str, str]]:
    """An API key of each scope that a key of an organization may have: those that the table takes."""
    made = []
    for scope in catalog.values_of_check(conn, "tenancy.api_keys", "scopes"):
        key = str(uuid4())
        try:
            with conn.transaction():
                conn.execute(
                    """
                    insert into tenancy.api_keys (id, kind, organization_id, name, prefix, key_sha256, scopes)
                    values (%s, 'organization', %s, 'matrix', %s, sha256(%s::bytea), array[%s])
                    """,
                    [key, organization.id, token_hex(6), key.encode(), scope],
                )
        except psycopg.errors.CheckViolation:
            continue
        made.append((scope, key))
    if not made:
        raise MigrationError("tenancy.api_keys takes a key of no scope: is its check on scopes still there?")
    return made
