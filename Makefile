# Each target makes .venv by itself when it is missing or older than what it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests in this many processes, a lesson or a file at a time, each of one thread: more threads make small models slower.
# Lesson 05 goes first, for it trains what the later ones would wait for.
# Bars move every ten seconds: nbval reads a cell's messages only when it has ended, and many of them are lost by then.
PROCESSES ?= 2

.PHONY: help run test lab notebooks colab bench

help:
	@echo "make run        align the tiny Llama end to end and write the report (minutes, no GPU, no download of models)"
	@echo "make test       run every test"
	@echo "make lab        open the lessons in JupyterLab"
	@echo "make notebooks  execute the lessons and keep their outputs"
	@echo "make colab      REPO=owner/name: write that address into the lessons, for Colab"
	@echo "make bench      measure what the README claims about time"

# torch comes first and by its pin: an open range can pull gigabytes of CUDA onto a machine without a GPU.
$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV): a few minutes the first time."
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version.split()[0]'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "  pip ..." && $(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@echo "  torch ..." && $(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	@echo "  the rest ..." && PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab,dev]'
	@touch $(STAMP)
	@echo "  done."

run: $(STAMP)
	@echo "Aligning the tiny Llama: SFT, reward model, PPO, DPO, evaluation."
	@$(BIN)/rlhf-lab run

test: $(STAMP)
	@echo "Lint, then every cell of the lessons (those tagged nbval-check-output are compared) and every test."
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@OMP_NUM_THREADS=1 TQDM_MININTERVAL=10 $(BIN)/python -m pytest --nbval-lax --nbval-current-env \
		--numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder \
		notebooks/05_* $(filter-out notebooks/05_%,$(sort $(wildcard notebooks/*.ipynb))) tests

lab: $(STAMP)
	@echo "Opening JupyterLab; Ctrl-C here closes it."
	@$(BIN)/rlhf-lab lab

notebooks: $(STAMP)
	@echo "Executing the lessons."
	@$(BIN)/python -m rlhf_lab.lessons

colab: $(STAMP)
	@$(BIN)/python -m rlhf_lab.lessons --colab "$(REPO)"

bench: $(STAMP)
	@echo "The chain, the sliders, PPO beside TRL's: leave the machine alone meanwhile, about an hour on two cores."
	@$(BIN)/python bench/chain.py
	@$(BIN)/python bench/sliders.py
	@$(BIN)/python bench/ppo_vs_trl.py
	@$(BIN)/python bench/ppo_quality.py
