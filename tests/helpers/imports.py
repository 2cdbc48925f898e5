"""Which modules the modules of this project import, read off their sources."""

import ast
import sys
from dataclasses import dataclass
from pathlib import PurePosixPath

from benchmarks.house import product_files
from tests.helpers.text import REPOSITORY


@dataclass(frozen=True)
class Import:
    """One module that is imported, by its absolute name: a module of this project or the name in the statement."""

    module: str
    names: tuple[str, ...]  # what is taken from it
    relative: bool
    top: bool  # at the top of a file, also for types alone, not within a function

    @property
    def package(self) -> str:
        return self.module.split(".")[0]


def module_name(path: str) -> str:
    """ "engine/run/__init__.py" -> "engine.run"."""
    return ".".join(PurePosixPath(path).with_suffix("").parts).removesuffix(".__init__")


SOURCES = product_files(REPOSITORY)
TREES = {path: ast.parse(source) for path, source in SOURCES.items()}
PATHS = {module_name(path): path for path in SOURCES}


def imports_of(path: str) -> list[Import]:
    """The imports of a product file; `from package import module` is an import of that module."""
    folder = list(PurePosixPath(path).parent.parts)
    body = TREES[path].body
    nested = [node for node in body if is_type_checking(node) or isinstance(node, ast.Try)]
    body = body + [inner for node in nested for inner in node.body]
    top = set(map(id, body))
    found = []
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, (), False, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [alias.name for alias in node.names]
            modules = [name for name in names if f"{module}.{name}" in PATHS]
            rest = tuple(name for name in names if name not in modules)
            found += [Import(f"{module}.{name}", (), node.level > 0, id(node) in top) for name in modules]
            if rest:
                found.append(Import(module, rest, node.level > 0, id(node) in top))
    return found


def is_type_checking(node: ast.stmt) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


IMPORTS = {path: imports_of(path) for path in SOURCES}


def reachable(path: str) -> dict[str, str]:
    """Every module that a file imports, also by way of this project's modules, with the path of the file that does."""
    found: dict[str, str] = {}
    waiting, seen = [path], {path}
    while waiting:
        current = waiting.pop()
        for one in IMPORTS[current]:
            found.setdefault(one.module, current)
            target = PATHS.get(one.module)
            if target is not None and target not in seen:
                seen.add(target)
                waiting.append(target)
    return found


def third_party(path: str) -> set[str]:
    """The packages a product file imports that belong neither to Python nor to this project."""
    ours = {module.split(".")[0] for module in PATHS}
    return {one.package for one in IMPORTS[path]} - ours - sys.stdlib_module_names
