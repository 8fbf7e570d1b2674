# Everything a fresh Debian 12 machine needs is installed by the targets themselves, once; what is there is skipped.

# Debian's own interpreter if it will do: it is built with optimisations that home-made ones often lack.
PYTHON ?= $(shell /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo /usr/bin/python3 || echo python3)
BIN    := .venv/bin
export PYTHON
# Where somebody has told Python to keep no compiled modules, each of the hundred processes that tests start would compile all of them anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help man chart container setup demo test check bench profile fuzz faults malformed slow soak survival runtime kerberos development peers probes restarts

help:
	@echo "make demo    install popproxy into .venv and start a guided demonstration (ARGS=--check plays it through)"
	@echo "make setup   install everything for development: .venv with the tools, mail servers and clients from Debian"
	@echo "make check   style, types, layers and the unit tests; under a minute"
	@echo "make test    make check, then the tests with real mail servers and clients; needs root"
	@echo "make man     write the manual pages anew, after a change of commands or configuration keys"
	@echo "make chart   write the chart's schema of the configuration anew, after a change of its keys"
	@echo "make container  do what the Dockerfile says in a clean Debian, and try out what comes of it; needs root"
	@echo "make restarts reload 100 times and kill 50 workers under load (ARGS=\"20 10\")"
	@echo "make bench   measure popproxy beside nginx, HAProxy, Dovecot and Perdition (ARGS=--quick; ARGS=--help); needs root"
	@echo "make fuzz    look for octets that a parser cannot bear, two million for each (ARGS=\"client --runs 10000\")"
	@echo "make faults  break servers, clients and links at every point of a session, and look what becomes of the mail"
	@echo "make survival kill popproxy under load, a hundred times, and look for what it has acknowledged in its audit log"
	@echo "make malformed  twenty thousand sessions of nonsense beside a healthy client; in the end nothing has grown"
	@echo "make slow    thousands of clients that are slow in one way or another, and how long others wait for a login"
	@echo "make soak    half an hour of load with a fault each second (ARGS=\"--minutes 10\")"
	@echo "make profile show what the proxy under load does with its CPU time (ARGS=--help); needs root"
	@echo
	@echo "PYTHON=/path/to/python3 chooses the interpreter (3.11 or newer)."

runtime:
	@tests/setup/venv.sh runtime

development:
	@tests/setup/venv.sh development

man: development
	@$(BIN)/python tests/setup/manual.py config/man

chart: development
	@$(BIN)/python tests/setup/chart.py helm/popproxy/values.schema.json

container: setup
	@$(BIN)/python -m tests.helm.container

peers:
	@tests/setup/debian.sh
	@tests/setup/helm.sh

probes: development
	@tests/setup/probes.sh

setup: development peers probes

fuzz: development
	@$(BIN)/python -m tests.fuzz $(ARGS)

survival: setup
	@$(BIN)/python -m tests.real.audit_survival $(ARGS)

faults: setup
	@tests/setup/bench.sh
	@$(BIN)/python -m tests.faults $(ARGS)

restarts: setup
	@$(BIN)/python -m tests.endurance.restarts $(ARGS)

malformed slow soak: setup
	@tests/setup/bench.sh
	@$(BIN)/python -m tests.endurance $@ $(ARGS)

bench: setup
	@tests/setup/bench.sh
	@$(BIN)/python -m tests.bench $(ARGS)

profile: setup
	@tests/setup/bench.sh
	@$(BIN)/python -m tests.bench.profiling $(ARGS)

kerberos: runtime
	@tests/setup/kerberos.sh

demo: kerberos
	@$(BIN)/popproxy demo $(ARGS)

check: development
	@tests/setup/check.sh

test: setup
	@tests/setup/check.sh
	@rm -f .venv/secrets-found
	@$(BIN)/pytest -q -n 4 --timeout 300 --reruns 1 -rR -m "real or long" $(ARGS) || { [ ! -e .venv/secrets-found ] && \
	    echo "what has failed once more, with servers of its own:" && \
	    $(BIN)/pytest -q -n 2 --last-failed --last-failed-no-failures none -m "real or long" $(ARGS); }
