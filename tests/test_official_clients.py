"""The clients that frontends use work through the gateway: @supabase/postgrest-js, and postgrest for Python."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import pytest
from postgrest import APIError, CountMethod, ReturnMethod, SyncPostgrestClient

from api.settings import PROJECT
from tests.conftest import MakeOrganization
from tests.harness import Organization, RunningStack

NAME = "Zoë 日本 🦊"
TITLES = ["Smith v. Jones", "A 'quoted', (one) & 100%", "In re Doe", "Ünïcode/e\u0301"]


def test_javascript(stack: RunningStack, make_organization: MakeOrganization) -> None:
    """tests/clients/scenario.mjs, step by step. It needs Node and `npm ci`."""
    organization = make_organization(stack.database)
    environment = {
        "PATH": os.environ["PATH"],
        "GATEWAY_URL": f"{stack.gateway_url}/api/v1",
        "TOKEN": stack.token(organization["owner"].subject),
        "ORGANIZATION": organization.slug,
    }
    script = PROJECT / "tests" / "clients" / "scenario.mjs"
    run = subprocess.run(["node", str(script)], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("ok ") == script.read_text().count('\n  async "')


@dataclass(frozen=True)
class Firm:
    organization: Organization
    stack: RunningStack
    api: SyncPostgrestClient


def data(request: Any) -> Any:
    """What a request answers. The client's own type for it is any JSON there is."""
    return request.execute().data


Connect = Callable[[dict[str, str]], SyncPostgrestClient]


@pytest.fixture
def connect(stack: RunningStack) -> Iterator[Connect]:
    opened: list[SyncPostgrestClient] = []

    def make(headers: dict[str, str]) -> SyncPostgrestClient:
        opened.append(SyncPostgrestClient(f"{stack.gateway_url}/api/v1", schema="api", headers=headers))
        return opened[-1]

    yield make
    for client in opened:
        client.aclose()


@pytest.fixture
def firm(stack: RunningStack, make_organization: MakeOrganization, connect: Connect) -> Firm:
    organization = make_organization(stack.database)
    token = stack.token(organization["owner"].subject)
    return Firm(
        organization, stack, connect({"Authorization": f"Bearer {token}", "X-Organization-ID": organization.slug})
    )


@pytest.fixture
def cases(firm: Firm) -> list[dict[str, Any]]:
    (client,) = data(firm.api.from_("clients").insert({"name": NAME}))
    rows = [{"title": title, "client_id": client["id"]} for title in TITLES]
    return list(data(firm.api.from_("cases").insert(rows)))


def test_python_signs_in_and_chooses_an_organization(firm: Firm, connect: Connect) -> None:
    me = connect({"Authorization": f"Bearer {firm.stack.token(firm.organization['owner'].subject)}"})
    known = data(me.rpc("sign_in", {}))["organizations"]
    assert [organization["slug"] for organization in known] == [firm.organization.slug]
    assert me.from_("organizations").select("slug").single().execute().data == {"slug": firm.organization.slug}


def test_python_reads(firm: Firm, cases: list[dict[str, Any]]) -> None:
    api = firm.api
    page = (
        api.from_("cases")
        .select("title, client:clients!inner(name)", count=CountMethod.exact)
        .eq("status", "open")
        .order("title", desc=True)
        .range(0, 1)
        .execute()
    )
    assert page.count == 4
    assert page.data == [{"title": title, "client": {"name": NAME}} for title in (TITLES[3], TITLES[0])]
    for title in TITLES:
        assert api.from_("cases").select("title").eq("title", title).single().execute().data == {"title": title}
    assert api.from_("cases").select("*", count=CountMethod.exact, head=True).execute().count == 4
    assert api.from_("cases").select("*").eq("id", str(uuid4())).maybe_single().execute() is None
    assert api.from_("clients").select("name").csv().execute().data == f'name\n"{NAME}"'
    assert api.from_("cases").select("id").in_("id", [str(uuid4()) for _ in range(150)]).execute().data == []


def test_python_writes(firm: Firm, cases: list[dict[str, Any]]) -> None:
    api, row = firm.api, cases[0]
    assert api.from_("cases").insert({"title": "quiet"}, returning=ReturnMethod.minimal).execute().data == []
    changed = row | {"status": "closed"}
    assert api.from_("cases").upsert(changed).execute().data == [changed]
    fresh = str(uuid4())
    upserted = data(api.from_("cases").upsert([{"id": row["id"], "title": "one!"}, {"id": fresh, "title": "new"}]))
    assert {case["id"]: case["title"] for case in upserted} == {row["id"]: "one!", fresh: "new"}
    assert api.from_("cases").upsert({"id": fresh, "title": "late"}, ignore_duplicates=True).execute().data == []
    updated = data(api.from_("cases").update({"status": "closed"}).eq("id", fresh))
    assert [case["status"] for case in updated] == ["closed"]
    gone = api.from_("cases").delete(count=CountMethod.exact).eq("id", fresh).execute()
    assert (gone.count, [case["id"] for case in cast(Any, gone.data)]) == (1, [fresh])


def test_python_calls_functions(firm: Firm, cases: list[dict[str, Any]]) -> None:
    for get in (True, False):
        assert isinstance(firm.api.rpc("usage_summary", {}, get=get).execute().data, list)
    slug = f"py-{uuid4().hex[:8]}"
    made = data(firm.api.rpc("create_organization", {"name": "Neu", "slug": slug, "timezone": "Europe/Vienna"}))
    assert made["slug"] == slug


def test_python_is_told_what_is_wrong(firm: Firm, cases: list[dict[str, Any]], connect: Connect) -> None:
    broken = connect({"Authorization": "Bearer no.to.ken"})
    elsewhere = connect({"Authorization": firm.api.headers["Authorization"], "X-Organization-ID": "other"})
    cases_of = firm.api.from_("cases")
    for request, code, message in (
        (cases_of.select("*").single(), "PGRST116", "JSON object requested"),
        (cases_of.select("nothing"), "42703", "column cases.nothing does not exist"),
        (cases_of.insert({"title": ""}), "23514", "new row for relation"),
        (cases_of.update({"id": str(uuid4())}).eq("id", cases[0]["id"]), "PT409", "ID_IS_FIXED: "),
        (elsewhere.from_("cases").select("*"), "PT403", "NOT_A_MEMBER: "),
        (broken.from_("cases").select("*"), "PT401", "INVALID_TOKEN: "),
    ):
        with pytest.raises(APIError) as refused:
            request.execute()
        assert refused.value.code == code
        assert refused.value.message is not None and refused.value.message.startswith(message)
        assert code[:2] != "PT" or refused.value.hint
