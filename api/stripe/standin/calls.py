"""From a request to an answer, as all of Stripe's calls do it: key, idempotency, parameters, errors, a log."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.stripe.standin.account import Account
from api.stripe.standin.expansion import expanded
from api.stripe.standin.faults import Fault
from api.stripe.standin.forms import parse
from api.stripe.standin.handing_on import Localstripe
from api.stripe.standin.parameters import Members, checked
from api.stripe.standin.refusals import Refusal
from api.stripe.standin.store import Json

HANG_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Call:
    """`params` are checked. `slow`: how long the work takes."""

    account: Account
    params: Json
    path: Mapping[str, str]
    slow: float = 0.0
    is_duplicate: bool = False


Work = Callable[[Call], Awaitable[Json]]
Endpoint = Callable[[Request], Awaitable[Response]]


class HungUp(Exception):
    """Whoever asked gets no answer."""


def endpoint(account: Account, work: Work, takes: Members, localstripe: Localstripe | None) -> Endpoint:
    """`localstripe` gets what `work` knows nothing of (404)."""

    async def answer(request: Request) -> Response:
        body = (await request.body()).decode("utf-8", "replace")
        met = account.faults.take(request.method, request.url.path)
        fault = next((fault for fault in met if fault.kind != "slow"), None)
        slow = sum(fault.milliseconds for fault in met if fault.kind == "slow") / 1000
        id = account.new_id("req")
        try:
            if fault is not None and fault.kind != "duplicate" and fault.when == "before":
                response = await _failed(request, fault)
            else:
                response = await _worked(request, body, slow, fault is not None and fault.kind == "duplicate")
                if fault is not None and fault.kind != "duplicate":
                    response = await _failed(request, fault)
        except HungUp:
            _log(account, id, request, body, 0)
            _hang_up(request)
            return Response(status_code=HTTPStatus.INTERNAL_SERVER_ERROR)
        _log(account, id, request, body, response.status_code)
        response.headers["Request-Id"] = id
        return response

    async def _worked(request: Request, body: str, slow: float, is_duplicate: bool) -> Response:
        try:
            _require_key(request)
            params = parse(body if request.method == "POST" else request.url.query)
            key = request.headers.get("idempotency-key") if request.method == "POST" else None
            if key is None:
                return await _done(request, params, slow, is_duplicate)
            return await _once(request, key, body, lambda: _done(request, params, slow, is_duplicate))
        except Refusal as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND and localstripe is not None:
                return await localstripe.answer(request)
            return _refused(refusal)

    async def _done(request: Request, params: Json, slow: float, is_duplicate: bool) -> Response:
        wanted = checked(params, takes)
        expand = wanted.pop("expand", [])
        call = Call(account, wanted, request.path_params, slow, is_duplicate)
        return JSONResponse(expanded(account.store, await work(call), expand))

    async def _once(request: Request, key: str, body: str, do: Callable[[], Awaitable[Response]]) -> Response:
        """The answer that this key has, or the work. Refusals of work that was not begun are not kept under the key."""
        asked = f"{request.method} {request.url.path} {body}"
        known = account.store.get("idempotency", key)
        if known is not None:
            if known["asked"] != asked:
                raise Refusal(
                    "Keys for idempotent requests can only be used with the same parameters they were first used with. "
                    f"Try using a key other than '{key}' if you meant to execute a different request.",
                    type="idempotency_error",
                )
            return JSONResponse(
                known["answer"], known["status"], {"Idempotent-Replayed": "true", "Idempotency-Key": key}
            )
        if key in account.idempotency_keys:
            raise Refusal(
                f"There is currently another in-progress request using this Idempotent Key: {key}.",
                HTTPStatus.CONFLICT,
                "idempotency_key_in_use",
                type="idempotency_error",
            )
        account.idempotency_keys.add(key)
        try:
            response = await do()
        finally:
            account.idempotency_keys.discard(key)
        answer = json.loads(bytes(response.body))
        account.store.put("idempotency", key, {"asked": asked, "status": response.status_code, "answer": answer})
        response.headers["Idempotency-Key"] = key
        return response

    return answer


def _require_key(request: Request) -> None:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            value = b64decode(value).decode().partition(":")[0]
        except ValueError:
            value = ""
    elif scheme.lower() != "bearer":
        value = ""
    if not value:
        raise Refusal(
            "You did not provide an API key. You need to provide your API key in the Authorization header, using "
            "Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
            HTTPStatus.UNAUTHORIZED,
        )
    if not value.startswith(("sk_", "rk_")):
        raise Refusal(f"Invalid API Key provided: {value[:3]}***", HTTPStatus.UNAUTHORIZED)


def _refused(refusal: Refusal) -> Response:
    headers = {"Stripe-Should-Retry": "false"} if refusal.status < HTTPStatus.CONFLICT else {}
    return JSONResponse(refusal.body(), refusal.status, {**headers, **refusal.headers})


async def _failed(request: Request, fault: Fault) -> Response:
    if fault.kind == "hang":
        await asyncio.wait_for(_gone(request), HANG_SECONDS)
        raise HungUp
    if fault.kind == "close":
        raise HungUp
    headers = {"Retry-After": str(fault.retry_after)} if fault.retry_after is not None else {}
    if fault.status == HTTPStatus.TOO_MANY_REQUESTS:
        return _refused(
            Refusal("Request rate limit exceeded.", fault.status, fault.code or "rate_limit", headers=headers)
        )
    type = "api_error" if fault.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return _refused(Refusal("It was told to fail.", fault.status, fault.code, type=type, headers=headers))


async def _gone(request: Request) -> None:
    """Until whoever asked has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _hang_up(request: Request) -> None:
    """Without a byte, which ASGI has no word for: uvicorn's own connection behind `receive`."""
    transport = getattr(getattr(request.receive, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()


def _log(account: Account, id: str, request: Request, body: str, status: int) -> None:
    try:
        params: Any = parse(body if request.method == "POST" else request.url.query)
    except Refusal:
        params = {}
    account.requests.append(
        {
            "id": id,
            "method": request.method,
            "path": request.url.path,
            "params": params,
            "idempotency_key": request.headers.get("idempotency-key"),
            "api_version": request.headers.get("stripe-version"),
            "status": status,
            "at": account.now(),
        }
    )
