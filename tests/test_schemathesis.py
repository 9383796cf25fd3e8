"""Generated requests, right ones and wrong ones, for the operations of the contract: no answer is a server error, and
every answer is one that the contract promises.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from pydantic import SecretStr
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.contract import DOCUMENT
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import RunningStack

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
CONTRACT: dict[str, Any] = json.loads(DOCUMENT.read_text())
# A sample: what the gateway answers is mostly PostgREST's.
OF_THE_GATEWAY = {
    "/api/v1/cases",
    "/api/v1/memberships",
    "/api/v1/usage_events",
    "/api/v1/rpc/create_organization",
    "/api/v1/rpc/finalize_period",
    "/api/v1/rpc/usage_summary",
}
OPERATIONS: list[tuple[str, str]] = sorted(
    (method, path)
    for path, methods in CONTRACT["paths"].items()
    for method in methods
    if path in OF_THE_GATEWAY or not path.startswith("/api/v1")
)
SIDECAR_EXAMPLES = 20
GATEWAY_EXAMPLES = 4


def takes_input(method: str, path: str) -> bool:
    """Whether there is anything that a request can get wrong."""
    operation = CONTRACT["paths"][path][method]
    return "requestBody" in operation or any("$ref" not in parameter for parameter in operation.get("parameters", []))


REQUESTS = [
    pytest.param(method, path, mode, id=f"{method} {path} {mode.value}")
    for method, path in OPERATIONS
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or takes_input(method, path)
]


@pytest.fixture(scope="module")
def stack(open_stack: OpenStack) -> Iterator[RunningStack]:
    """One that could verify what Stripe has signed: without a secret the answer is 503."""
    with open_stack(stripe_webhook_secret=SecretStr("whsec_of_nobody")) as running:
        yield running


@pytest.fixture(scope="module")
def schema(stack: RunningStack) -> schemathesis.BaseSchema:
    document = httpx.get(f"{stack.gateway_url}/openapi.json", trust_env=False).json()
    return schemathesis.openapi.from_dict(document)


@pytest.fixture(scope="module")
def headers(stack: RunningStack, make_organization: MakeOrganization) -> Mapping[str, Mapping[str, str]]:
    """Of the owner of an organization at the gateway, and of the provider's backend at the sidecar."""
    organization = make_organization(stack.database)
    service = stack.token("backend", role="service")
    owner = stack.token(organization["owner"].subject)
    return {
        "/api/v1": {"Authorization": f"Bearer {owner}", "X-Organization-ID": organization.slug},
        "/v1": {"Authorization": f"Bearer {service}", "X-Organization-ID": organization.slug},
    }


@pytest.mark.parametrize(("method", "path", "mode"), REQUESTS)
def test_answers_are_those_of_the_contract(
    stack: RunningStack,
    schema: schemathesis.BaseSchema,
    headers: Mapping[str, Mapping[str, str]],
    method: str,
    path: str,
    mode: GenerationMode,
) -> None:
    is_gateway = path.startswith("/api/v1")
    operation = schema[path][method]
    sent_headers = dict(headers["/api/v1" if is_gateway else "/v1"])

    @settings(
        max_examples=GATEWAY_EXAMPLES if is_gateway else SIDECAR_EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        response = case.call(base_url=stack.gateway_url, headers=sent_headers, allow_redirects=False)
        # What a write answers depends on Prefer, which OpenAPI has no words for: nothing at all is fine as well.
        is_silent = is_gateway and response.status_code == 201 and not response.content
        case.validate_response(response, checks=CHECKS[:2] if is_silent else CHECKS)

    ask()
