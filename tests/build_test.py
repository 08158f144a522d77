"""BUILD says what the modules import."""

import ast
import os

ROOT = os.path.dirname(os.path.dirname(__file__))


def modules():
    """Returns the file of every module of the package, by module name."""
    found = {}
    for parent, _, files in os.walk(os.path.join(ROOT, "sagan_tf")):
        for file in files:
            if file.endswith(".py"):
                path = os.path.relpath(os.path.join(parent, file), ROOT)
                found[path.removesuffix(".py").replace(os.sep, ".").removesuffix(".__init__")] = path
    return found


def imports(path, known):
    names = set()
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in known else node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name in known and known[name] != path}


def targets():
    """Returns name, source and dependencies of each py_library in BUILD."""
    with open(os.path.join(ROOT, "BUILD"), encoding="utf-8") as file:
        tree = ast.parse(file.read())  # Starlark is Python to the parser.
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "py_library":
            values = {
                keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if not isinstance(keyword.value, ast.Call)
            }
            yield values["name"], values["srcs"][0], {dep.removeprefix(":") for dep in values.get("deps", [])}


class BuildTest:
    def test_one_target_per_module_with_its_imports(self):
        known = modules()
        name_of = {path: name for name, path, _ in targets()}
        assert set(name_of) == set(known.values())
        for name, path, deps in targets():
            assert deps == {name_of[known[module]] for module in imports(path, known)}, name
