"""Packaging of sagan_tf; tool settings are in pyproject.toml."""

import pathlib

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent

# Installed as PREFIX/share/sagan_tf/flags/..., for --flagfile.
FLAGFILES = {}
for path in sorted((ROOT / "flags").rglob("*.cfg")):
    path = path.relative_to(ROOT)
    FLAGFILES.setdefault(f"share/sagan_tf/{path.parent}", []).append(str(path))

# What stands behind sagan-NAME is sagan_tf/commands/NAME.py.
COMMANDS = ("train", "sample", "attention", "export", "evaluate", "report", "records", "convert", "reproduce")

setup(
    name="sagan_tf",
    version="0.1.0",
    description="Self-Attention GAN (arXiv 1805.08318) for TensorFlow 2 and Keras 3, faithful to the reference implementation",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["sagan_tf", "sagan_tf.*"]),
    package_data={"sagan_tf": ["py.typed", "assets/**"]},
    data_files=list(FLAGFILES.items()),
    install_requires=[
        "tensorflow>=2.18",
        "keras>=3.9",
        "numpy",
        "scipy>=1.11",
        "pandas>=2.0",
        "matplotlib>=3.8",
        "absl-py",
        "pillow>=10.4",
        "jinja2>=3.1",
        "tqdm",
        "tensorboard",
        "google-crc32c",
        # Metrics: TF-GAN's evaluation functions, and what they import without declaring it.
        "tensorflow-gan>=2.1.0",
        "tensorflow-probability>=0.25",
        "tensorflow-hub>=0.16.1",
        "tf-keras>=2.18",
        "setuptools<81",
        # TFDS does not declare importlib_resources.
        "tensorflow-datasets>=4.9.7",
        "importlib_resources",
    ],
    extras_require={
        "test": [
            *("pytest", "pytest-cov", "pytest-xdist", "selenium", "tf2onnx", "onnxruntime", "ai-edge-litert"),
            *("ruff", "mypy", "pandas-stubs", "scipy-stubs", "types-tqdm"),
        ],
        "jax": ["jax"],
        "onnx": ["tf2onnx"],
    },
    entry_points={"console_scripts": [f"sagan-{name}=sagan_tf.commands.{name}:run" for name in COMMANDS]},
)
