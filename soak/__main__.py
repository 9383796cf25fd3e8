"""`python -m soak MINUTES [SEED]`: a stack of its own, load, faults, a ledger. Exit code 1 when something differs."""

from __future__ import annotations

import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import psycopg
from rich.console import Console
from rich.table import Table

from api.stack.parts import PARTS
from api.stack.processes import log_end
from api.tokens import Role, mint_token
from bench.stack import BenchStack, bench_stack, machine
from soak.account import Account
from soak.clients import Backend, Load, Person, Tenant
from soak.faults import Faults
from soak.reckoning import METERED, METERS, Entry, differences_now, differences_of_requests, ledger

TENANTS: Final = 4
PEOPLE: Final = 3
BACKENDS: Final = 3
PAUSE_SECONDS: Final = (0.5, 4.0)  # between two faults
DRAIN_SECONDS: Final = 300
PERIOD_CLOSES_AT: Final = 0.5  # of the run

console = Console(highlight=False, soft_wrap=True, width=120)


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    random.seed(seed)
    console.print(f"{machine()}; {minutes:g} minutes, {PEOPLE} people and {BACKENDS} backends, seed {seed}")
    with bench_stack() as stack:
        account = Account()
        tenants = tuple(_tenant(stack, f"soak-{number}", minutes) for number in range(TENANTS))
        _define_meters(stack)
        load = Load(
            gateway_url=stack.gateway_url,
            tenants=tenants,
            service_token=_token(stack, "backend", "service", minutes),
            corrections=_takes_corrections(stack),
            last_month=datetime.now(UTC).replace(day=1, hour=12, minute=0, second=0) - timedelta(days=15),
            account=account,
        )
        faults = Faults(stack, load, account)
        started = time.monotonic()
        try:
            _run(stack, load, faults, minutes * 60)
        except Exception:
            for part in PARTS:
                console.print(f"\n{part}:\n{log_end(part, stack.stack.state)}", markup=False)
            raise
        console.print(f"The load ended after {time.monotonic() - started:.0f} s. Waiting for the spool and rollups …")
        _drain(stack)
        return 0 if _report(stack, account, faults, tenants) else 1


def _run(stack: BenchStack, load: Load, faults: Faults, seconds: float) -> None:
    """Load and faults until the time is over; then what has no answer yet gets one."""
    started = time.monotonic()
    with ThreadPoolExecutor(PEOPLE + BACKENDS + 1) as pool:
        clients: list[Person | Backend] = [Person(load, load.tenants[number % TENANTS]) for number in range(PEOPLE)]
        clients += [Backend(load) for _ in range(BACKENDS)]
        running = [pool.submit(client.run, client.step) for client in clients]
        running.append(pool.submit(_close_last_month, stack, load, seconds * PERIOD_CLOSES_AT))
        try:
            while time.monotonic() - started < seconds:
                time.sleep(random.uniform(*PAUSE_SECONDS))
                what = faults.any()
                differences = differences_now(stack, random.choice(load.tenants))
                for difference in differences:
                    load.account.surprise(f"in the middle, after {what}: {difference}")
                console.print(
                    f"{time.monotonic() - started:6.0f} s  {what}{'  [red]DIFFERS[/red]' if differences else ''}"
                )
                for client in running:
                    if client.done() and (error := client.exception()) is not None:
                        raise error
        finally:
            load.over.set()
        for client in running:
            client.result()


def _close_last_month(stack: BenchStack, load: Load, after: float) -> None:
    """What is late is before it of its period, and an adjustment after it."""
    tenant = load.tenants[0]
    load.over.wait(after)
    staff = Backend(load)
    staff.send_late()  # so that there is such a period
    headers = {
        "Authorization": f"Bearer {_token(stack, 'staff', 'platform_admin', 60)}",
        "X-Organization-ID": tenant.id,
    }
    first_day = {"period_start": load.last_month.replace(day=1).date().isoformat()}
    answer = staff.insist(
        "finalize_period", lambda: staff.ask("POST", "/api/v1/rpc/finalize_period", headers, json=first_day)
    )
    if answer is not None and answer.status_code != 200:
        load.account.surprise(f"finalize_period: {answer.status_code} {answer.text}")
    load.account.did("finalized a period")


def _tenant(stack: BenchStack, subject: str, minutes: float) -> Tenant:
    """Somebody new, with the organization that they get with their first request."""
    token = _token(stack, subject, "member", minutes)
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{stack.gateway_url}/api/v1/organizations?select=id"
    answer = httpx.get(url, headers=headers, timeout=60, trust_env=False).raise_for_status()
    return Tenant(str(answer.json()[0]["id"]), token)


def _token(stack: BenchStack, subject: str, role: Role, minutes: float) -> str:
    lifetime = timedelta(minutes=minutes) + timedelta(hours=2)
    email = f"{subject}@example.com"
    return mint_token(stack.jwt_secret, subject, role=role, email=email, lifetime=lifetime)


def _define_meters(stack: BenchStack) -> None:
    headers = {"Authorization": f"Bearer {_token(stack, 'staff', 'platform_admin', 60)}"}
    for code, aggregation in METERS.items():
        meter: dict[str, Any] = {"code": code, "unit": "unit", "description": code, "event_name": METERED}
        meter |= {"aggregation": aggregation, "value": "user_id" if aggregation == "unique" else "quantity"}
        url = f"{stack.gateway_url}/api/v1/rpc/create_meter"
        httpx.post(url, json=meter, headers=headers, timeout=60, trust_env=False).raise_for_status()


def _takes_corrections(stack: BenchStack) -> bool:
    """Whether there is DELETE /v1/events/{id}, which asks for the organization."""
    headers = {"Authorization": f"Bearer {_token(stack, 'backend', 'service', 60)}"}
    answer = httpx.delete(f"{stack.gateway_url}/v1/events/none", headers=headers, timeout=60, trust_env=False)
    return answer.status_code == 400


def _drain(stack: BenchStack) -> None:
    """Until the spool is empty and everything is rolled up."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while httpx.get(f"{stack.gateway_url}/health", timeout=60, trust_env=False).json()["spool"]["pending_bytes"]:
        if time.monotonic() > deadline:
            raise RuntimeError("the spool does not become empty")
        time.sleep(0.2)
    with psycopg.connect(stack.sidecar_database_url, autocommit=True) as connection:
        while time.monotonic() < deadline:
            row = connection.execute("select metering.roll_up()").fetchone()
            report = row[0] if row else {}
            if not report.get("busy") and not report["events"] and not report["behind"] and not report["lag_seconds"]:
                return
            time.sleep(0.05)
    raise RuntimeError(f"not everything is rolled up: {report}")


def _report(stack: BenchStack, account: Account, faults: Faults, tenants: tuple[Tenant, ...]) -> bool:
    entries = list(ledger(stack, account, tenants))
    differences, figures = differences_of_requests(stack, account, faults)
    table = Table("whose", "what", "account", "events", "summary", "", box=None, pad_edge=False, header_style="bold")
    for entry in entries:
        figures_of_it = (_shown(figure) for figure in (entry.account, entry.events, entry.summary))
        table.add_row(entry.whose, entry.what, *figures_of_it, "" if entry.agrees else "[red]DIFFERS[/red]")
    console.print(table)
    for title, counted in (("Requests", figures), ("Done", dict(sorted(account.done.items())))):
        console.print(f"\n[bold]{title}[/bold]")
        for what, times in counted.items():
            console.print(f"  {what:<70} {times:>10,}")
    console.print(f"  {'sent again, since there was no answer':<70} {account.sent_again:>10,}")
    wrong = [*differences, *account.surprises, *(_of(entry) for entry in entries if not entry.agrees)]
    console.print()
    for text in wrong[:50]:
        console.print(text, style="red", markup=False)
    console.print(
        "Everything agrees." if not wrong else f"{len(wrong)} differences.", style="red" if wrong else "green"
    )
    return not wrong


def _of(entry: Entry) -> str:
    return f"{entry.whose}, {entry.what}: account {entry.account}, events {entry.events}, summary {entry.summary}"


def _shown(figure: object) -> str:
    if isinstance(figure, tuple):
        events, quantity = figure
        return f"{events:,} / {quantity.normalize() if hasattr(quantity, 'normalize') else quantity:,f}"
    return "" if figure is None else f"{figure:,}"


if __name__ == "__main__":
    sys.exit(main())
