"""Whatever a batch holds, each event of it gets one answer, and what cannot be accepted is kept with its reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.usage import Connection, Event, event, ingest, moment, value

# Everything that JSON can say and jsonb can hold: it knows no U+0000 and no lone surrogates.
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300)
numbers = st.one_of(
    st.integers(), st.integers(-(10**400), 10**400), st.floats(allow_nan=False, allow_infinity=False), st.just(-0.0)
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, text),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(text, inner, max_size=4)),
    max_leaves=12,
)
times = st.one_of(
    st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1)).map(lambda at: at.isoformat() + "Z"),
    st.from_regex(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,20})?([Zz]|[+-]\d\d:\d\d)", fullmatch=True),
)
FIELDS = ("unit", "user_id", "workspace_id", "resource_id", "request_id")
NO_CONTEXTS: tuple[object, ...] = (
    "project",
    [],
    {},
    {"type": "task"},
    {"type": None},
    {"project": "Apollo"},
    {"type": "project", "project": 5},
    {"type": "project", "project": "x" * 201},
    {"type": "project", "x" * 201: "Apollo"},
    {"type": "other", **{str(number): "name" for number in range(8)}},
)
WRONG: tuple[object, ...] = (5, [], {}, True, "x" * 257)


def events(organization: UUID) -> st.SearchStrategy[object]:
    """Mostly events that are right but for a field or two, else they would all fail at the first check."""
    ids = st.sampled_from([str(number) for number in range(6)])
    right: dict[str, st.SearchStrategy[object]] = {
        "id": ids,
        "event": st.sampled_from(["api.request", "x"]),
        "quantity": st.one_of(st.integers(0, 3), st.floats(0, 10)),
    }
    optional: dict[str, st.SearchStrategy[object]] = {
        **dict.fromkeys(FIELDS, text),
        "time": times,
        "organization_id": st.sampled_from([str(organization), str(organization).upper(), str(uuid4())]),
        "dimensions": st.dictionaries(text, anything, max_size=3),
    }
    return st.one_of(
        st.fixed_dictionaries(right, optional=optional),
        st.builds(
            lambda made, field, wrong: {**made, field: wrong},
            st.fixed_dictionaries(right, optional=optional),
            st.sampled_from([*right, *optional, "unknown"]),
            anything,
        ),
        anything,
    )


@pytest.fixture(scope="module")
def organization(shared_database: Database, make_organization: MakeOrganization) -> UUID:
    return make_organization(shared_database, roles=("owner",)).id


@pytest.fixture(scope="module")
def connection(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect() as made:
        yield made


def problem_with(connection: Connection, organization: UUID, item: object) -> str | None:
    """The message of the refusal, or None when the event is accepted."""
    with connection.transaction(force_rollback=True):
        answer = ingest(connection, [item], organization)
        assert answer.answered == 1
        assert [refusal.code for refusal in answer.rejected] in ([], ["INVALID_EVENT"])
        kept = value(
            connection, "select count(*) from metering.rejected_events where organization_id = %s", organization
        )
        assert kept == len(answer.rejected) or answer.rejected[0].message.count("organization")
        return answer.rejected[0].message if answer.rejected else None


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_event_of_any_batch_gets_one_answer(
    connection: Connection, organization: UUID, data: st.DataObject
) -> None:
    batch = data.draw(st.lists(events(organization), max_size=8))
    header = data.draw(st.sampled_from([organization, None]))
    late = data.draw(st.sampled_from(["reject", "adjust"]))
    with connection.transaction(force_rollback=True):
        before = value(connection, "select count(*) from metering.usage_events")
        answer = ingest(connection, batch, header, late=late)
        assert answer.answered == len(batch)
        assert value(connection, "select count(*) from metering.usage_events") - before == answer.accepted
        refused = [*answer.conflicts, *answer.rejected]
        kept = connection.execute("select code, message from metering.rejected_events").fetchall()
        assert sorted(kept) == sorted((refusal.code, refusal.message) for refusal in refused)
        stored = connection.execute("select event from metering.rejected_events").fetchall()
        assert len(stored) == len(refused)
        # Asking again changes nothing: what was accepted is a duplicate now, what was refused is refused again.
        again = ingest(connection, batch, header, late=late)
        assert (again.accepted, again.conflicts, again.rejected) == (0, answer.conflicts, answer.rejected)
        assert again.duplicates == answer.accepted + answer.duplicates


@settings(max_examples=100, deadline=None)
@given(at=st.one_of(times, text))
def test_any_text_is_a_time_or_a_refusal(connection: Connection, organization: UUID, at: str) -> None:
    problem = problem_with(connection, organization, {**event("t"), "time": at})
    assert problem is None or "time" in problem


def a_recent(form: str) -> str:
    return moment(1, days=4, hours=5, minutes=6, seconds=7).strftime(form)


@pytest.mark.parametrize(
    ("form", "seconds"),
    [
        ("%Y-%m-%dT%H:%M:%SZ", 0.0),
        ("%Y-%m-%dt%H:%M:%Sz", 0.0),
        ("%Y-%m-%d %H:%M:%SZ", 0.0),
        ("%Y-%m-%dT%H:%M:%S+00:00", 0.0),
        ("%Y-%m-%dT%H:%M:%S-00:00", 0.0),
        ("%Y-%m-%dT%H:%M:%S+05:30", -19800.0),
        ("%Y-%m-%dT%H:%M:%S-08:00", 28800.0),
        ("%Y-%m-%dT%H:%M:%S+14:00", -50400.0),
        ("%Y-%m-%dT%H:%M:%S.5Z", 0.5),
        ("%Y-%m-%dT%H:%M:%S.123456Z", 0.123456),
        ("%Y-%m-%dT%H:%M:%S.123456789Z", 0.123457),
    ],
)
def test_the_ways_rfc_3339_writes_a_time(connection: Connection, organization: UUID, form: str, seconds: float) -> None:
    with connection.transaction(force_rollback=True):
        ingest(connection, [{**event("way"), "time": a_recent(form)}], organization)
        found = value(connection, "select occurred_at from metering.usage_events where idempotency_key = 'way'")
    assert found == moment(1, days=4, hours=5, minutes=6, seconds=7) + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "at",
    [
        "2026-02-29T00:00:00Z",
        "2026-04-31T00:00:00Z",
        "2100-02-29T00:00:00Z",
        "2026-00-10T00:00:00Z",
        "2026-13-10T00:00:00Z",
        "2026-01-00T00:00:00Z",
        "2026-01-32T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T23:60:00Z",
        "2026-01-01T00:00:00",
        "2026-01-01T00:00Z",
        "2026-01-01",
        "2026-01-01T00:00:00+15:00",
        "2026-01-01T00:00:00+05",
        "2026-01-01T00:00:00 Europe/Berlin",
        "2026-01-01T00:00:00.Z",
        "2026-01-01T00:00:00,5Z",
        "2026-01-01T00:00:00Z\n",
        " 2026-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "-2026-01-01T00:00:00Z",
        "12026-01-01T00:00:00Z",
        "٢٠٢٦-01-01T00:00:00Z",
        "2026-01-01T00:00:00." + "1" * 300 + "Z",
        "now",
        "infinity",
        "tomorrow",
        "",
        1767225600,
        True,
        [],
        {},
        ["2026-01-01T00:00:00Z"],
    ],
    ids=repr,
)
def test_what_is_no_time_is_refused(connection: Connection, organization: UUID, at: object) -> None:
    problem = problem_with(connection, organization, {**event("t"), "time": at})
    assert problem is not None
    assert "time" in problem


def test_a_leap_second_is_answered(connection: Connection, organization: UUID) -> None:
    """RFC 3339 knows 23:59:60, Postgres counts it to the next minute; either answer is fine, an error is not."""
    problem = problem_with(connection, organization, {**event("t"), "time": "2025-12-31T23:59:60Z"})
    assert problem is None or "time" in problem


@pytest.mark.parametrize(
    ("ago", "welcome"),
    [
        (timedelta(minutes=-4, seconds=-30), True),
        (timedelta(minutes=-5, seconds=-30), False),
        (timedelta(days=-400), False),
        (timedelta(days=365 * 5 - 1), True),
        (timedelta(days=365 * 5 + 3), False),
    ],
)
def test_how_far_away_a_time_may_be(connection: Connection, organization: UUID, ago: timedelta, welcome: bool) -> None:
    assert (problem_with(connection, organization, event("t", datetime.now(UTC) - ago)) is None) == welcome


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"id": None}, "id"),
        ({"id": ""}, "id"),
        ({"id": 5}, "id"),
        ({"id": "x" * 257}, "id"),
        ({"event": None}, "event"),
        ({"event": ""}, "event"),
        ({"event": "with space"}, "event"),
        ({"event": "ä"}, "event"),
        ({"event": "x\n"}, "event"),
        ({"event": "x" * 129}, "event"),
        ({"quantity": None}, "quantity"),
        ({"quantity": "1"}, "quantity"),
        ({"quantity": True}, "quantity"),
        ({"quantity": -1}, "quantity"),
        ({"quantity": -1e-18}, "quantity"),
        ({"quantity": 10**18}, "quantity"),
        ({"quantity": 10**1000}, "quantity"),
        ({"quantity": 1e-19}, "quantity"),
        ({"organization_id": "not one"}, "organization_id"),
        ({"organization_id": 5}, "organization_id"),
        ({"organization_id": "00000000-0000-7000-8000-000000000000"}, "organization_id"),
        ({"quantity": -1, "event": "storage.bytes.other"}, "quantity"),
        ({"quantity": -(10**18), "event": "storage.bytes"}, "quantity"),
        *(({"context": context}, "context") for context in NO_CONTEXTS),
        ({"late": "never"}, "late"),
        ({"dimensions": []}, "dimensions"),
        ({"dimensions": "{}"}, "dimensions"),
        ({"dimensions": {"a": "x" * 9000}}, "dimensions"),
    ]
    + [({field: wrong}, field) for field in FIELDS for wrong in WRONG],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_with_an_event_is_said(
    connection: Connection, organization: UUID, changed: Event, word: str
) -> None:
    problem = problem_with(connection, organization, {**event("a"), **changed})
    assert problem is not None
    assert word in problem


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "x" * 256},
        {"id": "Grüße 🌿 'quoted' \\ \"double\" %s {}"},
        {"event": "x" * 128},
        {"event": "Vendor.thing:made_v2-beta"},
        {"quantity": 0},
        {"quantity": 10**18 - 1},
        {"quantity": 1e-18},
        {"organization_id": None},
        {"dimensions": None},
        {"dimensions": {}},
        {"dimensions": {"a": [{"b": [None, 1.5, "ü"]}]}},
        {"dimensions": {"a": "x" * 7000}},
        {"time": None},
        {"late": None},
        {"context": None},
        {"context": {"type": "other"}},
        {"context": {"type": "project", "project": "ü" * 200, **{str(number): "" for number in range(6)}}},
        {"quantity": -1, "event": "storage.bytes"},
        {"something": "else"},
    ]
    + [{field: right} for field in FIELDS for right in (None, "", "x" * 256, "ü" * 256)],
    ids=lambda value: str(value)[:40],
)
def test_what_is_right_is_accepted(connection: Connection, organization: UUID, changed: Event) -> None:
    assert problem_with(connection, organization, {**event("a"), **changed}) is None


def test_an_event_is_stored_as_it_was_sent(connection: Connection, organization: UUID) -> None:
    sent = {
        "unit": "GB",
        "user_id": "u|1",
        "workspace_id": "w",
        "resource_id": "r",
        "request_id": "q",
        "dimensions": {"a": {"b": 1}},
        "context": {"type": "project", "project": "Apollo"},
    }
    with connection.transaction(force_rollback=True):
        ingest(connection, [event("whole", moment(1, days=1), name="n", quantity=1.25, **sent)], organization)
        found = connection.execute(
            """
            select event_name, quantity, occurred_at, source,
              unit, user_id, workspace_id, resource_id, request_id, dimensions, context
            from metering.usage_events where idempotency_key = 'whole'
            """
        ).fetchone()
    assert found is not None
    assert (float(found[1]), *found[2:]) == (1.25, moment(1, days=1), "api", *sent.values())
    assert found[0] == "n"


def test_without_an_organization_each_event_names_its_own(
    connection: Connection, organization: UUID, shared_database: Database
) -> None:
    batch = [
        event("a", organization_id=str(organization)),
        event("b"),
        event("c", organization_id=str(uuid4())),
        event("d", organization_id=""),
    ]
    with connection.transaction(force_rollback=True):
        answer = ingest(connection, batch)
    assert answer.accepted == 1
    assert [(refusal.id, refusal.code) for refusal in answer.rejected] == [
        ("b", "INVALID_EVENT"),
        ("c", "INVALID_EVENT"),
        ("d", "INVALID_EVENT"),
    ]


def test_one_bad_event_costs_the_good_ones_nothing(connection: Connection, organization: UUID) -> None:
    batch: list[object] = [event(str(number)) for number in range(100)]
    batch[50:50] = [None, [], "text", 5, {"id": "no event"}]
    with connection.transaction(force_rollback=True):
        answer = ingest(connection, batch, organization)
    assert (answer.accepted, len(answer.rejected)) == (100, 5)
    assert [refusal.message.split(":")[0] for refusal in answer.rejected] == [f"event {n}" for n in range(50, 55)]


@pytest.mark.parametrize(
    "body", ["null", "5", '"text"', "true", "{}", '{"events": null}', '{"events": {}}', '{"event": []}']
)
def test_what_is_no_batch_is_refused_as_a_whole(connection: Connection, organization: UUID, body: str) -> None:
    with pytest.raises(psycopg.Error, match="INVALID_BODY: ") as refused:
        ingest(connection, body, organization)
    assert refused.value.sqlstate == "PT400"


@pytest.mark.parametrize("missing", ["id", "event", "quantity"])
def test_an_event_alone_that_lacks_a_member_is_told_which(
    connection: Connection, organization: UUID, missing: str
) -> None:
    body = {name: part for name, part in event("a").items() if name != missing}
    with connection.transaction(force_rollback=True):
        answer = ingest(connection, json.dumps(body), organization)
    assert [refusal.message.split()[2] for refusal in answer.rejected] == [missing]


@pytest.mark.parametrize("body", ["[]", '{"events": []}'])
def test_an_empty_batch_is_fine(connection: Connection, organization: UUID, body: str) -> None:
    answer = ingest(connection, body, organization)
    assert answer.answered == 0


@pytest.mark.parametrize("years", [1, -9])
def test_a_clock_that_is_wrong_costs_the_gateway_no_usage(
    connection: Connection, organization: UUID, years: int
) -> None:
    """It has happened and cannot be refused: it counts now, and what the clock said is kept."""
    said = moment(0) + timedelta(days=366 * years)
    answer = ingest(connection, [event(f"skew-{years}", said)], organization, source="gateway", late="adjust")
    assert answer.accepted == 1
    found = connection.execute(
        """
        select abs(extract(epoch from occurred_at - clock_timestamp())) < 60, dimensions ->> 'sent_time'
        from metering.usage_events where organization_id = %s and idempotency_key = %s
        """,
        [organization, f"skew-{years}"],
    ).fetchall()
    assert found == [(True, said.isoformat())]


def test_a_meter_that_is_gone_allows_nothing_any_more(connection: Connection, organization: UUID) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute("update metering.meters set deleted_at = now() where code = 'storage.bytes'")
        problem = problem_with(connection, organization, event("a", name="storage.bytes", quantity=-1))
    assert problem == "event 0: quantity is negative, and no meter of this event allows that"


def test_an_event_alone_is_a_batch_of_one(connection: Connection, organization: UUID) -> None:
    with connection.transaction(force_rollback=True):
        answer = ingest(connection, '{"id": "alone", "event": "x", "quantity": 1}', organization)
    assert (answer.accepted, answer.answered) == (1, 1)
