# Every habit is a target; each says what it does and how long it took.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Each start of a trainer would else compile all that it imports: 22 s instead of 9 to its first step.
unexport PYTHONDONTWRITEBYTECODE

UV = $$(tools/uv.sh)
RUN = $(UV) run --frozen --no-sync
PYTEST = $(RUN) pytest
HELM = $$(python3 tools/kube.py --print-bin)/helm
HELM_LINT = if [ -x "$(HELM)" ]; then "$(HELM)" lint --strict charts/gemmatune; else echo "helm is not built: the chart is not linted (make kube)"; fi
# The backends xla and keras have environments of their own beside .venv, from the same lock.
IN_XLA = UV_PROJECT_ENVIRONMENT=.venv-xla $(UV)
IN_DOCS = UV_PROJECT_ENVIRONMENT=.venv-docs $(UV)
IN_AUDIT = UV_PROJECT_ENVIRONMENT=.venv-audit $(UV)
IN_KERAS = UV_PROJECT_ENVIRONMENT=.venv-keras $(UV)
OTHER_BACKENDS = tests/xla tests/keras tests/parity
# What is provoked on purpose: causes, kills, and faults of API server, store, objects and processes.
FAULTS = tests/faults $(wildcard tests/cluster/test_machinery_*.py) tests/cluster/test_operator_crash.py
# Options for `make demo`, such as DEMO="--steps 5".
DEMO ?=
# Images for `make image`; all where empty.
IMAGES ?=

define step
@start=$$(date +%s); echo "==> $(1)"; trap 'echo "==> $(1): $$(( $$(date +%s) - start )) s"' EXIT; $(2)
endef

.PHONY: release-state soak-upgrade test-images soak-xla soak-keras docs picture soak-fuzz audit help setup demo test test-unit test-cluster test-faults soak-faults chart soak-machinery soak-mutants soak-chaos test-trainer setup-xla test-xla setup-keras test-keras test-parity e2e clean-setup ci soak lint fmt generate kube prometheus test-observability bench-trainer bench-tpu bench-parity bench-prepare bench-operator

help: ## Show the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## Install uv where it is missing, and the environment of operator and torch trainer
	$(call step,environment,$(UV) sync --frozen --quiet --extra operator --extra torch)

setup-xla: ## The environment of backend xla
	$(call step,environment of xla,$(IN_XLA) sync --frozen --quiet --extra operator --extra xla)

setup-keras: ## The environment of backend keras
	$(call step,environment of keras,$(IN_KERAS) sync --frozen --quiet --extra operator --extra keras)

demo: setup ## Tune the real Gemma 3 270M on quotes, on this machine
	$(call step,demo,$(RUN) gft demo $(DEMO))

kube: ## Build the real Kubernetes control plane, KWOK and Helm into the cache (about 15 minutes, once)
	$(call step,control plane,python3 tools/kube.py)

prometheus: ## Put Debian's prometheus and promtool into the cache, where PATH has none
	$(call step,prometheus,python3 -m tools.prometheus)

test: setup kube node prometheus ## Unit, golden, real control plane, chart, end to end: all but the trainers' tests and test-faults
	$(call step,tests,$(PYTEST) -n 2 --dist loadfile tests --ignore=tests/trainer $(addprefix --ignore=,$(OTHER_BACKENDS) $(FAULTS)))

test-unit: setup ## Policies, API, planner, manifests: no control plane, no training
	$(call step,unit tests,$(PYTEST) tests/unit tests/golden)

test-cluster: setup kube ## What runs against the real control plane
	$(call step,cluster tests,$(PYTEST) tests/cluster tests/chart $(addprefix --ignore=,$(FAULTS)))

test-observability: setup kube prometheus ## Alerts by promtool, and the dashboard's queries over a scrape of the live operator
	$(call step,alerts and dashboard,$(PYTEST) tests/observability)

test-faults: setup kube ## Every cause of an attempt's end, and faults of the machinery, on the real control plane
	$(call step,causes and faults of the machinery,$(PYTEST) -n 3 --dist loadfile $(FAULTS))

soak-faults: setup kube ## Every cause 20 times; writes bench/results/faults.json
	$(call step,faults 20 times,FAULT_RUNS=20 FAULT_RESULTS=bench/results/faults.json $(PYTEST) tests/faults)

soak-machinery: setup kube ## Kill -9 at every single write of every story; each fault of the machinery five times
	$(call step,faults of the machinery,GEMMATUNE_SOAK=1 $(PYTEST) tests/cluster -k "machinery or crash")

soak-fuzz: setup kube ## Thousands of odd specs, statuses, configurations, rows and files
	$(call step,fuzzing,GEMMATUNE_SOAK=1 $(PYTEST) tests/security -k fuzz)

soak-mutants: setup ## Every condition of every policy made wrong: its tests must fail
	$(call step,mutants,GEMMATUNE_SOAK=1 $(PYTEST) tests/unit/test_mutants.py)

soak-chaos: setup ## 30 kills of the trainer, every fault of its storage, and what checkpoints cost; writes bench/results/chaos.json
	$(call step,chaos,$(RUN) python -m bench.chaos)

# Each of two workers has a core: with more threads they would wait for each other.
test-trainer: setup ## The trainer, on tiny models and on the real Gemma 3 270M
	$(call step,trainer tests,OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile tests/trainer)

test-xla: setup setup-xla kube ## Backend xla on virtual devices, and a TPU resource on the real control plane
	$(call step,xla tests,$(IN_XLA) run --frozen --no-sync pytest -n 2 --dist loadfile tests/xla)

soak-upgrade: setup setup-xla setup-keras ## Runs that former releases left midway go on, with xla and keras too; all moves
	$(call step,upgrade of xla,GEMMATUNE_SOAK=1 $(IN_XLA) run --frozen --no-sync pytest tests/xla/test_upgrade.py)
	$(call step,upgrade of keras,GEMMATUNE_SOAK=1 $(IN_KERAS) run --frozen --no-sync pytest tests/keras/test_upgrade.py)
	$(call step,moves between backends,GEMMATUNE_SOAK=1 $(PYTEST) tests/parity/test_parity.py tests/trainer/test_moves.py)

soak-xla: setup-xla ## Backend xla on eight virtual devices, and on the real Gemma 3 270M: LoRA and full
	$(call step,xla tests on 8 devices,CPU_NUM_DEVICES=8 GEMMATUNE_SOAK=1 $(IN_XLA) run --frozen --no-sync pytest tests/xla/test_backend.py)
	$(call step,two processes of xla,GEMMATUNE_SOAK=1 $(IN_XLA) run --frozen --no-sync pytest tests/xla/test_hosts.py)

test-keras: setup setup-keras kube ## Backend keras on virtual devices, and a TPU resource on the real control plane
	$(call step,keras tests,$(IN_KERAS) run --frozen --no-sync pytest -n 2 --dist loadfile tests/keras)

soak-keras: setup setup-keras kube ## Backend keras at full counts: every generation, the real Gemma 3 270M on eight devices, one host
	$(call step,Gemma 3 270M,$(RUN) python -c "from gemmatune_cli.local.model import gemma_3_270m; gemma_3_270m(print)")
	$(call step,keras tests at full counts,GEMMATUNE_SOAK=1 $(IN_KERAS) run --frozen --no-sync pytest tests/keras)

test-parity: setup setup-xla setup-keras ## The same run by torch, xla and keras: their adapters in plain PEFT
	$(call step,backends side by side,$(PYTEST) tests/parity)

node: ## Build kubelet and BuildKit into the cache, for the real node of the tests (once)
	$(call step,node,if [ "$$(id -u)" = 0 ]; then python3 tools/kube.py kubelet buildkit; else echo "a real node needs root: not built"; fi)

test-images: setup ## Build the images of operator and keras as root, and run them without root, network or a writable system
	$(call step,images,$(PYTEST) -s tests/images)

soak-images: setup kube node ## Build all four images, run each, and train in that of torch on a real kubelet; needs 30 GB of free disk
	$(call step,images,GEMMATUNE_SOAK=1 $(PYTEST) -s tests/images tests/e2e/test_real_trainer.py)

image: ## Build the images: operator, torch, xla, keras (IMAGES="operator torch": only these)
	$(call step,images,python3 -m tools.images $(IMAGES))

e2e: setup kube node ## kubectl apply -> operator -> Jobs -> trainer -> bucket; as root also in containers of a real kubelet
	$(call step,end to end,$(PYTEST) tests/e2e)

lint: setup ## Style, types, import directions, generated files, and the chart where Helm is built
	$(call step,lint,$(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) mypy && $(RUN) lint-imports && $(RUN) python -m gemmatune_api.generate --check && $(RUN) python -m tools.docs --check && $(HELM_LINT))

chart: setup kube ## The chart: what Helm renders, and its rights and policy on the real control plane
	$(call step,chart,$(HELM_LINT) && $(PYTEST) tests/chart)

fmt: setup ## Format the code
	$(call step,format,$(RUN) ruff format . && $(RUN) ruff check --fix .)

generate: setup ## Write the CRD and the generated pages of docs/
	$(call step,generate,$(RUN) python -m gemmatune_api.generate && $(RUN) python -m tools.docs)

release-state: setup setup-xla setup-keras ## Store what a run of this release leaves midway, for the tests of later ones
	$(call step,state of the release,$(RUN) python -m tests.data.release torch && $(IN_XLA) run --frozen --no-sync python -m tests.data.release xla && $(IN_KERAS) run --frozen --no-sync python -m tests.data.release keras)

clean-setup: ## `make demo` to its first step with an empty home and a PATH without uv and Go
	$(call step,clean set-up,tools/clean_setup.sh)

docs: ## Build the site of docs/ into site/; a dead link, or a page that is in no menu, is an error
	$(call step,environment of docs,$(IN_DOCS) sync --frozen --quiet --only-group docs --no-install-project)
	$(call step,docs,.venv-docs/bin/mkdocs build --strict --quiet)

picture: setup ## The picture of README, from a real demo
	$(call step,picture,$(RUN) gft demo --steps 20 > .venv/demo.txt && $(RUN) python -m tools.picture docs/pictures/demo.svg < .venv/demo.txt)

audit: setup setup-xla setup-keras ## Known weaknesses of the locked packages (asks the network), and docs/licences.md (does not)
	$(call step,environment of audit,$(IN_AUDIT) sync --frozen --quiet --only-group audit --no-install-project)
	$(call step,drivers of TPUs,for pair in xla:tpu keras:tpu-jax; do backend=$${pair%:*} extra=$${pair#*:}; $(UV) export --frozen --quiet --extra $$backend --extra $$extra --no-dev --no-emit-project | awk '/^libtpu==/ {on=1} /# via/ {on=0} on' > .venv-audit/$$extra.txt && $(UV) pip install --quiet --no-deps --python .venv-$$backend/bin/python --target .venv-audit/$$extra -r .venv-audit/$$extra.txt; done)
	$(call step,licences,$(RUN) python -m tools.licences)
	$(call step,weaknesses,for extras in "torch" "xla --extra tpu" "keras --extra tpu-jax"; do $(UV) export --frozen --quiet --extra operator --extra $$extras --no-dev --no-emit-project --output-file .venv-audit/requirements.txt && .venv-audit/bin/pip-audit --strict --disable-pip --require-hashes -r .venv-audit/requirements.txt; done)

bench-operator: setup kube ## The operator's speed beside a bare client and an empty kopf (about 15 minutes)
	$(call step,operator benchmark,$(RUN) python -m bench.operator)

bench-trainer: setup ## The trainer's speed and memory beside others, and its memory against the plan (about 25 minutes)
	$(call step,memory benchmark,$(RUN) python -m bench.memory)
	$(call step,trainer benchmark,$(RUN) python -m bench.trainer)

bench-tpu: setup setup-xla setup-keras ## Backends xla and keras on 1 to 8 virtual devices, beside transformers' Trainer
	$(call step,TPU benchmark,$(RUN) python -m bench.tpu)

bench-parity: setup setup-xla setup-keras ## The held-out loss of one run by torch, xla and keras
	$(call step,parity benchmark,PARITY_RESULTS=bench/results/parity.json $(PYTEST) tests/parity/test_parity.py -k agree)

bench-prepare: setup ## Speed and peak memory of a preparation, from ten thousand to a million rows
	$(call step,prepare benchmark,$(RUN) python -m bench.prepare)

ci: lint docs test test-trainer test-xla test-keras test-parity test-faults clean-setup ## What CI runs

soak: ci bench-trainer bench-tpu bench-parity bench-prepare bench-operator soak-faults soak-machinery soak-mutants soak-fuzz soak-chaos soak-images soak-xla soak-keras soak-upgrade ## Everything, with the benchmarks
