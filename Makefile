# make help says what there is. Everything is installed into this folder: .venv*, .cache, tests/conformance/js/node_modules.

PYTHON ?= $(shell .ci/python)
NEWEST ?= $(shell .ci/python newest)
PYTEST_FLAGS ?=

# The oldest releases that pyproject.toml allows. boto3 follows from the botocore that aiobotocore asks for.
OLDEST := 'aiobotocore==2.13.0' 'aiohttp==3.12.0'
# The AWS CLI asks for exactly one botocore, which would decide ours: it lives alone.
AWS_CLI := 'awscli>=1.38,<2'
# Model servers bring web frameworks, scikit-learn and pandas, 350 MB of them, and bounds on what we use: alone as well.
MODEL_SERVERS := 'mlflow-skinny>=3.10,<4' 'litserve>=0.2.19,<1' 'scikit-learn>=1.5,<2' 'skops>=0.13,<1' 'pandas>=2.2,<4'
# Engines that score batches: 1.1 GB. Most of it is Spark, whose source is built into a wheel here.
ENGINES := -e '.[ray,spark,dask,daft]'

# Libraries on OpenAI's SDK. LiteLLM alone has 60 MB.
OPENAI_CLIENTS := 'openai>=3.57,<4' 'langchain-openai>=1.7,<2' 'pydantic-ai-slim[openai]>=2.68,<3' 'litellm>=1.83,<2'
# AWS's own generator of tokens, which needs none of what sagemaker-core asks for but botocore.
TOKEN_GENERATOR := 'sagemaker-core>=2.27,<3'

# What another aiohttp or aiobotocore could break, and what another Python could. What starts tasks, or may be called in
# them, runs on the newest Python with eager tasks, everything else there without. The rest has run before on this
# machine's own, and so have the long ones.
ON_AIOHTTP := tests/cancellation tests/client tests/transport tests/aws/test_s3.py tests/endpoint/test_jobs.py \
	tests/local/test_async_inference.py
ON_EAGER_TASKS := tests/client tests/endpoint tests/aws tests/bidirectional tests/cancellation tests/core tests/transport \
	tests/batch/test_calls.py tests/integrations/test_fastapi.py tests/integrations/test_opentelemetry.py \
	--ignore=tests/endpoint/serializers
ON_PYTHON := tests/core/test_storms.py tests/soak tests/endpoint/serializers/test_csvtext.py tests/endpoint/serializers/test_jsontext.py \
	tests/local/test_runtime.py tests/local/test_streams.py tests/wire/test_event_signing.py
# What most changes break first.
ESSENTIAL := tests/wire tests/policy tests/core tests/client tests/testing tests/test_import_contract.py
# What has its own lane in .ci/run.
ON_FILES := tests/batch tests/bench tests/docs
ON_PROGRAMS := tests/cli tests/conformance tests/packaging tests/test_docs.py

# AWS's client of bidirectional streams, which needs Python 3.12 or newer.
AWS_HTTP2 := 'aws-sdk-sagemaker-runtime-http2>=0.12,<0.13' 'awscrt>=0.31,<0.40'

JS := tests/conformance/js
export AIOSMRT_TEST_AWS := $(CURDIR)/.venv-awscli/bin/aws
export AIOSMRT_TEST_MODELS := $(CURDIR)/.venv-models/bin/python
export AIOSMRT_TEST_HTTP2 := $(CURDIR)/.venv-http2/bin/python
export AIOSMRT_TEST_ENGINES := $(CURDIR)/.venv-engines/bin/python
export AIOSMRT_TEST_OPENAI := $(CURDIR)/.venv-openai/bin/python

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all test-models test-engines test-batch test-programs test-rest test-newest test-oldest lint types contract package docs bench soak clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{ printf "  make %-13s %s\n", $$1, $$2 }'

demo: .venv/.demo ## the main job: score 1,797 digits through a local SageMaker Runtime
	@mkdir -p .cache
	@.venv/bin/aiosmrt demo --report .cache/demo.html

test: .venv/.dev ## the tests to run again and again: what wire, policies, core and client do, on two processes
	.venv/bin/python -m pytest -n 2 --dist loadscope -m 'not long' $(ESSENTIAL) $(PYTEST_FLAGS)

test-all: .venv/.dev peers ## all tests but those of test-engines
	.venv/bin/python -m pytest --ignore=tests/engines $(PYTEST_FLAGS)

test-models: .venv/.dev .venv-models/.installed .venv-openai/.installed ## the tests with model servers and clients of other makers alone
	.venv/bin/python -m pytest tests/models $(PYTEST_FLAGS)

test-engines: .venv/.dev .venv-engines/.installed ## jobs on Ray, Spark, Dask and Daft; installs 1.1 GB, and Java on Debian
	.venv/bin/python -m pytest tests/engines $(PYTEST_FLAGS)

test-batch: .venv/.dev peers ## batch jobs, load tests and the documentation's site alone
	.venv/bin/python -m pytest $(ON_FILES) $(PYTEST_FLAGS)

test-programs: .venv/.dev peers ## the command line, other makers' clients and the pages' snippets alone
	.venv/bin/python -m pytest $(ON_PROGRAMS) $(PYTEST_FLAGS)

# What .ci/run leaves to its other lanes.
test-rest: .venv/.dev peers ## all tests but those of the targets above
	.venv/bin/python -m pytest -m long $(ESSENTIAL) $(PYTEST_FLAGS)
	.venv/bin/python -m pytest $(addprefix --ignore=,tests/engines tests/models $(ESSENTIAL) $(ON_FILES) $(ON_PROGRAMS)) $(PYTEST_FLAGS)

test-newest: ## the tests on the newest Python of this machine
	@test -n "$(NEWEST)"
	@$(MAKE) --no-print-directory .venv-newest/.test peers
	.venv-newest/bin/python -m pytest $(ON_PYTHON) $(PYTEST_FLAGS)
	.venv-newest/bin/python -m pytest --eager -m 'not long' $(ON_EAGER_TASKS) $(PYTEST_FLAGS)

test-oldest: .venv-oldest/.test peers ## the tests on the oldest aiobotocore and aiohttp, calls through aiohttp's session
	.venv-oldest/bin/python -m pytest --transport=session -m 'not long' $(ON_AIOHTTP) $(PYTEST_FLAGS)

lint: .venv/.dev ## ruff, spelling, wording, workflows
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/codespell
	.venv/bin/python .ci/wording.py
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/zizmor --offline --quiet .github/workflows

types: .venv/.dev ## mypy --strict and pyright
	.venv/bin/mypy --strict
	.venv/bin/pyright --pythonpath .venv/bin/python

contract: .venv/.dev ## which room may import which
	.venv/bin/lint-imports

package: ## sdist and wheel, tried outside this checkout: the README's first lines, and the demonstration
	@.ci/package "$(PYTHON)"

docs: .venv/.dev ## the documentation as a site, .cache/site/index.html; any warning fails
	.venv/bin/python docs/_site/build.py

bench: .venv/.dev ## calls, large bodies, streams and endpoints beside boto3, aiobotocore, bare aiohttp and asyncio alone
	.venv/bin/python benchmarks/overhead.py
	.venv/bin/python benchmarks/uploads.py
	.venv/bin/python benchmarks/stream.py
	.venv/bin/python benchmarks/endpoint.py

soak: .venv/.dev ## 200,000 calls, some of which go wrong, and nothing left in the end
	.venv/bin/python -X dev -m tests.soak.soak

clean: ## remove what the other targets installed
	rm -rf .venv .venv-newest .venv-oldest .venv-awscli .venv-models .venv-http2 .venv-engines .venv-openai .venv-package .venv-bare .venv-wheel \
		.cache dist .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache $(JS)/node_modules

.venv/.demo: pyproject.toml
	@.ci/environment .venv "$(PYTHON)" -e '.[demo]'
	@touch $@

.venv/.dev: pyproject.toml
	@.ci/environment .venv "$(PYTHON)" -e '.[demo]' --group dev
	@touch $@ .venv/.demo

.venv-newest/.test: pyproject.toml
	@.ci/environment .venv-newest "$(NEWEST)" -e '.[demo]' --group test
	@touch $@

.venv-oldest/.test: pyproject.toml
	@.ci/environment .venv-oldest "$(PYTHON)" -e '.[demo]' --group test $(OLDEST)
	@touch $@

# Clients and model servers of other makers. Their tests skip, with a reason, what is not there; .ci/run insists on all
# of them.
.PHONY: peers
peers: .venv-awscli/.installed .venv-models/.installed .venv-openai/.installed .venv-http2/.installed $(if $(shell command -v npm),$(JS)/node_modules/.installed)

.venv-awscli/.installed: Makefile
	@.ci/environment .venv-awscli "$(PYTHON)" $(AWS_CLI)
	@touch $@

.venv-models/.installed: Makefile
	@.ci/environment .venv-models "$(PYTHON)" $(MODEL_SERVERS)
	@touch $@

.venv-http2/.installed: Makefile
	@if "$(NEWEST)" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then \
		.ci/environment .venv-http2 "$(NEWEST)" $(AWS_HTTP2) && touch $@; fi

# Compressing Spark's wheel, which is unpacked at once, would take a minute.
.venv-engines/.installed: pyproject.toml Makefile .ci/stored-wheels.cfg
	@.ci/java
	@DIST_EXTRA_CONFIG=$(CURDIR)/.ci/stored-wheels.cfg .ci/environment .venv-engines "$(PYTHON)" $(ENGINES)
	@touch $@

.venv-openai/.installed: Makefile pyproject.toml
	@.ci/environment .venv-openai "$(PYTHON)" -e '.[openai]' boto3 $(OPENAI_CLIENTS)
	@.ci/environment .venv-openai "$(PYTHON)" --no-deps $(TOKEN_GENERATOR)
	@touch $@

$(JS)/node_modules/.installed: $(JS)/package-lock.json
	@cd $(JS) && npm ci --silent
	@touch $@
