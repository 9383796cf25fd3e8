"""The guides are true: every snippet in them runs against a real stack, and prints what the guide shows."""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.settings import PROJECT
from tests.conftest import MAJOR
from tests.guides.blocks import RUN, Block, anchors, languages, links, matches, read_blocks
from tests.guides.reader import Reader, copy_project, reader_environment
from tests.harness import free_port

GUIDES = (
    "docs/frontend.md",
    "docs/dba.md",
    "docs/adopting.md",
    "docs/events.md",
    "docs/billing.md",
    "docs/operations.md",
    "docs/stripe.md",
    "README.md",  # stops the stack
)
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (PROJECT / "docs").glob("*.md")))
ELSEWHERE = {
    "docs/restore.md",  # by test_restore.py, since it needs two clusters
    "docs/webhooks.md",  # by test_outbound_webhooks.py, since it needs messages
    "docs/performance.md",  # by people, since it takes minutes
}
# Why snippets are not run, and how many of each guide. A snippet that breaks does not get away by being marked.
NOT_RUN = {
    ("README.md", "another test plays it"): 1,
    ("docs/operations.md", "needs Docker"): 1,
    ("docs/operations.md", "needs a Postgres server"): 1,
    ("docs/operations.md", "it takes its minutes"): 1,
}


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    """Somebody with a fresh clone, in which everything is installed, on a machine where our ports are taken."""
    ports = {name: str(free_port()) for name in ("GATEWAY_PORT", "POSTGREST_PORT", "POSTGRES_PORT")}
    named = {"GATEWAY_PORT": 8000, "POSTGREST_PORT": 3000, "POSTGRES_PORT": 54329}
    with tempfile.TemporaryDirectory(prefix="goldleaves-") as path:
        project = Path(path)
        copy_project(project)
        addresses = {f"127.0.0.1:{named[name]}": f"127.0.0.1:{port}" for name, port in ports.items()}
        environment = reader_environment(project, ports)
        made = Reader(project, MAJOR, addresses, dict(environment))
        try:
            yield made
        finally:
            made.finish_guide()
            subprocess.run([project / ".venv/bin/goldleaves", "down"], env=environment, cwd=project, check=True)


def _blocks(guide: str) -> list[Block]:
    return list(read_blocks(PROJECT / guide, guide))


@pytest.mark.parametrize("guide", GUIDES)
def test_what_the_guide_says_happens(guide: str, reader: Reader) -> None:
    run = [block for block in _blocks(guide) if not block.not_run]
    assert run
    before = dict(reader.environment)
    try:
        for block in run:
            reader.follow(block)
    finally:
        reader.finish_guide()
        reader.environment = before


def test_no_snippet_hides() -> None:
    found = Counter((block.guide, block.not_run) for guide in GUIDES for block in _blocks(guide) if block.not_run)
    assert found == NOT_RUN


def test_no_guide_hides() -> None:
    assert {page for page in PAGES if languages(PROJECT / page) & RUN} <= {*GUIDES, *ELSEWHERE}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = PROJECT / page
    for link in links(path):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link}"


def test_output_that_differs_is_seen() -> None:
    assert matches('[{"id": "…", "title": "One"}]', '[{"id":"1","title":"One"}]\n')
    assert not matches('[{"id": "…", "title": "One"}]', '[{"id":"1","title":"Two"}]')
    assert not matches("1", "1\n2")


@pytest.mark.parametrize(
    "text",
    ["```\nls\n```", "```bash\nls\n```", "```sh sometimes\nls\n```", "```output\n1\n```", "```sh until\nls\n```"],
)
def test_a_block_that_nobody_would_run_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text(text)
    with pytest.raises(ValueError, match=r"guide\.md:1"):
        list(read_blocks(tmp_path / "guide.md", "guide.md"))
