"""What is built holds all that is needed, and works where there is no repository."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BUILD = "from setuptools import build_meta; build_meta.build_sdist('dist'); build_meta.build_wheel('dist')"
OPEN = """
import importlib.resources, sys
import sagan_tf
from sagan_tf.metrics import classifiers
assert sagan_tf.__file__.startswith(sys.argv[1]), sagan_tf.__file__
classifiers.load("faces")
assert "<html" in (importlib.resources.files("sagan_tf") / "assets" / "attention.html").read_text(encoding="utf-8")
"""


def files(*folders):
    """Returns the files in folders of the repository, by path."""
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in paths if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Returns the sdist and the wheel, made without network in a copy."""
    copy = tmp_path_factory.mktemp("packaging") / "copy"
    ignored = shutil.ignore_patterns(".[!b]*", "__pycache__", "*.egg-info", "build", "dist")

    def ignore(directory, names):
        return ignored(directory, names) | ({"runs"} if pathlib.Path(directory) == ROOT else set())

    shutil.copytree(ROOT, copy, ignore=ignore)
    subprocess.run([sys.executable, "-c", BUILD], cwd=copy, check=True, capture_output=True, timeout=300)
    (sdist,) = (copy / "dist").glob("*.tar.gz")
    (wheel,) = (copy / "dist").glob("*.whl")
    return sdist, wheel


class ContentsTest:
    def test_sdist_has_the_repository(self, built):
        with tarfile.open(built[0]) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        wanted = files("sagan_tf", "flags", "tools", "tests", "docs")
        wanted |= {
            ".bazelrc",
            "BUILD",
            "CHANGELOG.md",
            "CITATION.cff",
            "LICENSE",
            "README.md",
            "WORKSPACE",
            "pyproject.toml",
            "setup.py",
        }
        assert wanted - names == set()

    def test_wheel_has_the_package_and_the_flagfiles(self, built):
        with zipfile.ZipFile(built[1]) as archive:
            names = set(archive.namelist())
        assert "sagan_tf/py.typed" in names
        assert files("sagan_tf") - names == set()
        prefix = "sagan_tf-0.1.0.data/data/share/sagan_tf/"
        assert {f"{prefix}{path}" for path in files("flags")} == {name for name in names if name.startswith(prefix)}
        assert not [name for name in names if name.startswith(("tests/", "tools/"))]


class InstalledTest:
    def test_opens_its_assets_and_reads_its_flagfiles(self, built, tmp_path):
        prefix = tmp_path / "installed"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--prefix", str(prefix)]
        subprocess.run([*command, "--ignore-installed", str(built[1])], check=True, capture_output=True, timeout=120)
        (package,) = prefix.rglob("site-packages")
        environment = {**os.environ, "PYTHONPATH": str(package)}
        run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 120}
        subprocess.run([sys.executable, "-c", OPEN, str(package)], check=True, **run)
        flagfile = prefix / "share" / "sagan_tf" / "flags" / "study" / "none.cfg"  # Which names another, beside it.
        command = [sys.executable, "-m", "sagan_tf.commands.train", f"--flagfile={flagfile}", "--train_steps=1", "--batch_size=0"]
        assert "--batch_size=0 must be at least 1" in subprocess.run(command, **run).stderr
