"""A group of small requests is read at once where nothing is wrong with any of them, else one after the other. Nobody
can tell which: each is answered, stored and kept as if it had come alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.usage import Connection, event, finalize, ingest, moment, month, value

NOBODY = uuid4()
LAST_MONTH = moment(1, days=3)
AHEAD = datetime.now(UTC) + timedelta(days=30)

KEY = """
  insert into tenancy.api_keys (kind, organization_id, name, prefix, key_sha256, scopes, revoked_at)
  select
    case when 'events:write' = any (k.scopes) then 'provider' else 'organization' end, k.organization_id, 'k',
    left(replace(gen_random_uuid()::text, '-', ''), 12), sha256(gen_random_uuid()::text::bytea),
    k.scopes, case when k.is_revoked then now() end
  from (select %s::text[], %s::uuid, %s::boolean) as k (scopes, organization_id, is_revoked)
  returning id
"""
READ_AT_ONCE = """
  select batches is not null
  from metering.read_together(%s::text[], %s::uuid[], %s::uuid[], %s::text[])
"""
GROUP = """
  select outcome, error_state, error_message, error_details, error_hint
  from metering.receive_group(%s::text[], %s::uuid[], %s::uuid[], %s::text[], %s::text[])
  order by position
"""
ALONE = "select metering.receive_events(%s, %s, 'api', %s, %s, %s)"
STORED = """
  select organization_id, source, idempotency_key, event_type, event_name, quantity, unit, user_id, dimensions::text,
    belongs_at, context::text, case when abs(extract(epoch from occurred_at - now())) > 600 then occurred_at end
  from metering.usage_events
"""
KEPT = "select organization_id, source, code, message, event::text from metering.rejected_events"
REPEATED = """
  select organization_id, source, sum(duplicates), sum(conflicts), sum(locked)
  from metering.repeated_batches
  group by 1, 2
"""

Refusal = tuple[str, str, str | None, str | None]
Answer = dict[str, Any] | Refusal


@dataclass(frozen=True)
class Request:
    body: str
    organization: str | None = "mine"
    key: str | None = None
    format: str = "events"
    late: str = "reject"


@dataclass(frozen=True)
class Site:
    connection: Connection
    organizations: dict[str | None, UUID | None]
    keys: dict[str | None, UUID | None]

    def as_group(self, requests: Sequence[Request]) -> list[Answer]:
        rows = self.connection.execute(
            GROUP,
            [
                [one.body for one in requests],
                [self.organizations[one.organization] for one in requests],
                [self.keys[one.key] for one in requests],
                [one.format for one in requests],
                [one.late for one in requests],
            ],
        ).fetchall()
        assert len(rows) == len(requests)
        return [outcome if refusal[0] is None else tuple(refusal) for outcome, *refusal in rows]

    def one_by_one(self, requests: Sequence[Request]) -> list[Answer]:
        """The same function, made to read them so by one more, which is of another format."""
        *answers, nothing = self.as_group([*requests, Request("", None, format="ndjson")])
        assert nothing == {"accepted": 0, "duplicates": 0, "conflicts": [], "rejected": []}
        return answers

    def alone(self, requests: Sequence[Request]) -> list[Answer]:
        answers: list[Answer] = []
        for one in requests:
            try:
                with self.connection.transaction():
                    answers.append(
                        value(
                            self.connection,
                            ALONE,
                            one.body,
                            self.organizations[one.organization],
                            one.late,
                            self.keys[one.key],
                            one.format,
                        )
                    )
            except psycopg.Error as error:
                assert error.sqlstate
                told = error.diag
                answers.append((error.sqlstate, told.message_primary or "", told.message_detail, told.message_hint))
        return answers

    def are_read_at_once(self, requests: Sequence[Request]) -> bool:
        return bool(
            value(
                self.connection,
                READ_AT_ONCE,
                [one.body for one in requests],
                [self.organizations[one.organization] for one in requests],
                [self.keys[one.key] for one in requests],
                [one.late for one in requests],
            )
        )

    def ledger(self) -> list[Counter[Any]]:
        """What was stored, what was kept, and how often something was repeated."""
        with self.connection.transaction():
            self.connection.execute("set local role goldleaves_kernel")
            return [Counter(self.connection.execute(query).fetchall()) for query in (STORED, KEPT, REPEATED)]


@pytest.fixture(scope="module")
def site(shared_database: Database, make_organization: MakeOrganization) -> Iterator[Site]:
    made = [make_organization(shared_database, roles=("owner",)).id for _ in range(3)]
    with shared_database.connect() as superuser, shared_database.connect(autocommit=False) as connection:
        ingest(superuser, [event("before", LAST_MONTH)], made[0])
        finalize(superuser, made[0], month(1))
        scopes = ["events:write"]
        keys: dict[str | None, UUID | None] = {
            None: None,
            "any": value(superuser, KEY, scopes, None, False),
            "mine": value(superuser, KEY, scopes, made[0], False),
            "other": value(superuser, KEY, scopes, made[1], False),
            "revoked": value(superuser, KEY, scopes, None, True),
            "reading": value(superuser, KEY, ["data:read"], made[0], False),
            "unknown": uuid4(),
        }
        organizations: dict[str | None, UUID | None] = {None: None, "nobody": NOBODY}
        organizations |= zip(("mine", "other", "closing"), made, strict=True)
        yield Site(connection, organizations, keys)
        connection.rollback()


def wrapped(events: str, late: str | None = None) -> str:
    return f'{{"events": {events}' + ("" if late is None else f', "late": {late}') + "}"


GOOD = json.dumps(event("a"))
LATE = json.dumps(event("late", LAST_MONTH))
BODIES = (
    GOOD,
    f"[{GOOD}]",
    f"[{GOOD}, {json.dumps(event('b'))}]",
    f"[{GOOD}, {GOOD}, {json.dumps(event('a', quantity=2))}]",
    wrapped(f"[{GOOD}]"),
    "[]",
    wrapped("[]"),
    "{}",
    "",
    " ",
    "null",
    "true",
    "5",
    '"events"',
    "[",
    '[1, null, "a", [], {}]',
    '{"id": "a"}',
    '{"id": null}',
    '{"event": "api.request"}',
    '{"event": 5}',
    '{"late": "adjust"}',
    '{"late": "repair"}',
    json.dumps(event("c") | {"late": "repair"}),
    json.dumps(event("late", LAST_MONTH) | {"late": "adjust"}),
    json.dumps(event("late", LAST_MONTH) | {"late": {"a": 1}}),
    f'{{"events": [{GOOD}], "id": "a", "event": "x"}}',
    wrapped("null"),
    wrapped("{}"),
    wrapped(GOOD),
    wrapped('"a"'),
    wrapped(wrapped(f"[{GOOD}]")),
    wrapped(f"[{wrapped(f'[{GOOD}]')}]"),
    f'{{"events": [], "events": [{GOOD}]}}',
    *(
        wrapped(f"[{LATE}, {json.dumps(event('ahead', AHEAD))}]", late)
        for late in (
            '"reject"',
            '"adjust"',
            '"repair"',
            '"REPAIR"',
            '"adjust "',
            '""',
            "null",
            "5",
            "true",
            "[]",
            '["adjust"]',
            '{"adjust": "adjust"}',
            '"adjust", "late": "repair"',
            '"repair", "late": "adjust"',
        )
    ),
    f"[{LATE}]",
    json.dumps(event("ahead", AHEAD)),
    json.dumps(event("old") | {"time": "0001-01-01T00:00:00Z"}),
    json.dumps(event("no time") | {"time": "yesterday"}),
    json.dumps(event("named") | {"organization_id": str(NOBODY)}),
    f'[{GOOD}, {{"id": "\\u0000", "event": "x", "quantity": 1}}]',
    wrapped(f'[{LATE}, {{"id": "\\u0000", "event": "x", "quantity": 1}}]', '"adjust"'),
    wrapped(f'[{LATE}, {{"id": "\\u0000", "event": "x", "quantity": 1}}]', '"repair"'),
    '"\\ud800"',
    json.dumps(event("huge") | {"quantity": 0}).replace(": 0", ": 1e999999"),
    json.dumps(event("large") | {"quantity": 0}).replace(": 0", ": 9e131071"),
    json.dumps(event("negative", quantity=-1)),
    "[" * 5000 + "]" * 5000,
    "[" * 20000 + "]" * 20000,
    json.dumps({"specversion": "1.0", "id": "a", "source": "/s", "type": "x"}),
    f"{GOOD}\n{GOOD}\n",
    "\ufeff[]",
)
requests = st.builds(
    Request,
    st.one_of(st.sampled_from(BODIES[:6]), st.sampled_from(BODIES)),
    st.sampled_from(["mine", "mine", "other", "nobody", None]),
    st.sampled_from([None, None, None, "any", "any", "mine", "other", "revoked", "reading", "unknown"]),
    st.sampled_from(["events"] * 8 + ["ndjson", "cloudevents"]),
    st.sampled_from(["reject"] * 4 + ["adjust"]),
)


def answers_of_all_ways(site: Site, group: Sequence[Request], ways: Sequence[Any]) -> None:
    found = []
    for send in ways:
        with site.connection.transaction(force_rollback=True):
            answers = send(group)
            found.append((answers, site.ledger()))
    for other in found[1:]:
        assert other == found[0]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(requests, min_size=1, max_size=6))
@example([Request(body) for body in BODIES])
def test_nobody_can_tell_how_a_group_was_read(site: Site, group: list[Request]) -> None:
    answers_of_all_ways(site, group, [site.as_group, site.one_by_one])


@pytest.mark.parametrize("late", ["reject", "adjust"])
@pytest.mark.parametrize("organization", ["mine", None])
@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_body_by_itself(site: Site, body: str, organization: str | None, late: str) -> None:
    answers_of_all_ways(site, [Request(body, organization, late=late)], [site.alone, site.as_group, site.one_by_one])


@pytest.mark.parametrize("format", ["events", "ndjson", "cloudevents"])
@pytest.mark.parametrize("key", ["any", "mine", "other", "revoked", "reading", "unknown"])
@pytest.mark.parametrize("organization", ["mine", "other", "nobody", None])
def test_a_key_by_itself(site: Site, key: str, organization: str | None, format: str) -> None:
    group = [Request(GOOD, organization, key, format), Request(GOOD, organization, key)]
    answers_of_all_ways(site, group, [site.alone, site.as_group, site.one_by_one])


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(requests, min_size=1, max_size=4), st.sampled_from([None, "any"]), st.integers(0, 4))
def test_nobody_can_tell_beside_a_period_that_is_being_closed(
    site: Site, shared_database: Database, group: list[Request], key: str | None, place: int
) -> None:
    group = [*group[:place], Request(GOOD, "closing", key), *group[place:]]
    lock = "select pg_advisory_xact_lock(billing.period_lock_class(), billing.period_lock_slot(%s))"
    with shared_database.connect(autocommit=False) as closing:
        closing.execute(lock, [site.organizations["closing"]])
        answers_of_all_ways(site, group, [site.as_group, site.one_by_one])
        with site.connection.transaction(force_rollback=True):
            held = site.as_group(group)[min(place, len(group) - 1)]
            assert isinstance(held, tuple) and held[0] == "55P03"


def test_what_is_usual_is_read_at_once(site: Site) -> None:
    usual = [
        Request(GOOD),
        Request(f"[{GOOD}]", "other"),
        Request(wrapped(f"[{LATE}]", '"adjust"'), None, "mine"),
        Request(wrapped(f"[{LATE}]", "null"), "other", "any"),
        Request(GOOD, None),
        Request("[]", late="adjust"),
    ]
    with site.connection.transaction(force_rollback=True):
        assert site.are_read_at_once(usual)
        for odd in (
            Request("{"),
            Request("null"),
            Request(GOOD, key="revoked"),
            Request(GOOD, "other", "mine"),
            Request(wrapped("[]", '"repair"')),
        ):
            assert not site.are_read_at_once([*usual, odd])


def test_what_repairs_is_not_for_who_sends(site: Site) -> None:
    """It would take away what times may be."""
    body = wrapped(f"[{json.dumps(event('ahead', AHEAD))}]", '"repair"')
    with site.connection.transaction(force_rollback=True):
        (answer,) = site.as_group([Request(body)])
    assert answer == ("PT400", 'INVALID_BODY: late needs to be "reject" or "adjust"', None, None)


def test_locks_of_what_could_not_be_read_at_once_hold_to_the_end(site: Site, shared_database: Database) -> None:
    """Who then reads them one by one takes them again: nobody closes a period before what is recorded is committed."""
    close = "select pg_try_advisory_xact_lock(billing.period_lock_class(), billing.period_lock_slot(%s))"
    for odd in (Request("{"), Request("null"), Request(GOOD, key="revoked")):
        with site.connection.transaction(force_rollback=True):
            site.as_group([Request(GOOD), odd, Request(GOOD, "other")])
            with shared_database.connect() as closing:
                assert [value(closing, close, site.organizations[one]) for one in ("mine", "other")] == [False, False]
        with shared_database.connect() as closing:
            assert [value(closing, close, site.organizations[one]) for one in ("mine", "other")] == [True, True]
