"""Runs the test file that it is given: what `bazel test` starts."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(["-c", "pyproject.toml", "--rootdir=.", "-n0", "-p", "no:cacheprovider", *sys.argv[1:]]))
