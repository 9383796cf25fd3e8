"""`python -m bench.entitlements`: what a check of a feature costs in a transaction, alone and in policies.

A hundred organizations with subscriptions and overrides, so that what is looked up is found by key. Beside it, what
reserving a quota costs that was metered.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final
from uuid import UUID

import psycopg

from bench.figures import Figure, at_most, print_figures
from bench.rounds import compare
from bench.stack import bench_stack, machine

ROUNDS: Final = 5
CHECKS: Final = 500  # statements of a round, in one transaction
ROWS: Final = 5_000
RESERVATIONS: Final = 50
BUDGET: Final = 0.2  # ms a check

Connection = psycopg.Connection[tuple[Any, ...]]

_FILL: Final = """
with owner as (insert into tenancy.users (subject) values ('owner-of-many') returning id),
made as (
  insert into tenancy.organizations (kind, name, slug, owner_user_id, plan)
  select 'organization', 'Many', 'many-' || n, owner.id, 'pro' from owner, generate_series(1, 100) as n
  returning id
)
insert into billing.entitlement_overrides (organization_id, feature, kind, created_by)
select id, f, 'boolean', 'bench' from made, unnest('{covers,exports}'::text[]) as f
"""
# One organization a transaction: each change of a subscription is alone with it.
_SUBSCRIBE: Final = "select billing.start_subscription(%s, 'pro', 0, true, null)"
_QUOTA: Final = """
insert into billing.entitlement_overrides (
  organization_id, feature, kind, limit_value, enforcement, meter_code, created_by
)
values (%s, 'requests', 'limit_per_period', 1e9, 'hard', 'api.request', 'bench')
"""
_TABLES: Final = """
create table app.{name} (organization_id uuid not null, id integer not null, primary key (organization_id, id));
alter table app.{name} enable row level security;
create policy read on app.{name} for select to member using ({condition});
grant select on app.{name} to member;
insert into app.{name} select %s, generate_series(1, {rows});
analyze app.{name};
"""
_CONDITIONS: Final = {
    "plain": "organization_id = tenancy.current_org()",
    "once": "organization_id = case when tenancy.has_feature('audit_log') then tenancy.current_org() end",
    "each_row": "organization_id = tenancy.current_org() and tenancy.has_feature('audit_log')",
}


class Session:
    """One connection, as a member of an organization, in a transaction for each round."""

    def __init__(self, connection: Connection, organization: UUID) -> None:
        self._connection = connection
        self._organization = organization

    def milliseconds(self, statement: str, times: int) -> Callable[[], float]:
        """Of one statement."""

        def measure() -> float:
            with self._connection.transaction(force_rollback=True):
                self._connection.execute("set local role member")
                self._connection.execute("select set_config('app.current_org', %s, true)", [str(self._organization)])
                self._connection.execute(statement.encode(), prepare=True)
                started = perf_counter()
                for _ in range(times):
                    self._connection.execute(statement.encode(), prepare=True)
                return (perf_counter() - started) * 1000 / times

        return measure


def measure() -> Sequence[Figure]:
    with bench_stack() as stack, psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute(_FILL.encode())
        for (one,) in connection.execute("select id from tenancy.organizations where slug like 'many-%'").fetchall():
            connection.execute(_SUBSCRIBE.encode(), [one])
        organization = UUID(str(stack.value("select id from tenancy.organizations where slug = 'many-50'")))
        connection.execute(_QUOTA.encode(), [organization])
        for name, condition in _CONDITIONS.items():
            for statement in _TABLES.format(name=name, condition=condition, rows=ROWS).strip().split(";\n"):
                connection.execute(statement.encode(), [organization] if "%s" in statement else None)
        stack.vacuum()
        session = Session(connection, organization)
        in_code = _each(session, "tenancy.has_feature('audit_log')"), _each(session, "tenancy.current_org()")
        nothing = session.milliseconds("select tenancy.current_org()", CHECKS)
        has_feature = session.milliseconds("select tenancy.has_feature('audit_log')", CHECKS)
        require_feature = session.milliseconds("select tenancy.require_feature('covers')", CHECKS)
        reserve_quota = session.milliseconds("select tenancy.reserve_quota('requests')", RESERVATIONS)
        plain, once, each_row = (session.milliseconds(f"select count(*) from app.{name}", 3) for name in _CONDITIONS)  # noqa: S608
        return [
            _figure("has_feature within a statement, as functions and policies call it", *in_code, BUDGET),
            _figure("has_feature as a statement, to the server and back", has_feature, nothing),
            _figure("require_feature as a statement", require_feature, nothing),
            _figure("reserve_quota of a meter as a statement", reserve_quota, nothing),
            _figure(f"a policy that asks once, {ROWS:,} rows", once, plain),
            _figure(f"a policy that asks for each of {ROWS:,} rows", each_row, plain),
        ]


def _each(session: Session, call: str) -> Callable[[], float]:
    """Milliseconds a call, of as many as a round has, in one statement."""
    all_of_them = session.milliseconds(f"select count({call}) from generate_series(1, {CHECKS})", 1)  # noqa: S608
    return lambda: all_of_them() / CHECKS


def _figure(
    what: str, ours: Callable[[], float], reference: Callable[[], float], budget: float | None = None
) -> Figure:
    found = compare(ROUNDS, ours, reference)
    return Figure(
        what,
        f"{found.our_median:.3f} ms",
        f"without, {found.reference_median:.3f} ms",
        found.ratio,
        (at_most(" ms", found.our_median, budget),) if budget is not None else (),
    )


def main() -> int:
    print(f"{machine()}; {ROUNDS} rounds")
    print_figures(measure())
    return 0


if __name__ == "__main__":
    sys.exit(main())
