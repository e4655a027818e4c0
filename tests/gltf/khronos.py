"""The Khronos glTF validator, which runs in Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parent


def installed_validator() -> Path:
    """The script beside its installed dependencies. A developer without Node skips; CI must not."""
    if shutil.which("npm") is None:
        if os.environ.get("CI"):
            pytest.fail("the glTF validator needs Node.js and npm", pytrace=False)
        pytest.skip("the glTF validator needs Node.js and npm")
    installed = TOOLS / "node_modules" / "gltf-validator" / "package.json"
    wanted = json.loads((TOOLS / "package.json").read_text())["devDependencies"]["gltf-validator"]
    if not installed.exists() or json.loads(installed.read_text())["version"] != wanted:
        done = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund"], cwd=TOOLS, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    return TOOLS / "validate.mjs"


def validate(script: Path, glb: Path) -> dict[str, Any]:
    """The validator's report on a file."""
    done = subprocess.run(["node", str(script), str(glb)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
