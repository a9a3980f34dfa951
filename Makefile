# make env    a working .venv in this checkout (dev/env/make_env.py says what it does)
# make demo   train and evaluate RS-Mask R-CNN on the digits set, on the CPU
# make test   all tests       make lint   style       make clean   remove what can be made again
# make fuzz   the tests of properties with 10,000 examples each, hours; make test has 200
#
# PYTHON=...   Python 3.10 to 3.12 to build .venv with     INSTALLER=uv   install with uv, not pip

PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: env demo test fuzz lint clean

env:
	@$(PYTHON) dev/env/make_env.py

demo: env
	$(RUN) train_net.py --config-file configs/quick/rs_mask_rcnn_digits.yaml

test: env
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile -q

fuzz: env
	RS_D2_FUZZ=nightly OMP_NUM_THREADS=1 $(RUN) -m pytest --timeout 0 -q tests/fuzz tests/losses tests/targets

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "kept: output/, the data sets, and the shared environment in the user's cache folder"
