"""What code reaches: the definitions of the package that it names, and that those name in turn.

A definition is a top-level statement that binds a name: a function, a class, a constant. Names are
followed through imports, wherever those stand; a module used as a value, or by a name that is not
written in it, is reached whole. With any definition of a module goes what its import runs.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

WHOLE, AT_IMPORT = "*", ""  # in place of a definition's name
DYNAMIC = {"globals", "eval", "exec", "__import__"}  # beside importlib.import_module


class Definition(NamedTuple):
    """A name in a module of the package; WHOLE means all of it, AT_IMPORT what its import runs."""

    path: Path
    name: str


@dataclass
class Module:
    """A file's statements by the names that they bind, and those that are run for their effect.

    `aliases` are the names that its imports bind, and the dotted names that those stand for.
    """

    path: Path
    text: str
    named: dict[str, list[ast.stmt]] = field(default_factory=dict)
    run: list[ast.stmt] = field(default_factory=list)
    imports: list[ast.stmt] = field(default_factory=list)
    aliases: dict[str, list[list[str]]] = field(default_factory=dict)


def reached(sources: list[str], package: Path, first: Iterable[Definition] = ()) -> set[Definition]:
    """Return every definition of the package that these cells reach, and those that `first` do."""
    found: set[Definition] = set()
    waiting = [*first, *named(sources, package)]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            waiting += _next(each, package)
    return found


def named(sources: list[str], package: Path, inside: str = "") -> set[Definition]:
    """Return the definitions that cells name themselves; `inside`: only as a call's arguments."""
    trees = [parse(source) for source in sources]
    aliases = _aliases(trees, package, None)
    nodes: list[ast.AST] = list(trees)
    if inside:
        calls = (n for t in trees for n in ast.walk(t) if isinstance(n, ast.Call))
        nodes = [arg for call in calls if _dotted(call.func)[-1:] == [inside] for arg in call.args]
    return set(_references(nodes, aliases, None, package))


def parse(source: str) -> ast.Module:
    """Parse Python or a cell; IPython's own lines (%magic, !command) become calls."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):  # ValueError: a null byte, or half a character
        from IPython.core.inputtransformer2 import TransformerManager

        try:
            return ast.parse(TransformerManager().transform_cell(source))
        except (
            SyntaxError,
            ValueError,
        ):  # the notebook will say so itself
            return ast.Module([], [])


def module_at(path: Path, package: Path) -> Module:
    """Read a module's definitions."""
    return _module(path, path.read_text(encoding="utf-8"), package)


@lru_cache
def _module(path: Path, text: str, package: Path) -> Module:
    tree = ast.parse(text)
    module = Module(path, text, aliases=_aliases([tree], package, path))
    for statement in tree.body:
        if _is_import(statement):
            module.imports.append(statement)
        names = _bound(statement)
        for name in names:
            module.named.setdefault(name, []).append(statement)
        compound = isinstance(statement, (ast.If, ast.Try, ast.With, ast.For, ast.While))
        if (compound or not names) and not _is_idle(statement):
            module.run.append(statement)
    return module


def _bound(statement: ast.stmt) -> set[str]:
    """The top-level names that a statement binds."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {statement.name}
    if _is_import(statement):
        return {alias.asname or alias.name.split(".")[0] for alias in statement.names}
    inner = (node for node in ast.walk(statement) if node is not statement)
    names = {name for node in inner if isinstance(node, ast.stmt) for name in _bound(node)}
    names |= {
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return names


def _is_idle(statement: ast.stmt) -> bool:
    """Whether a statement does nothing in an import: a docstring, `if __name__ == …`, typing."""
    if not isinstance(statement, ast.If):
        return _is_docstring(statement)
    tested = {node.id for node in ast.walk(statement.test) if isinstance(node, ast.Name)}
    return bool(tested & {"__name__", "TYPE_CHECKING"})


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


# ── following names ─────────────────────────────────────────────────────────────────────────────


def _next(each: Definition, package: Path) -> Iterator[Definition]:
    """What one definition reaches in one step."""
    module = module_at(each.path, package)
    yield Definition(each.path, AT_IMPORT)
    if each.name == WHOLE:
        own = (n for n, bound in module.named.items() if not all(map(_is_import, bound)))
        yield from (Definition(each.path, name) for name in own)
    elif each.name == AT_IMPORT:
        yield from _references(module.run, module.aliases, module, package)
        yield from _run_by(module.imports, package, each.path)
    elif each.name not in module.named:
        yield Definition(each.path, WHOLE)
    else:
        yield from _references(module.named[each.name], module.aliases, module, package, each.name)


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def _aliases(
    nodes: Iterable[ast.AST], package: Path, path: Path | None
) -> dict[str, list[list[str]]]:
    """The names that imports anywhere in `nodes` bind, and the dotted names they stand for."""
    found: dict[str, list[list[str]]] = {}
    for node in (n for each in nodes for n in ast.walk(each)):
        for name, dotted in _bindings(node, package, path):
            if dotted not in found.setdefault(name, []):
                found[name].append(dotted)
    return found


def _bindings(node: ast.AST, package: Path, path: Path | None) -> Iterator[tuple[str, list[str]]]:
    """What one import statement binds: a name, and the dotted name that it stands for."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            dotted = alias.name.split(".")
            yield (alias.asname, dotted) if alias.asname else (dotted[0], dotted[:1])
    elif isinstance(node, ast.ImportFrom):
        base = _base(node, package, path)
        yield from ((alias.asname or alias.name, [*base, alias.name]) for alias in node.names)


def _base(node: ast.ImportFrom, package: Path, path: Path | None) -> list[str]:
    """The dotted name after `from`, without leading dots."""
    rest = node.module.split(".") if node.module else []
    if not node.level or path is None:
        return rest
    parts = [package.name, *path.relative_to(package).with_suffix("").parts]
    return parts[: len(parts) - node.level] + rest


def _run_by(nodes: list[ast.stmt], package: Path, path: Path | None) -> Iterator[Definition]:
    """The modules that import statements load, and so run."""
    for node in nodes:
        base = _base(node, package, path) if isinstance(node, ast.ImportFrom) else []
        for alias in node.names:
            if alias.name == "*" and (found := _resolved(base, package)):
                yield found
            elif found := _resolved([*base, *alias.name.split(".")], package):
                yield Definition(found.path, AT_IMPORT)


def _references(
    nodes: Iterable[ast.AST],
    aliases: dict[str, list[list[str]]],
    module: Module | None,
    package: Path,
    name: str = "",
) -> Iterator[Definition]:
    """The definitions that `nodes` name, in the module that they stand in (None: a notebook)."""
    for node in (n for each in nodes for n in _chains(each)):
        if _is_import(node):
            yield from _run_by([node], package, module and module.path)
            wanted = [d for n, d in _bindings(node, package, module and module.path) if n == name]
            yield from filter(None, (_resolved(dotted, package) for dotted in wanted))
            continue
        first, *rest = _dotted(node)
        meant = [_resolved([*dotted, *rest], package) for dotted in aliases.get(first, [])]
        yield from filter(None, meant)
        if module and first in module.named and not meant:
            yield Definition(module.path, first)
        if module and (first in DYNAMIC or "import_module" in rest):
            yield Definition(module.path, WHOLE)


def _chains(node: ast.AST) -> Iterator[ast.AST]:
    """Names, dotted names (as long as they are) and imports under a node, but for annotations."""
    if _is_import(node) or _dotted(node):
        yield node
        return
    for part, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and part not in ("annotation", "returns"):
                yield from _chains(child)


def _dotted(node: ast.AST) -> list[str]:
    """`a.b.c` → ["a", "b", "c"]; [] for what is no dotted name."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return [*before, node.attr]
    return []


def _resolved(dotted: list[str], package: Path) -> Definition | None:
    """`pkg.metrics.accuracy.x` → accuracy in the file of pkg.metrics; None outside the package."""
    if dotted[:1] != [package.name]:
        return None
    for length in range(len(dotted), 0, -1):
        place = package.joinpath(*dotted[1:length])
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.is_file():
                return Definition(file, dotted[length] if length < len(dotted) else WHOLE)
    return None


# ── text ────────────────────────────────────────────────────────────────────────────────────────


def text_of(each: Definition, package: Path) -> str:
    """A definition as it stands in its file."""
    module = module_at(each.path, package)
    lines = module.text.splitlines(keepends=True)
    statements = module.run if each.name == AT_IMPORT else module.named.get(each.name, [])
    return "".join("".join(lines[_first_line(s) - 1 : s.end_lineno]) for s in statements)


def _first_line(statement: ast.stmt) -> int:
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(each.lineno for each in decorators)])


@cache
def code_of(text: str) -> str:
    """Drop comments, docstrings and empty lines: what changes nothing that is computed."""
    lines: list[str] = text.splitlines(keepends=True)
    for first in _docstrings(ast.parse(text)):
        lines[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT:
            kept = lines[row - 1][:column].rstrip()
            lines[row - 1] = f"{kept}\n" if kept else ""
        elif token.type == tokenize.NL and not token.line.strip():
            lines[row - 1] = ""
    return "".join(lines)


def _docstrings(tree: ast.Module) -> Iterator[ast.stmt]:
    """The docstrings that stand on lines of their own."""
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in (each for each in ast.walk(tree) if isinstance(each, documented)):
        if _is_docstring(node.body[0]) and node.body[0].lineno > node.lineno:
            yield node.body[0]
