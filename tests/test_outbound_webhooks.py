"""Messages to the provider's application: signed, in order, tried again under one id, dead in the end, and replayed."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from threading import Barrier, Event, Lock, Thread
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from api.app import create_app
from api.cli import app
from api.settings import PROJECT, Settings, SettingsError
from api.spool import Spool
from api.stripe.fixtures.life import Life, happened
from api.webhooks.signing import Signer
from tests.audit_log import entries, length
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.observe import eventually
from tests.sql_requests import Caller, Connection, enter, request, run
from tests.usage import event, finalize, ingest, moment, month, value
from tests.webhook_receiver import SECRET, Application, Delivery, Reply, application, sending

OTHER_SECRET = f"whsec_{b64encode(bytes(range(100, 124))).decode()}"
MESSAGE = "select {} from notifications.webhook_messages where id = %s"
STAFF = Caller("platform_admin", "staff|1")


@pytest.fixture(autouse=True)
def outbox(superuser: Connection) -> None:
    """Empty: whoever sends, sends all there is."""
    superuser.execute("delete from notifications.webhook_messages")


@pytest.fixture(scope="module")
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database, roles=("owner",))


@pytest.fixture(scope="module")
def other(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database, roles=("owner",))


@pytest.fixture
def receiver() -> Iterator[Application]:
    with application() as made:
        yield made


def enqueue(
    superuser: Connection, organization: Organization, number: int = 1, *, attempts: int = 0, **payload: object
) -> list[str]:
    """Write messages one after the other. Returns their ids. `attempts`: those that they have behind them."""
    rows = superuser.execute(
        """
        insert into notifications.webhook_messages (organization_id, type, payload, attempts)
        select %s, 'test.happened', %s::jsonb || jsonb_build_object('number', n), %s from generate_series(1, %s) n
        returning id::text
        """,
        [organization.id, json.dumps(payload), attempts, number],
    ).fetchall()
    return [row[0] for row in rows]


def of(superuser: Connection, column: str, message: str) -> Any:
    return value(superuser, MESSAGE.format(column), message)


def await_status(superuser: Connection, message: str, status: str) -> None:
    assert eventually(lambda: of(superuser, "status", message), status.__eq__) == status


def await_attempts(superuser: Connection, message: str, attempts: int) -> None:
    assert eventually(lambda: of(superuser, "attempts", message), attempts.__eq__) == attempts


def make_due(superuser: Connection) -> None:
    superuser.execute("update notifications.webhook_messages set next_attempt_at = now() where status = 'pending'")


def answers(*replies: Reply) -> Any:
    """One after the other, and then the last one for ever."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def test_signatures_are_those_of_the_specification() -> None:
    """Source: the test vector that its libraries share."""
    at = datetime.fromtimestamp(1614265330, UTC)
    headers = Signer("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", '{"test": 2432232314}', at
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_receiver_verifies_what_comes_with_either_secret(
    shared_database: Database, superuser: Connection, organization: Organization, receiver: Application
) -> None:
    [message] = enqueue(superuser, organization, name='Müller "& Söhne"', exact=0.1)
    with sending(shared_database, receiver.url, f"{SECRET} {OTHER_SECRET}"):
        await_status(superuser, message, "delivered")
    [delivery] = receiver.came
    assert (delivery.id, delivery.path) == (message, "/webhooks")
    assert delivery.headers["content-type"] == "application/json"
    headers = dict(delivery.headers)
    for secret in (SECRET, OTHER_SECRET):
        assert Webhook(secret).verify(delivery.body, headers) == {
            "type": "test.happened",
            "timestamp": f"{of(superuser, 'created_at', message).astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
            "data": {"name": 'Müller "& Söhne"', "exact": 0.1, "number": 1},
        }
    with pytest.raises(WebhookVerificationError):
        Webhook(f"whsec_{b64encode(b'x' * 24).decode()}").verify(delivery.body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(delivery.body.replace(b"0.1", b"0.2"), headers)
    assert of(superuser, "(attempts, last_status, last_error)", message) == ("1", "204", None)


def test_those_of_an_organization_come_one_after_the_other(
    shared_database: Database, superuser: Connection, organization: Organization, other: Organization
) -> None:
    """Also while those of another one take their time."""
    hold = Event()
    slow, quick = enqueue(superuser, other, 3), enqueue(superuser, organization, 20)

    def reply(delivery: Delivery) -> Reply:
        return Reply(after=hold if delivery.id in slow else None)

    with application(reply) as receiver, sending(shared_database, receiver.url):
        await_status(superuser, quick[-1], "delivered")
        assert [id for id in receiver.ids if id in quick] == quick
        assert [id for id in receiver.ids if id in slow] == slow[:1]
        hold.set()
        await_status(superuser, slow[-1], "delivered")
        assert [id for id in receiver.ids if id in slow] == slow


def test_what_fails_is_tried_again_under_its_id(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    replies = answers(
        Reply(500, body=b"<p>out of\0\nmemory</p>" + b"x" * 100_000),
        Reply(None),
        Reply(302, {"Location": "/elsewhere"}),
        Reply(404),
        Reply(200, body=b"thanks"),
    )
    said = [
        (500, "500 Internal Server Error: <p>out of memory</p>xxx"),
        (None, "Server disconnected without sending a response."),
        (302, "302 Found"),
        (404, "404 Not Found"),
    ]
    [message] = enqueue(superuser, organization, attempts=1)
    with application(replies) as receiver, sending(shared_database, receiver.url):
        for attempt, (status, error) in enumerate(said, 2):
            await_attempts(superuser, message, attempt)
            assert of(superuser, "status", message) == "pending"
            assert of(superuser, "last_status", message) == status
            assert of(superuser, "last_error", message).startswith(error)
            assert len(of(superuser, "last_error", message)) < 300
            make_due(superuser)
        await_status(superuser, message, "delivered")
        assert receiver.ids == [message] * 5
        assert {delivery.path for delivery in receiver.came} == {"/webhooks"}
        assert len({delivery.body for delivery in receiver.came}) == 1
    assert of(superuser, "(attempts, last_status, last_error)", message) == ("6", "200", None)


def test_attempts_are_further_and_further_apart(
    superuser: Connection, sidecar: Connection, organization: Organization
) -> None:
    """Source: the schedule of the specification, up to 14 hours."""
    waits = [
        timedelta(seconds=5),
        timedelta(minutes=5),
        timedelta(minutes=30),
        *(timedelta(hours=number) for number in (2, 5, 10, 14)),
    ]
    [message] = enqueue(superuser, organization)
    found = []
    for attempts in range(8):
        before = value(superuser, "select clock_timestamp()")
        failed = "select notifications.mark_webhook_failed(%s, %s, %s, 500, 'no', '0')"
        is_last = value(sidecar, failed, organization.id, message, attempts)
        found.append(of(superuser, "next_attempt_at", message) - before)
        assert is_last == (attempts == 7)
    for wait, least in zip(found, waits, strict=False):
        assert least <= wait <= least * 1.2 + timedelta(minutes=1)
    assert of(superuser, "(status, attempts)", message) == ("dead", "8")


def test_after_the_last_attempt_it_is_dead_until_staff_replays_it(
    shared_database: Database, superuser: Connection, api: Connection, organization: Organization
) -> None:
    [message] = enqueue(superuser, organization, attempts=6)
    with application(answers(Reply(500), Reply(500), Reply())) as receiver, sending(shared_database, receiver.url):
        await_attempts(superuser, message, 7)
        assert of(superuser, "status", message) == "pending"
        make_due(superuser)
        await_status(superuser, message, "dead")
        with api.transaction():
            enter(api, STAFF)
            shown = api.execute("select status, attempts from api.webhook_messages where id = %s", [message])
            assert shown.fetchone() == ("dead", 8)
            replayed = api.execute("select status, attempts from api.replay_webhook(%s)", [message])
            assert replayed.fetchone() == ("pending", 0)
        await_status(superuser, message, "delivered")
        assert receiver.ids == [message] * 3


HALF_AN_HOUR = "in half an hour"


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [
        (429, "120", 120),
        (503, HALF_AN_HOUR, 1800),
        (503, "999999999999999999999", 3590),
        (410, None, 3590),
    ],
)
def test_who_wants_to_be_left_alone_is(
    shared_database: Database,
    superuser: Connection,
    organization: Organization,
    status: int,
    header: str | None,
    seconds: int,
) -> None:
    first, *others = enqueue(superuser, organization, 4)
    if header == HALF_AN_HOUR:  # from when the test runs: those who collect it agree on its name
        header = format_datetime(datetime.now(UTC) + timedelta(minutes=30), usegmt=True)
    reply = Reply(status, {"Retry-After": header} if header is not None else {})
    with application(answers(reply)) as receiver, sending(shared_database, receiver.url):
        await_attempts(superuser, first, 1)
        assert eventually(lambda: of(superuser, "next_attempt_at > now() + interval '30 s'", others[-1]), bool)
    assert receiver.ids == [first]
    for message in (first, *others):
        wait = of(superuser, "extract(epoch from next_attempt_at - now())", message)
        assert seconds - 60 < wait < 3601, message
        assert of(superuser, "status", message) == "pending"
    assert [of(superuser, "attempts", message) for message in others] == [0, 0, 0]


@pytest.mark.parametrize(
    "header",
    [
        "",
        "soon",
        "-5",
        "Thu, 99 Nov 2026 00:00:00 GMT",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Thu, 01 Jan 99999999999 00:00:00 GMT",
    ],
)
def test_a_pause_that_nobody_understands_is_none(
    shared_database: Database, superuser: Connection, organization: Organization, header: str
) -> None:
    messages = enqueue(superuser, organization, 2, attempts=1)
    reply = Reply(503, {"Retry-After": header})
    with application(answers(reply)) as receiver, sending(shared_database, receiver.url):
        await_attempts(superuser, messages[-1], 2)
        assert receiver.ids == messages


def test_several_sidecars_send_each_message_once(
    shared_database: Database, superuser: Connection, organization: Organization, other: Organization
) -> None:
    messages = [*enqueue(superuser, organization, 100), *enqueue(superuser, other, 100)]
    left = "select count(*) from notifications.webhook_messages where status <> 'delivered'"
    with (
        application() as receiver,
        sending(shared_database, receiver.url),
        sending(shared_database, receiver.url),
        sending(shared_database, receiver.url),
    ):
        assert eventually(lambda: value(superuser, left), lambda number: number == 0) == 0
    assert sorted(receiver.ids) == sorted(messages)


def test_a_stop_finishes_what_is_under_way_and_gives_back_the_rest(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    hold = Event()
    first, *others = enqueue(superuser, organization, 5)
    with application(lambda _: Reply(after=hold)) as receiver:
        with sending(shared_database, receiver.url) as sender:
            assert eventually(lambda: receiver.ids, bool) == [first]
            sender.close()
            hold.set()
        assert receiver.ids == [first]
    assert of(superuser, "status", first) == "delivered"
    for message in others:
        assert of(superuser, "(status, attempts, next_attempt_at <= now())", message) == ("pending", "0", "t")


def test_who_comes_back_after_the_lease_changes_nothing(
    shared_database: Database, superuser: Connection, sidecar: Connection, organization: Organization
) -> None:
    [message] = enqueue(superuser, organization)
    mine = sidecar.execute("select organization_id, id, attempts from notifications.claim_webhooks(1, '0')").fetchone()
    theirs = sidecar.execute(
        "select organization_id, id, attempts from notifications.claim_webhooks(1, '1 h')"
    ).fetchone()
    assert mine is not None and mine == theirs
    sidecar.execute("select notifications.mark_webhook_failed(%s, %s, %s, 500, 'busy', '0')", theirs)
    sidecar.execute("select notifications.mark_webhook_delivered(%s, %s, %s, 204)", mine)
    sidecar.execute("select notifications.postpone_webhook(%s, %s, %s, '0')", mine)
    assert of(superuser, "(status, attempts, next_attempt_at > now())", message) == ("pending", "1", "t")


def test_no_secret_and_no_answer_is_logged(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    [message] = enqueue(superuser, organization, attempts=7)
    with capture_logs() as lines, application(answers(Reply(401, body=b"hunter2"))) as receiver:
        with sending(shared_database, receiver.url.replace("//", "//ann:hunter2@") + "?key=hunter2"):
            await_status(superuser, message, "dead")
        [delivery] = receiver.came
    assert delivery.headers["authorization"].startswith("Basic ")
    assert [line["event"] for line in lines] == ["webhook_dead"]
    assert "hunter2" not in str(lines) and SECRET not in str(lines)


def test_nobody_answers(shared_database: Database, superuser: Connection, organization: Organization) -> None:
    with application() as gone:
        pass
    [message] = enqueue(superuser, organization)
    with capture_logs() as lines, sending(shared_database, gone.url):
        await_attempts(superuser, message, 1)
    assert of(superuser, "(last_status, last_error)", message) == (None, "All connection attempts failed")
    assert [(line["event"], line["error"]) for line in lines] == [("webhook_failed", "All connection attempts failed")]


def test_while_nobody_answers_one_is_sent_at_a_time(
    shared_database: Database, superuser: Connection, make_organization: MakeOrganization
) -> None:
    """The others keep their attempts, and go out at once when somebody does."""
    organizations = [make_organization(shared_database, roles=("owner",)) for _ in range(4)]
    under_way, most = 0, 0
    counting, all_at_once = Lock(), Barrier(len(organizations))

    def hang_up(_: Delivery) -> Reply:
        nonlocal under_way, most
        with counting:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with counting:
            under_way -= 1
        return Reply(None)

    def wait_for_the_others(_: Delivery) -> Reply:
        all_at_once.wait(60)
        return Reply()

    [probe] = enqueue(superuser, organizations[0], attempts=2)
    with application(hang_up) as receiver, sending(shared_database, receiver.url):
        await_attempts(superuser, probe, 3)
        messages = [message for each in organizations for message in enqueue(superuser, each, 2, attempts=2)]
        for message in messages:
            await_attempts(superuser, message, 3)
        assert most == 1
        receiver.reply = lambda _: Reply()
        run(superuser, "update notifications.webhook_messages set next_attempt_at = now() where id = %s", [probe])
        await_status(superuser, probe, "delivered")
        receiver.reply = wait_for_the_others
        make_due(superuser)
        for message in messages:
            await_status(superuser, message, "delivered")


def test_an_answer_that_breaks_off_is_one(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    [message] = enqueue(superuser, organization)
    cut = Reply(200, {"Content-Length": "1000", "Connection": "close"}, b"tha")
    with application(answers(cut)) as receiver, sending(shared_database, receiver.url):
        await_status(superuser, message, "delivered")
    assert receiver.ids == [message]


def test_delivered_ones_go_after_a_month_and_dead_ones_stay(
    superuser: Connection, sidecar: Connection, organization: Organization
) -> None:
    old, new, dead, waits, unsent = enqueue(superuser, organization, 5)
    for message, changes in (
        (old, "status = 'delivered', delivered_at = now() - interval '31 days'"),
        (new, "status = 'delivered', delivered_at = now() - interval '29 days'"),
        (dead, "status = 'dead', next_attempt_at = now() - interval '2 years'"),
        (waits, "created_at = now() - interval '2 years'"),
        (unsent, "next_attempt_at = now() - interval '31 days'"),
    ):
        run(superuser, f"update notifications.webhook_messages set {changes} where id = %s", [message])
    sidecar.execute("select ops.maintain()")
    left = superuser.execute("select id::text from notifications.webhook_messages").fetchall()
    assert {id for (id,) in left} == {new, dead, waits}


def test_replaying_many_takes_those_that_are_asked_for(
    superuser: Connection, api: Connection, organization: Organization, other: Organization
) -> None:
    messages = [*enqueue(superuser, organization, 2), *enqueue(superuser, other)]
    superuser.execute("update notifications.webhook_messages set status = 'dead', attempts = 8")
    [delivered] = enqueue(superuser, organization)
    run(
        superuser,
        "update notifications.webhook_messages set status = 'delivered', delivered_at = now() where id = %s",
        [delivered],
    )
    superuser.execute(
        "update notifications.webhook_messages set created_at = now() - interval '3 days' where id = %s", [messages[0]]
    )
    since = datetime.now(UTC) - timedelta(days=1)
    mine = Caller("platform_admin", "staff|1", str(organization.id))
    for caller, arguments, number in (
        (STAFF, "", 3),
        (STAFF, "since => %(since)s", 2),
        (mine, "", 2),
        (mine, "'dead', %(since)s", 1),
        (mine, "'pending'", 0),
        (STAFF, "'delivered', %(since)s", 1),
    ):
        with request(api, caller):
            found = run(api, f"select api.replay_webhooks({arguments})", {"since": since}).fetchone()
            assert found == (number,), arguments
    so_far = {one.id: length(superuser, one.id) for one in (organization, other)}
    with api.transaction():
        enter(api, STAFF)
        api.execute("select api.replay_webhooks()")
    # In the order in which they were written, whatever comes between; and told of once an organization.
    due = superuser.execute("select id::text from notifications.claim_webhooks(3, '1 h')").fetchall()
    assert [id for (id,) in due] == messages
    for one, number in ((organization, 2), (other, 1)):
        (told,) = entries(superuser, one.id, so_far[one.id])
        assert (told.action, told.before, told.after) == (
            "webhook_message.replayed",
            {"status": "dead"},
            {"messages": number},
        )
    with request(api, STAFF), pytest.raises(psycopg.Error, match="INVALID_REPLAY: since is needed"):
        api.execute("select api.replay_webhooks('delivered')")
    with request(api, mine), pytest.raises(psycopg.Error, match="WEBHOOK_NOT_FOUND: "):
        api.execute("select api.replay_webhook(%s)", [messages[-1]])


# What the guide promises


def examples() -> dict[str, dict[str, Any]]:
    """The messages that docs/webhooks.md shows, by their type."""
    shown = re.findall(
        r"^```json\n(.*?)^```", (PROJECT / "docs/webhooks.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    return {message["type"]: message for message in map(json.loads, shown)}


def shape(found: Any, shown: Any) -> Any:
    """Keys and kinds of values: what is null in either may be anything in the other."""
    if found is None or shown is None:
        return None
    if isinstance(found, dict) and isinstance(shown, dict):
        return {key: shape(found.get(key), shown.get(key)) for key in found}
    if isinstance(found, str) and re.match(r"\d{4}-\d\d-\d\dT", found):
        return "time"
    return type(found).__name__


def assert_shown(message: dict[str, Any]) -> None:
    shown = examples()[message["type"]]
    assert set(message["data"]) == set(shown["data"])
    assert shape(message, shown) == shape(shown, message)


def sent(superuser: Connection, organization: UUID, type: str) -> list[dict[str, Any]]:
    """What is signed and sent, without sending it."""
    superuser.execute("update notifications.webhook_messages set next_attempt_at = now() - interval '1 s'")
    rows = superuser.execute(
        "select organization_id, type, body from notifications.claim_webhooks(1000, '0')"
    ).fetchall()
    return [json.loads(body) for of, kind, body in rows if of == organization and kind == type]


def test_an_issued_invoice_is_told_of_as_the_guide_shows(
    shared_database: Database, superuser: Connection, make_organization: MakeOrganization
) -> None:
    organization = make_organization(shared_database, roles=("owner",)).id
    with shared_database.connect("sidecar") as sidecar:
        ingest(sidecar, [event("a", moment(1, days=3))], organization)
    with superuser.transaction(force_rollback=True):
        finalize(superuser, organization, month(1))
    assert sent(superuser, organization, "invoice.finalized") == []
    superuser.execute("set timezone = 'Asia/Tokyo'")
    invoice = finalize(superuser, organization, month(1))
    finalize(superuser, organization, month(1))  # it is there already
    superuser.execute("reset timezone")
    [message] = sent(superuser, organization, "invoice.finalized")
    assert_shown(message)
    data = message["data"]
    assert (data["id"], data["number"], data["organization_id"]) == (str(invoice.id), invoice.number, str(organization))
    assert (data["total_cents"], data["amount_due_cents"], data["currency"], data["status"]) == (25, 25, "usd", "open")
    assert data["period_start"] == f"{month(1)}T00:00:00+00:00"


def test_a_subscription_is_told_of_as_the_guide_shows(superuser: Connection, organization: Organization) -> None:
    superuser.execute("select billing.start_subscription(%s, 'starter', 0, true, null)", [organization.id])
    superuser.execute("select billing.change_subscription(%s, 'pro', false, null)", [organization.id])
    superuser.execute("select billing.cancel_subscription(%s, true, null, null)", [organization.id])
    started, changed, ending = sent(superuser, organization.id, "subscription.changed")
    for message in (started, changed, ending):
        assert_shown(message)
    assert started["timestamp"] < changed["timestamp"] < ending["timestamp"]
    assert (started["data"]["plan"], started["data"]["status"], started["data"]["previous"]) == (
        "starter",
        "active",
        None,
    )
    assert changed["data"]["previous"] == {"plan": "starter", "status": "active"}
    assert (changed["data"]["plan"], changed["data"]["cancel_at"], changed["data"]["next"]) == ("pro", None, None)
    assert ending["data"]["cancel_at"] == ending["data"]["next"]["since"] is not None
    assert ending["data"]["next"]["status"] == "canceled"


def test_a_quota_that_is_used_up_is_told_of_as_the_guide_shows(
    superuser: Connection, sidecar: Connection, organization: Organization
) -> None:
    superuser.execute(
        """
        insert into billing.entitlement_overrides (organization_id, feature, kind, limit_value, meter_code, created_by)
        values (%s, 'uploads', 'limit_per_period', 2, 'doc.upload', 'test')
        """,
        [organization.id],
    )
    ingest(sidecar, [event("a", name="doc.upload"), event("b", name="doc.upload")], organization.id)
    sidecar.execute("select metering.roll_up(1000)")
    sidecar.execute("set timezone = 'Asia/Tokyo'")
    sidecar.execute("select billing.fire_alerts()")
    sidecar.execute("reset timezone")
    [message] = sent(superuser, organization.id, "quota.reached")
    assert_shown(message)
    assert (message["data"]["feature"], message["data"]["limit"], message["data"]["used"]) == ("uploads", 2, 2)
    assert message["data"]["period_start"] == f"{month()}T00:00:00+00:00"


@pytest.mark.parametrize(
    ("happens", "type"),
    [
        ("customer.subscription.trial_will_end", "subscription.trial_will_end"),
        ("invoice.payment_failed", "payment.failed"),
        ("charge.dispute.created", "payment.disputed"),
    ],
)
def test_what_stripe_says_is_told_of_as_the_guide_shows(
    superuser: Connection, sidecar: Connection, organization: Organization, happens: str, type: str
) -> None:
    life = Life(int(time.time()), organization_id=str(organization.id))
    superuser.execute("select stripe.link(%s, %s, false)", [organization.id, life.customer_id])
    for one in ("customer.subscription.created", "invoice.paid", "invoice_payment.paid", happens, happens):
        told = json.dumps(happened(one, life, id=f"evt_{organization.id}_{one}"))
        sidecar.execute("select stripe.receive_events(array[%s], null)", [told])
    [message] = sent(superuser, organization.id, type)
    assert_shown(message)
    assert message["data"]["organization_id"] == str(organization.id)


def test_the_receiver_of_the_guide_takes_what_is_signed_and_nothing_else(
    shared_database: Database,
    superuser: Connection,
    organization: Organization,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(
        r"^```python\n(.*?)^```", (PROJECT / "docs/webhooks.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert code
    made: dict[str, Any] = {"SECRET": SECRET, "PORT": 0, "__name__": "receiver"}
    exec(code[1], made)  # noqa: S102 - it is ours
    server = made["server"]
    url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        assert httpx.post(url, content=b"{}", trust_env=False).status_code == 401
        [message] = enqueue(superuser, organization)
        with sending(shared_database, url):
            await_status(superuser, message, "delivered")
            superuser.execute("select notifications.replay_webhook(null, %s)", [message])
            await_status(superuser, message, "delivered")
        with closing(sqlite3.connect("messages.db")) as inbox:
            [(id, body)] = inbox.execute("select id, body from messages").fetchall()
        assert (id, json.loads(body)["data"]) == (message, {"number": 1})
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# The command


def goldleaves(database: Database, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["webhooks", *arguments], env={"MIGRATION_DATABASE_URL": database.migrator})


def test_the_command_lists_and_replays(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    assert goldleaves(shared_database, "list").output == "No messages.\n"
    first, second, third = enqueue(superuser, organization, 3)
    superuser.execute("update notifications.webhook_messages set status = 'dead', last_error = '500: \x1b[2J'")
    [listed, *others] = [
        json.loads(line)
        for line in goldleaves(shared_database, "list", "--status", "dead", "--json").output.splitlines()
    ]
    assert (listed["id"], listed["organization"], len(others)) == (third, organization.slug, 2)
    assert "\x1b" not in goldleaves(shared_database, "list").output
    assert goldleaves(shared_database, "list", "--status", "lost").exit_code == 1
    assert goldleaves(shared_database, "replay", first).output == "1 message to be sent again.\n"
    assert goldleaves(shared_database, "replay", "--dead").output == "2 messages to be sent again.\n"
    assert [of(superuser, "status", message) for message in (first, second, third)] == ["pending"] * 3
    refused = goldleaves(shared_database, "replay", str(organization.id))
    assert refused.exit_code == 1
    assert refused.output == (
        f"WEBHOOK_NOT_FOUND: there is no message {organization.id}. "
        "GET /webhook_messages lists them. What was delivered is deleted after 30 days\n"
    )
    for arguments in ((), ("--dead", first), ("--since", "2026-01-01", first)):
        refused = goldleaves(shared_database, "replay", *arguments)
        assert (refused.exit_code, len(refused.output.splitlines())) == (1, 1)


def test_the_command_says_what_the_application_answers(
    shared_database: Database, superuser: Connection, receiver: Application
) -> None:
    receiver.reply = answers(Reply(401, body=b"who are you?"), Reply())
    with capture_logs(), sending(shared_database, receiver.url):
        refused = goldleaves(shared_database, "test")
        delivered = goldleaves(shared_database, "test")
    assert refused.exit_code == 1
    assert re.fullmatch(
        r"Not delivered, and tried again at \d\d:\d\d:\d\d UTC: 401 Unauthorized: who are you\?\n", refused.output
    )
    assert (delivered.exit_code, delivered.output) == (0, f"Delivered {receiver.ids[-1]}: 204.\n")
    assert receiver.came[-1].message["type"] == "webhook.test"


def test_a_url_needs_a_secret(shared_database: Database, tmp_path: Any) -> None:
    settings = Settings(
        database_url=shared_database.sidecar,
        postgrest_url="http://127.0.0.1:1",
        jwt_secret=SecretStr("x" * 32),
        webhook_url="https://app.example.com/webhooks",
    )
    with Spool(tmp_path, 1024**2) as spool, pytest.raises(SettingsError, match=r"^WEBHOOK_SECRET is not set\."):
        create_app(settings, spool)
