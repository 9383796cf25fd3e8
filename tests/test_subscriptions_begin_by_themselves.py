"""What is planned of a subscription begins by the clock, and the sidecar tells of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.conftest import MakeOrganization
from tests.harness import RunningStack
from tests.observe import eventually

TRIAL_DAYS = 14
LEFT = timedelta(seconds=4)

MESSAGES = """
  select payload ->> 'status', payload -> 'previous' ->> 'status' from notifications.webhook_messages
  where organization_id = %s and type = 'subscription.changed' order by created_at
"""


def test_the_end_of_a_trial_is_told(stack: RunningStack, make_organization: MakeOrganization) -> None:
    organization = make_organization(stack.database, roles=("owner",))
    with (
        stack.client("backend", role="platform_admin", org=organization.slug) as staff,
        stack.database.connect() as sql,
    ):

        def messages() -> list[tuple[Any, ...]]:
            return sql.execute(MESSAGES, [organization.id]).fetchall()

        def shown() -> Any:
            return staff.get("/api/v1/billing_subscriptions?select=plan,status,has_access").json()

        began = datetime.now(UTC) - timedelta(days=TRIAL_DAYS) + LEFT
        started = staff.post("/api/v1/rpc/start_subscription", json={"plan": "pro", "at": began.isoformat()})
        assert started.status_code == 200, started.text
        ended = {"plan": "pro", "status": "paused", "has_access": False}
        assert eventually(shown, lambda rows: rows == [ended]) == [ended]
        told = eventually(messages, lambda rows: len(rows) == 2)
        assert told == [("trialing", None), ("paused", "trialing")]
        unannounced = sql.execute(
            "select count(*) from billing.subscription_phases where organization_id = %s and announced_at is null",
            [organization.id],
        ).fetchone()
        assert unannounced == (0,)
