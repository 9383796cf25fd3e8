"""The releases of policies: which there were, and to which of them a rollback goes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from api.release import loader, objects
from api.release.catalog import Connection
from api.release.errors import MigrationError
from api.release.files import POLICIES, Tree

# A release of sql/ alone is none of policies. Going back to one makes a release too, which says which one it restores.
_RELEASES = """
with release as (
  select r.id, r.released_at, r.operator, r.git_revision, r.restores, r.fingerprint,
    (
      select jsonb_object_agg(f.key, f.value ->> 'sha256') from jsonb_each(r.files) as f where f.key like 'policies/%'
    ) as policies
  from ops.releases r
),
compared as (
  select *, lag(policies) over (order by id) as before from release where fingerprint <> ''
)
select id, released_at, operator, git_revision, restores, policies,
  array(
    select coalesce(now.key, was.key)
    from jsonb_each(policies) as now
    full join jsonb_each(coalesce(before, '{}')) as was using (key)
    where now.value is distinct from was.value
    order by 1
  ) as changed
from compared
where policies is distinct from before
order by id
"""


@dataclass(frozen=True)
class PolicyRelease:
    """A release in which policies changed: which files, who ran it, from which commit, and whether it went back."""

    id: int
    released_at: datetime
    operator: str | None
    git_revision: str | None
    restores: int | None
    policies: dict[str, str]
    changed: list[str]


def releases(conn: Connection) -> list[PolicyRelease]:
    """Oldest first. Raises MigrationError where the migration is missing that tells them apart."""
    if not objects.is_kept(conn):
        raise MigrationError("Releases of policies are known from migration 0008 on. Run `goldleaves migrate` first.")
    with conn.cursor(row_factory=class_row(PolicyRelease)) as cursor:
        return cursor.execute(_RELEASES).fetchall()


def release_before(known: list[PolicyRelease]) -> PolicyRelease:
    """The one to go back to: before the last one, or before the one that the last one went back to.

    Raises MigrationError when there is none.
    """
    last = known[-1]
    position = last.restores or last.id
    older = [each for each in known if each.id < position and each.policies != last.policies]
    if not older:
        raise MigrationError(f"release {last.id} is the first one of these policies: there is none before it")
    return older[-1]


def release_named(known: list[PolicyRelease], number: int) -> PolicyRelease:
    """Raises MigrationError when there is no such release of policies."""
    for each in known:
        if each.id == number:
            return each
    listed = ", ".join(str(each.id) for each in known[-10:])
    raise MigrationError(f"there is no release {number} of policies. The latest: {listed}")


def files_of(conn: Connection, release: PolicyRelease) -> Tree:
    """Its policy files as they were, with the sql/ that is loaded now."""
    row = conn.execute("select files from ops.releases where id = %s", [release.id]).fetchone()
    texts = {path: file["content"] for path, file in row[0].items()} if row else {}
    now = loader.released_tree(conn)
    kept = {path: text for path, text in now.files.items() if not path.startswith(POLICIES)}
    return Tree(kept | {path: text for path, text in texts.items() if path.startswith(POLICIES)})
