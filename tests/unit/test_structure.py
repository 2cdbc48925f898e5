"""The rules of the house (ARCHITECTURE.md) that can be read off the code itself."""

import ast
from pathlib import Path

import pytest

from tests.helpers.text import REPOSITORY

ROOMS = {"main", "engine", "model", "sources", "shard_cache", "storage"}
MAY_IMPORT = {
    "main": {"engine"},
    "storage": {"storage"},
    "engine": {"engine", "model", "sources", "storage"},
    "model": {"model"},
    "sources": {"sources", "shard_cache", "storage"},
    "shard_cache": {"shard_cache", "storage"},
}


def files() -> list[Path]:
    return [
        REPOSITORY / "main.py",
        REPOSITORY / "storage.py",
        *(p for room in sorted(ROOMS - {"main", "storage"}) for p in (REPOSITORY / room).rglob("*.py")),
    ]


def imports(tree: ast.AST) -> list[tuple[ast.stmt, str]]:
    """Every import statement with the top-level package it names."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node, "model" if node.level else node.module.split(".")[0]))
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_run_downhill(path: Path):
    room = path.relative_to(REPOSITORY).parts[0].removesuffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node, package in imports(tree):
        assert package not in ROOMS or package in MAY_IMPORT[room], f"{path}:{node.lineno} imports {package}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_own_rooms_are_imported_at_the_top(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    late = [node.lineno for node, package in imports(tree) if package in ROOMS and id(node) not in top]
    assert not late, f"{path} imports its own rooms inside a function at lines {late}"


def test_main_is_short_and_has_no_flags():
    text = (REPOSITORY / "main.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    packages = {package for _, package in imports(ast.parse(text))}
    assert not packages & {"argparse", "click", "typer", "fire", "getopt", "optparse"}


def test_every_module_says_what_it_is_for():
    silent = [path for path in files() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent
