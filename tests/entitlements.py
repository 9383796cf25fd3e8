"""What the tests of entitlements and quotas say again and again: set a limit, be on a plan, ask for some of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.harness import Organization
from tests.sql_requests import Caller, enter
from tests.usage import Connection, value

Row = dict[str, Any]


def set_limit(
    superuser: Connection,
    organization: UUID,
    feature: str,
    limit: float | Decimal | None,
    *,
    kind: str = "limit_per_period",
    enforcement: str = "hard",
    meter: str | None = None,
    is_granted: bool = True,
    expires_at: str | None = None,
) -> None:
    """For one organization, whatever it had before."""
    superuser.execute(
        """
        insert into billing.entitlement_overrides (
          organization_id, feature, kind, limit_value, enforcement, meter_code, is_granted, expires_at, created_by
        )
        values (%s, %s, %s, %s, %s, %s, %s, %s, 'test')
        on conflict (organization_id, feature) do update
        set kind = excluded.kind, limit_value = excluded.limit_value, enforcement = excluded.enforcement,
          meter_code = excluded.meter_code, is_granted = excluded.is_granted, expires_at = excluded.expires_at
        """,
        [organization, feature, kind, limit, enforcement, meter, is_granted, expires_at],
    )


def begin_phase(
    superuser: Connection, organization: UUID, status: str, *, plan: str = "pro", grace: str | None = None
) -> None:
    """From now on the organization is this; `grace` is an interval from now."""
    superuser.execute(
        """
        with made as (
          insert into billing.subscriptions (organization_id, created_by) values (%(org)s, 'test') returning id
        )
        insert into billing.subscription_phases (
          organization_id, starts_at, subscription_id, status, plan_code, grace_ends_at, made_by
        )
        select %(org)s, clock_timestamp(), made.id, %(status)s, %(plan)s, now() + %(grace)s::interval, 'test' from made
        """,
        {"org": organization, "status": status, "plan": plan, "grace": grace},
    )


def reserve(connection: Connection, organization: UUID, feature: str, amount: object = 1) -> Decimal | None:
    """Ask as SQL code does, in the transaction that there is. What remains, or the refusal is raised."""
    with connection.transaction():
        connection.execute("select set_config('app.current_org', %s, true)", [str(organization)])
        remaining: Decimal | None = value(connection, "select tenancy.reserve_quota(%s, %s::numeric)", feature, amount)
    return remaining


def used(superuser: Connection, organization: UUID, feature: str) -> Decimal | None:
    found: Decimal | None = value(
        superuser, "select used from billing.quota_usage(%s) where feature = %s", organization, feature
    )
    return found


def call(
    api: Connection, organization: Organization, role: str, statement: LiteralString, *parameters: object
) -> list[Row]:
    """One request, committed: by platform_admin, service, or who has that role in the organization."""
    subject = organization[role].subject if role in organization.members else "provider"
    token_role = "member" if role in organization.members else role
    with api.transaction():
        enter(api, Caller(token_role, subject, str(organization.id)))
        with api.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement, parameters).fetchall()


@contextmanager
def refused(code: str) -> Iterator[Row]:
    """What is done inside is refused with this code. Gives the message, and `details` where they are JSON."""
    said: Row = {}
    with pytest.raises(psycopg.Error) as caught:
        yield said
    said.update(message=caught.value.diag.message_primary or "", hint=caught.value.diag.message_hint or "")
    assert said["message"].startswith(f"{code}: "), said["message"]
    detail = caught.value.diag.message_detail
    if detail and detail.startswith("{"):
        said.update(json.loads(detail))
