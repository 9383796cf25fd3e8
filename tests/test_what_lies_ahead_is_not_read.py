"""Every few seconds the sidecar asks what has become due. What is planned for later may be as much as there are
organizations, and is not read for that.
"""

from __future__ import annotations

import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.sql_requests import run
from tests.usage import value

AHEAD = 3000
READ = """
  select coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::integer
  from pg_stat_xact_all_tables where relid = %s::regclass
"""
ALERTS = f"""
  insert into billing.alert_queue (organization_id, due_at)
  select ops.new_id(), now() + n * interval '1 second' from generate_series(60, {59 + AHEAD}) n
"""
PHASES = f"""
  insert into billing.subscription_phases (organization_id, starts_at, status, plan_code, made_by)
  select o.id, now() + interval '2 days' + n * interval '1 second', 'active', 'pro', 'staff'
  from generate_series(1, {AHEAD}) n, tenancy.organizations o
  where o.kind = 'organization'
"""


@pytest.mark.parametrize(
    ("table", "plan", "ask"),
    [
        ("billing.alert_queue", ALERTS, "select billing.fire_alerts()"),
        ("billing.subscription_phases", PHASES, "select billing.advance_subscriptions(200)"),
    ],
)
def test_what_lies_ahead_is_not_read(
    database: Database, make_organization: MakeOrganization, table: str, plan: str, ask: str
) -> None:
    make_organization(database)
    with database.connect() as superuser:
        for statement in (f"delete from {table}", plan, f"analyze {table}"):
            run(superuser, statement)
        for _ in range(8):  # longer than Postgres makes a plan of its own for each call
            with superuser.transaction():
                before = value(superuser, READ, table)
                value(superuser, ask)
                assert value(superuser, READ, table) - before < 10
