"""A release says which commit its files are from, and whether they are all of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from api.release.provenance import git_revision


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a file in each folder that is released, all committed."""
    for name in ("migrations/0001_a.sql", "sql/app/a.sql", "policies/app.a.sql", "README.md"):
        write(tmp_path, name)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=ada", "-c", "user.email=ada@example.com", "commit", "--quiet", "-m", "First")
    return tmp_path


def write(root: Path, name: str, text: str = "select 1;\n") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def git(root: Path, *arguments: str) -> str:
    program = shutil.which("git")
    assert program is not None
    return subprocess.run([program, *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def test_what_is_committed_is_named_by_its_commit(checkout: Path) -> None:
    assert git_revision(checkout) == git(checkout, "rev-parse", "HEAD")


@pytest.mark.parametrize("name", ["migrations/0002_b.sql", "sql/app/b.sql", "policies/app.b.sql", "sql/new/deep/b.sql"])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_released_file_that_no_commit_knows_is_told(checkout: Path, name: str, ignored: bool) -> None:
    if ignored:
        write(checkout, ".git/info/exclude", "*b.sql\n")
    write(checkout, name)
    assert git_revision(checkout) == git(checkout, "rev-parse", "HEAD") + "-dirty"


@pytest.mark.parametrize("name", ["sql/app/a.sql", "README.md"])
def test_a_file_that_differs_from_its_commit_is_told(checkout: Path, name: str) -> None:
    write(checkout, name, "select 2;\n")
    write(checkout, "sql/app/b.sql")
    assert git_revision(checkout) == git(checkout, "rev-parse", "HEAD") + "-dirty"


@pytest.mark.parametrize(
    "name", ["notes.sql", "sql/app/.b.sql", "policies/app.a.sql.new", "migrations/__pycache__/x.pyc"]
)
def test_what_is_not_released_does_not_matter(checkout: Path, name: str) -> None:
    write(checkout, name)
    assert git_revision(checkout) == git(checkout, "rev-parse", "HEAD")


def test_a_project_in_a_folder_of_a_repository(checkout: Path) -> None:
    write(checkout, "billing/sql/app/b.sql")
    assert git_revision(checkout) == git(checkout, "rev-parse", "HEAD")
    assert git_revision(checkout / "billing") == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_without_a_repository_there_is_none(tmp_path: Path) -> None:
    assert git_revision(tmp_path) is None
