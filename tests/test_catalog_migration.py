"""Databases of the version before have odd plans, prices of one shape and periods closed out of order: they come along,
and go back while nothing is there that the version before would tell wrong.
"""

from __future__ import annotations

from decimal import Decimal

import psycopg
import pytest

from api.migrations import migrate, rollback
from api.settings import PROJECT, Settings
from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.usage import Connection, event, finalize, ingest, moment, month, value

BEFORE = "0014"
OLD_ROWS = """
  update tenancy.organizations set plan = 'Agreed in 2020 ✓', currency = 'xau' where id = %(org)s;
  insert into billing.prices (meter_code, currency, effective_from, unit_amount_cents)
  values ('api.request', 'xau', '2001-01-01Z', 3.5), ('api.request', 'usd', %(start)s, 99);
  insert into billing.billing_periods (organization_id, period_start, period_end, timezone)
  values (%(org)s, %(before)s, %(start)s, 'UTC');
  insert into billing.billing_periods (organization_id, period_start, period_end, previous_end, timezone)
  values (%(org)s, %(start)s, %(end)s, %(start)s, 'UTC');
  insert into billing.invoices (organization_id, id, number, period_start, period_end, currency, total_cents)
  values (%(org)s, %(org)s, '2020-0001', %(start)s, %(end)s, 'xau', 7);
  insert into billing.invoice_lines (organization_id, invoice_id, line_number, meter_code, description, unit,
    events, quantity, unit_amount_cents, amount_cents)
  values (%(org)s, %(org)s, 1, 'api.request', 'd', 'request', 2, 2, 3.5, 7);
  update billing.billing_periods set status = 'finalized', finalized_at = now()
  where organization_id = %(org)s and period_start = %(start)s
"""
INVOICED = """
  select i.number, i.currency, i.total_cents, l.quantity, l.unit_amount_cents, l.amount_cents
  from billing.invoices i join billing.invoice_lines l on l.invoice_id = i.id where i.id = %s
"""
# What the version before would tell wrong, and what is said of it.
NEW = {
    "prices": """
        insert into billing.prices (meter_code, plan_code, currency, effective_from, unit_amount_cents)
        values ('api.request', 'pro', 'usd', now() + interval '1 day', 1)""",
    "terms": "insert into billing.billing_terms (organization_id, tax_percent) values (%(org)s, 20)",
    "profiles": """
        insert into billing.billing_profiles (organization_id, billing_entity_type, legal_name)
        values (%(org)s, 'organization', 'Ltd')""",
    "invoices": "select billing.finalize_period(%(org)s, %(day)s)",
}


@pytest.fixture
def upgraded(database: Database, make_organization: MakeOrganization) -> tuple[Database, dict[str, object]]:
    """A database that was filled before it was migrated."""
    organization = make_organization(database).id
    rollback(database.migrator, BEFORE)
    row: dict[str, object] = {
        "org": organization,
        "before": moment(2),
        "start": moment(1),
        "end": moment(0),
        "day": month(2),
    }
    with database.connect() as superuser:
        for statement in OLD_ROWS.split(";"):
            superuser.execute(statement.encode(), row)
    migrate(database.migrator, Settings())
    return database, row


def invoiced(superuser: Connection, row: dict[str, object]) -> list[tuple[object, ...]]:
    return superuser.execute(INVOICED, [row["org"]]).fetchall()


def test_what_was_there_comes_along_and_goes_back(upgraded: tuple[Database, dict[str, object]]) -> None:
    database, row = upgraded
    with database.connect() as superuser, database.connect("sidecar") as sidecar:
        before = invoiced(superuser, row)
        assert before == [("2020-0001", "xau", 7, 2, Decimal("3.5"), 7)]
        plan = "select p.name, p.is_public from billing.plans p join tenancy.organizations o on o.plan = p.code"
        assert superuser.execute(plan + " where o.id = %s", [row["org"]]).fetchall() == [("Agreed in 2020 ✓", False)]
        assert value(superuser, "select minor_units from billing.currencies where code = 'xau'") == 2
        assert value(superuser, "select array_agg(distinct model) from billing.prices") == ["per_unit"]

    assert rollback(database.migrator, BEFORE).rolled_back[-1].startswith("0015")
    migrate(database.migrator, Settings())
    with database.connect() as superuser, database.connect("sidecar") as sidecar:
        assert invoiced(superuser, row) == before
        # The period before one that was finalized first: it is closed by the prices of then.
        organization = superuser.execute("select id from tenancy.organizations where id = %s", [row["org"]]).fetchone()
        assert organization
        assert ingest(sidecar, [event("a", moment(2, days=1), quantity=3)], organization[0]).accepted == 1
        invoice = finalize(superuser, organization[0], month(2))
        assert invoice.total_cents == 11
        assert invoice.number.endswith("-0001")


@pytest.mark.parametrize("new", NEW)
def test_it_does_not_go_back_once_there_is(
    shared_database: Database, make_organization: MakeOrganization, new: str
) -> None:
    organization = make_organization(shared_database, roles=("owner",)).id
    back = next((PROJECT / "migrations").glob("0015_*.rollback.sql")).read_text()
    with shared_database.connect() as superuser, superuser.transaction(force_rollback=True):
        superuser.execute(NEW[new].encode(), {"org": organization, "day": month(1)})
        superuser.execute("set constraints all immediate")
        superuser.execute("set local role goldleaves_migrator")
        with pytest.raises(psycopg.Error, match=f"there are .*{new}.*the version before") as refused:
            superuser.execute(back.encode())
        assert refused.value.diag.message_hint == "Restore a backup instead."
