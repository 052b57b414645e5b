"""Every example runs, and the README's program is the one that is shown."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_imports(path):
    """The program's definitions are made, without its main part."""
    assert "__doc__" in runpy.run_path(str(path), run_name="example")


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path):
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def _readme_program():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]


def test_readme_program_fits(capsys):
    """The README's first program prints a summary with a verdict: here with one short rung of its ladder."""
    jax = pytest.importorskip("jax")
    code = _readme_program()
    for old, new in (
        ("@vr.guide ", "@vr.guide(vr.Escalate(families=(vr.MeanField(),))) "),
        ("    jnp.array([15.0", "    num_steps=100, sigma=jnp.array([15.0"),
    ):
        assert code.count(old) == 1
        code = code.replace(old, new)
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):  # as it would run on its own
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "verdict:" in capsys.readouterr().out
