"""The notebooks hold no output, and run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))


def code_of(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stripped_and_its_code_is_python(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    compile(code_of(path), path.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    """Its cells one after the other, in a fresh process; `make notebooks` runs them in a kernel."""
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    command = [sys.executable, "-c", code_of(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "verdict: good" in done.stdout
