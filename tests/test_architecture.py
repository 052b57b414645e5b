"""Who may import whom."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAMEWORKS = {"jax", "jaxlib", "numpyro", "optax", "flax", "equinox", "torch", "pyro", "array_api_compat"}
BACKENDS = {"vi_reparam_numpyro", "vi_reparam_pyro"}
# tables, pictures and files, not gradients
FOR_PEOPLE = ("commands/", "fit/", "posterior/", "study/")


def imported(path):
    """Top-level names of all modules that a file imports, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).partition(".")[0])
    return names


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


def test_the_mathematics_of_the_core_imports_the_standard_library_only():
    allowed = set(sys.stdlib_module_names) | {"vi_reparam", "threadpoolctl"}  # the latter holds no mathematics
    found = {
        str(path.relative_to(ROOT)): imported(path) - allowed
        for path in files("vi_reparam")
        if not path.relative_to(ROOT / "vi_reparam").as_posix().startswith(FOR_PEOPLE)
    }
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("vi_reparam", FRAMEWORKS | BACKENDS),
        ("backends/vi_reparam_numpyro", {"torch", "pyro", "vi_reparam_pyro", "vi_reparam_models"}),
        ("backends/vi_reparam_pyro", {"jax", "jaxlib", "numpyro", "optax", "vi_reparam_numpyro", "vi_reparam_models"}),
        ("models/vi_reparam_models", FRAMEWORKS | BACKENDS),
    ],
)
def test_directions_of_imports(package, forbidden):
    assert files(package)
    found = {str(path.relative_to(ROOT)): imported(path) & forbidden for path in files(package)}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_wheel_installs_four_packages_and_none_called_backends_or_models():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = config["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {Path(package).name for package in packages} == {"vi_reparam", "vi_reparam_models"} | BACKENDS
    for folder in ("backends", "models"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_importing_the_core_loads_no_framework():
    code = "import sys, vi_reparam, vi_reparam.backend.host; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & (FRAMEWORKS | {"numpy"})


def test_import_contracts():
    script = Path(sys.executable).with_name("lint-imports")
    if not script.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("framework", "array", "other"),
    [("jax", "jax.numpy.ones(2)", "torch"), ("torch", "torch.ones(2)", "jax")],
)
def test_an_array_loads_its_own_backend_only(framework, array, other):
    pytest.importorskip("numpyro" if framework == "jax" else "pyro")
    code = f"import sys, {framework}, vi_reparam; vi_reparam.ops_of({array}); print({other!r} in sys.modules)"
    code = code.replace("import sys, jax,", "import sys, jax, jax.numpy,")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize("package", sorted(BACKENDS))
def test_a_backend_knows_nothing_of_the_workflow(package):
    """Neither what is fitted nor what a fit gives: its package alone exports them."""
    found = [
        path.name
        for path in files(f"backends/{package}")
        if "Guided" in path.read_text() or "Posterior" in path.read_text()
    ]
    assert found == ["__init__.py"]


@pytest.mark.parametrize("package", ["vi_reparam", *(f"backends/{name}" for name in sorted(BACKENDS))])
def test_no_file_is_long(package):
    assert {path.name: num for path in files(package) if (num := len(path.read_text().splitlines())) > 450} == {}
