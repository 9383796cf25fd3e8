"""What functions, views, triggers, schemas and tables without a policy file looked like when they were last released.

Kept in `ops.released_objects`, one row each, from migration 0008 on. Before it nothing is known and nothing compared.
"""

from __future__ import annotations

from collections.abc import Collection

from psycopg.types.json import Jsonb

from api.release import states
from api.release.catalog import Connection
from api.release.states import Live


def is_kept(conn: Connection) -> bool:
    row = conn.execute("select to_regclass('ops.released_objects') is not null").fetchone()
    return bool(row and row[0])


def recorded(conn: Connection) -> dict[str, Live]:
    """As the last release left them. Empty where none has written them down yet."""
    return dict(conn.execute("select name, live from ops.released_objects").fetchall()) if is_kept(conn) else {}


def live(conn: Connection, known: Collection[str], filed: Collection[str]) -> dict[str, Live]:
    """As they are now. `filed` are the tables with a policy file, which `api.release.policies` looks after."""
    schemas = [name.removeprefix("schema ") for name in known if name.startswith("schema ")]
    return states.everything_else(conn, schemas, filed)


def record(conn: Connection, filed: Collection[str], keep: Collection[str] = ()) -> None:
    """Write down how they look now, but for those in `keep`, whose last released state stays what it was."""
    if not is_kept(conn):
        return
    known = recorded(conn)
    now = live(conn, known, filed)
    gone = [name for name in known if name not in now and name not in keep]
    changed = {name: state for name, state in now.items() if name not in keep and known.get(name) != state}
    if gone:
        conn.execute("delete from ops.released_objects where name = any(%s)", [gone])
    if changed:
        conn.cursor().executemany(
            "insert into ops.released_objects (name, live) values (%s, %s) "
            "on conflict (name) do update set live = excluded.live",
            [(name, Jsonb(state)) for name, state in sorted(changed.items())],
        )
