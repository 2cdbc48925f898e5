"""The shape of the code: lines, files in a folder, signatures, constructors, classes, read off the sources themselves.

    python -m benchmarks.house [--root CHECKOUT] [--list]

Code lines are physical lines that hold code: no blank lines, comments or docstrings. --root measures another checkout,
an older one for example; --list names the longest of each row. tests/unit/test_structure.py sets limits to the same
figures.
"""

import argparse
import ast
import io
import tokenize
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOMS = ("engine", "sources", "model", "shard_cache")
MODULES = ("main.py", "storage.py")  # beside the rooms
# Where a whole preset may be handed on: it is parsed, shown, or taken apart into sections there.
PRESET_ROOMS = ("engine/config/", "engine/run/setup.py", "engine/training.py", "engine/train.py")
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Shape:
    """Sizes by place: a file's path below the root, "PATH:CLASS" or "PATH:FUNCTION"."""

    code: Counter[str] = field(default_factory=Counter)  # code lines of a file
    lines: Counter[str] = field(default_factory=Counter)  # all lines of a file
    folders: Counter[str] = field(default_factory=Counter)  # Python files of a folder
    constructors: Counter[str] = field(default_factory=Counter)  # arguments of a class's __init__
    methods: Counter[str] = field(default_factory=Counter)  # of a class
    whole_presets: list[str] = field(default_factory=list)  # functions outside PRESET_ROOMS that take one


def product_files(root: Path) -> dict[str, str]:
    """The text of every Python file of the product, by its path below the root."""
    paths = [root / name for name in MODULES]
    paths += [path for room in ROOMS for path in sorted((root / room).rglob("*.py"))]
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths if path.exists()}


def code_lines(source: str) -> int:
    """Physical lines of `source` that hold code."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, *DEFINITIONS)) and ast.get_docstring(node, clean=False):
            documented.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - documented)


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """The arguments of a function, without self and cls."""
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [argument for argument in named if argument.arg not in ("self", "cls")]


def is_whole_preset(argument: ast.arg) -> bool:
    """Whether an argument is annotated as a Preset, also as one that may be missing."""
    return argument.annotation is not None and "Preset" in ast.unparse(argument.annotation).split(" | ")


def measure(root: Path) -> Shape:
    """The shape of the checkout at `root`."""
    shape = Shape()
    for name, source in product_files(root).items():
        shape.code[name] = code_lines(source)
        shape.lines[name] = len(source.splitlines())
        if name not in MODULES:
            shape.folders[name.rpartition("/")[0]] += 1
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                methods = [part for part in node.body if isinstance(part, DEFINITIONS)]
                shape.methods[f"{name}:{node.name}"] = len({method.name for method in methods})  # overloads are one
                for method in methods:
                    if method.name == "__init__":
                        shape.constructors[f"{name}:{node.name}"] = len(arguments(method))
            elif isinstance(node, DEFINITIONS) and not name.startswith(PRESET_ROOMS):
                shape.whole_presets += [f"{name}:{node.name}"] * any(map(is_whole_preset, arguments(node)))
    return shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--list", action="store_true")
    chosen = parser.parse_args()
    shape = measure(chosen.root)
    rooms: Counter[str] = Counter()
    for name, count in shape.code.items():
        rooms[name.split("/")[0]] += count

    def row(label: str, figure: int, places: list[str]) -> None:
        print(f"{label:55}{figure:>8,}")
        for place in places if chosen.list else ():
            print(f"    {place}")

    row("code lines of engine + sources", rooms["engine"] + rooms["sources"], [f"{n} {r}" for r, n in rooms.items()])
    row("code lines of storage.py", rooms["storage.py"], [])
    for label, sizes in (
        ("files in one folder, at most", shape.folders),
        ("lines of the longest file", shape.lines),
        ("longest constructor, arguments", shape.constructors),
        ("largest class, methods", shape.methods),
    ):
        row(label, max(sizes.values()), [f"{size} {place}" for place, size in sizes.most_common(8)])
    row("signatures that take a whole preset, outside setup", len(shape.whole_presets), shape.whole_presets)
    row("lines of README.md", len((chosen.root / "README.md").read_text(encoding="utf-8").splitlines()), [])


if __name__ == "__main__":
    main()
