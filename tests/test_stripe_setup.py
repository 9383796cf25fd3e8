"""`goldleaves stripe setup`: each meter that has a price is a meter at Stripe, once, however often it is run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from api.stripe import fixtures
from tests.harness import Database
from tests.stripe_server import StripeServer, stripe_server
from tests.usage import Connection

# The SDK hands its bodies to httpx in the way of earlier versions.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
SEEDED = ["api.request", "doc.processed", "doc.upload"]  # USAGE_RATE_CENTS gives them a price


@pytest.fixture(scope="module")
def server() -> Iterator[StripeServer]:
    with stripe_server() as running:
        yield running


@pytest.fixture
def stripe(server: StripeServer) -> StripeServer:
    server.forget()
    return server


@pytest.fixture
def superuser(database: Database) -> Iterator[Connection]:
    with database.connect() as connection:
        yield connection


def setup(database: Database, stripe: StripeServer, *arguments: str) -> Result:
    variables = {
        "MIGRATION_DATABASE_URL": database.migrator,
        "STRIPE_SECRET_KEY": stripe.key,
        "STRIPE_API_BASE": stripe.url,
    }
    return CliRunner().invoke(app, ["stripe", "setup", *arguments], env=variables)


def registered(superuser: Connection) -> dict[str, tuple[str, str]]:
    rows = superuser.execute("select meter_code, id, event_name from stripe.meters order by meter_code").fetchall()
    return {code: (id, name) for code, id, name in rows}


def meters_at_stripe(stripe: StripeServer) -> dict[str, dict[str, Any]]:
    return {one["event_name"]: one for one in stripe.all("billing.meter")}


def test_meters_with_a_price_are_made_once(database: Database, superuser: Connection, stripe: StripeServer) -> None:
    superuser.execute(
        """
        insert into metering.meters (code, event_name, unit, description)
        values ('t.priced', 't', 'unit', 'test'), ('t.free', 't', 'unit', 'test')
        """
    )
    superuser.execute(
        "insert into billing.prices (meter_code, currency, effective_from, unit_amount_cents) "
        "values ('t.priced', 'usd', now() + interval '1 hour', 2)"
    )
    for _ in range(2):
        result = setup(database, stripe)
        assert result.exit_code == 0, result.output
        made = meters_at_stripe(stripe)
        assert sorted(made) == [*SEEDED, "t.priced"]
        assert {one["default_aggregation"]["formula"] for one in made.values()} == {"sum"}
        assert registered(superuser) == {name: (one["id"], name) for name, one in sorted(made.items())}
    assert "t.priced" in result.output
    assert "as it was" in result.output


def test_a_dry_run_changes_nothing(database: Database, superuser: Connection, stripe: StripeServer) -> None:
    result = setup(database, stripe, "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.output.count("would be made") == len(SEEDED)
    assert meters_at_stripe(stripe) == {}
    assert registered(superuser) == {}


def test_a_meter_that_is_there_is_taken_from_whatever_page(
    database: Database, superuser: Connection, stripe: StripeServer
) -> None:
    stripe.put(
        fixtures.meter("mtr_theirs", event_name="api.request", created=1),
        *(fixtures.meter(f"mtr_{n}", event_name=f"other.{n}", created=1_000 + n) for n in range(150)),
    )
    assert setup(database, stripe).exit_code == 0
    assert registered(superuser)["api.request"] == ("mtr_theirs", "api.request")
    assert len(meters_at_stripe(stripe)) == 150 + len(SEEDED)


def test_a_meter_that_was_deactivated_is_made_active_again(
    database: Database, superuser: Connection, stripe: StripeServer
) -> None:
    stripe.put(fixtures.meter("mtr_old", event_name="api.request", status="inactive"))
    assert setup(database, stripe).exit_code == 0
    assert registered(superuser)["api.request"] == ("mtr_old", "api.request")
    assert {one["status"] for one in stripe.all("billing.meter")} == {"active"}


def test_what_stripe_would_not_add_up_is_refused_and_the_others_are_set_up(
    database: Database, superuser: Connection, stripe: StripeServer
) -> None:
    stripe.put(
        fixtures.meter("mtr_count", event_name="api.request", formula="count"),
        fixtures.meter(
            "mtr_key",
            event_name="doc.upload",
            customer_mapping={"event_payload_key": "who", "type": "by_id"},
        ),
    )
    result = setup(database, stripe)
    assert result.exit_code == 1
    assert "api.request: it is a count" in result.output
    assert "doc.upload: it reads the customer from who" in result.output
    assert sorted(registered(superuser)) == ["doc.processed"]


def test_what_was_made_before_stripe_went_away_is_written_down_and_found_again(
    database: Database, superuser: Connection, stripe: StripeServer
) -> None:
    # The work is done, and its answer lost.
    stripe.fail(path="/v1/billing/meters", method="POST", kind="close", when="after")
    result = setup(database, stripe)
    assert result.exit_code == 1
    assert "Run it again" in result.output
    assert len(meters_at_stripe(stripe)) == 1
    assert setup(database, stripe).exit_code == 0
    assert sorted(meters_at_stripe(stripe)) == sorted(registered(superuser)) == SEEDED
    assert len(stripe.all("billing.meter")) == len(SEEDED)


def test_the_audit_log_tells_of_each(database: Database, superuser: Connection, stripe: StripeServer) -> None:
    setup(database, stripe)
    setup(database, stripe)
    rows = superuser.execute(
        "select action, target_id from audit.log where target_type = 'stripe_meter' order by target_id"
    ).fetchall()
    assert rows == [("stripe_meter.created", code) for code in SEEDED]


def test_without_a_key_it_says_so(database: Database) -> None:
    variables = {"MIGRATION_DATABASE_URL": database.migrator}
    result = CliRunner().invoke(app, ["stripe", "setup"], env=variables)
    assert result.exit_code == 1
    assert "STRIPE_SECRET_KEY is not set" in result.output
