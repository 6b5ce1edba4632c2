# Every target works on a fresh machine with Python >= 3.10; the logic lives in tools/.
PYTHON ?= python3
BUNDLE ?= vnet_atrial_mri
PY := .venv/bin/python

PYTEST := $(PY) -m pytest --numprocesses auto --maxprocesses 4

.PHONY: setup demo test check complexity sync bench docs label test-label test-nightly
setup: .venv/run.done
demo: setup
	$(PY) -m tools demo $(BUNDLE) $(if $(DATA),--data $(DATA)) $(ARGS)
test: check
	$(PYTEST) -m "not nightly and not label$(if $(GATE),, and not gate)" $(ARGS)
test-nightly: check
	$(PYTEST) -m "not label" $(ARGS)
check: .venv/test.done
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && $(PY) -m tools check
	$(PY) -m codespell_lib $$(git ls-files)
	$(MAKE) complexity
# Grade C is more than 10. radon ends with 0 whatever it finds, so what it prints decides. In a test an assertion is no branch.
complexity: .venv/test.done
	@found=$$($(PY) -m radon cc --min C --show-complexity bundles tools examples && \
	  $(PY) -m radon cc --min C --show-complexity --no-assert tests) && \
	  if [ -n "$$found" ]; then echo "$$found"; exit 1; fi
sync:
	$(PYTHON) -m tools sync
bench: setup
	$(PY) -m tools benchmark $(BUNDLE) $(ARGS)
docs: .venv-docs/docs.done
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict --clean $(ARGS)
label: .venv-label/label.done
test-label: .venv/test.done label
	LABEL_REQUIRED=1 $(PY) -m pytest -m label tests/tools/label tests/tools/dicom $(ARGS)

# torch first: the machine decides between its CPU and its GPU build.
.venv/%.done: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade "pip>=25.1"
	$(PY) -m pip install --quiet torch==2.13.0
	$(PY) -m pip install --quiet --group $*
	touch $@
.venv-docs/docs.done: pyproject.toml
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-docs/bin/python -m pip install --quiet --group docs
	touch $@
.venv-label/label.done: requirements/label.txt
	@test -x .venv-label/bin/python || $(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)) \
	  and 'MONAI Label needs Python 3.11 or 3.12, this is %d.%d: make label PYTHON=python3.12' % sys.version_info[:2])"
	test -x .venv-label/bin/python || $(PYTHON) -m venv .venv-label
	.venv-label/bin/python -m pip install --quiet torch==2.13.0
	.venv-label/bin/python -m pip install --quiet --no-deps --requirement requirements/label.txt
	touch $@
