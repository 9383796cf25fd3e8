"""Rolling out policies: a plan changes nothing, an application is one transaction, and each can be taken back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

import pytest
from psycopg.errors import LockNotAvailable
from typer.testing import CliRunner

from api.cli import app
from api.migrations import rollback
from api.policies.rollout import plan
from api.release import drift
from api.release.catalog import Connection
from api.release.drift import Drift
from tests.harness import Database
from tests.rollout import Checkout

AUDITORS = """
create policy cases_auditors on app.cases for select to service
  using (organization_id = tenancy.current_org());
grant select (id, title) on app.cases to service;
"""


@pytest.fixture
def checkout(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    return Checkout(tmp_path, database, monkeypatch)


def change_cases(checkout: Checkout) -> None:
    """A policy more, a policy changed, a policy less, and grants."""
    path = checkout.root / "policies/app.cases.sql"
    text = path.read_text()
    parts = [part for part in text.split("\n\n") if "create policy cases_delete" not in part]
    path.write_text("\n\n".join(parts).replace(", 'data:read'", "") + AUDITORS)


def releases_of(checkout: Checkout) -> list[tuple[object, ...]]:
    return checkout.query("select * from ops.policy_releases order by id")


def test_a_plan_says_what_would_change_and_changes_nothing(checkout: Checkout) -> None:
    assert checkout.policies("plan").stdout.endswith(": as the files say. Nothing was changed.\n")
    assert checkout.actions() == []

    change_cases(checkout)
    before, written = checkout.state(), releases_of(checkout)
    planned = checkout.policies("plan")
    assert planned.exit_code == 0, planned.output
    assert [(each["action"], each["unit"], each["object"]) for each in checkout.actions()] == [
        ("drop", "app.cases", "policy cases_delete"),
        ("change", "app.cases", "policy cases_read"),
        ("create", "app.cases", "policy cases_auditors"),
        ("create", "app.cases", "grant select (id) to service"),
        ("create", "app.cases", "grant select (title) to service"),
    ]
    change = checkout.actions()[1]
    assert (change["file"], "data:read" in change["live"]["using"], "data:read" in change["planned"]["using"]) == (
        "policies/app.cases.sql",
        True,
        False,
    )
    assert "app.cases  AccessExclusiveLock (nobody reads or writes it meanwhile)" in planned.stdout
    assert json.loads((checkout.root / "plan.json").read_text())["locks"] == [
        {"relation": "app.cases", "mode": "AccessExclusiveLock"}
    ]
    assert "3 to create, 1 to change, 1 to drop. Nothing was changed." in planned.stdout
    assert (checkout.state(), releases_of(checkout)) == (before, written)

    # So does an application that is not meant.
    assert checkout.policies("apply").stdout == planned.stdout
    assert (checkout.state(), releases_of(checkout)) == (before, written)
    assert checkout.policies("verify").exit_code == 0
    printed = checkout.policies("plan", "--json", "--out", "other.json").stdout
    assert json.loads(printed) == json.loads((checkout.root / "other.json").read_text())


def test_an_older_checkout_takes_back_nothing(checkout: Checkout) -> None:
    """Its files would drop what newer migrations came with."""
    newest = max(path.name for path in (checkout.root / "migrations").glob("*.sql") if "rollback" not in path.name)
    for path in (checkout.root / "migrations").glob(f"{newest.partition('.')[0]}*"):
        path.unlink()
    change_cases(checkout)
    before, written = checkout.state(), releases_of(checkout)
    for command in (["plan"], ["apply", "--apply"]):
        refused = checkout.policies(*command)
        assert refused.exit_code == 1
        assert refused.stderr.startswith("the database is newer than this checkout, which has no file for "), refused
    assert (checkout.state(), releases_of(checkout)) == (before, written)


def test_what_was_done_is_told_also_where_its_files_cannot_be_written(checkout: Checkout) -> None:
    change_cases(checkout)
    planned = checkout.policies("plan", "--out", "nowhere/plan.json")
    assert (planned.exit_code, planned.stderr) == (1, "nowhere/plan.json: No such file or directory\n")
    assert "1 to drop. Nothing was changed." in planned.stdout

    checkout.execute("grant select on app.clients to public")
    (checkout.root / "policies/app.clients.sql.new").mkdir()
    applied = checkout.policies("apply", "--apply")
    assert applied.exit_code == 1
    assert applied.stderr.endswith("app.clients.sql.new: Is a directory\n")
    assert "1 to drop, 1 conflict. Applied." in applied.stdout


def test_for_comments_alone_no_table_is_locked(checkout: Checkout) -> None:
    path = checkout.root / "policies/app.cases.sql"
    path.write_text(f"-- Much is said here.\n{path.read_text()}/* and here */\n")
    with checkout.database.connect(autocommit=False) as reader:
        reader.execute("select from app.cases")
        assert checkout.policies("plan").exit_code == 0
        assert json.loads((checkout.root / "plan.json").read_text())["locks"] == []
        assert checkout.policies("apply", "--apply").exit_code == 0
    assert releases_of(checkout)[-1][3] == "app.cases"

    # But what was changed by hand meanwhile is not taken for what the file says.
    checkout.execute("drop policy cases_delete on app.cases")
    path.write_text(f"-- And more.\n{path.read_text()}")
    assert checkout.policies("apply", "--apply").exit_code == 3


def test_what_looks_like_a_comment_in_a_name_is_none(checkout: Checkout) -> None:
    policy = 'create policy "ours -- it\'s" on app.cases for select to service using ({});\n'
    path = checkout.root / "policies/app.cases.sql"
    text = path.read_text()
    path.write_text(text + policy.format("true"))
    assert checkout.policies("apply", "--apply").exit_code == 0
    path.write_text(text + policy.format("false"))
    assert checkout.policies("plan").exit_code == 0
    assert [action["object"] for action in checkout.actions()] == ["policy ours -- it's"]


def test_files_from_other_editors_are_read_or_named(checkout: Checkout) -> None:
    path = checkout.root / "policies/app.cases.sql"
    text = path.read_text()
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert checkout.policies("plan").exit_code == 0
    assert checkout.actions() == []
    path.write_bytes(f"-- caf\u00e9\n{text}".encode("latin-1"))
    refused = checkout.policies("plan")
    assert refused.exit_code == 1 and "app.cases.sql: byte 7 is not UTF-8" in refused.stderr


def test_a_plan_names_the_holes_that_it_would_open(checkout: Checkout) -> None:
    with (checkout.root / "policies/app.cases.sql").open("a") as file:
        file.write("create policy open_door on app.cases for select to anon using (true);\n")
    planned = checkout.policies("plan")
    assert "! policy_without_tenant: " in planned.stdout
    assert "open_door" in planned.stdout.split("policy_without_tenant")[1]
    applied = checkout.policies("apply", "--apply")
    assert applied.stdout.count("policy_without_tenant") == 1


def test_what_is_applied_is_recorded_with_who_and_from_which_files(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = f"0123abcd{'0' * 32}-dirty"
    monkeypatch.setattr("api.release.provenance.git_revision", lambda root: revision)
    change_cases(checkout)
    applied = checkout.policies("apply", "--apply", "--by", "dora")
    assert applied.exit_code == 0, applied.output
    assert applied.stdout.endswith("3 to create, 1 to change, 1 to drop. Applied.\n")
    query = """
        select table_name, released_by, operator, git_revision, fingerprint, released_at > now() - interval '1 minute'
        from ops.policy_releases order by id desc limit 1
    """
    fingerprint = sha256((checkout.root / "policies/app.cases.sql").read_bytes()).hexdigest()
    assert checkout.query(query) == [("app.cases", "goldleaves_migrator", "dora", revision, fingerprint, True)]
    assert "  0123abcd0000-dirty  " in checkout.policies("releases").stdout
    assert checkout.policies("verify").exit_code == 0
    assert checkout.policies("plan").stdout.endswith("as the files say. Nothing was changed.\n")
    latest = json.loads(checkout.policies("releases", "--json").stdout)[0]
    assert (latest["operator"], latest["git_revision"], latest["changed"]) == (
        "dora",
        revision,
        ["policies/app.cases.sql"],
    )


def test_a_file_that_cannot_be_loaded_is_named_and_nothing_of_the_rest_is_applied(checkout: Checkout) -> None:
    change_cases(checkout)
    with (checkout.root / "policies/app.clients.sql").open("a") as file:
        file.write("grant select on app.clients to nobody_of_that_name;\n")
    before = checkout.state()
    for command in (("plan",), ("apply",), ("apply", "--apply")):
        failed = checkout.policies(*command)
        assert failed.exit_code == 1
        assert "policies/app.clients.sql" in failed.stderr and "nobody_of_that_name" in failed.stderr
    assert checkout.state() == before


def test_files_of_functions_are_not_rolled_out_with_policies(checkout: Checkout) -> None:
    checkout.edit("sql/billing/payer.sql", ";\n", ";\n-- anew\n")
    change_cases(checkout)
    applied = checkout.policies("apply", "--apply")
    assert "Not part of this: 1 changed file" in applied.stdout
    assert checkout.query("select from ops.releases where files::text like '%-- anew%'") == []
    assert checkout.migrate().loaded[0] == "sql/billing/payer.sql"


def test_rollback_goes_to_the_release_before_and_once_more_to_the_one_before_that(checkout: Checkout) -> None:
    states = [checkout.state()]
    for word in ("one", "two"):
        with (checkout.root / "policies/app.cases.sql").open("a") as file:
            file.write(f"create policy {word} on app.cases for select to service using (false);\n")
        assert checkout.policies("apply", "--apply").exit_code == 0
        states.append(checkout.state())

    tried = checkout.policies("rollback", "--dry-run")
    assert "- policy two" in tried.stdout and checkout.state() == states[2]
    back = checkout.policies("rollback")
    assert back.exit_code == 0, back.output
    assert "- policy two" in back.stdout
    assert "these files say otherwise: policies/app.cases.sql" in back.stdout
    assert checkout.state() == states[1]
    assert checkout.policies("verify").exit_code == 0
    assert checkout.policies("rollback").exit_code == 0
    assert checkout.state() == states[0]
    nothing = checkout.policies("rollback")
    assert nothing.exit_code == 1 and "there is none before it" in nothing.stderr

    named = json.loads(checkout.policies("releases", "--json").stdout)[-2]
    assert checkout.policies("rollback", "--to", str(named["id"])).exit_code == 0
    assert checkout.state() == states[1]
    unknown = checkout.policies("rollback", "--to", "999999")
    assert unknown.exit_code == 1 and "there is no release 999999 of policies" in unknown.stderr

    # The files are the truth: the next application brings what they say.
    assert checkout.policies("apply", "--apply").exit_code == 0
    assert checkout.state() == states[2]


def test_what_was_released_before_releases_were_signed_stays_unsigned(checkout: Checkout) -> None:
    rollback(checkout.database.migrator, "0007", checkout.root)
    checkout.execute(
        "insert into ops.releases (migration_head, fingerprint, files, objects) "
        "select '0007_create_audit_log', '', files, '{}' from ops.releases where id = 1"
    )
    for command in ("rollback", "releases"):
        early = checkout.policies(command)
        assert early.exit_code == 1 and "known from migration 0008 on" in early.stderr
    checkout.execute("delete from ops.releases where id = (select max(id) from ops.releases)")
    query = "select id, released_by from ops.policy_releases order by id"
    before = checkout.query(query)
    checkout.migrate()
    assert checkout.query(query)[: len(before)] == before
    signed = "select from ops.{} where id <= {} and (operator is not null or git_revision is not null)"
    assert checkout.query(signed.format("policy_releases", before[-1][0])) == []
    assert checkout.query(signed.format("releases", 1)) == []


def test_rollback_stops_at_a_change_by_hand(checkout: Checkout) -> None:
    change_cases(checkout)
    assert checkout.policies("apply", "--apply").exit_code == 0
    checkout.execute("grant insert on app.cases to service")
    changed = checkout.state()
    stopped = checkout.policies("rollback")
    assert stopped.exit_code == 3
    assert "app.cases: grant insert to service was added" in stopped.stdout
    assert checkout.state() == changed


def test_conflicts_that_stop_everything_are_json_too(checkout: Checkout) -> None:
    change_cases(checkout)
    assert checkout.policies("apply", "--apply").exit_code == 0
    checkout.execute("grant insert on app.cases to service")
    stopped = checkout.policies("rollback", "--json")
    assert stopped.exit_code == 3
    (conflict,) = json.loads(stopped.stdout)["conflicts"]
    assert conflict["unit"] == "app.cases" and conflict["says"] == ["grant insert to service was added"]

    # A view that went missing is made again with the whole of api, in which another was added.
    checkout.execute("drop view api.clients")
    checkout.execute("create view api.shortcut with (security_invoker) as select title from app.cases")
    for command in (("plan",), ("apply", "--apply")):
        stopped = checkout.policies(*command, "--json")
        assert stopped.exit_code == 3
        assert [each["unit"] for each in json.loads(stopped.stdout)["conflicts"]] == ["view api.shortcut"]


def test_a_release_meanwhile_is_no_change_by_hand(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    change_cases(checkout)
    find, left = drift.find, [None]

    def late(conn: Connection, made_by: Mapping[str, Iterable[str]]) -> dict[str, Drift]:
        found = find(conn, made_by)
        return found if not left else {"app.cases": Drift("app.cases", None, left.pop() or {})}

    monkeypatch.setattr(drift, "find", late)
    monkeypatch.setattr(plan, "_latest", lambda conn: bool(left))
    assert checkout.policies("verify").exit_code == 0


def test_verify_waits_for_who_changes_something_just_now(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = iter((True, False))
    find = drift.find

    def busy(conn: Connection, made_by: Mapping[str, Iterable[str]]) -> dict[str, Drift]:
        if next(tries, False):
            raise LockNotAvailable
        return dict(find(conn, made_by))

    monkeypatch.setattr(drift, "find", busy)
    assert checkout.policies("verify").exit_code == 0


def test_files_of_others_are_neither_overwritten_nor_removed(checkout: Checkout) -> None:
    change_cases(checkout)
    for name, command in (("plan.json", ("plan",)), ("conflicts.json", ("apply", "--apply"))):
        path = checkout.root / name
        victim = checkout.root.parent / "victim.new"
        victim.write_text("keep me")
        for text in ('{"kind": "flights"}', "?", f'[{{"new": "{victim}"}}]', '[{"new": "policies/../../victim.new"}]'):
            path.write_text(text)
            before = checkout.state()
            refused = checkout.policies(*command)
            assert refused.exit_code == 1
            assert f"{name} " in refused.stderr and "is not overwritten" in refused.stderr
            assert path.read_text() == text and victim.exists() and checkout.state() == before
        path.unlink()
        path.mkdir()
        assert checkout.policies(*command).exit_code == 1


def test_a_conflict_is_left_alone_while_the_rest_is_applied(checkout: Checkout) -> None:
    checkout.execute("drop policy clients_delete on app.clients")
    checkout.edit("policies/app.clients.sql", ";\n", ";\n-- changed too\n")
    change_cases(checkout)
    applied = checkout.policies("apply", "--apply")
    assert applied.exit_code == 3
    assert "1 conflict. Applied." in applied.stdout
    state = checkout.state()
    assert "cases_auditors" in state["app.cases"]["policies"]
    assert "clients_delete" not in state["app.clients"]["policies"]
    again = checkout.policies("apply", "--apply")
    assert again.exit_code == 3 and checkout.state() == state
    wrong = checkout.policies("apply", "--apply", "--overwrite", "app.cases")
    assert wrong.exit_code == 1
    assert "app.cases was not changed by hand. Changed by hand: app.clients" in wrong.stderr
    both = checkout.policies("apply", "--overwrite", "app.clients", "--accept-live", "app.clients")
    assert both.exit_code == 1 and "either --overwrite or --accept-live" in both.stderr
    assert checkout.policies("apply", "--apply", "--overwrite", "app.clients").exit_code == 0
    assert "clients_delete" in checkout.state()["app.clients"]["policies"]


def test_what_a_file_of_functions_makes_is_accepted_in_that_file(checkout: Checkout) -> None:
    checkout.execute("alter view api.cases reset (security_invoker)")
    refused = checkout.policies("apply", "--apply", "--accept-live", "api.cases")
    assert refused.exit_code == 1
    assert "sql/api/app.sql makes it" in refused.stderr


def test_a_plan_gives_way_to_traffic(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives up its place in the queue for a lock, so that nobody has to wait behind it, and tries again."""
    monkeypatch.setattr("api.release.loader.TRIES", 2)
    change_cases(checkout)
    with checkout.database.connect(autocommit=False) as reader:
        reader.execute("select from app.cases")
        waited = checkout.policies("plan")
        assert waited.exit_code == 1
        assert "gave up after 2 tries, the tables are too busy" in waited.stderr
        assert checkout.policies("verify").exit_code == 0  # which asks for no lock that a reader minds
    assert checkout.policies("plan").exit_code == 0


def test_a_closed_gate_keeps_policies_from_being_applied(checkout: Checkout) -> None:
    change_cases(checkout)
    before = checkout.state()
    for command in (("apply", "--apply"), ("rollback",)):
        closed = checkout.policies(*command, RLS_ENABLED="false")
        assert closed.exit_code == 1
        assert "RLS_ENABLED is false: policies are not applied here" in closed.stderr
    assert checkout.policies("apply", RLS_ENABLED="false").exit_code == 0  # a dry run
    assert checkout.state() == before
    assert "TENANT_ISOLATION_MODE" in checkout.policies("apply", TENANT_ISOLATION_MODE="schema").stderr
    production = checkout.policies("plan", RLS_ENABLED="false", ENVIRONMENT="production")
    assert production.exit_code == 1 and "RLS_ENABLED=false" in production.stderr


def test_nothing_loaded_is_said(empty_database: Database, tmp_path: Path) -> None:
    environment = {"MIGRATION_DATABASE_URL": empty_database.migrator}
    for command in ("plan", "apply", "verify", "rollback"):
        result = CliRunner().invoke(app, ["policies", command], env=environment)
        assert result.exit_code == 1
        assert "goldleaves migrate" in result.stderr, command
