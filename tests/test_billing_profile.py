"""Whom invoices are made out to: written by those who pay, for invoices from the next one on. What was issued never
changes. Terms are the provider's to set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import ROLES, Database, Organization
from tests.sql_requests import Caller, enter
from tests.usage import Connection, event, finalize, ingest, moment, month, value

PLATFORM = "platform"
SET = "select billing_entity_type, legal_name, address, country, email, tax_id from api.set_billing_profile({})"


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


@contextmanager
def asking(api: Connection, caller: Caller) -> Iterator[Connection]:
    """A request that is committed."""
    with api.transaction():
        enter(api, caller)
        yield api


def member(organization: Organization, role: str = "owner") -> Caller:
    return Caller("member", organization[role].subject)


def staff(organization: Organization | str) -> Caller:
    named = organization if isinstance(organization, str) else organization.slug
    return Caller("platform_admin", "staff", named)


def set_profile(api: Connection, caller: Caller, **parts: str) -> tuple[Any, ...]:
    arguments = ", ".join(f"{name} => %({name})s" for name in parts)
    with asking(api, caller):
        found = api.execute(SET.format(arguments), parts).fetchone()
    assert found
    row: tuple[Any, ...] = found
    return row


def set_terms(api: Connection, caller: Caller, **terms: object) -> tuple[Any, ...]:
    arguments = ", ".join(f"{name} => %({name})s" for name in terms)
    columns = "tax_name, tax_percent, tax_inclusive, payment_days, currency"
    with asking(api, caller):
        found = api.execute(f"select {columns} from api.set_billing_terms({arguments})", terms).fetchone()
    assert found
    row: tuple[Any, ...] = found
    return row


def refused(error: pytest.ExceptionInfo[psycopg.Error]) -> str:
    return str(error.value.diag.message_primary)


@pytest.mark.parametrize("role", ["owner", "admin", "billing"])
def test_those_who_pay_write_it(api: Connection, organization: Organization, role: str) -> None:
    made = set_profile(api, member(organization, role), legal_name=" Acme Law ", country="de", email="ap@acme.example")
    assert made == ("organization", "Acme Law", None, "DE", "ap@acme.example", None)


@pytest.mark.parametrize("role", sorted(set(ROLES) - {"owner", "admin", "billing"}))
def test_others_do_not(api: Connection, organization: Organization, role: str) -> None:
    with pytest.raises(psycopg.Error) as error:
        set_profile(api, member(organization, role), legal_name="Mine")
    assert refused(error).startswith("ROLE_REQUIRED: ")


def test_who_was_removed_meanwhile_writes_nothing(
    api: Connection, superuser: Connection, organization: Organization
) -> None:
    """The role is the one of now, not the one with which the request began."""
    with pytest.raises(psycopg.Error) as error, asking(api, member(organization, "billing")):
        superuser.execute(
            "update tenancy.memberships set role = 'viewer' where organization_id = %s and user_id = %s",
            [organization.id, organization["billing"].id],
        )
        api.execute("select api.set_billing_profile(legal_name => 'Mine')")
    assert refused(error).startswith("ROLE_REQUIRED: ")


def test_no_table_is_written_past_the_function(api: Connection, organization: Organization) -> None:
    set_profile(api, member(organization), legal_name="Acme")
    for view in ("api.billing_profiles", "billing.billing_profiles"):
        for statement in (f"update {view} set legal_name = 'x'", f"delete from {view}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), asking(api, member(organization)):
                api.execute(statement)


def test_what_is_left_out_stays_and_an_empty_text_takes_it_away(api: Connection, organization: Organization) -> None:
    caller = member(organization)
    set_profile(api, caller, legal_name="Acme", address="Line 1\r\nLine 2\n\n", country="AT", tax_id="ATU1")
    made = set_profile(api, caller, email="a@b.example", tax_id="")
    assert made == ("organization", "Acme", "Line 1\nLine 2", "AT", "a@b.example", None)
    assert set_profile(api, caller) == made


@pytest.mark.parametrize(
    ("part", "text", "said"),
    [
        ("legal_name", "x" * 201, "legal_name has 200 characters"),
        ("legal_name", "Acme\nPaid in full", "legal_name has 200 characters"),
        ("address", "x" * 1001, "address has 10 lines and 1,000 characters"),
        ("address", "\n".join("abcdefghijk"), "address has 10 lines"),
        ("address", "Main\x1b[31m", "address has 10 lines"),
        ("country", "Germany", "country is two letters"),
        ("country", "d1", "country is two letters"),
        ("email", "nobody", "email is no e-mail address"),
        ("email", "a b@c.example", "email is no e-mail address"),
        ("tax_id", "9" * 65, "tax_id has 64 characters"),
    ],
)
def test_what_is_wrong_is_said(api: Connection, organization: Organization, part: str, text: str, said: str) -> None:
    with pytest.raises(psycopg.Error) as error:
        set_profile(api, member(organization), **{part: text})
    assert refused(error).startswith(f"INVALID_BILLING_PROFILE: {said}")
    assert (error.value.sqlstate, bool(error.value.diag.message_hint)) == ("PT400", True)


def test_in_a_personal_organization_it_is_the_persons(
    api: Connection, superuser: Connection, shared_database: Database, make_organization: MakeOrganization
) -> None:
    personal = make_organization(shared_database, kind="personal", roles=("owner",))
    assert set_profile(api, member(personal), legal_name="Ada")[0] == "user"
    superuser.execute(
        "update tenancy.organizations set kind = 'organization', billing_start_at = now() where id = %s", [personal.id]
    )
    assert set_profile(api, member(personal), legal_name="Ada & Sons")[:2] == ("organization", "Ada & Sons")
    rows = superuser.execute(
        "select billing_entity_type, legal_name from billing.billing_profiles where organization_id = %s", [personal.id]
    ).fetchall()
    assert sorted(rows) == [("organization", "Ada & Sons"), ("user", "Ada")]


def test_invoices_keep_the_profiles_they_were_issued_with(
    api: Connection, superuser: Connection, organization: Organization
) -> None:
    caller = member(organization)
    ingest(superuser, [event("1", moment(2)), event("2", moment(1))], organization.id)
    set_profile(api, caller, legal_name="Before", address="Old Street 1")
    set_profile(api, staff(PLATFORM), legal_name="Issuer before")
    first = finalize(superuser, organization.id, month(2))
    set_profile(api, caller, legal_name="After", address="")
    set_profile(api, staff(PLATFORM), legal_name="Issuer after")
    second = finalize(superuser, organization.id, month(1))
    for invoice, billed_to, issuer in (
        (first, {"legal_name": "Before", "address": "Old Street 1"}, "Issuer before"),
        (second, {"legal_name": "After"}, "Issuer after"),
    ):
        with asking(api, caller):
            document = value(api, "select api.invoice_document(%s)", str(invoice.id))
        assert document["billed_to"] == billed_to
        assert document["issuer"]["legal_name"] == issuer


def test_only_staff_says_who_issues(api: Connection, organization: Organization) -> None:
    with pytest.raises(psycopg.Error) as error:
        set_profile(api, Caller("member", organization["owner"].subject, PLATFORM), legal_name="Me")
    assert refused(error).startswith("NOT_A_MEMBER: ")


def test_terms_are_set_by_staff_and_read_by_those_who_pay(api: Connection, organization: Organization) -> None:
    made = set_terms(api, staff(organization), tax_name="VAT", tax_percent=Decimal("19.0"), payment_days=30)
    assert made == ("VAT", Decimal(19), False, 30, "usd")
    assert set_terms(api, staff(organization), tax_inclusive=True, currency="EUR")[2:] == (True, 30, "eur")
    for role in ROLES:
        with asking(api, member(organization, role)):
            rows = api.execute("select tax_name, currency from api.billing_terms").fetchall()
        assert rows == ([("VAT", "eur")] if role in ("owner", "admin", "billing") else [])
        with pytest.raises(psycopg.Error) as error:
            set_terms(api, member(organization, role), tax_percent=0)
        assert refused(error).startswith("ROLE_REQUIRED: only platform_admin sets tax")


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"tax_percent": Decimal("100.1")}, "tax_percent is between 0 and 100"),
        ({"tax_percent": Decimal("NaN")}, "tax_percent is between 0 and 100"),
        ({"tax_percent": Decimal("0.1234567")}, "tax_percent is between 0 and 100, with at most 6 decimals"),
        ({"payment_days": -1}, "payment_days is between 0 and 365"),
        ({"tax_name": " "}, "tax_name has 1 to 64 characters"),
        ({"currency": "gold"}, "there is no currency gold"),
    ],
)
def test_wrong_terms_are_named(
    api: Connection, organization: Organization, terms: dict[str, object], said: str
) -> None:
    with pytest.raises(psycopg.Error) as error:
        set_terms(api, staff(organization), **terms)
    assert refused(error).startswith(f"INVALID_BILLING_TERMS: {said}")


def test_terms_hold_from_the_next_invoice_on(
    api: Connection, superuser: Connection, organization: Organization
) -> None:
    ingest(superuser, [event(f"{n}", moment(n), quantity=4) for n in (1, 2)], organization.id)
    first = finalize(superuser, organization.id, month(2))
    set_terms(api, staff(organization), tax_name="VAT", tax_percent=20, payment_days=7)
    second = finalize(superuser, organization.id, month(1))
    assert [first.total_cents, second.total_cents] == [Decimal(100), Decimal(120)]
    days = "select (due_at - issued_at) from billing.invoices where id = %s"
    assert [value(superuser, days, each.id).days for each in (first, second)] == [14, 7]
