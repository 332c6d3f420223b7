# Every target makes .venv first; see deploy/install.sh for KANABO_DEVICE and PYTHON.
# Programs of .venv, ninja for DeepSpeed's compiling among them, are found through PATH; a plain /bin/sh would let make
# look them up in its own.
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Dozens of processes import the same modules: compiling them once takes a minute off the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: docs quickstart test env-tests check lint types environments verify chaos bench minihack loophole install

quickstart: install
	python -m cluster.run deploy/recipes/quickstart.toml

QUICK := not verify and not chaos and not gpu
ALONE := ray or engine or job
LINKS := tests/test_docs.py::test_links_between_pages_lead_somewhere
PYTEST := python -m pytest --durations 25 --durations-min 5

# Only these files are collected for the second part: importing all of them takes half a minute.
ALONE_FILES = $(shell grep -lrE --include='test_*.py' 'mark\.(ray|engine|job)\b' tests)

# First the static checks, beside one another; then what shares a machine well, two at a time, long files first (tests/conftest.py);
# then what starts Ray, engines and jobs, one after the other.
test: install
	@$(MAKE) --no-print-directory -j 3 -O types lint environments
	OMP_NUM_THREADS=1 $(PYTEST) -m "$(QUICK) and not ($(ALONE))" -n 2 --dist loadfile --no-loadscope-reorder \
		--ignore tests/test_words.py --deselect $(LINKS)
	$(PYTEST) -m "$(QUICK) and ($(ALONE))" $(ALONE_FILES)

verify: install
	python -m pytest -m verify

# Environments of other frameworks, in virtual environments of their own; offline once they are there.
env-tests: environments
	python -m pytest tests/environments

environments: install
	@deploy/environments.sh

minihack: install
	python -m tests.experiments.minihack

loophole: install
	python -m tests.experiments.loophole

chaos: install
	python -m pytest -m chaos -s

# All figures, or `make bench NAME=sampling`.
bench: install
	python -m tests.bench $(NAME)

check: install
	@$(MAKE) --no-print-directory -j 2 -O types lint

types: install
	pyright

lint: install
	ruff check
	ruff format --check
	lint-imports --no-logo
	python -m pytest -q tests/test_words.py $(LINKS)

install:
	@deploy/install.sh

# The site, in build/site; mkdocs has an environment of its own.
docs: build/docs/bin/mkdocs
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --strict

build/docs/bin/mkdocs: docs/requirements.lock
	python3 -m venv build/docs
	build/docs/bin/python -m pip -qq --disable-pip-version-check install --no-deps -r docs/requirements.lock
	touch $@
