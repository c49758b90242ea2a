# tcptracker: what there is to do. `make` alone lists it.

CARGO  ?= cargo
DEVICE ?= eth0
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 60
HOST   := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# What libFuzzer needs to be told of the code it runs; the compiler's stable options suffice.
COVERAGE = -Cpasses=sancov-module -Ccodegen-units=1 -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
# Where cargo puts what it builds.
TARGET := $(or $(CARGO_TARGET_DIR),target)
# The bus reads policies in /usr/share (packages) and in /etc (everybody else), not in /usr/local.
POLICY  = $(if $(filter /usr,$(PREFIX)),/usr/share,/etc)/dbus-1/system.d

# Build: a linker, libpcap's and SQLite's header files. Run: iptables (the sets need no program).
DEPS      = gcc libc6-dev libpcap-dev libsqlite3-dev iptables
# Tests and demo: a scanner, namespaces, a bus and its tools, what shows the sets.
TEST_DEPS = $(DEPS) g++ nmap iproute2 ipset dbus systemd curl procps util-linux bsdutils mount e2fsprogs python3 \
	nftables conntrack python3-dbus python3-gi libglib2.0-bin polkitd python3-pyftpdlib libfaketime

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

.PHONY: help deps test-deps firewalls build test docs corpus fuzz bench interface lint run demo install uninstall clean

help: ## list what there is to do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

deps: ## install what building and running needs (Debian; with sudo unless root)
	$(call install_missing,$(DEPS))

test-deps: ## install what tests and demo need as well
	$(call install_missing,$(TEST_DEPS))

firewalls: ## unpack ufw and firewalld, without installing them, for the tests beside them
	@tests/fetch-firewalls $(TARGET)/tmp/firewalls

build: ## build the release, target/release/tcptracker
	$(CARGO) build --release --locked

test: test-deps firewalls ## run all tests (as root, the ones in network namespaces as well)
	$(CARGO) test --locked

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

run: deps build ## run the service on an interface until Ctrl-C: make run DEVICE=eth0
	@packaging/run-from-source $(TARGET)/release/tcptracker $(DEVICE)

demo: test-deps build ## watch a port scan being caught, in throw-away network namespaces
	@TCPTRACKER=$(abspath $(TARGET)/release/tcptracker) tests/demo.sh

install: ## install what `make build` has built (as root; PREFIX, DESTDIR)
	@[ -x $(TARGET)/release/tcptracker ] || { echo "nothing built yet: make build"; exit 1; }
	install -D -m 755 $(TARGET)/release/tcptracker $(DESTDIR)$(PREFIX)/bin/tcptracker
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/bin/tcptracker|$(PREFIX)/bin/tcptracker|' systemd/tcptracker@.service \
	    > $(DESTDIR)$(PREFIX)/lib/systemd/system/tcptracker@.service
	install -D -m 644 packaging/tcptracker.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/tcptracker.conf
	install -D -m 644 dbus/org.tcptracker.Tracker1.conf \
	    $(DESTDIR)$(POLICY)/org.tcptracker.Tracker1.conf
ifeq ($(DESTDIR),)
	@# The user first: the bus looks it up when it reads its policy.
	-@command -v systemd-sysusers >/dev/null && systemd-sysusers
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
	    $(DESTDIR)$(PREFIX)/lib/systemd/system/tcptracker@.service \
	    $(DESTDIR)$(PREFIX)/lib/sysusers.d/tcptracker.conf \
	    $(DESTDIR)$(POLICY)/org.tcptracker.Tracker1.conf
ifeq ($(DESTDIR),)
	-@[ ! -d /run/systemd/system ] || systemctl daemon-reload
endif

clean: ## remove what was built
	$(CARGO) clean
