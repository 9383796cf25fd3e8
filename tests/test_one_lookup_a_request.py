"""A request asks once who may: one look at memberships, or one at API keys, however the organization is named."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.sql_requests import Caller, enter

KEY = "select id from tenancy.api_keys where organization_id = %s"
MAKE_KEY = """
  insert into tenancy.api_keys (kind, organization_id, name, prefix, key_sha256, scopes)
  values ('organization', %s, 'one lookup', '0123456789ab', sha256('key'), '{data:read,usage:read}')
"""
LOOKUPS = """
  select relname, seq_scan + coalesce(idx_scan, 0)
  from pg_stat_xact_user_tables
  where schemaname = 'tenancy' and relname in ('memberships', 'api_keys') and seq_scan + coalesce(idx_scan, 0) > 0
"""

Named = Callable[[Organization, UUID], Caller]
CALLERS: dict[str, Named] = {
    "header with the id": lambda home, _: Caller("member", home["viewer"].subject, str(home.id)),
    "header with the slug": lambda home, _: Caller("member", home["viewer"].subject, home.slug),
    "claim": lambda home, _: Caller("member", home["viewer"].subject, claims={"org_id": home.slug}),
    "default": lambda home, _: Caller("member", home["owner"].subject),
    "one's organizations": lambda home, _: Caller("member", home["owner"].subject, path="/organizations"),
    "one's memberships": lambda home, _: Caller("member", home["owner"].subject, home.slug, path="/memberships"),
    "API key": lambda home, key: Caller("member", claims={"goldleaves_key": str(key)}),
    "API key with the header": lambda home, key: Caller("member", None, home.slug, claims={"goldleaves_key": str(key)}),
}


@pytest.fixture(scope="module")
def home(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    organization = make_organization(shared_database, "lookups")
    with shared_database.connect() as superuser:
        superuser.execute(MAKE_KEY, [organization.id])
        superuser.execute(
            "update tenancy.users set default_organization_id = %s where id = %s",
            [organization.id, organization["owner"].id],
        )
    return organization


@pytest.mark.parametrize("name", CALLERS)
def test_one_lookup(shared_database: Database, home: Organization, name: str) -> None:
    with shared_database.connect() as superuser:
        row = superuser.execute(KEY, [home.id]).fetchone()
    assert row is not None
    caller = CALLERS[name](home, row[0])
    with shared_database.connect("authenticator") as connection, connection.transaction(force_rollback=True):
        enter(connection, caller)
        asked = "api_keys" if name.startswith("API key") else "memberships"
        assert connection.execute(LOOKUPS).fetchall() == [(asked, 1)]
