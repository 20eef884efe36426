# make demo   from a fresh clone to a trained, generating model, in a few minutes on two cores
# make digits a small Llama learns to draw digits: LMFusion trained on pictures and captions, in some minutes
# make test   ruff, pyright and the whole test suite
#
# Both make .venv first, once: it is made again when pyproject.toml or constraints.txt change.
# PYTHON=python3.12 chooses another interpreter; 3.11 and 3.12 are supported.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
# Small matrix products gain nothing from threads, and the suite runs one process per core.
WORKERS ?= 2
# What else to pass to pytest: TESTFLAGS="-k frontier -x"
TESTFLAGS ?=

DIGITS := build/digits
DIGITS_STEPS ?= 800
DEMO := build/demo
DEMO_STEPS ?= 600

.DEFAULT_GOAL := help
.PHONY: help demo digits test lint links clean distclean

help:
	@sed -n '1,6p' Makefile | sed 's/^# \{0,1\}//'

# ---- set-up ------------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 12) or sys.exit("weft needs Python 3.11 or 3.12, and $(PYTHON) is %d.%d: try make PYTHON=python3.12" % v)'
	@echo "setting up $(VENV) with $(PYTHON) (the first time this downloads torch)"
	@$(PYTHON) -m venv $(VENV)

# One stamp per extra: the demo needs less than the tests.
$(VENV)/.%.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing weft[$*] with the versions of constraints.txt"
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation -e ".[$*]"
	@touch $@

# ---- what people run ---------------------------------------------------------------------------

demo: $(VENV)/.train.stamp
	@WEFT=$(BIN)/weft PYTHON=$(BIN)/python OUT=$(DEMO) STEPS=$(DEMO_STEPS) bash docs/demo.sh

digits: $(VENV)/.digits.stamp
	@WEFT=$(BIN)/weft PYTHON=$(BIN)/python OUT=$(DIGITS) STEPS=$(DIGITS_STEPS) bash docs/digits.sh

# Hundreds of processes import the checkout, which an environment may forbid Python to keep compiled.
unexport PYTHONDONTWRITEBYTECODE

test: lint
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not timing" $(TESTFLAGS)
	$(BIN)/python -m pytest -q -m timing $(TESTFLAGS)

lint: $(VENV)/.dev.stamp links
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# A type checker does not run the line of weft/__init__.py that finds the subpackages of a checkout.
links:
	@mkdir -p build/links/weft
	@for name in dsl codegen runtime; do ln -sfn ../../../$$name build/links/weft/$$name; done

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
