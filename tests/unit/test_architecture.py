"""What holds for the project as a whole: imports, start-up, examples, documents."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_imports_point_one_way():
    """The contracts are in pyproject.toml; here they are run, so that nobody forgets to."""
    done = run("-c", "from importlinter.cli import lint_imports_command as main; main()")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "heavy",
    ["torch", "warp", "scipy", "skimage", "trimesh", "cv2", "pycolmap", "huggingface_hub", "safetensors"],
)
def test_command_line_starts_without_heavy_libraries(heavy):
    program = f"import sys, consumer.cli; sys.exit({heavy!r} in sys.modules)"
    done = run("-c", program)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command():
    done = run("-m", "consumer", "--help")
    assert done.returncode == 0, done.stderr
    for command in ("worker", "submit", "watch", "run", "fetch", "weights"):
        assert command in done.stdout


def test_base_names_of_tests_are_unique():
    """Their folders are no packages: of two modules of one name pytest collects neither."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_tests_share_plain_modules_and_not_each_other():
    """What is imported from a test is collected, and run, once more."""
    pattern = re.compile(r"^\s*(from|import) ([\w.]+\.)?test_\w+", re.MULTILINE)
    importers = [
        str(path.relative_to(ROOT))
        for kind in ("unit", "integration", "acceptance")
        for path in (ROOT / "tests" / kind).rglob("*.py")
        if pattern.search(path.read_text())
    ]
    assert importers == []


@pytest.mark.parametrize("name", ["nvdiffrast"])
def test_one_file_imports_the_non_commercial_rasterizer(name):
    pattern = re.compile(rf"^\s*(import|from) {name}\b|import_module\(.{name}", re.MULTILINE)
    importers = [
        str(path.relative_to(ROOT))
        for package in ("schemas", "models", "pipeline", "consumer")
        for path in (ROOT / package).rglob("*.py")
        if pattern.search(path.read_text())
    ]
    assert importers == ["models/raster/nvdiffrast_backend.py"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").rglob("*.json")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_example_parses(path):
    json.loads(path.read_text())


def test_readme_tables_are_the_codes():
    done = run(".ci/reference.py", "--check")
    assert done.returncode == 0, done.stderr
