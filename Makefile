# make quickstart   sets up .venv and runs the first recipe        make test       what CI runs
# make test-all     slow tests too                                 make bench      benchmarks, side by side (hours)
# make lint         ruff, mypy, import-linter                      make docs       the site, into build/site
# make test-processors   the tests as on processors without AVX-512, without AVX2, and with two threads (an hour)
# make clean        removes .venv and outputs
#
# make bench compares with what you have at hand: DATA=DIR (the data sets that recipes/configs name), NANOGPT=DIR (a checkout of
# karpathy/nanoGPT), SCRIPT=FILE (run_classification.py of huggingface/transformers) with MODEL=DIR (MiniLM), TRANSLATION=FILE
# (run_translation.py of the same) with TRAINED=DIR (the output folder of recipes/configs/multi30k_en_de.yaml).
PYTHON ?= python3
# The CPU build of torch that the project is tested with. On Linux your index may serve a CUDA build of several GB under this
# name; say where the CPU wheels are: make quickstart TORCH="torch==2.13.0 --index-url URL" (see pytorch.org, "Get started").
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

.PHONY: quickstart test test-all test-processors lint docs bench clean
quickstart: $(VENV)/quickstart
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no recipes/gpt2_clm.py --overwrite

test: lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: lint
	$(BIN)/python -m pytest

test-processors: $(VENV)/dev
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/dev
	$(BIN)/python docs/settings_page.py
	$(BIN)/python -m sphinx -b html -W --keep-going -q -d build/doctrees docs build/site

bench: export HF_HUB_OFFLINE := 1
bench: $(VENV)/dev
	$(BIN)/python benchmarks/saving.py
	$(BIN)/python benchmarks/packing.py $(if $(DATA),--data $(DATA))
	$(if $(NANOGPT),$(BIN)/python benchmarks/nanogpt.py --nanogpt $(NANOGPT) --data $(DATA)/lm_tinyshakespeare_en)
	$(if $(SCRIPT),$(BIN)/python benchmarks/run_classification.py --script $(SCRIPT) --model $(MODEL) --data $(DATA)/cls_sst2_en)
	$(if $(TRANSLATION),$(BIN)/python benchmarks/run_translation.py --script $(TRANSLATION) --data $(DATA)/mt_multi30k_en_de $(if $(TRAINED),--trained $(TRAINED) --bf16))
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf $(VENV) out build dist

$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	touch $@

$(VENV)/quickstart: $(VENV)/torch pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[report]"
	touch $@

$(VENV)/dev: $(VENV)/torch pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,peft,quantize,report]"
	touch $@
