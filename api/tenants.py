"""Which organization a request is metered for. Postgres answers; the answer is kept for a moment.

The cache decides nothing: PostgREST looks the membership up in each transaction anyhow. It only saves asking twice.
"""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic
from typing import Final

from api.auth import ApiKey, Principal
from api.context import Resolution, Tenant
from api.database import Database

TTL_SECONDS: Final = 30.0
MAX_SUBJECTS: Final = 10_000
MAX_ORGANIZATIONS: Final = 32  # remembered of one subject

_OF_KEYS: Final = "api key"  # where people have their role; next to it, the organization of the key

_Who = tuple[str, str | None]
_Known = dict[str | None, tuple[Tenant, float]]


class Tenants:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: OrderedDict[_Who, _Known] = OrderedDict()

    async def resolve(self, principal: Principal, organization: str | None) -> Resolution:
        """The user and organization, `organization` as the client wrote it. No tenant when Postgres knows no such pair.

        Raises DatabaseError when it has to ask and cannot.
        """
        if principal.key is not None and not principal.key.is_providers:
            return await self._of_key(principal.key, organization)
        return await self._ask(principal.role, principal.subject, principal.email, organization)

    async def _of_key(self, key: ApiKey, organization: str | None) -> Resolution:
        """A key is for one organization, which may be named all the same. Nothing is remembered of others: a quick
        answer would tell that they are there.
        """
        assert key.organization_id is not None  # noqa: S101 - that of an organization is
        tenant = Tenant(None, key.organization_id)
        if organization is None or organization.lower() == str(key.organization_id):
            return Resolution(tenant, organization)
        who = (_OF_KEYS, str(key.organization_id))
        if self._remembered(who, organization) is not None:
            return Resolution(tenant, organization)
        if (await self._database.identify(None, None, "service", organization)).tenant != tenant:
            return Resolution(None, organization)
        self._remember(who, organization, tenant)
        return Resolution(tenant, organization)

    async def _ask(self, role: str, subject: str | None, email: str | None, organization: str | None) -> Resolution:
        who = (role, subject)
        if (tenant := self._remembered(who, organization)) is not None:
            return Resolution(tenant, organization)
        found = await self._database.identify(subject, email, role, organization)
        if found.tenant is not None:
            self._remember(who, organization, found.tenant)
        return found

    def forget(self, principal: Principal) -> None:
        """Drop what is known of a subject, because they may just have changed it."""
        self._known.pop((principal.role, principal.subject), None)

    def _remembered(self, who: _Who, organization: str | None) -> Tenant | None:
        known = self._known.get(who)
        if known is None or organization not in known:
            return None
        tenant, expires = known[organization]
        return tenant if monotonic() < expires else None

    def _remember(self, who: _Who, organization: str | None, tenant: Tenant) -> None:
        known = self._known.setdefault(who, {})
        self._known.move_to_end(who)
        known.pop(organization, None)
        known[organization] = tenant, monotonic() + TTL_SECONDS
        if len(known) > MAX_ORGANIZATIONS:
            del known[next(iter(known))]
        if len(self._known) > MAX_SUBJECTS:
            self._known.popitem(last=False)
