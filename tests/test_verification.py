"""Invariant 7: an invoice can be derived anew from its events, for ever, whatever has changed since that may change;
and `goldleaves billing verify` says so, or names what differs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from api.cli import app
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.meters import roll_up_all
from tests.sql_requests import Caller, request, run
from tests.usage import Connection, event, finalize, ingest, moment, month, value

AT = moment(2, days=9, hours=5, minutes=20)
_number = count(1)

METERS = """
insert into metering.meters
  (code, event_name, aggregation, value, filter, group_by, max_groups, allow_negative, unit, unit_size, description)
values
  ('w.tokens', 'w.tokens', 'sum', 'quantity', '{}', '{model}', 2, false, 'token', 1, 'Tokens'),
  ('w.people', 'w.tokens', 'unique', 'user_id', '{}', '{}', 9, false, 'person', 1, 'People'),
  ('w.peak', 'w.tokens', 'max', 'quantity', '{}', '{}', 9, false, 'seat', 1, 'Peak'),
  ('w.last', 'w.tokens', 'latest', 'quantity', '{}', '{}', 9, false, 'seat', 1, 'Last'),
  ('w.stored', 'w.stored', 'weighted_sum', 'quantity', '{}', '{}', 9, true, 'GiB-hour', 1, 'Storage')
"""
PRICES = """
insert into billing.prices (meter_code, currency, effective_from, unit_amount_cents, dimension, dimension_value)
select meter, 'usd', '2020-01-01', amount, dimension, value
from (values
  ('w.tokens', 0.7, null, null), ('w.tokens', 3, 'model', 'large'), ('w.people', 100, null, null),
  ('w.peak', 10, null, null), ('w.last', 5, null, null), ('w.stored', 0.01, null, null)
) as p (meter, amount, dimension, value)
"""


@pytest.fixture(scope="module")
def database(shared_database: Database) -> Database:
    with shared_database.connect() as superuser, superuser.transaction():
        superuser.execute(METERS)
        superuser.execute("alter table billing.prices disable trigger guard")  # prices do not reach back
        superuser.execute(PRICES)
        superuser.execute("alter table billing.prices enable trigger guard")
    return shared_database


@pytest.fixture(scope="module")
def organization(
    database: Database, make_organization: MakeOrganization, superuser: Connection, sidecar: Connection
) -> Organization:
    """A personal one that was converted in a closed period; the next one, also closed, has what was late."""
    made = make_organization(database, kind="personal", timezone="Asia/Kathmandu")
    for number in range(40):
        at = AT + timedelta(hours=9 * number)
        large = {"model": ("large", "small", "tiny")[number % 3]}
        ingest(
            superuser,
            [
                event(f"{number}", at, name="w.tokens", quantity=number, user_id=f"u-{number % 5}", dimensions=large),
                event(f"s-{number}", at, name="w.stored", quantity=1 - number % 2),
            ],
            made.id,
        )
        if number == 20:
            superuser.execute(
                "update tenancy.organizations set kind = 'organization', billing_start_at = %s where id = %s",
                [at, made.id],
            )
        if number == 30:
            roll_up_all(sidecar)
    superuser.execute("select metering.void_event(%s, '39')", [made.id])
    finalize(superuser, made.id, month(2))
    ingest(superuser, [event("late", AT, name="w.tokens", quantity=1000)], made.id, late="adjust")
    superuser.execute("select metering.void_event(%s, '0', p_late => 'adjust')", [made.id])
    return made


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """What is done on it is taken back."""
    with database.connect() as made, made.transaction(force_rollback=True):
        yield made


def differences(connection: Connection, organization: UUID) -> list[str]:
    """Of all its invoices."""
    rows = connection.execute(
        """
        select i.number, v.what, v.detail, v.expected, v.found
        from billing.invoices i cross join lateral billing.verify_invoice(i.organization_id, i.id) v
        where i.organization_id = %s
        """,
        [organization],
    ).fetchall()
    return [" | ".join(map(str, row)) for row in rows]


def test_an_invoice_is_proved_however_its_usage_came(connection: Connection, organization: Organization) -> None:
    assert value(connection, "select count(*) from billing.invoices where organization_id = %s", organization.id) == 2
    assert differences(connection, organization.id) == []
    assert differences(connection, UUID(int=0)) == []


def test_in_the_tail_and_rolled_up_it_is_the_same(
    database: Database, superuser: Connection, sidecar: Connection, organization: Organization
) -> None:
    roll_up_all(sidecar)
    assert differences(superuser, organization.id) == []


@pytest.mark.parametrize(
    "setting",
    [
        "timezone = 'Pacific/Apia'",
        "datestyle = 'SQL, DMY'",
        "intervalstyle = 'iso_8601'",
        "extra_float_digits = -15",
        "bytea_output = 'escape'",
        "enable_hashagg = off",
        "plan_cache_mode = force_generic_plan",
    ],
)
def test_what_a_session_has_set_changes_nothing(
    connection: Connection, organization: Organization, setting: str
) -> None:
    run(connection, f"set local {setting}")
    assert differences(connection, organization.id) == []


LATER = {
    "a price": """insert into billing.prices (meter_code, currency, effective_from, unit_amount_cents)
      values ('w.peak', 'usd', now() + interval '1 hour', 99)""",
    "the plan": "update tenancy.organizations set plan = 'pro' where id = %(org)s",
    "a description": "update metering.meters set description = 'Another' where code = 'w.tokens'",
    "what a meter keeps": """update metering.meters set group_by = '{region}'
      where code = 'w.tokens'""",
    "a meter that is gone": "update metering.meters set deleted_at = now() where code = 'w.peak'",
    "a weight that reaches back": """insert into metering.operation_weights (operation, effective_from, weight)
      values ('w.tokens', '2020-01-01', 3)""",
    "the name": "update tenancy.organizations set name = 'Another', slug = 'another' where id = %(org)s",
    "the timezone": "update tenancy.organizations set billing_timezone = 'America/Lima' where id = %(org)s",
    "a later void": "select metering.void_event(%(org)s, '12', p_late => 'adjust')",
    "a column": """alter table billing.invoices add column more text;
      alter table metering.meter_versions add column more text""",
}


@pytest.mark.parametrize("statement", LATER.values(), ids=LATER)
def test_what_may_change_later_changes_no_invoice(
    connection: Connection, organization: Organization, statement: str
) -> None:
    for each in statement.split(";"):
        run(connection, each, {"org": organization.id} if "%(org)s" in each else None)
    assert differences(connection, organization.id) == []


def test_rollups_of_before_digests_are_good_enough(connection: Connection, organization: Organization) -> None:
    """The facts are those of the events then, and so is the verdict."""
    facts = """
      select billing.facts_of(organization_id, period_start, period_end)
      from billing.invoices where organization_id = %s limit 1
    """
    before = value(connection, facts, organization.id)
    connection.execute("update metering.usage_rollups set digest = null")
    assert value(connection, facts, organization.id) == before
    assert differences(connection, organization.id) == []


def test_an_invoice_of_before_digests_is_verified_by_quantity_and_amount(
    database: Database, connection: Connection, make_organization: MakeOrganization
) -> None:
    made = make_organization(database).id
    ingest(connection, [event("a", AT, quantity=1), event("b", AT)], made)
    invoice = finalize(connection, made, month(2)).id
    connection.execute("set local session_replication_role = replica")
    columns = connection.execute(
        """
        select string_agg(quote_ident(attname), ', ') from pg_attribute
        where attrelid = 'billing.invoices'::regclass and attnum > 0 and not attnotnull and attgenerated = ''
          and attname not in ('payer_user_id', 'number')
        """
    ).fetchone()
    assert columns
    nulls = ", ".join(f"{name} = null" for name in columns[0].split(", "))
    run(connection, f"update billing.invoices set {nulls} where id = %s", [invoice])
    assert [one for one in differences(connection, made) if "audit log" not in one] == []
    connection.execute(
        "update billing.invoice_lines set quantity = 5, amount_cents = 5 where invoice_id = %s", [invoice]
    )
    told = " ".join(differences(connection, made))
    assert "not those that the invoice rests on" in told and "not its quantity times its price" in told


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "send", "void", "amend", "roll up", "convert"]),
        st.integers(0, 29),
        st.sampled_from(["large", "small", "tiny", "none"]),
    ),
    min_size=3,
    max_size=14,
)

ANEW = """
with sums as (
  select a.meter_code, a.meter_version, a.billing_entity_id, sum(a.events)::bigint, sum(a.value), sum(a.digest)
  from metering.counted_anew(%(org)s, %(start)s, %(end)s, 'UTC') a group by 1, 2, 3
), read as (
  select d.* from metering.digests(%(org)s, %(start)s, %(end)s) d
)
select
  (select count(*) from (table sums except table read) as one)
  + (select count(*) from (table read except table sums) as other)
"""


@settings(
    max_examples=12, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(steps=STEPS)
def test_digests_of_rollups_and_tail_are_those_of_the_events(
    database: Database,
    superuser: Connection,
    sidecar: Connection,
    make_organization: MakeOrganization,
    steps: list[tuple[str, int, str]],
) -> None:
    """At every moment, whatever was sent, voided, amended and rolled up in whatever order, over a conversion too."""
    made = make_organization(database, f"steps-{next(_number)}", kind="personal", roles=("owner",)).id
    for number, (step, day, model) in enumerate(steps):
        sent = event(f"{day}", moment(1, days=day % 28), name="w.tokens", quantity=day, dimensions={"model": model})
        try:
            match step:
                case "send":
                    ingest(superuser, [sent], made)
                case "void":
                    superuser.execute("select metering.void_event(%s, %s)", [made, str(day)])
                case "amend":
                    body = json.dumps({"id": f"amended-{number}", "quantity": number})
                    superuser.execute("select metering.amend_event(%s, %s, %s)", [made, str(day), body])
                case "roll up":
                    sidecar.execute("select metering.roll_up(1)")
                case _:
                    superuser.execute(
                        "update tenancy.organizations set kind = 'organization', billing_start_at = %s where id = %s",
                        [moment(1, days=day % 28), made],
                    )
        except psycopg.Error as error:
            # There is nothing of that day, or it was taken back; and one converts but once.
            assert "EVENT_" in str(error) or "CONVERSION_ONLY" in str(error)
        bounds = {"org": made, "start": moment(1), "end": moment(0)}
        assert superuser.execute(ANEW, bounds).fetchone() == (0,), step
    finalize(superuser, made, month(1))
    assert differences(superuser, made) == []


# Who may ask, and the command


def asked(connection: Connection, caller: Caller, invoice: object) -> Any:
    with request(connection, caller):
        return value(connection, "select api.verify_invoice(%s)", str(invoice))


def invoice_of(connection: Connection, organization: UUID) -> tuple[UUID, str]:
    found = connection.execute(
        "select id, number from billing.invoices where organization_id = %s order by number limit 1", [organization]
    ).fetchone()
    assert found
    return found[0], found[1]


@pytest.mark.parametrize("role", ["owner", "admin", "billing"])
def test_who_reads_invoices_may_have_them_verified(
    superuser: Connection, api: Connection, organization: Organization, role: str
) -> None:
    invoice, number = invoice_of(superuser, organization.id)
    verdict = asked(api, Caller("member", organization[role].subject, path="/rpc/verify_invoice"), invoice)
    assert (verdict["verified"], verdict["differences"], verdict["number"]) == (True, [], number)
    assert len(verdict["digest"]) == 64 and verdict["events"] > 0


def test_staff_may_for_any_organization(superuser: Connection, api: Connection, organization: Organization) -> None:
    invoice, _ = invoice_of(superuser, organization.id)
    caller = Caller("platform_admin", "staff", organization=str(organization.id), path="/rpc/verify_invoice")
    assert asked(api, caller, invoice)["verified"] is True


def test_nobody_else_may(
    database: Database,
    superuser: Connection,
    api: Connection,
    organization: Organization,
    make_organization: MakeOrganization,
) -> None:
    invoice, _ = invoice_of(superuser, organization.id)
    other = make_organization(database, roles=("owner",))
    for caller, named, code in (
        (Caller("member", organization["viewer"].subject), invoice, "ROLE_REQUIRED"),
        (Caller("member", organization["member"].subject), invoice, "ROLE_REQUIRED"),
        (Caller("member", other["owner"].subject), invoice, "INVOICE_NOT_FOUND"),
        (Caller("member", organization["owner"].subject), "2026-0001", "INVOICE_NOT_FOUND"),
        (Caller("member", organization["owner"].subject), uuid4(), "INVOICE_NOT_FOUND"),
        (Caller("member", other["owner"].subject), None, "INVOICE_NOT_FOUND"),
        (Caller("service"), invoice, "permission denied"),
    ):
        with pytest.raises(psycopg.Error, match=code):
            asked(api, caller, named)


def goldleaves(database: Database, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["billing", "verify", *arguments], env={"MIGRATION_DATABASE_URL": database.migrator})


def test_the_command_verifies_a_month(database: Database, superuser: Connection, organization: Organization) -> None:
    month_before_last = f"{month(2):%Y-%m}"
    told = goldleaves(database, "--period", month_before_last, "--organization", organization.slug)
    assert (told.exit_code, told.stdout) == (0, "2 invoices, 0 of them differ.\n"), told.output

    invoice, number = invoice_of(superuser, organization.id)
    for named in ([str(invoice)], [number, "--organization", str(organization.id)]):
        one = goldleaves(database, "--invoice", *named)
        assert one.stdout.startswith(f"{organization.slug} {number}: verified"), one.output
    lines = goldleaves(database, "--period", month_before_last, "--json").stdout.splitlines()
    assert {json.loads(line)["verified"] for line in lines} == {True}


def test_the_command_names_what_differs(
    database: Database, superuser: Connection, make_organization: MakeOrganization
) -> None:
    made = make_organization(database)
    ingest(superuser, [event("cheap", AT, quantity=400)], made.id)
    finalize(superuser, made.id, month(2))
    with superuser.transaction():
        superuser.execute("set local session_replication_role = replica")
        superuser.execute("update metering.usage_events set quantity = 4 where organization_id = %s", [made.id])
    told = goldleaves(database, "--period", f"{month(2):%Y-%m}", "--organization", made.slug)
    assert told.exit_code == 1
    assert told.stderr.startswith(f"{made.slug} ") and "-0001: " in told.stderr
    assert "(sent as cheap by api): its quantity, name or resource_id is not what was recorded" in told.stderr
    assert "1 of them differ" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--period", "January"], "'January' is no month. Write it as 2026-01."),
        (["--invoice", "1999-0001"], "There is no invoice '1999-0001'"),
        (["--organization", "nobody"], "There is no invoice of organization 'nobody' for that month."),
    ],
)
def test_the_command_says_what_it_cannot_do(database: Database, arguments: list[str], complaint: str) -> None:
    told = goldleaves(database, *arguments)
    assert told.exit_code == 1 and told.stderr.startswith(complaint), told.output
