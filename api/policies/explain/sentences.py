"""Who may do what, in sentences: rights and policies of a table put together as Postgres puts them together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from api.policies.explain.catalog import PUBLIC, VERBS, Policy, Right, Role, Table
from api.policies.explain.predicates import EVERYTHING, Clause, both, clauses, listed

_FIRST = (PUBLIC, "anon", "member", "service", "platform_admin")
_TENANTS = {PUBLIC, "anon", "member"}
_PAST_ROWS = {
    "truncate": "May truncate it: all rows of everybody, past row security.",
    "references": "May make foreign keys to it, which tell whether a key exists, past row security.",
    "trigger": "May put triggers on it, which run with the rights of whoever writes.",
    "maintain": "May vacuum, analyze, cluster, reindex and lock it.",
}


@dataclass(frozen=True)
class Sentence:
    """`policies` are those that it follows from. `alarming`: worth a second look."""

    text: str
    verbs: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    alarming: bool = False


@dataclass(frozen=True)
class Said:
    """What is said of roles that are in the same position."""

    roles: tuple[str, ...]
    sentences: tuple[Sentence, ...]


def describe(table: Table) -> tuple[Sentence, ...]:
    """The table by itself."""
    what = "a partitioned table" if table.partitioned else "a table"
    if not table.row_security:
        state = Sentence("Row security is OFF: whoever has a right has it on every row.", alarming=table.has_tenants)
    elif not table.forced:
        state = Sentence("Row security is on, but NOT FORCED: it does not hold for the owner.", alarming=True)
    else:
        state = Sentence("Row security is on, and forced: it holds for the owner too.")
    found = [Sentence(f"{table.name} is {what} of {table.owner}."), state]
    if table.policies and not table.row_security:
        found.append(Sentence(f"Its policies do not count: {_names(table.policies)}.", alarming=True))
    if table.partition_of:
        found.append(
            Sentence(f"A partition: who reads it through {table.partition_of} meets the policies of that one.")
        )
    if table.partitions:
        found.append(Sentence(f"It has {table.partitions} partitions. They have switches and rights of their own."))
    found += [Sentence(f"Partition {amiss}.", alarming=True) for amiss in table.partitions_amiss]
    return tuple(found)


def say_who_may(table: Table) -> list[Said]:
    """A paragraph for each role that has to do with the table; roles that are in the same position share one."""
    roles = [*table.roles]
    if _names_public(table):
        roles.append(Role(PUBLIC))
    paragraphs: dict[tuple[Sentence, ...], list[str]] = {}
    for role in sorted(roles, key=_order):
        if sentences := tuple(say_of(table, role)):
            paragraphs.setdefault(sentences, []).append(role.name)
    return [Said(tuple(names), sentences) for sentences, names in paragraphs.items()]


def say_of(table: Table, role: Role) -> Iterator[Sentence]:
    """Everything about one role."""
    if role.superuser:
        yield Sentence("Superuser: sees and changes every row, past all policies and rights.")
        return
    if role.inherits:
        yield Sentence(f"Has the rights of {listed(list(role.inherits))}, by membership.")
    if role.becomes:
        yield Sentence(f"Can become {listed(list(role.becomes))} (set role).")
    if role.name == table.owner:
        yield Sentence("Owns it: may alter and drop it, truncate it, and give rights on it.")
    if role.bypassrls:
        yield Sentence("BYPASSRLS: what it has a right to, it has on every row.", alarming=True)
    rights = _rights(table, role)
    policies = _policies(table, role) if table.row_security else []
    if not rights and not policies:
        if role.named:
            yield Sentence("Nothing.")
        return
    if rights and not role.enters_schema and role.name != PUBLIC:
        yield Sentence(f"May not enter schema {table.schema}: reaches the table through views and functions only.")
    yield from _told(_verbs(table, role, rights, policies))
    if closed := [verb for verb in VERBS if _is_closed(table, role, verb, rights, policies)]:
        yield Sentence(f"May {listed(closed)} by right, but no policy lets it: no row is there for it.")
    blind = [verb for verb in ("update", "delete") if any(right.privilege == verb for right in rights)]
    if blind and not any(right.privilege == "select" for right in rights):
        yield Sentence(f"Without a right to select, it cannot say which rows to {listed(blind, 'or')}.")
    if missing := [verb for verb in VERBS if not any(right.privilege == verb for right in rights)]:
        yield Sentence(f"No right to {listed(missing, 'or')}.")
    yield from _rights_past_rows(table, role, rights)
    yield from _policies_without_rights(table, role, rights)


def _policies_without_rights(table: Table, role: Role, rights: list[Right]) -> Iterator[Sentence]:
    """Policies that name the role, for what it may not do. Who inherits from it may have the right from elsewhere."""
    for policy in table.policies:
        verbs = VERBS if policy.verb == "all" else (policy.verb,)
        if role.name not in policy.roles or any(right.privilege in verbs for right in rights):
            continue
        heirs = [
            heir.name
            for heir in table.roles
            if role.name in heir.inherits and any(right.privilege in verbs for right in _rights(table, heir))
        ]
        counts = f"counts for {listed(heirs)} alone, by membership" if heirs else "never counts"
        yield Sentence(
            f"A policy that {counts}: no right to {listed(list(verbs), 'or')}.",
            policies=(policy.name,),
            alarming=not heirs,
        )


@dataclass(frozen=True)
class _Way:
    """One way to use a right. Verbs that differ in nothing of this are told in one sentence."""

    start: str
    end: str
    alarming: bool = False


def _told(ways: Iterator[tuple[str, _Way, tuple[str, ...]]]) -> Iterator[Sentence]:
    verbs: dict[_Way, list[str]] = {}
    policies: dict[_Way, list[str]] = {}
    for verb, way, names in ways:
        if verb not in verbs.setdefault(way, []):
            verbs[way].append(verb)
        policies[way] = list(dict.fromkeys([*policies.get(way, []), *names]))
    for way, same in verbs.items():
        yield Sentence(f"{way.start} {listed(same)} {way.end}.", tuple(same), tuple(policies[way]), way.alarming)


def _verbs(
    table: Table, role: Role, rights: list[Right], policies: list[Policy]
) -> Iterator[tuple[str, _Way, tuple[str, ...]]]:
    for verb in VERBS:
        granted = [right for right in rights if right.privilege == verb]
        if not granted:
            continue
        tail = _columns(table, granted) + _grant_option(granted)
        applying = [policy for policy in policies if policy.verb in (verb, "all")]
        if not table.row_security:
            yield verb, _Way("May", f"every row{tail}: row security is off", table.has_tenants), ()
        elif not is_held_back(table, role):
            why = "BYPASSRLS" if role.bypassrls else "row security is not forced"
            yield verb, _Way("May", f"every row{tail}: {why}", alarming=True), ()
        elif fails := sorted({name for policy in applying for name in policy.functions} & set(role.not_executable)):
            yield verb, _Way("Fails to", f"anything: no right to execute {listed(fails)}", alarming=True), ()
        else:
            yield from _ways_in(table, role, verb, tail, applying)


def is_held_back(table: Table, role: Role) -> bool:
    """Whether row security holds for the role."""
    above = role.superuser or role.bypassrls or (role.owns and not table.forced)
    return table.row_security and not above


def reading_policies(table: Table, role: Role) -> list[Policy]:
    """The permissive policies of a select."""
    return [policy for policy in _policies(table, role) if policy.permissive and policy.verb in ("select", "all")]


def _is_closed(table: Table, role: Role, verb: str, rights: list[Right], policies: list[Policy]) -> bool:
    """There is a right, and row security hides every row."""
    return (
        is_held_back(table, role)
        and any(right.privilege == verb for right in rights)
        and not any(policy.permissive and policy.verb in (verb, "all") for policy in policies)
    )


def _ways_in(
    table: Table, role: Role, verb: str, tail: str, applying: list[Policy]
) -> Iterator[tuple[str, _Way, tuple[str, ...]]]:
    """What the policies of a verb let through: any of the permissive ones, and all of the restrictive ones."""
    permissive = [policy for policy in applying if policy.permissive]
    restrictive = [policy for policy in applying if not policy.permissive]
    limits: tuple[Clause, ...] = (EVERYTHING,)
    for policy in restrictive:
        limits = both(limits, clauses(policy.condition(verb), table.tenant_column))
    everything = "rows of all organizations" if table.has_tenants else "every row"
    found = False
    for policy in permissive:
        for clause in both(clauses(policy.condition(verb), table.tenant_column), limits):
            found = True
            people = clause.people()
            way = _Way(
                f"{people[0].upper()}{people[1:]} may" if people else "May",
                f"{clause.rows(everything)}{tail}{_afterwards(table, policy, clause) if verb == 'update' else ''}",
                table.has_tenants and _is_tenants(role) and clause.is_unbound,
            )
            yield verb, way, (policy.name, *(each.name for each in restrictive))
    if permissive and not found:
        yield verb, _Way("May", f"nothing{tail}: no row meets the policies"), tuple(each.name for each in applying)


def _afterwards(table: Table, policy: Policy, before: Clause) -> str:
    """What an updated row has to be, where that is more or less than what it was."""
    if policy.check is None or policy.check == policy.using:
        return ""
    ways = both(clauses(policy.check, table.tenant_column), (Clause(before.who),))
    if any(way.is_everything or way == Clause(before.who) for way in ways):
        return "" if not before.tenant_column and not before.conditions else "; what they become is not checked"
    if any(way.tenant_column == before.tenant_column and set(way.conditions) <= set(before.conditions) for way in ways):
        return ""
    if not ways:
        return "; but nothing that they may become"
    return f"; they have to become {' or '.join(dict.fromkeys(way.rows('any row') for way in ways))}"


def _is_tenants(role: Role) -> bool:
    return bool({role.name, *role.inherits} & _TENANTS)


def _columns(table: Table, granted: list[Right]) -> str:
    if any(right.column is None for right in granted):
        return ""
    columns = {right.column for right in granted}
    missing = [column for column in table.columns if column not in columns]
    if not missing:
        return ", in every column there is now"
    if len(missing) < len(columns):
        return f", in every column but {listed(missing, 'and')}"
    return f", in column{'s' if len(columns) > 1 else ''} {listed([c for c in table.columns if c in columns])}"


def _grant_option(granted: list[Right]) -> str:
    return ", and give that right to others" if any(right.grantable for right in granted) else ""


def _rights_past_rows(table: Table, role: Role, rights: list[Right]) -> Iterator[Sentence]:
    """What row security has no say in."""
    if role.owns:
        return  # said of the owner as a whole
    for privilege, text in _PAST_ROWS.items():
        if any(right.privilege == privilege for right in rights):
            yield Sentence(text, (privilege,), alarming=privilege == "truncate")


def _rights(table: Table, role: Role) -> list[Right]:
    whose = {role.name, PUBLIC, *role.inherits}
    found = [right for right in table.rights if right.grantee in whose]
    if role.reads_all:
        found.append(Right(role.name, "select"))
    if role.writes_all:
        found += [Right(role.name, verb) for verb in VERBS if verb != "select"]
    # An owner can give to others whatever it has: that is said in one sentence.
    return [Right(r.grantee, r.privilege, r.column, r.grantable and r.grantee != table.owner) for r in found]


def _policies(table: Table, role: Role) -> list[Policy]:
    whose = {role.name, PUBLIC, *role.inherits}
    return [policy for policy in table.policies if whose & set(policy.roles)]


def _names_public(table: Table) -> bool:
    return any(right.grantee == PUBLIC for right in table.rights) or any(PUBLIC in p.roles for p in table.policies)


def _names(policies: tuple[Policy, ...]) -> str:
    return ", ".join(policy.name for policy in policies)


def _order(role: Role) -> tuple[int, bool, bool, str]:
    """Tokens' roles first, then others that are named, those that inherit, and superusers last."""
    place = _FIRST.index(role.name) if role.name in _FIRST else len(_FIRST)
    return place, role.superuser, not role.named, role.name
