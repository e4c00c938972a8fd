# Both `make demo` and `make test` set up all they need first, once, in $(VENV).
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test lint format dist bench bench-memory readme default-model large-model ship-model
.PHONY: eval-model sheet clean help

VENV ?= .venv
# Any interpreter from 3.11 on that can make virtual environments: the first that answers.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& command -v "$$p" && break; done)
# The version the results are checked with. With an NVIDIA GPU say TORCH=torch for the newest.
TORCH ?= torch==2.13.0

PROMPT ?= red apple, 3d emoji
SEED ?= 6
DATA ?= data/artwork.zip
SIZE ?= 256
STYLES ?= fluent,flat,noto,twemoji
BACKGROUNDS ?= 0.5
SCENES ?= 900
QUALITY ?=
CONCEPTS ?= txt2img/train/default_model/concepts.txt
OUT ?= runs/default
CONFIG ?= txt2img/train/default_model/cpu.toml
MODEL ?= default
# What the default model goes on from; nothing for one of another shape.
WARM ?= default
SHEET := tests/pictures/sheet.png
GPU_CONFIG := txt2img/train/default_model/gpu.toml
PARTS := scheduler text_encoder tokenizer unet vae
# Of each file the tests run in one process, so that what they share is made once.
WORKERS ?= -n auto --maxprocesses 4 --dist loadfile
ARGS ?=
BENCH ?= bench.json
export PROMPT

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --quiet --disable-pip-version-check
# For downloads that take minutes: with pip's lines and bars, not on standard output.
PIP_SHOWN := $(PY) -m pip install --disable-pip-version-check

demo: $(VENV)/run.done ## draw PROMPT with SEED and print the picture's path
	@echo "Drawing \"$$PROMPT\" with seed $(SEED)" >&2
	@$(VENV)/bin/txt2img "$$PROMPT" --seed $(SEED) --output outputs/ $(ARGS)

test: $(VENV)/test.done ## run the tests (ARGS="-m slow" for the long ones)
	@echo "Running the tests" >&2
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest $(WORKERS) $(ARGS)

lint: $(VENV)/test.done ## check style and types
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy

format: $(VENV)/test.done ## lay the source out
	@$(VENV)/bin/ruff check --fix
	@$(VENV)/bin/ruff format

dist: $(VENV)/test.done ## build the wheel and the sdist into dist/ (PROJECT_URL is the address that README's links get)
	@$(PY) -m build --outdir dist

bench: $(VENV)/test.done ## time this and diffusers in one run, into BENCH (ARGS=--full for Stable Diffusion 1.5's size; DEVICE=cuda on a card)
	@$(PY) -m tests.bench.$(if $(filter cuda,$(DEVICE)),cuda,bench) --json "$(BENCH)" $(ARGS)

bench-memory: $(VENV)/test.done ## weigh loading and drawing at Stable Diffusion 1.5's size, and diffusers beside it, into BENCH
	@$(PY) -m tests.bench.memory --json "$(BENCH)" $(ARGS)

readme: $(VENV)/test.done ## write the list of folders into README.md
	@$(PY) -m tests.test_readme

default-model: $(VENV)/train.done $(DATA) ## train the default model on from the shipped one by CONFIG on DATA, a piece a call, and ship it
	@test -z "$(WARM)" -o -d $(OUT)/unet || $(PY) -m txt2img.train.default_model.warm_start --model $(WARM) --data $(DATA) --out $(OUT) --config $(CONFIG)
	$(VENV)/bin/txt2img train $(DATA) --out $(OUT) --config $(CONFIG) $(ARGS)
	@$(MAKE) --no-print-directory ship-model

large-model: $(VENV)/train.done $(DATA) ## train the default model on from WARM on a GPU for a quarter of an hour, and ship it
	@test -d runs/large/unet || $(PY) -m txt2img.train.default_model.warm_start --model $(WARM) --data $(DATA) --out runs/large --config $(GPU_CONFIG)
	@for stage in unet decoder alpha distill; do \
		$(VENV)/bin/txt2img train $(DATA) --out runs/large --config $(GPU_CONFIG) --stage $$stage $(ARGS) || exit 1; done
	@$(MAKE) --no-print-directory ship-model OUT=runs/large

ship-model: ## put the model in OUT into the package
	@test -f $(OUT)/model_index.json -a -f $(OUT)/vae/config.json \
		|| { echo "$(OUT) holds no whole model yet: train it first" >&2; exit 1; }
	@rm -rf txt2img/weights/default && mkdir -p txt2img/weights/default
	@cp -R $(OUT)/model_index.json $(OUT)/txt2img.json $(PARTS:%=$(OUT)/%) $(wildcard $(OUT)/lora $(OUT)/words.json) txt2img/weights/default/

eval-model: $(VENV)/train.done $(DATA) ## measure MODEL against DATA
	$(PY) -m txt2img.train.default_model.evaluate --model $(MODEL) --data $(DATA) --captions 300 --seeds 0,1,2 --cost $(ARGS)

sheet: $(VENV)/run.done ## draw the README's sheet of prompts with MODEL
	@$(PY) -m txt2img.train.default_model.evaluate --model $(MODEL) --prompts $(SHEET:.png=.txt) --sheet $(SHEET) --columns 8 $(ARGS)

$(DATA): | $(VENV)/train.done
	@echo "Drawing the training pictures into $@: the icon sets come from the npm registry" >&2
	@mkdir -p "$(dir $@)"
	@$(PY) -m txt2img.train.default_model.build_dataset --out "$@" --size $(SIZE) --styles $(STYLES) --backgrounds $(BACKGROUNDS) \
		--scenes $(SCENES) $(QUALITY:%=--quality %) $(CONCEPTS:%=--concepts %)

clean: ## remove the environment and the tools' caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

$(VENV)/torch.done:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with the venv module was found. Install one" \
		"(on Debian: apt install python3-venv) or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Making a virtual environment in $(VENV) with $$("$(PYTHON)" --version)" >&2
	@"$(PYTHON)" -m venv "$(VENV)"
	@echo "Installing $(TORCH): a large download, once" >&2
	@$(PIP_SHOWN) "$(TORCH)" >&2 || { echo "$(TORCH) is not to be had here: taking the newest torch" >&2; \
		$(PIP_SHOWN) "torch>=2.11,<3" >&2; }
	@touch $@

$(VENV)/run.done: $(VENV)/torch.done pyproject.toml
	@echo "Installing txt2img and what it needs" >&2
	@$(PIP_SHOWN) --editable . >&2
	@touch $@

$(VENV)/test.done: $(VENV)/run.done
	@echo "Installing what the tests need: pytest, diffusers, ruff, mypy" >&2
	@$(PIP) --editable ".[test]"
	@$(PIP) --no-deps "spandrel>=0.4.2,<0.5" einops opencv-python-headless \
		k-diffusion torchsde trampoline torchdiffeq
	@touch $@

$(VENV)/train.done: $(VENV)/run.done
	@echo "Installing what draws the training pictures" >&2
	@$(PIP) --editable ".[train]"
	@touch $@
