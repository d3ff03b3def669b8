# Everything a person or CI does with a checkout. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKSPACE ?= workspace
NOTEBOOKS := $(shell find nbs -name '*.ipynb' -not -path '*/.ipynb_checkpoints/*' 2>/dev/null)

# Busy-waiting OpenMP threads make a shared machine up to 50 times slower.
export OMP_WAIT_POLICY = PASSIVE
export MLFLOW_DISABLE_TELEMETRY = true
export DO_NOT_TRACK = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lab bench check lint export readme starter constraints build clean browser

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "llmops_workbench needs Python 3.11 or later; '$(PYTHON)' is older. Call: make PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first and by exact version: a range lets the resolver take another build, with several GB of GPU packages.
	$(BIN)/python -m pip install -q -c constraints.txt setuptools "$$(grep -i '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(STAMP) ## build the environment in .venv and install the git hooks
	@if git rev-parse --git-dir >/dev/null 2>&1; then $(BIN)/nbdev-install-hooks --diff False >/dev/null; fi

# Chromium is only needed by the browser tests; where it cannot be installed they skip and say so.
browser:
	@command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || \
	  { if command -v apt-get >/dev/null 2>&1 && [ "$$(id -u)" = 0 ]; then \
	      { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1 \
	        || echo "Chromium could not be installed: the browser tests will be skipped."; \
	    else echo "No Chromium here: the browser tests will be skipped. On Debian: sudo apt-get install chromium"; fi; }

demo: setup ## take the sample data through the whole life cycle and print the scores before and after fine-tuning
	@$(BIN)/llmops pipeline run helpdesk

lab: setup ## open JupyterLab on the home notebook
	@$(BIN)/llmops lab

test: setup browser ## run every test: the notebooks' own and those in tests/
	$(BIN)/nbdev-test --n-workers 2 --skip-folder-re '^(\.|_|workflows|training)' nbs
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: setup ## the same without browser, training and pipeline runs
	$(BIN)/nbdev-test --n-workers 2 --skip-folder-re '^(\.|_|workflows|training)' nbs
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not browser'

bench: setup ## run the benchmarks, side by side with the reference implementations where these are installed
	@for script in $(filter-out benchmarks/peers.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

check: setup lint ## the gate: cleaning, exporting and the README change nothing; layers; lint
	$(BIN)/python tests/gate.py
	$(BIN)/python -m pytest tests/test_layers.py

lint: setup
	$(BIN)/ruff check llmops_workbench tests benchmarks

export: setup ## build llmops_workbench/ and README.md from the notebooks
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export
	@$(MAKE) --no-print-directory readme

readme: $(STAMP)
	$(BIN)/python tests/gate.py --write-readme

starter: setup ## train the starter model again (under an hour on 2 cores)
	$(BIN)/papermill nbs/training/starter.ipynb $(WORKSPACE)/runs/starter.ipynb -p profile full

constraints: ## write constraints.txt from the environment
	@{ head -1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' | sort -f; } > constraints.new && mv constraints.new constraints.txt

build: setup ## build the wheel into dist/
	$(BIN)/python -m build --wheel -q

clean: ## remove build products; the environment and the workspace stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache tests/artefacts
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
