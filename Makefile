# `make` prints what there is to do. Nothing needs preparing but Python >= 3.11 and make.

# The pins hold for 3.11 to 3.14, so those first; a newer one may work.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && echo "$$p" && exit; done; \
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo python3)
UV ?= uv
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# A stamp is written when everything before it has succeeded, so an interrupted installation is taken up again.
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet install
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-dev demo screenshots test test-packages lint format bench fuzz soak pins schemas clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED) ## install cvmfs-sync at .venv/bin/cvmfs-sync
	@echo "ready: $(BIN)/cvmfs-sync"

install-dev: $(INSTALLED_DEV) ## install what tests and linters need, too
	@:

demo: $(INSTALLED) ## publish, update and run real images in a temporary directory
	@$(BIN)/python demo/run.py $(ARGS)

screenshots: $(INSTALLED_DEV) ## take the pictures of the README again (needs chromium)
	@$(BIN)/python -m demo.screenshots $(ARGS)

test: $(INSTALLED_DEV) test-packages ## run all tests; ARGS='-k name -x' for some of them
	@$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED_DEV) ## check style, formatting, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED_DEV) ## format the code and repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED_DEV) ## measure
	@$(BIN)/python -m benchmarks.run $(ARGS)

FUZZ_SECONDS ?= 120
fuzz: $(INSTALLED_DEV) ## fuzz tar reader and merge, FUZZ_SECONDS each; then property tests with many more examples
	@FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m fuzz.fuzz_tar
	@FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m fuzz.fuzz_merge
	@$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=fuzz --timeout=0 $(ARGS)

SOAK_SECONDS ?= 600
soak: $(INSTALLED_DEV) ## kill cvmfs-sync, the server and the machine at random for SOAK_SECONDS on each backend
	@SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest -s --timeout=0 tests/test_soak.py $(ARGS)

# Universal pins: Linux on any processor, Python 3.11 to 3.14. What only other systems need is left out.
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-package colorama --no-emit-package pywin32 --no-emit-package tzdata --upgrade --group build pyproject.toml
pins: ## resolve requirements/*.txt again (needs uv)
	@command -v $(UV) >/dev/null || { echo "make pins needs uv: found none; install it or pass UV=/path/to/uv" >&2; exit 1; }
	$(COMPILE) --output-file requirements/run.txt
	$(COMPILE) --extra dev --constraint requirements/run.txt --output-file requirements/dev.txt

schemas: $(INSTALLED) ## write the JSON Schemas in deploy/schemas again
	@$(BIN)/python -m cvmfs_sync.schemas deploy/schemas

clean: ## remove everything that is made here
	rm -rf $(VENV) build dist .coverage htmlcov .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements/run.txt pyproject.toml | $(BIN)/python
	@echo "installing cvmfs-sync into $(VENV)"
	@$(PIP) --require-hashes --no-deps --only-binary :all: -r requirements/run.txt
	@$(PIP) --no-build-isolation --no-deps --editable .
	@$(BIN)/python -m compileall -q cvmfs_sync
	@touch $@

$(INSTALLED_DEV): requirements/dev.txt $(INSTALLED)
	@echo "installing the tools for tests and linters into $(VENV)"
	@$(PIP) --require-hashes --no-deps --only-binary :all: -r requirements/dev.txt
	@touch $@

# Debian takes `ensurepip` out of Python and puts it into a package of its own.
$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "no usable Python; found: $$(python3 --version 2>/dev/null || echo none); expected: 3.11 or newer;" \
			"to do: install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		package=$$($(PYTHON) -c 'import sys; print("python3.%d-venv" % sys.version_info[1])'); \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing the Debian package $$package: $(PYTHON) has no ensurepip"; \
			$(APT) update && $(APT) install -y --no-install-recommends "$$package" >/dev/null; fi; \
		$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
			echo "$(PYTHON) cannot make virtual environments; found: no module ensurepip;" \
				"to do: install it (on Debian and Ubuntu: apt-get install $$package)" >&2; exit 1; }; fi
	@$(PYTHON) -m venv --clear $(VENV)

test-packages:
	@command -v dpkg-query >/dev/null || exit 0; \
	missing=; \
	for package in $$(sed 's/#.*//' tests/debian-packages.txt); do \
		dpkg-query -W -f '$${Status}' "$$package" 2>/dev/null | grep -q 'install ok installed' \
			|| missing="$$missing $$package"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing Debian packages for the tests:$$missing"; \
		$(APT) update && $(APT) install -y --no-install-recommends $$missing >/dev/null && exit 0; \
		why="apt-get failed"; \
	else why="only root may install them"; fi; \
	echo "not installed:$$missing ($$why): tests that need them are skipped" >&2; \
	if [ "$$CI" = true ]; then echo "with CI=true that is a failure" >&2; exit 1; fi
