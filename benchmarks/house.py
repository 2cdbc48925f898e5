"""The shape of the code: lines, files in a folder, signatures, constructors, classes, read off the sources themselves.

    python -m benchmarks.house [--root CHECKOUT] [--list]

Code lines are physical lines that hold code: no blank lines, comments or docstrings. --root measures another checkout,
an older one for example; --list names the longest of each row.
"""

import argparse
import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

ROOMS = ("engine", "sources", "model", "shard_cache")
# Where a whole preset may be handed on: it is parsed, shown, or taken apart into sections there.
PRESET_ROOMS = ("engine/config/", "engine/run/setup.py", "engine/train.py")
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


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


def measure(root: Path) -> dict[str, tuple[int, list[str]]]:
    """Each figure by name, with the places where it is largest."""
    sources = {path: path.read_text(encoding="utf-8") for room in ROOMS for path in sorted((root / room).rglob("*.py"))}
    lines: Counter[str] = Counter()
    folders: Counter[str] = Counter()
    longest_files, constructors, classes = [], [], []
    whole_presets: list[str] = []
    for path, source in sources.items():
        name, room = path.relative_to(root).as_posix(), path.relative_to(root).parts[0]
        count = code_lines(source)
        lines[room] += count
        folders[str(path.parent.relative_to(root))] += 1
        longest_files.append((len(source.splitlines()), name))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                methods = [part for part in node.body if isinstance(part, DEFINITIONS)]
                classes.append((len(methods), f"{name}:{node.name}"))
                for method in methods:
                    if method.name == "__init__":
                        constructors.append((len(arguments(method)), f"{name}:{node.name}"))
            elif isinstance(node, DEFINITIONS) and not name.startswith(PRESET_ROOMS):
                takes = any(a.annotation and "Preset" in ast.unparse(a.annotation).split() for a in arguments(node))
                takes = takes or any(
                    a.annotation and ast.unparse(a.annotation) in ("Preset", "Preset | None") for a in arguments(node)
                )
                if takes:
                    whole_presets.append(f"{name}:{node.name}")

    def top(found: list[tuple[int, str]]) -> tuple[int, list[str]]:
        ordered = sorted(found, reverse=True)
        return ordered[0][0], [f"{number} {where}" for number, where in ordered[:8]]

    readme = len((root / "README.md").read_text(encoding="utf-8").splitlines())
    storage = root / "storage.py"
    return {
        "code lines of engine + sources": (lines["engine"] + lines["sources"], [f"{n} {r}" for r, n in lines.items()]),
        "code lines of storage.py": (code_lines(storage.read_text(encoding="utf-8")) if storage.exists() else 0, []),
        "files in one folder, at most": top([(number, folder) for folder, number in folders.items()]),
        "lines of the longest file": top(longest_files),
        "signatures that take a whole preset, outside setup": (len(whole_presets), whole_presets),
        "longest constructor, arguments": top(constructors),
        "largest class, methods": top(classes),
        "lines of README.md": (readme, []),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--list", action="store_true")
    chosen = parser.parse_args()
    for name, (figure, places) in measure(chosen.root).items():
        print(f"{name:55}{figure:>8,}")
        if chosen.list:
            for place in places:
                print(f"    {place}")


if __name__ == "__main__":
    main()
