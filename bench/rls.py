"""`python -m bench.rls`: reads under row-level security against the same reads without, over PostgREST and in SQL.

A million rows of a thousand organizations, read by a person of each in turns. Without means: row security of the same
tables is switched off, and a filter names the organization, as it would have to if nothing else kept tenants apart.

Reading that filter costs PostgREST something, too. What Postgres alone spends is printed beside it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg

from bench.figures import Budget, Figure, at_least, print_figures
from bench.pgbench import Pgbench
from bench.rounds import Comparison, compare, show
from bench.stack import BenchStack, bench_stack
from bench.wrk import Wrk, require_wrk

ROUNDS: Final = 5
SECONDS: Final = 2
SQL_ROUNDS: Final = 5
SQL_SECONDS: Final = 1
BUDGET: Final = 0.95  # over PostgREST
STATEMENTS: Final = 50  # for one organization, before the next
COMPARED: Final = 40  # of every so many organizations the answers are compared
FILL: Final = Path(__file__).with_name("thousand_organizations.sql")
READ_SCRIPT: Final = Path(__file__).with_name("read_rows.lua")
TABLES: Final = ("app.cases", "app.clients")


@dataclass(frozen=True)
class Tenant:
    subject: str
    organization: str
    case: str
    token: str


@dataclass(frozen=True)
class Read:
    """What is read. `{case}` and `:case` stand for a row, `{tenant}` for the filter that names the organization."""

    title: str
    path: str
    statement: str
    prefer: str = ""

    def path_for(self, tenant: Tenant, on: bool) -> str:
        """Row security that is on leaves nothing to filter."""
        path = self.path.format(case=tenant.case)
        return path if on else f"{path}&organization_id=eq.{tenant.organization}"

    def statement_for(self, on: bool) -> str:
        """On one line, as pgbench wants it."""
        return " ".join(self.statement.format(tenant="true" if on else "c.organization_id = :org").split())


READS: Final = (
    Read(
        "one row by its key",
        "/cases?select=id,title,status&id=eq.{case}",
        "select id, title, status from api.cases c where {tenant} and c.id = :case",
    ),
    Read(
        "page of 20 in order",
        "/cases?select=id,title,status&order=id&limit=20",
        "select id, title, status from api.cases c where {tenant} order by id limit 20",
    ),
    Read(
        "count=exact of 1,000",
        "/cases?select=id,title,status&order=id&limit=20",
        "select count(*) from api.cases c where {tenant}",
        prefer="count=exact",
    ),
    Read(
        "page of 20 with their clients embedded",
        "/cases?select=id,title,clients(name)&order=id&limit=20",
        """select c.id, c.title, k.name
        from api.cases c left join api.clients k on k.organization_id = c.organization_id and k.id = c.client_id
        where {tenant} order by c.id limit 20""",
    ),
)


class RowSecurity:
    """That of the tables that are read: on as the files of policies/ have it, or off."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url

    def switch(self, on: bool) -> None:
        with psycopg.connect(self._database_url) as connection:
            for table in TABLES:
                connection.execute(f"alter table {table} {'enable' if on else 'disable'} row level security".encode())

    def compare(self, title: str, rounds: int, unit: str, load: Callable[[bool], Callable[[], float]]) -> Comparison:
        """Measure what `load` makes for row security that is on, and for it off, and print both."""

        def measured(on: bool) -> Callable[[], float]:
            run = load(on)

            def switched() -> float:
                self.switch(on)
                return run()

            return switched

        comparison = compare(rounds, measured(True), measured(False))
        show(title, comparison, unit, ("under RLS", "without"))
        return comparison


class MeasuredLoad:
    """Load, and the processor time that Postgres spent on it: other work on the machine changes that least."""

    def __init__(self, stack: BenchStack, load: Wrk) -> None:
        self._stack = stack
        self._load = load
        self._seconds = 0.0

    def run(self) -> float:
        before = self._stack.processor_seconds("postgres")
        rate = self._load.run()
        self._seconds += self._stack.processor_seconds("postgres") - before
        return rate

    @property
    def microseconds(self) -> float:
        """A request."""
        return self._seconds / self._load.answered * 1e6


def measure() -> list[Figure]:
    require_wrk()
    with bench_stack() as stack:
        _fill(stack)
        tenants, security = _tenants(stack), RowSecurity(stack.database_url)
        return [
            *(_read_over_http(stack, security, tenants, read) for read in READS),
            *(_read_in_sql(stack, security, tenants, read) for read in READS),
        ]


def _read_over_http(stack: BenchStack, security: RowSecurity, tenants: list[Tenant], read: Read) -> Figure:
    _compare_answers(stack, security, tenants[::COMPARED], read)
    with _requests(read, tenants, True) as named_by_nobody, _requests(read, tenants, False) as named_by_filter:
        under = MeasuredLoad(stack, _reads(stack, named_by_nobody))
        without = MeasuredLoad(stack, _reads(stack, named_by_filter))
        load = {True: under.run, False: without.run}
        comparison = security.compare(f"PostgREST: {read.title}", ROUNDS, "requests/s", load.__getitem__)
    print(
        f"  {'Postgres alone':<20} {under.microseconds:>9,.0f} µs of processor time a request under RLS, "
        f"{without.microseconds:,.0f} without"
    )
    return _figure(f"PostgREST, {read.title}", comparison, at_least("", comparison.median_ratio, BUDGET))


@contextmanager
def _requests(read: Read, tenants: list[Tenant], on: bool) -> Iterator[str]:
    """The file that the script of wrk takes them from."""
    with tempfile.NamedTemporaryFile("w", prefix="goldleaves-bench-") as file:
        for one in tenants:
            print(read.path_for(one, on), one.token, one.organization, read.prefer, sep="\t", file=file)
        file.flush()
        yield file.name


def _reads(stack: BenchStack, requests: str) -> Wrk:
    return Wrk("reads", stack.postgrest_url, script=READ_SCRIPT, arguments=(requests,), seconds=SECONDS)


def _read_in_sql(stack: BenchStack, security: RowSecurity, tenants: list[Tenant], read: Read) -> Figure:
    major = stack.stack.settings.postgres_version

    def load(on: bool) -> Callable[[], float]:
        return Pgbench(major, stack.database_url, _script(read.statement_for(on)), STATEMENTS, SQL_SECONDS).run

    comparison = security.compare(f"SQL: {read.title}", SQL_ROUNDS, "statements/s", load)
    for on, name in ((True, "plan under RLS"), (False, "plan without")):
        security.switch(on)
        print(f"  {name:<20} {_plan(stack, read.statement_for(on), tenants[0])}")
    return _figure(f"SQL, {read.title}", comparison)


def _figure(what: str, comparison: Comparison, *budgets: Budget) -> Figure:
    ours, reference = comparison.our_median, comparison.reference_median
    return Figure(what, f"{ours:,.0f}/s under RLS", f"{reference:,.0f}/s without", comparison.ratio, budgets)


def _fill(stack: BenchStack) -> None:
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        fill, end, vacuum = FILL.read_text().partition("commit;\n")
        connection.execute(f"{fill}{end}".encode())
        connection.execute(vacuum.encode())  # in no transaction, not even in that of several statements


def _tenants(stack: BenchStack) -> list[Tenant]:
    with psycopg.connect(stack.database_url) as connection:
        found = connection.execute(
            """
            select u.subject, o.id::text, (select c.id::text from app.cases c where c.organization_id = o.id limit 1)
            from tenancy.organizations o
            join tenancy.users u on u.id = o.owner_user_id
            order by random()
            """
        ).fetchall()
    return [Tenant(subject, organization, case, stack.token(subject)) for subject, organization, case in found]


def _compare_answers(stack: BenchStack, security: RowSecurity, tenants: list[Tenant], read: Read) -> None:
    """Raises RuntimeError when the two do not answer alike: then they did not read the same."""

    def answer(client: httpx.Client, tenant: Tenant, on: bool) -> tuple[str, str | None]:
        headers = {"Authorization": f"Bearer {tenant.token}", "X-Organization-ID": tenant.organization}
        said = client.get(read.path_for(tenant, on), headers=headers | {"Prefer": read.prefer}).raise_for_status()
        return said.text, said.headers.get("content-range")

    with httpx.Client(base_url=stack.postgrest_url, trust_env=False) as client:
        security.switch(False)
        without = [answer(client, one, False) for one in tenants]
        security.switch(True)
        under = [answer(client, one, True) for one in tenants]
    if under != without or any(text == "[]" for text, _ in under):
        raise RuntimeError(f"{read.title}: not the same answers under row security and without")


def _script(statement: str) -> str:
    """Enter one organization after the other, and read there."""
    return "\n".join(
        (
            r"\set n random(1, 1000)",
            "begin;",
            "select tenancy.enter('reader-' || :n, 'member', null, null);",
            r"select current_setting('app.current_org') as org \gset",
            r"select id as case from app.cases where organization_id = :org limit 1 \gset",
            "set local role member;",
            r"\startpipeline",
            *(f"{statement};" for _ in range(STATEMENTS)),
            r"\endpipeline",
            "commit;",
        )
    )


def _plan(stack: BenchStack, statement: str, tenant: Tenant) -> str:
    """The nodes of the plan, each with its index."""

    def nodes(plan: dict[str, Any]) -> Iterator[str]:
        yield " ".join(filter(None, (plan["Node Type"], plan.get("Index Name"))))
        for below in plan.get("Plans", ()):
            yield from nodes(below)

    statement = statement.replace(":org", f"'{tenant.organization}'").replace(":case", f"'{tenant.case}'")
    with psycopg.connect(stack.database_url) as connection:
        connection.execute("select tenancy.enter(%s, 'member', null, null)", [tenant.subject])
        connection.execute("set local role member")
        (row,) = connection.execute(f"explain (format json) {statement}".encode()).fetchall()
    return " > ".join(nodes(row[0][0]["Plan"]))


if __name__ == "__main__":
    print_figures(measure())
