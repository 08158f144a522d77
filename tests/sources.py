"""What the package's modules say of themselves, read and not run."""

import ast
import functools
import pathlib

ROOT = pathlib.Path(__file__).parent.parent


@functools.cache
def modules():
    """Returns the path of every module of the package, by its dotted name."""
    found = {}
    for path in sorted((ROOT / "sagan_tf").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path):
    """Returns the modules of the package that a file imports when it runs, inside functions too."""
    names, waiting = set(), [tree(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in modules() else node.module)
    return frozenset(name for name in names if name in modules() and modules()[name] != path)


def place(path):
    """Returns a path of the repository as messages show it."""
    return path.relative_to(ROOT).as_posix()
