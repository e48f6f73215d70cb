# bosh-containerd-cpi. `make help` lists what there is.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
API := runtimes/containerd/api
# Processes that run the tests; a file of tests stays in one.
WORKERS ?= 2
PROTOS := $(wildcard proto/$(API)/*.proto)

# What the CPI and its tests run on a Debian or Ubuntu machine.
PACKAGES := containerd runc openssl containernetworking-plugins nftables iproute2 e2fsprogs xfsprogs fdisk \
	util-linux qemu-utils mmdebstrap pigz python3-venv libvirt-dev pkg-config gcc libc6-dev python3-dev
TEST_PACKAGES := golang-github-containerd-containerd-dev debian-archive-keyring \
	iptables docker.io docker-registry skopeo umoci apache2-utils procps openssh-client \
	ruby libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 ovmf libxml2-utils dnsmasq-base

.DEFAULT_GOAL := help
.PHONY: help client install uninstall setup packages test-packages demo stemcell release test test-fast test-host lint fmt bench bench-calls bench-service bench-disks bench-stemcells bench-kvm bench-scale proto clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: packages $(VENV)/.done proto ## install Debian packages (as root), the virtual environment, protobufs

packages:
	@tools/apt-install $(PACKAGES)

test-packages:
	@tools/apt-install --idle $(TEST_PACKAGES)

$(VENV)/.done: requirements.lock pyproject.toml
	@echo "installing the locked Python packages into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

proto: $(VENV)/.proto ## generate containerd's messages from proto/

$(VENV)/.proto: $(PROTOS) $(VENV)/.done
	@echo "generating $(API) from proto/"
	@$(BIN)/python -m grpc_tools.protoc --proto_path=proto --python_out=. --pyi_out=. $(PROTOS)
	@touch $@

client: ## make the thin client build/cpi.pyz, one file for any Python from 3.10 on
	@$(PYTHON) -m tools.client_zipapp

install: setup ## install or upgrade the CPI on this host, and prepare the host (PREFIX=/opt/bosh-containerd-cpi)
	@tools/install $(or $(PREFIX),/opt/bosh-containerd-cpi)

uninstall: ## remove all that an installation leaves, after a question (OPTIONS="--dry-run", "--yes --vms")
	@$(or $(PREFIX),/opt/bosh-containerd-cpi)/current/bin/bosh-cpi setup --undo $(OPTIONS)

demo: setup ## run a VM's whole life through the cpi executable (STEMCELL=path, INIT=runit, ADDRESS=socket)
	@$(BIN)/python -m demo.demo $(if $(INIT),--init $(INIT)) \
		$(if $(STEMCELL),--stemcell $(STEMCELL)) $(if $(ADDRESS),--address $(ADDRESS))

stemcell: setup ## make a stemcell from Debian's packages (INIT=systemd|runit, AGENT=path MONIT=path)
	@$(BIN)/python -m testing.stemcells.make_stemcell --init $(or $(INIT),systemd) \
		$(if $(AGENT),--agent $(AGENT)) $(if $(MONIT),--monit $(MONIT)) $(if $(OUTPUT),--output $(OUTPUT))

release: $(VENV)/.done ## make the BOSH release in build/, by BOSH's CLI where there is one (VERSION=1.2.3)
	@$(BIN)/python -m tools.release_tarball $(if $(VERSION),--version $(VERSION))

test: setup test-packages lint ## run everything: real daemons, as root
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-fast: $(VENV)/.done proto ## run what needs neither root nor a daemon, in seconds
	@$(BIN)/python -m pytest -m "not integration"

test-host: setup test-packages ## run what needs a whole host, in a QEMU guest of Debian (SUITE=bookworm, LOGS=folder)
	@BOSH_CPI_TEST_HOST=all $(if $(SUITE),BOSH_CPI_TEST_HOST_SUITE=$(SUITE)) \
		$(if $(LOGS),BOSH_CPI_TEST_HOST_LOGS=$(LOGS)) $(BIN)/python -m pytest -o faulthandler_timeout=5400 tests/host

lint: $(VENV)/.done proto ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

fmt: $(VENV)/.done ## format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench-disks: setup ## time persistent disks: calls, and fio in a VM beside the host (RUNS=5)
	@tools/apt-install fio
	@$(BIN)/python -m bench.bench_disks $(if $(RUNS),--runs $(RUNS))

bench: bench-calls bench-service bench-disks bench-stemcells bench-kvm ## all benchmarks

bench-calls: setup ## time every call of the contract as a process (STEMCELL=path, RUNS=7, VMS=50)
	@$(BIN)/python -m bench.bench_calls $(if $(STEMCELL),--stemcell $(STEMCELL)) \
		$(if $(RUNS),--runs $(RUNS)) $(if $(VMS),--vms $(VMS))

bench-service: setup ## time the thin client through the service (RUNS=21)
	@$(BIN)/python -m bench.bench_service $(if $(RUNS),--runs $(RUNS))

bench-stemcells: setup ## time stemcells beside ctr, docker, skopeo, and by hand (SIZES=50,100 RUNS=3)
	@tools/apt-install --idle docker.io skopeo
	@$(BIN)/python -m bench.bench_stemcells $(if $(STEMCELL),--stemcell $(STEMCELL)) \
		$(if $(SIZES),--sizes "$(SIZES)") $(if $(RUNS),--runs $(RUNS))

bench-kvm: setup test-packages ## time every call on full VMs (RUNS=5)
	@$(BIN)/python -m bench.bench_kvm $(if $(RUNS),--runs $(RUNS))

bench-scale: setup ## time calls as VMs become many, and bring 100 back after a restart (SIZE=500)
	@$(BIN)/python -m bench.bench_scale $(if $(SIZE),--size $(SIZE))

clean: ## remove what the targets above made here
	rm -rf $(VENV) .cache .hypothesis build dist .mypy_cache .ruff_cache .pytest_cache *.egg-info $(API)/*_pb2.py $(API)/*_pb2.pyi
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
