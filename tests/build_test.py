"""BUILD says which folder imports which."""

import ast

from sources import ROOT, imports, modules, place, tree


def folder(path):
    """Returns the name of a file's folder."""
    return path.parent.name


def targets():
    """Returns sources and dependencies of each py_library in BUILD, but that of the tests, by name."""
    found = {}
    for node in ast.walk(tree(ROOT / "BUILD")):  # Starlark is Python to the parser.
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "py_library":
            values = {keyword.arg: keyword.value for keyword in node.keywords}
            (pattern,) = ast.literal_eval(values["srcs"].args[0])
            deps = ast.literal_eval(values.get("deps", ast.List([])))
            found[ast.literal_eval(values["name"])] = (sorted(ROOT.glob(pattern)), {dep.removeprefix(":") for dep in deps})
    del found["tests"]
    return found


class BuildTest:
    def test_every_module_is_of_one_target_called_after_its_folder(self):
        sources = {name: paths for name, (paths, _) in targets().items()}
        assert sources.pop("tools") == sorted((ROOT / "tools").glob("*.py"))
        assert sorted(path for paths in sources.values() for path in paths) == sorted(modules().values())
        assert [place(path) for name, paths in sources.items() for path in paths if folder(path) != name] == []

    def test_targets_depend_on_what_they_import(self):
        for name, (paths, deps) in targets().items():
            imported = {folder(modules()[module]) for path in paths for module in imports(path)}
            # Importing any module imports the package.
            assert deps == (imported | {"sagan_tf"}) - {name}, name

    def test_targets_stand_below_those_that_use_them(self):
        seen = set()
        for name, (_, deps) in targets().items():
            assert deps <= seen, f"{name} needs {sorted(deps - seen)}, which BUILD names later"
            seen.add(name)
