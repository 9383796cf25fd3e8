"""exp, nbf, iat, aud and the other claims of RFC 7519 mean the same to the sidecar and to PostgREST, in every shape."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest

from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack
from tests.observe import assert_problem

AUDIENCE = "https://api.goldleaves.example/v1"
OTHER = "https://api.somebody.example"

# A time as JSON text, in which @ is so many seconds from when it is sent; and whether a token with it is taken, None
# where that depends on the claim.
TIMES = [
    ("null", True),
    ("@-5", None),
    ("@+5", None),
    ("@-5.0", None),
    ("@+0e0", None),
    ("@-3600", None),
    ("@+3600", None),
    ("@+3600.5", False),
    ("@-3600.5", False),
    ("0", None),
    ("-1", False),
    ("253402300799", None),
    ("253402300800", False),
    ("9223372036854775807", False),
    ("1e30", False),
    ("1e400", False),
    ('"@-5"', False),
    ('"@+3600"', False),
    ('""', False),
    ('"tomorrow"', False),
    ("true", False),
    ("false", False),
    ("[@+0]", False),
    ("[]", False),
    ("{}", False),
]
PAST = {"@-3600", "0"}
FUTURE = {"@+3600", "253402300799"}


def is_taken(name: str, value: str, taken: bool | None) -> bool:
    return taken if taken is not None else value not in (PAST if name == "exp" else FUTURE)


NAMES = [
    ("null", True),
    ('"plain text, with blanks"', True),
    ('"mailto:ann@example.com"', True),
    ('"https://login.example.com/realms/x?y=1#z"', True),
    ('"https://login.example.com:8443"', True),
    ('"f:9a4c:ann"', True),
    ('"urn:example:%C3%A9"', True),
    ('"a b:c"', False),
    ('"https://login.example.com/a b"', False),
    ('"https://login.example.com:port"', False),
    ('"https://[::1"', False),
    ('"1:2"', False),
    ('":"', False),
    ('"urn:é"', False),
    ('"urn:%zz"', False),
    ("7", False),
    ("true", False),
    ('["x"]', False),
    ("{}", False),
]

# Where no audience is set, and where AUDIENCE is.
AUDIENCES = [
    ("null", True, False),
    (f'"{AUDIENCE}"', True, True),
    (f'["{AUDIENCE}"]', True, True),
    (f'["{OTHER}", "{AUDIENCE}"]', True, True),
    (f'"{OTHER}"', True, False),
    (f'["{OTHER}"]', True, False),
    (f'"{AUDIENCE}/"', True, False),
    (f'"{AUDIENCE.upper()}"', True, False),
    (f'"{AUDIENCE.replace(".", "x")}"', True, False),
    (f'"{AUDIENCE} "', False, False),
    (f'"x {AUDIENCE}"', False, False),
    (f'["{AUDIENCE}", "a b:c"]', False, False),
    (f'["{AUDIENCE}", 7]', False, False),
    (f'["{AUDIENCE}", null]', False, False),
    (f'[["{AUDIENCE}"]]', False, False),
    (f'{{"{AUDIENCE}": true}}', False, False),
    ('"plain"', True, False),
    ('""', True, False),
    ("[]", False, False),
    ('[""]', True, False),
    ("7", False, False),
    ("true", False, False),
]

Row = tuple[str, str, bool]


def rows(audience_is_set: bool) -> list[Row]:
    return [
        *((name, value, is_taken(name, value, taken)) for name in ("exp", "nbf", "iat") for value, taken in TIMES),
        *(("iss", value, taken) for value, taken in NAMES),
        *(("aud", value, where_set if audience_is_set else anywhere) for value, anywhere, where_set in AUDIENCES),
        ("jti", '"7"', True),
        ("jti", "7", False),
        ("email", "7", False),
        ("org_id", '["x"]', False),
        ("sub", "7", False),
        ("sub", '"a b:c"', False),
        ("x", "NaN", False),
        ("x", '"\\ud800"', False),
        ("x", r'{"y": ["\\u0000"]}', True),
    ]


@pytest.fixture(scope="module", params=[None, AUDIENCE], ids=["no audience", "an audience"])
def strict_stack(request: pytest.FixtureRequest, open_stack: OpenStack) -> Iterator[RunningStack]:
    with open_stack(jwt_audience=request.param) as stack:
        yield stack


@pytest.fixture(scope="module")
def organization(strict_stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(strict_stack.database)


def signed(stack: RunningStack, subject: str, name: str, value: str) -> str:
    """A token whose payload is written by hand: Python would not write all of these."""
    claims: dict[str, Any] = {"sub": subject, "role": "member", "exp": int(time.time()) + 21600}
    if stack.audience is not None:
        claims["aud"] = stack.audience
    claims.pop(name, None)
    value = re.sub(r"@([+-]\d+)", lambda offset: str(int(time.time()) + int(offset[1])), value)
    payload = json.dumps(claims)[:-1] + f', "{name}": {value}}}'
    return jwt.PyJWS().encode(payload.encode("utf-8", "surrogatepass"), stack.jwt_secret, algorithm="HS256")


def verdicts(stack: RunningStack, token: str, client: httpx.Client) -> tuple[bool, bool]:
    """Whether the gateway lets it in, and whether PostgREST does."""
    answers = [
        client.get(url, headers={"Authorization": f"Bearer {token}"})
        for url in (f"{stack.gateway_url}/api/v1/cases", f"{stack.postgrest_url}/cases")
    ]
    for answer in answers:
        assert answer.status_code in (200, 401), answer.text
    if answers[0].status_code == 401:
        assert_problem(answers[0], 401, "INVALID_TOKEN")
    return answers[0].status_code == 200, answers[1].status_code == 200


def test_a_role_alone_is_for_no_audience(strict_stack: RunningStack) -> None:
    """Where PostgREST is reached without a token, it writes the claims {"role": "anon"}, which are not checked."""
    with httpx.Client(timeout=30, trust_env=False) as client:
        answers = [
            client.get(
                f"{strict_stack.postgrest_url}/organizations",
                headers={"Authorization": f"Bearer {jwt.encode({'role': role}, strict_stack.jwt_secret)}"},
            )
            for role in ("service", "platform_admin", "member")
        ]
    expected = [401, 401, 401] if strict_stack.audience else [403, 200, 401]
    assert [answer.status_code for answer in answers] == expected


# Read by PostgREST as something; the gateway, the only public way in, is stricter.
PERSON = '"sub": "ann", "role": "member"'
ONLY_THE_GATEWAY = [
    ('"sub": "somebody", "sub": "ann", "role": "member"', "two subjects"),
    ('"sub": "ann", "role": "member", "role": "service"', "two roles"),
    (f'{PERSON}, "x": "\\u0000"', "NUL"),
    (f'{PERSON}, "x": 1e400', "infinite"),
    (f'{PERSON}, "x": {"[" * 3000}{"]" * 3000}', "deep"),
    (f'{PERSON}, "goldleaves_key": "0199f2b4-7c30-7cc0-a51c-6d3bd1c3f0aa"', "only the gateway names an API key"),
]


@pytest.mark.parametrize("claims", [claims for claims, _ in ONLY_THE_GATEWAY], ids=[why for _, why in ONLY_THE_GATEWAY])
def test_the_gateway_refuses_claims_that_could_be_read_in_two_ways(strict_stack: RunningStack, claims: str) -> None:
    aud = f', "aud": "{strict_stack.audience}"' if strict_stack.audience else ""
    payload = f'{{"email": "ann@example.com"{aud}, {claims}}}'
    token = jwt.PyJWS().encode(payload.encode(), strict_stack.jwt_secret, algorithm="HS256")
    answer = httpx.get(
        f"{strict_stack.gateway_url}/api/v1/organizations",
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
    )
    assert_problem(answer, 401, "INVALID_TOKEN")


def test_gateway_and_postgrest_agree_on_every_claim(strict_stack: RunningStack, organization: Organization) -> None:
    subject = organization["member"].subject
    expected = rows(strict_stack.audience is not None)
    with httpx.Client(timeout=30, trust_env=False) as client:
        found = [
            (name, value, *verdicts(strict_stack, signed(strict_stack, subject, name, value), client))
            for name, value, _ in expected
        ]
    assert found == [(name, value, taken, taken) for name, value, taken in expected]
