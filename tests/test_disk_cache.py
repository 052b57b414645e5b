"""`vr.cache`: a folder of one's own, which the next process reads."""

import os
import stat
import subprocess
import sys

import pytest

from vi_reparam.backend import disk_cache
from vi_reparam.errors import ArgumentError


class Engine:
    def __init__(self):
        self.kept = []

    def keep_programs(self, folder, size):
        self.kept.append((folder, size))


def test_the_folder_is_made_for_its_owner_alone(tmp_path):
    engine = Engine()
    path = disk_cache.keep(engine, "numpyro", tmp_path / "programs")
    assert engine.kept == [(str(path), disk_cache.SIZE)] and path.name == "numpyro"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners here")
def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    engine = Engine()
    (tmp_path / "pyro").mkdir()
    (tmp_path / "pyro").chmod(0o777)
    with pytest.raises(ArgumentError, match="others own or may write to it"):
        disk_cache.keep(engine, "pyro", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="give a folder that can be made"):
        disk_cache.keep(engine, "pyro", tmp_path / "file")
    assert engine.kept == []


@pytest.mark.parametrize(("asked", "kept"), [("0", 0), ("", 0), ("here", 1)])
def test_the_environment_is_asked(tmp_path, monkeypatch, asked, kept):
    engine = Engine()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(disk_cache.VARIABLE, asked)
    disk_cache.keep_if_asked(engine, "numpyro")
    assert len(engine.kept) == kept


def test_what_was_compiled_lies_there(tmp_path):
    pytest.importorskip("jax")
    code = (
        f"import vi_reparam_numpyro as vr; vr.cache({str(tmp_path)!r}); import jax, jax.numpy as jnp;"
        "jax.jit(lambda x: jnp.linalg.eigh(x @ x.T)[0].sum())(jnp.eye(5))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert list((tmp_path / "numpyro").iterdir())
