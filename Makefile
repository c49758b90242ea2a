# tcptracker: what there is to do. `make` alone lists it.

CARGO  ?= cargo
DEVICE ?= eth0
DOCKER ?= docker
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 60
HOST   := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# What libFuzzer needs to be told of the code it runs; the compiler's stable options suffice.
COVERAGE = -Cpasses=sancov-module -Ccodegen-units=1 -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
# Where cargo puts what it builds.
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Where what is installed is looked for. The bus reads policies in /usr/share (packages) and in /etc
# (everybody else), not in /usr/local; polkit reads actions in /usr/share only.
POLICY  = $(if $(filter /usr,$(PREFIX)),/usr/share,/etc)/dbus-1/system.d
UNIT    = $(PREFIX)/lib/systemd/system/tcptracker@.service
# What other programs are given: alerts and a dashboard.
DATA    = $(PREFIX)/share/tcptracker
CONFIG  = /etc/tcptracker/tcptracker.toml
ZSH_COMPLETIONS ?= $(PREFIX)/share/zsh/site-functions
# What is installed besides the program and its configuration, and as what.
FILES = systemd/tcptracker@.service:$(UNIT) \
	packaging/tcptracker.sysusers:$(PREFIX)/lib/sysusers.d/tcptracker.conf \
	packaging/tcptracker.tmpfiles:$(PREFIX)/lib/tmpfiles.d/tcptracker.conf \
	packaging/tcptracker.catalog:$(PREFIX)/lib/systemd/catalog/tcptracker.catalog \
	dbus/org.tcptracker.Tracker1.conf:$(POLICY)/org.tcptracker.Tracker1.conf \
	dbus/org.tcptracker.Tracker1.xml:$(PREFIX)/share/dbus-1/interfaces/org.tcptracker.Tracker1.xml \
	dbus/org.tcptracker.Tracker1.policy:/usr/share/polkit-1/actions/org.tcptracker.Tracker1.policy \
	packaging/man/tcptracker.1:$(PREFIX)/share/man/man1/tcptracker.1 \
	packaging/man/tcptracker.toml.5:$(PREFIX)/share/man/man5/tcptracker.toml.5 \
	packaging/completions/tcptracker.bash:$(PREFIX)/share/bash-completion/completions/tcptracker \
	packaging/completions/_tcptracker:$(ZSH_COMPLETIONS)/_tcptracker \
	packaging/completions/tcptracker.fish:$(PREFIX)/share/fish/vendor_completions.d/tcptracker.fish \
	packaging/prometheus/scrape.yml:$(DATA)/prometheus/scrape.yml \
	packaging/prometheus/tcptracker.rules.yml:$(DATA)/prometheus/tcptracker.rules.yml \
	packaging/grafana/tcptracker.json:$(DATA)/grafana/tcptracker.json

# Build: a linker, libpcap's and SQLite's header files. Run: iptables (the sets need no program).
DEPS      = gcc libc6-dev libpcap-dev libsqlite3-dev iptables
# Tests and demo: a scanner, namespaces, a bus and its tools, what shows the sets.
TEST_DEPS = $(DEPS) g++ nmap iproute2 ipset dbus systemd curl procps util-linux bsdutils mount e2fsprogs python3 \
	nftables conntrack python3-dbus python3-gi libglib2.0-bin polkitd python3-pyftpdlib \
	fish zsh mandoc man-db libfaketime systemd-container mmdebstrap debian-archive-keyring

# The releases of Debian on which the package is installed and run.
RELEASES  = bookworm trixie

# The packages: what builds them, and what looks them over.
DEB_DEPS  = $(DEPS) build-essential debhelper pkg-config
RPM_DEPS  = $(DEPS) pkg-config rpm

# The test of the container image.
DOCKER_DEPS = podman crun mmdebstrap curl iproute2 nmap procps python3 util-linux

# Packages that are not there are installed; where all are, apt is not asked.
define install_missing
	@missing=; for package in $(1); do \
	    dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q '^install ok installed' \
	        || missing="$$missing $$package"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if ! command -v apt-get >/dev/null; then \
	    echo "no apt-get here; see to it that there is what Debian calls:$$missing"; exit 0; \
	fi; \
	as_root=; [ "$$(id -u)" = 0 ] || as_root=sudo; \
	echo "installing$$missing"; \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update </dev/null && \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
	    $$missing </dev/null
endef

.PHONY: help deps test-deps firewalls prometheus machines build test test-system coverage docs corpus fuzz bench interface lint docker test-docker run demo install uninstall deb rpm packages clean

help: ## list what there is to do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

deps: ## install what building and running needs (Debian; with sudo unless root)
	$(call install_missing,$(DEPS))

test-deps: ## install what tests and demo need as well
	$(call install_missing,$(TEST_DEPS))

firewalls: ## unpack ufw and firewalld, without installing them, for the tests beside them
	@tests/unpack-packages $(TARGET)/tmp/firewalls dbus-broker ufw firewalld python3-firewall \
	    python3-nftables python3-jsonschema python3-attr python3-pyrsistent

prometheus: ## unpack Prometheus, without installing it, for the tests of alerts and dashboard
	@tests/unpack-packages $(TARGET)/tmp/prometheus prometheus

machines: deb ## build the package, and roots of Debian to install it in, for the tests on a real systemd
	@set -e; for release in $(RELEASES); do \
	    tests/system/make-root $$release $(TARGET)/tmp/roots/$$release.tar; \
	done

build: ## build the release, target/release/tcptracker
	$(CARGO) build --release --locked

test: test-deps firewalls prometheus machines ## run all tests (as root, for those in namespaces and on machines)
	$(CARGO) test --locked

test-system: test-deps machines ## run the package on Debian machines with a real systemd (as root)
	$(CARGO) test --locked --test system

coverage: test-deps ## run the tests and tell how much of the code they reach
	@$(CARGO) llvm-cov --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-llvm-cov
	@if command -v rustup >/dev/null; then rustup component add llvm-tools; fi
	@# Tests run the program as other users, who write down what it has reached as well.
	@mkdir -p $(TARGET)/llvm-cov-target && chmod 1777 $(TARGET)/llvm-cov-target
	@$(MAKE) --no-print-directory firewalls prometheus TARGET=$(TARGET)/llvm-cov-target
	@# Not those on machines: what a package installs tells nothing.
	$(CARGO) llvm-cov --locked --lib --test docs --test e2e --test package --test workflows \
	    --lcov --output-path $(TARGET)/lcov.info
	$(CARGO) llvm-cov report --summary-only

docs: ## write completions, man pages and the commented configuration anew, from the code
	WRITE_DOCS=1 $(CARGO) test --locked --test docs

corpus: ## hold replay against the oracle's answers: make corpus TCPTRACKER_CORPUS=FOLDER
	@[ -n "$$TCPTRACKER_CORPUS" ] || { echo "where? TCPTRACKER_CORPUS=FOLDER make corpus"; exit 2; }
	$(CARGO) test --locked --release --test corpus --test corpus_presets -- --nocapture

fuzz: test-deps ## throw frames at the parser for FUZZ_SECONDS, guided by coverage
	cd fuzz && RUSTFLAGS="$(COVERAGE)" $(CARGO) build --locked --release --target $(HOST)
	mkdir -p fuzz/corpus/frame
	cd fuzz && ./target/$(HOST)/release/frame -max_total_time=$(FUZZ_SECONDS) -max_len=256 \
	    -print_final_stats=1 corpus/frame

bench: test-deps ## measure what it costs, beside references in the same run (as root)
	$(CARGO) bench --locked --bench bench

interface: ## describe the D-Bus interface anew from the code
	TCPTRACKER_WRITE_INTERFACE=1 $(CARGO) test --locked --lib description

lint: ## check format and lints
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

docker: ## build the container image: make docker DOCKER=podman
	$(DOCKER) build -f packaging/docker/Dockerfile -t tcptracker .

test-docker: ## build the image without any registry, run it and scan it (as root; some minutes)
	$(call install_missing,$(DEPS) $(DOCKER_DEPS))
	tests/docker-test $(TARGET)/tmp/docker

run: deps build ## run the service on an interface until Ctrl-C: make run DEVICE=eth0
	@packaging/run-from-source $(TARGET)/release/tcptracker $(DEVICE)

demo: test-deps build ## watch a port scan being caught, in throw-away network namespaces
	@TCPTRACKER=$(abspath $(TARGET)/release/tcptracker) tests/demo.sh

install: ## install what `make build` has built (as root; PREFIX, DESTDIR)
	@[ -x $(TARGET)/release/tcptracker ] || { echo "nothing built yet: make build"; exit 1; }
	install -D -m 755 $(TARGET)/release/tcptracker $(DESTDIR)$(PREFIX)/bin/tcptracker
	$(foreach file,$(FILES),install -D -m 644 $(subst :, $(DESTDIR),$(file)) &&) true
	sed -i 's|/usr/bin/tcptracker|$(PREFIX)/bin/tcptracker|' $(DESTDIR)$(UNIT)
	@# What the administrator has written stays.
	[ -e $(DESTDIR)$(CONFIG) ] || install -D -m 644 packaging/tcptracker.toml $(DESTDIR)$(CONFIG)
ifeq ($(DESTDIR),)
	@# The user first: the bus looks it up when it reads its policy.
	-@! command -v systemd-sysusers >/dev/null || systemd-sysusers
	-@! command -v systemd-tmpfiles >/dev/null || systemd-tmpfiles --create tcptracker.conf
	-@! command -v journalctl >/dev/null || journalctl --update-catalog
	-@[ ! -d /run/systemd/system ] || systemctl daemon-reload
	-@[ ! -S /run/dbus/system_bus_socket ] || busctl call org.freedesktop.DBus \
	    /org/freedesktop/DBus org.freedesktop.DBus ReloadConfig
	@echo "installed; start it: systemctl enable --now tcptracker@$(DEVICE)"
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
	@# Unless somebody has changed it.
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
	@echo "install it: apt install" $(abspath $(TARGET))/debian/tcptracker_*.deb

rpm: ## build the RPM package, target/rpm/tcptracker-*.rpm
	$(call install_missing,$(RPM_DEPS))
	rm -rf $(TARGET)/rpm
	@# Debian's packages are not in rpm's database: --nodeps. Its brp-compress needs another shell than it names.
	rpmbuild -bb --quiet --build-in-place --nodeps --define '_topdir $(abspath $(TARGET)/rpm)' \
	    --define '__brp_compress %{nil}' \
	    --define '_rpmdir %{_topdir}' --define '_rpmfilename %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm' \
	    packaging/rpm/tcptracker.spec

packages: deb rpm ## build both packages, and look them over
	$(call install_missing,lintian)
	lintian --allow-root --fail-on error,warning $(TARGET)/debian/tcptracker.changes
	tests/compare-packages $(TARGET)/debian/tcptracker_*.deb $(TARGET)/rpm/tcptracker-*.rpm

clean: ## remove what was built
	$(CARGO) clean
