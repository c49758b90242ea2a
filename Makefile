# tcptracker: `make` without a target lists the targets.

CARGO  ?= cargo
# The interface of the default route.
DEVICE ?= $(or $(shell ip route show default 2>/dev/null | sed -n '1s/.* dev \([^ ]*\).*/\1/p'),eth0)
DOCKER ?= docker
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 60
# The duration of `make test-abuse`.
MINUTES ?= 3
# The scenario of the end-to-end tests that `make check` runs: a real nmap, and a real drop.
SMOKE  ?= scenarios::scan::a_connect_scan_is_caught
HOST   := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# Makes the code report its coverage to libFuzzer, with options of the stable compiler only.
COVERAGE = -Cpasses=sancov-module -Ccodegen-units=1 -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
FUZZ_TARGETS := $(filter-out scratch,$(notdir $(basename $(wildcard fuzz/fuzz_targets/*.rs))))
# `make fuzz TARGET=config` names a parser. Otherwise TARGET is the directory below.
FUZZED  = $(if $(filter command,$(firstword $(origin TARGET))),$(TARGET),$(FUZZ_TARGETS))
# The directory into which cargo builds.
TARGET := $(or $(CARGO_TARGET_DIR),target)
# The completions and man pages, which are generated from the command definitions.
DOCS   ?= $(TARGET)/docs
# D-Bus reads policies in /usr/share (for packages) and in /etc (for everything else), but not in
# /usr/local. polkit reads actions in /usr/share only.
POLICY  = $(if $(filter /usr,$(PREFIX)),/usr/share,/etc)/dbus-1/system.d
UNIT    = $(PREFIX)/lib/systemd/system/tcptracker@.service
# Files for other programs: alerts and a dashboard.
DATA    = $(PREFIX)/share/tcptracker
CONFIG  = /etc/tcptracker/tcptracker.toml
ZSH_COMPLETIONS ?= $(PREFIX)/share/zsh/site-functions
# The installed files except the program and its configuration, as SOURCE:DESTINATION.
FILES = systemd/tcptracker@.service:$(UNIT) \
	packaging/tcptracker.sysusers:$(PREFIX)/lib/sysusers.d/tcptracker.conf \
	packaging/tcptracker.tmpfiles:$(PREFIX)/lib/tmpfiles.d/tcptracker.conf \
	packaging/tcptracker.catalog:$(PREFIX)/lib/systemd/catalog/tcptracker.catalog \
	dbus/org.tcptracker.Tracker1.conf:$(POLICY)/org.tcptracker.Tracker1.conf \
	dbus/org.tcptracker.Tracker1.xml:$(PREFIX)/share/dbus-1/interfaces/org.tcptracker.Tracker1.xml \
	dbus/org.tcptracker.Tracker1.policy:/usr/share/polkit-1/actions/org.tcptracker.Tracker1.policy \
	$(DOCS)/tcptracker.1:$(PREFIX)/share/man/man1/tcptracker.1 \
	$(DOCS)/tcptracker.toml.5:$(PREFIX)/share/man/man5/tcptracker.toml.5 \
	$(DOCS)/tcptracker.bash:$(PREFIX)/share/bash-completion/completions/tcptracker \
	$(DOCS)/_tcptracker:$(ZSH_COMPLETIONS)/_tcptracker \
	$(DOCS)/tcptracker.fish:$(PREFIX)/share/fish/vendor_completions.d/tcptracker.fish \
	packaging/prometheus/scrape.yml:$(DATA)/prometheus/scrape.yml \
	packaging/prometheus/tcptracker.rules.yml:$(DATA)/prometheus/tcptracker.rules.yml \
	packaging/grafana/tcptracker.json:$(DATA)/grafana/tcptracker.json

# To build: a linker, and the header files of libpcap and SQLite. To run: iptables (the sets need no program).
DEPS      = gcc libc6-dev libpcap-dev libsqlite3-dev iptables
# For tests and the demo: a scanner, namespaces, a bus with its tools, and tools that show the sets.
TEST_DEPS = $(DEPS) g++ nmap iproute2 ipset dbus systemd curl procps util-linux bsdutils mount e2fsprogs python3 \
	nftables conntrack python3-dbus python3-gi libglib2.0-bin polkitd python3-pyftpdlib \
	fish zsh mandoc man-db libfaketime systemd-container mmdebstrap debian-archive-keyring

# The Debian releases on which the tests install and run the package.
RELEASES  = bookworm trixie

# For building the packages.
DEB_DEPS  = $(DEPS) build-essential debhelper pkg-config
RPM_DEPS  = $(DEPS) pkg-config rpm

# For the test of the container image.
DOCKER_DEPS = podman crun mmdebstrap curl iproute2 nmap procps python3 util-linux

# Installs missing packages. Does not start apt if none is missing.
define install_missing
	@missing=; for package in $(1); do \
	    dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q '^install ok installed' \
	        || missing="$$missing $$package"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if ! command -v apt-get >/dev/null; then \
	    echo "apt-get not found: install the equivalents of these Debian packages yourself:$$missing"; exit 0; \
	fi; \
	as_root=; [ "$$(id -u)" = 0 ] || as_root=sudo; \
	echo "installing$$missing"; \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update </dev/null && \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
	    $$missing </dev/null
endef

# $(call abuse,SECONDS,OPTIONS): runs each of the three attackers for so long.
abuse = TCPTRACKER_ABUSE_SECONDS=$(1) $(CARGO) test --locked $(2) --test abuse -- --ignored --nocapture \
	    --test-threads=1

.PHONY: help deps test-deps firewalls prometheus machines build program check test test-system test-abuse test-all coverage docs reference corpus fuzz bench interface lint lint-prose lint-imports docker test-docker run demo install uninstall deb rpm packages clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

deps: ## install what building and running needs (Debian; with sudo unless root)
	$(call install_missing,$(DEPS))

test-deps: ## install what the tests and the demo need
	$(call install_missing,$(TEST_DEPS))

firewalls: ## unpack ufw and firewalld, without installing them, for the tests that run with them
	@tests/unpack-packages $(TARGET)/tmp/firewalls dbus-broker ufw firewalld python3-firewall \
	    python3-nftables python3-jsonschema python3-attr python3-pyrsistent

prometheus: ## unpack Prometheus, without installing it, for the tests of alerts and dashboard
	@tests/unpack-packages $(TARGET)/tmp/prometheus prometheus

machines: deb ## build the package, and Debian root file systems for the tests with a real systemd
	@set -e; for release in $(RELEASES); do \
	    tests/system/make-root $$release $(TARGET)/tmp/roots/$$release.tar; \
	done

build: program docs ## build the release, target/release/tcptracker, and its documentation

program: ## build only target/release/tcptracker
	$(CARGO) build --release --locked

docs: ## generate completions and man pages into target/docs
	$(CARGO) run --release --locked --package generate-docs -- $(DOCS)

check: lint ## format, lints, unit tests and one scan with nmap, in at most 3 minutes (as root; make test-deps)
	$(CARGO) test --locked --lib
	@# Without this line a renamed scenario would be skipped silently.
	@$(CARGO) test --quiet --locked --test e2e -- --exact --list $(SMOKE) | grep -qx '$(SMOKE): test' || \
	    { echo "no scenario $(SMOKE): correct SMOKE in the Makefile"; exit 1; }
	$(CARGO) test --locked --test e2e -- --exact $(SMOKE)

test: test-deps firewalls prometheus machines ## run all tests (as root: they use namespaces and machines)
	$(CARGO) test --locked
	@# The limits of the suite are times of the released program, which the package has built already.
	$(call abuse,60,--release)

test-system: test-deps machines ## run the package on Debian machines with a real systemd (as root)
	$(CARGO) test --locked --test system

test-all: test-docker ## run what takes too long for CI (as root): the image, abuse, 2,000 kills, an hour of fuzzing, the corpus
	$(MAKE) test-abuse MINUTES=30
	TCPTRACKER_KILLS=1000 $(CARGO) test --locked --release --test e2e -- --exact --nocapture \
	    scenarios::crashes::confirmed_changes_survive_any_crash
	$(MAKE) fuzz FUZZ_SECONDS=3600
	@if [ -n "$$TCPTRACKER_CORPUS" ]; then \
	    $(MAKE) corpus; \
	else \
	    echo "skipped make corpus: TCPTRACKER_CORPUS is not set"; \
	fi

test-abuse: test-deps ## attack the service as a user, a network and a failing system for MINUTES (as root)
	$(call abuse,$$(($(MINUTES) * 20)),--release)

coverage: test-deps ## run the tests and report how much of the code they reach
	@$(CARGO) llvm-cov --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-llvm-cov
	@if command -v rustup >/dev/null; then rustup component add llvm-tools; fi
	@# The tests also run the program as other users, which write coverage data here.
	@mkdir -p $(TARGET)/llvm-cov-target && chmod 1777 $(TARGET)/llvm-cov-target
	@$(MAKE) --no-print-directory firewalls prometheus TARGET=$(TARGET)/llvm-cov-target
	@# Without the tests on machines: an installed package does not report coverage.
	$(CARGO) llvm-cov --locked --lib --test docs --test e2e --test package --test workflows \
	    --lcov --output-path $(TARGET)/lcov.info
	$(CARGO) llvm-cov report --summary-only

reference: ## update packaging/tcptracker.toml and the table of keys in README.md from the code
	WRITE_DOCS=1 $(CARGO) test --locked --test docs

corpus: ## compare replay with the oracle's answers: make corpus TCPTRACKER_CORPUS=DIRECTORY
	@[ -n "$$TCPTRACKER_CORPUS" ] || \
	    { echo "TCPTRACKER_CORPUS is not set; use TCPTRACKER_CORPUS=DIRECTORY make corpus"; exit 2; }
	$(CARGO) test --locked --release --test corpus --test corpus_presets -- --nocapture

fuzz: test-deps ## fuzz the parsers for FUZZ_SECONDS in total, or one of them: make fuzz TARGET=config
	cd fuzz && RUSTFLAGS="$(COVERAGE)" $(CARGO) build --locked --release --target $(HOST)
	@# The parsers that read files read them from memory.
	@set -e; cd fuzz; seconds=$$(($(FUZZ_SECONDS) / $(words $(FUZZED)))); \
	scratch=$$(mktemp -d -p /dev/shm); trap 'rm -rf "$$scratch"' EXIT; \
	for target in $(FUZZED); do \
	    mkdir -p corpus/$$target seeds/$$target; \
	    echo "fuzzing $$target"; \
	    TMPDIR=$$scratch ./target/$(HOST)/release/$$target \
	        -max_total_time=$$((seconds > 1 ? seconds : 1)) \
	        -max_len=$$([ $$target = frame ] && echo 1024 || echo 4096) -timeout=10 \
	        -print_final_stats=1 corpus/$$target seeds/$$target; \
	done

bench: test-deps ## measure the costs, next to references in the same run (as root)
	$(CARGO) bench --locked --bench bench

interface: ## update the description of the D-Bus interface, dbus/*.xml, from the code
	TCPTRACKER_WRITE_INTERFACE=1 $(CARGO) test --locked --lib description

lint: lint-prose lint-imports ## check format, lints, the words in texts and the imports in src
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --locked --all-targets -- -D warnings

# Words that plain English does not need. The brackets keep this list from finding itself.
WORDS = who[e]ver|who[m]|ane[w]|for eve[r]|of lat[e]|had rathe[r]|likewis[e]|h[e]|hi[s]|hi[m]|himsel[f]
# Licence texts and lock files.
NOT_PROSE = ':!LICENSE' ':!debian/copyright' ':!*Cargo.lock'
# REMOVE THIS LINE when README.md has been rewritten.
NOT_PROSE += ':!README.md'

lint-prose: ## check that no text file in git contains one of the words that we do not use
	$(call install_missing,git)
	@git -c safe.directory='*' grep -nIwiE '$(WORDS)' -- . $(NOT_PROSE); \
	case $$? in \
	0) echo "rewrite these lines in plain English"; exit 1 ;; \
	1) ;; \
	*) exit 1 ;; \
	esac

lint-imports: ## check imports, threads, visibility and sizes in src
	$(call install_missing,python3)
	@tests/lint-imports --self-test
	@tests/lint-imports

docker: ## build the container image: make docker DOCKER=podman
	$(DOCKER) build -f packaging/docker/Dockerfile -t tcptracker .

test-docker: ## build the image without a registry, run it and scan it (as root; takes minutes)
	$(call install_missing,$(DEPS) $(DOCKER_DEPS))
	tests/docker-test $(TARGET)/tmp/docker

run: deps program ## run the service on an interface until Ctrl-C: make run DEVICE=eth0
	@packaging/run-from-source $(TARGET)/release/tcptracker $(DEVICE)

demo: test-deps program ## see how a port scan is caught, in temporary network namespaces
	@TCPTRACKER=$(abspath $(TARGET)/release/tcptracker) tests/demo.sh

install: ## install what `make build` built (as root; PREFIX, DESTDIR)
	@[ -x $(TARGET)/release/tcptracker ] || { \
	    echo "$(TARGET)/release/tcptracker does not exist: run make build first"; exit 1; }
	@[ -e $(DOCS)/tcptracker.1 ] || $(MAKE) --no-print-directory docs
	install -D -m 755 $(TARGET)/release/tcptracker $(DESTDIR)$(PREFIX)/bin/tcptracker
	$(foreach file,$(FILES),install -D -m 644 $(subst :, $(DESTDIR),$(file)) &&) true
	sed -i 's|/usr/bin/tcptracker|$(PREFIX)/bin/tcptracker|' $(DESTDIR)$(UNIT)
	@# Keep the administrator's configuration.
	[ -e $(DESTDIR)$(CONFIG) ] || install -D -m 644 packaging/tcptracker.toml $(DESTDIR)$(CONFIG)
ifeq ($(DESTDIR),)
	@# The user first: D-Bus looks it up when it reads the policy.
	-@! command -v systemd-sysusers >/dev/null || systemd-sysusers
	-@! command -v systemd-tmpfiles >/dev/null || systemd-tmpfiles --create tcptracker.conf
	-@! command -v journalctl >/dev/null || journalctl --update-catalog
	-@[ ! -d /run/systemd/system ] || systemctl daemon-reload
	-@[ ! -S /run/dbus/system_bus_socket ] || busctl call org.freedesktop.DBus \
	    /org/freedesktop/DBus org.freedesktop.DBus ReloadConfig
	@echo "tcptracker is installed. To watch an interface: systemctl enable --now tcptracker@$(DEVICE)"
endif

uninstall: ## stop all instances and remove what `make install` installed
ifeq ($(DESTDIR),)
	-@[ ! -d /run/systemd/system ] || { systemctl stop 'tcptracker@*.service'; \
	    systemctl disable tcptracker@.service; }
endif
	rm -f $(DESTDIR)$(PREFIX)/bin/tcptracker \
	    $(foreach file,$(FILES),$(DESTDIR)$(lastword $(subst :, ,$(file))))
	[ ! -d $(DESTDIR)$(DATA) ] || rmdir --ignore-fail-on-non-empty \
	    $(addprefix $(DESTDIR)$(DATA),/prometheus /grafana /)
	@# Keep a configuration that was changed.
	! cmp -s packaging/tcptracker.toml $(DESTDIR)$(CONFIG) || rm -f $(DESTDIR)$(CONFIG)
	[ ! -d $(DESTDIR)$(dir $(CONFIG)) ] || rmdir --ignore-fail-on-non-empty $(DESTDIR)$(dir $(CONFIG))
ifeq ($(DESTDIR),)
	-@! command -v journalctl >/dev/null || journalctl --update-catalog
	-@[ ! -d /run/systemd/system ] || systemctl daemon-reload
endif

deb: ## build the Debian package, target/debian/tcptracker_*.deb
	$(call install_missing,$(DEB_DEPS))
	rm -rf $(TARGET)/debian
	mkdir -p $(TARGET)/debian
	DEB_DIR=$(TARGET)/debian dpkg-buildpackage -us -uc -b -tc \
	    --buildinfo-option=-u$(TARGET)/debian --changes-option=-u$(TARGET)/debian \
	    --buildinfo-file=$(TARGET)/debian/tcptracker.buildinfo \
	    --changes-file=$(TARGET)/debian/tcptracker.changes
	@echo "To install it: apt install" $(abspath $(TARGET))/debian/tcptracker_*.deb

rpm: ## build the RPM package, target/rpm/tcptracker-*.rpm
	$(call install_missing,$(RPM_DEPS))
	rm -rf $(TARGET)/rpm
	@# --nodeps: rpm's database does not contain Debian's packages. brp-compress does not run with the shell it names.
	rpmbuild -bb --quiet --build-in-place --nodeps --define '_topdir $(abspath $(TARGET)/rpm)' \
	    --define '__brp_compress %{nil}' \
	    --define '_rpmdir %{_topdir}' --define '_rpmfilename %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm' \
	    packaging/rpm/tcptracker.spec

packages: deb rpm ## build both packages, check them with lintian and compare their files
	$(call install_missing,lintian)
	lintian --allow-root --fail-on error,warning $(TARGET)/debian/tcptracker.changes
	tests/compare-packages $(TARGET)/debian/tcptracker_*.deb $(TARGET)/rpm/tcptracker-*.rpm

clean: ## remove everything that was built
	$(CARGO) clean
