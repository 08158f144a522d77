"""The rules of the house, which every module keeps. A message names each that does not."""

import ast
import io
import tokenize

import pytest
from sources import ROOT, imports, modules, place, tree

# What stands in one row may import what stands in its own and in those above: modules of the root, and folders.
LAYERS = (
    ("errors", "files", "architecture", "templates", "config", "pixels"),
    ("resampling", "layers", "networks", "losses", "augmentation", "sampling", "walks", "training"),
    ("data",),
    ("metrics",),
    ("runs",),
    ("attention", "export", "gallery", "report", "experiments"),
    ("commands",),
)
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}
PAPER = ("resampling", "layers", "networks", "losses", "augmentation")
# Methods that Keras calls, with its own signatures.
OF_KERAS = ("build", "call", "get_config", "update_step")
MOST_PARAMETERS, MOST_LINES, MOST_LINES_OF_A_COMMAND = 7, 500, 60

MODULES = {name: path for name, path in modules().items() if name != "sagan_tf"}
COMMANDS = {name: path for name, path in MODULES.items() if name.startswith("sagan_tf.commands.")}
CLI = "sagan_tf.commands.cli"
PYTHON = [path for folder in ("sagan_tf", "tools", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]


def none(offenders):
    found = sorted(offenders)
    assert not found, "\n".join(["", *found])


def part(name):
    """Returns the module of the root, or the folder, that a module belongs to."""
    return name.split(".")[1]


def functions(path):
    """Returns every function of a file, methods and inner ones too."""
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def parameters(function):
    found = function.args
    return [*found.posonlyargs, *found.args, *found.kwonlyargs, *filter(None, (found.vararg, found.kwarg))]


def named(node):
    """Returns the names that occur below a node, the parts of dotted ones too."""
    return {getattr(inner, "id", getattr(inner, "attr", None)) for inner in ast.walk(node)}


def lines_of_code(path):
    """Returns how many lines of a file are neither blank nor comment nor docstring."""
    kinds = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type not in kinds:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


class ImportsTest:
    def test_every_module_has_a_layer(self):
        none({part(name) for name in MODULES} - set(ROW))

    def test_point_downwards(self):
        wrong = [
            f"{name} imports {other}"
            for name, path in MODULES.items()
            for other in sorted(imports(path) - {"sagan_tf"})
            if ROW[part(other)] > ROW[part(name)]
        ]
        none(wrong)

    def test_run_in_no_circle(self):
        done = set()

        def visit(name, above):
            assert name not in above, f"a circle: {' imports '.join([*above, name])}"
            if name not in done:
                for other in sorted(imports(modules()[name])):
                    visit(other, [*above, name])
                done.add(name)

        for name in modules():
            visit(name, [])

    def test_commands_are_imported_by_none_and_import_only_cli(self):
        wrong = [
            f"{name} imports {other}"
            for name, path in modules().items()
            for other in sorted(imports(path))
            if other.startswith("sagan_tf.commands.") and (other != CLI or name not in COMMANDS)
        ]
        none(wrong)

    @pytest.mark.parametrize("name", PAPER)
    def test_the_paper_runs_on_any_backend(self, name):
        wanted = [node for node in ast.walk(tree(MODULES[f"sagan_tf.{name}"])) if isinstance(node, ast.Import | ast.ImportFrom)]
        none(ast.unparse(node) for node in wanted if "tensorflow" in ast.unparse(node))

    def test_nothing_but_training_augments(self):
        none(name for name, path in MODULES.items() if "sagan_tf.augmentation" in imports(path) and name != "sagan_tf.training")


class FlagsTest:
    def test_only_commands_know_them(self):
        wrong = [
            f"{place(path)}:{node.lineno}"
            for name, path in modules().items()
            if name not in COMMANDS
            for node in ast.walk(tree(path))
            if getattr(node, "id", getattr(node, "attr", None)) == "FLAGS"
            or (isinstance(node, ast.Import) and any(alias.name == "absl.flags" for alias in node.names))
            or (isinstance(node, ast.ImportFrom) and node.module == "absl" and any(alias.name == "flags" for alias in node.names))
            or (isinstance(node, ast.ImportFrom) and node.module == "absl.flags")
        ]
        none(wrong)

    def test_no_test_replaces_them(self):
        wrong = []
        for path in sorted((ROOT / "tests").glob("*.py")):
            for node in ast.walk(tree(path)):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                # FLAGS.name = ..., module.FLAGS = ...; a constant of a test may be called so.
                assigned = any(isinstance(target, ast.Attribute) and "FLAGS" in named(target) for target in targets)
                patched = isinstance(node, ast.Call) and any(
                    isinstance(argument, ast.Constant) and str(argument.value).split(".")[-1] == "FLAGS" for argument in node.args
                )
                if assigned or patched or getattr(node, "id", getattr(node, "attr", None)) == "flagsaver":
                    wrong.append(f"{place(path)}:{node.lineno}")
        none(wrong)


class SizeTest:
    def test_functions_take_few_parameters(self):
        wrong = [
            f"{place(path)}:{function.lineno} {function.name} takes {len(parameters(function))}"
            for name, path in modules().items()
            if name != "sagan_tf.config"
            for function in functions(path)
            if len(parameters(function)) > MOST_PARAMETERS
        ]
        none(wrong)

    def test_files_are_short(self):
        lengths = {place(path): len(path.read_text(encoding="utf-8").splitlines()) for path in modules().values()}
        none(f"{name} has {length} lines" for name, length in lengths.items() if length > MOST_LINES)

    def test_commands_are_thin(self):
        lengths = {place(path): lines_of_code(path) for name, path in COMMANDS.items() if name != CLI}
        none(f"{name} has {length} lines of code" for name, length in lengths.items() if length > MOST_LINES_OF_A_COMMAND)


class FaceTest:
    def test_public_modules_say_what_is_public(self):
        wrong = []
        for name, path in modules().items():
            body = tree(path).body
            empty = path.name == "__init__.py" and not any(
                isinstance(node, ast.ImportFrom | ast.ClassDef)
                or (isinstance(node, ast.FunctionDef) and not node.name.startswith("_"))
                for node in body
            )
            bound = {ast.unparse(target) for node in body if isinstance(node, ast.Assign) for target in node.targets}
            bound |= {ast.unparse(node.target) for node in body if isinstance(node, ast.AnnAssign)}
            if not name.rpartition(".")[2].startswith("_") and not empty and "__all__" not in bound:
                wrong.append(place(path))
        none(wrong)

    def test_public_functions_have_types(self):
        wrong = []

        def check(path, nodes, method):
            for node in nodes:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    check(path, node.body, True)
                elif isinstance(node, ast.FunctionDef) and (node.name in ("__init__", "__call__") or node.name[0] != "_"):
                    if method and node.name in OF_KERAS:
                        continue
                    static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
                    bare = [p.arg for p in parameters(node)[method and not static :] if p.annotation is None]
                    if node.returns is None and node.name != "__init__":
                        bare.append("what it returns")
                    if bare:
                        wrong.append(f"{place(path)}:{node.lineno} {node.name}: {', '.join(bare)}")

        for path in modules().values():
            check(path, tree(path).body, False)
        none(wrong)


class FilesTest:
    """What a command writes may be anywhere that TensorFlow writes: only files.py knows how."""

    # They read what is here, or, as the suite's runner, work here alone.
    HERE = ("files", "data", "config", "attention.maps", "metrics.classifiers", "experiments.suite", "experiments.runner")
    OF_OS = ("listdir", "makedirs", "mkdir", "path", "remove", "rename", "replace", "rmdir", "scandir", "stat", "walk")
    BANNED = (*(f"os.{name}" for name in OF_OS), *("shutil.move", "shutil.rmtree", "tf.io.gfile", "import glob", "import pathlib"))

    def test_no_other_module_touches_them(self):
        wrong = []
        for name, path in MODULES.items():
            if name.removeprefix("sagan_tf.").startswith(self.HERE):
                continue
            for node in ast.walk(tree(path)):
                text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Call | ast.Import | ast.ImportFrom) else ""
                # A temporary name is one that `files.whole` gave.
                if text in self.BANNED or (text.startswith(("from os ", "open(")) and not text.startswith("open(temporary,")):
                    wrong.append(f"{place(path)}:{node.lineno} {text}")
        none(wrong)


class LintTest:
    def test_no_line_is_kept_from_being_sorted(self):
        mark = "isort:" + " skip"
        none(place(path) for path in PYTHON if mark in path.read_text(encoding="utf-8"))
