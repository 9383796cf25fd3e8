"""A proof as one page that stands alone, to print or to attach to an audit."""

from __future__ import annotations

import getpass
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template

from api.policies.matrix.cells import Context
from api.policies.matrix.grid import CONTEXTS, LEGEND, Grid, Mark
from api.policies.matrix.proof import Proof


def page(proof: Proof) -> str:
    """Everything that comes from the database is escaped."""
    grid = Grid(proof)
    template = Template(files("api.policies.matrix").joinpath("page.html").read_text(encoding="utf-8"))
    idle = ", ".join(actor.name for actor in grid.idle_actors())
    return template.substitute(
        title=escape(f"Who may do what in {proof.server.database}"),
        verdict="As declared" if proof.holds else "Not as declared",
        verdict_class="allowed" if proof.holds else "refused",
        summary=escape(grid.summary()),
        facts=_facts(proof),
        findings=_findings(grid),
        legend="".join(_row(sign, meaning) for sign, meaning in LEGEND),
        overview=_overview(grid),
        idle=escape(f"Nothing anywhere, as declared: {idle}") if idle else "",
        details="".join(_detail(grid, table) for table in proof.tables),
    )


def _facts(proof: Proof) -> str:
    server = proof.server
    released = "nothing" if server.release is None else f"{server.release}, at {server.released_at}"
    facts = {
        "Made at": proof.made_at.strftime("%Y-%m-%d %H:%M:%S UTC"),
        "By": f"{getpass.getuser()}, connected as {server.connected_as}",
        "Database": f"{server.database} at {server.host}",
        "Server": f"PostgreSQL {server.version}",
        "Last release": released,
        "Fingerprint": server.fingerprint or "none",
        "Git revision": server.git_revision or "none",
        "Headers": "as released" if proof.files_are_released else "not those that were released last",
    }
    return "".join(_row(name, value) for name, value in facts.items())


def _findings(grid: Grid) -> str:
    differences = [str(finding) for finding in grid.differences()]
    parts = {"What differs": differences, "What could not be proved": grid.unproved(), "To know": grid.notes()}
    return "".join(
        f"<h2>{title}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
        for title, lines in parts.items()
        if lines
    )


def _overview(grid: Grid) -> str:
    actors = grid.busy_actors()
    rows = (
        _marks_row(grid.name(table), (grid.marks(table, actor.name) for actor in actors)) for table in grid.proof.tables
    )
    return _table("overview", [actor.name for actor in actors], rows)


def _detail(grid: Grid, table: str) -> str:
    rows = (
        _marks_row(actor.name, (grid.marks(table, actor.name, [context]) for context in Context), note=actor.kind.value)
        for actor in grid.proof.actors
    )
    others = grid.proof.alike.get(table)
    alike = f"<p>Alike: {escape(', '.join(others))}</p>" if others else ""
    return f"<section><h3>{escape(table)}</h3>{alike}{_table('detail', [*CONTEXTS.values()], rows)}</section>"


def _table(name: str, headers: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{escape(header).replace('_', '_<wbr>').replace(':', ':<wbr>')}</th>" for header in headers)
    return f'<table class="{name}"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _marks_row(name: str, columns: Iterable[Iterable[Mark]], note: str = "") -> str:
    cells = "".join(f'<td class="marks">{"".join(map(_mark, marks))}</td>' for marks in columns)
    kind = f' <span class="kind">{escape(note)}</span>' if note else ""
    return f"<tr><th>{escape(name)}{kind}</th>{cells}</tr>"


def _mark(mark: Mark) -> str:
    classes = ("allowed" if mark.is_allowed else "refused") + (" differs" if mark.differs else "")
    return f'<span class="{classes}">{escape(mark.text)}</span>'


def _row(name: str, value: str) -> str:
    return f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
