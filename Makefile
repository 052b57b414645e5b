# make demo: the main job. make test: the tests. Both set up what they need in .venv, once.
# Options: BACKEND=pyro, OUT=folder, VENV=folder, PYTHON=python3.12, JOBS=4.

BACKEND ?= numpyro
OUT ?= out
VENV ?= .venv
JOBS ?= 2
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)

BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test slow lint format bench docs notebooks snippets arviz1 newest dist clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed-$(BACKEND)
	$(BIN)/vi-reparam demo --backend $(BACKEND) --out $(OUT)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS)

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	PYTHONWARNINGS=ignore $(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.installed-dev
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

# The site, warnings as errors, in site/.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The notebooks, run in a kernel, into $(OUT)/notebooks.
notebooks: $(VENV)/.installed-notebooks
	$(BIN)/python -m nbconvert --to notebook --execute --output-dir $(OUT)/notebooks docs/notebooks/*.ipynb

# Every program of the README and of the docs.
snippets: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow tests/test_docs.py

# ArviZ 1.x asks for Python 3.12: PYTHON=python3.12 names one.
arviz1:
	$(PYTHON) -m venv .venv-arviz1
	.venv-arviz1/bin/python -m pip install --quiet --editable '.[all]' 'arviz>=1' pytest
	.venv-arviz1/bin/python -m pytest tests/test_inference_data.py tests/test_report.py

# Another Python, with the newest packages: make newest PYTHON=python3.13.
newest:
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --editable '.[all]' pytest hypothesis
	.venv-newest/bin/python -m pytest tests/test_models.py tests/test_joint_laws.py tests/test_sequential.py tests/test_batches.py \
		tests/with_numpyro/test_indices_in_loops.py tests/with_numpyro/test_scan_predictions.py

# What goes to a package index, in dist/; the wheel is installed and imported in an environment of its own.
dist:
	rm -rf dist .venv-dist
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet build
	.venv-dist/bin/python -m build
	.venv-dist/bin/python -m pip install --quiet dist/*.whl
	cd dist && ../.venv-dist/bin/python -c 'import vi_reparam' && ../.venv-dist/bin/vi-reparam --version

clean:
	rm -rf $(VENV) .venv-arviz1 .venv-newest .venv-dist $(OUT) build dist site

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "vi-reparam needs Python 3.11, 3.12 or 3.13; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# A stamp for each extra: installed again only when what it was made from has changed.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[$*]'
	@touch $@
