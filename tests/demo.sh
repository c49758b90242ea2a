#!/bin/bash
# Demonstrates how tcptracker blocks a port scan: `make demo`.
#
# The script creates 3 hosts as network namespaces on one switch, with a private message bus. The tool,
# the scanner, the packets and the firewall are real. The script changes nothing outside the namespaces
# and removes everything at its end, also after an error or Ctrl-C.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
tcptracker=${TCPTRACKER:-$here/target/release/tcptracker}
[ -x "$tcptracker" ] || { echo "$tcptracker does not exist; build it first: make build" >&2; exit 1; }
if [ "$(id -u)" != 0 ]; then
    echo "network namespaces need root: sudo $0"
    exec sudo TCPTRACKER="$tcptracker" "$0"
fi

tag=ttdemo$$
# Not in $TMPDIR: the path of a Unix socket is limited to 107 bytes.
lab=$(mktemp -d /tmp/tcptracker-demo.XXXXXX)
service='' bus='' web=''

# shellcheck disable=SC2329 # by the trap
clean_up() {
    trap '' INT TERM HUP
    # The service first, because it removes its rules.
    for pid in $service $web $bus; do
        kill "$pid" 2>/dev/null && { wait "$pid" 2>/dev/null || true; }
    done
    for name in victim attacker bystander switch; do
        ip netns del "$tag-$name" 2>/dev/null || true
    done
    rm -rf "$lab"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

bold='' dim='' green='' red='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
    # Also for tcptracker, which runs on a pseudo-terminal of the demo.
    export NO_COLOR=1
fi

# Prints a headline.
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

# Print the result of a step.
good() { printf '%s  ok: %s%s\n' "$green" "$*" "$plain"; }
bad() { printf '%s  FAILED: %s%s\n' "$red" "$*" "$plain"; exit 1; }

indent() { sed 's/\r$//; s/^/  /'; }

# Runs a command on a host and prints the command and its output.
on() {
    local host=$1
    shift
    printf '%s%s $ %s%s\n' "$dim" "$host" "$*" "$plain"
    ip netns exec "$tag-$host" "$@" 2>&1 | indent
}

# Runs tcptracker on a pseudo-terminal, so that it prints tables.
on_terminal() {
    local host=$1
    shift
    printf '%s%s $ tcptracker %s%s\n' "$dim" "$host" "$*" "$plain"
    script -qec "$tcptracker $*" /dev/null </dev/null | indent
}

tracker() {
    printf '%s%s $ tcptracker %s%s\n' "$dim" victim "$*" "$plain"
    "$tcptracker" "$@" 2>&1 | indent
}

# shellcheck disable=SC2329 # through wait_for
can_connect() { ip netns exec "$tag-$1" curl -s -m 2 -o /dev/null "http://$victim/"; }

expect_connection() {
    on "$1" curl -sS -m 2 "http://$victim/" || bad "the $1 cannot connect"
    good "the $1 can connect"
}

expect_no_connection() {
    on "$1" curl -sS -m 2 "http://$victim/" || { good "the $1 gets no answer"; return; }
    bad "the $1 can still connect"
}

# Documentation addresses (RFC 5737, RFC 3849).
victim=203.0.113.10 victim6=2001:db8::10

make_hosts() {
    local number=0 name address
    ip netns add "$tag-switch"
    ip -n "$tag-switch" link add switch type bridge
    ip -n "$tag-switch" link set switch up
    for host in victim:10 attacker:66 bystander:8; do
        name=${host%:*} address=${host#*:} number=$((number + 1))
        ip netns add "$tag-$name"
        ip link add eth0 netns "$tag-$name" type veth peer name "port$number" netns "$tag-switch"
        ip -n "$tag-switch" link set "port$number" master switch up
        ip -n "$tag-$name" address add "203.0.113.$address/24" dev eth0
        ip -n "$tag-$name" address add "2001:db8::$address/64" dev eth0 nodad
        ip -n "$tag-$name" link set lo up
        ip -n "$tag-$name" link set eth0 up
    done
}

# Starts a message bus with the defaults of a system bus and the shipped policy.
start_bus() {
    cat >"$lab/bus.conf" <<XML
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=$lab/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  <include>$here/dbus/org.tcptracker.Tracker1.conf</include>
</busconfig>
XML
    dbus-daemon --nofork --config-file="$lab/bus.conf" 2>"$lab/bus.log" &
    bus=$!
    export DBUS_SYSTEM_BUS_ADDRESS="unix:path=$lab/bus"
    wait_for "the bus" test -S "$lab/bus"
}

start_web_server() {
    mkdir "$lab/www"
    echo "hello from the web server" >"$lab/www/index.html"
    ip netns exec "$tag-victim" python3 -m http.server -d "$lab/www" 80 >/dev/null 2>&1 &
    web=$!
    wait_for "the web server" can_connect bystander
}

start_service() {
    # Do not use the host's configuration and service manager.
    : >"$lab/empty.toml"
    printf '%s%s $ tcptracker run -i eth0%s\n' "$dim" victim "$plain"
    env -u JOURNAL_STREAM -u NOTIFY_SOCKET -u WATCHDOG_USEC STATE_DIRECTORY="$lab/state" \
        ip netns exec "$tag-victim" "$tcptracker" run -i eth0 --config "$lab/empty.toml" \
        2>"$lab/log" &
    service=$!
    wait_for "the service" grep -q watching "$lab/log"
    log_lines watching
}

wait_for() {
    local what=$1
    shift
    for _ in {1..100}; do
        "$@" 2>/dev/null && return
        sleep 0.1
    done
    cat "$lab"/*log >&2
    bad "$what did not start"
}

log_lines() { grep -E "$1" "$lab/log" | cut -d. -f1,2- | indent; }

for variable in ${!TCPTRACKER_@}; do unset "$variable"; done

say "Three hosts: a victim with a web server, an attacker, a bystander."
make_hosts
start_bus
start_web_server
expect_connection attacker

say "The victim starts the service."
start_service

say "The attacker scans the 100 most common ports."
on attacker nmap -n -Pn -sS --top-ports 100 --max-rate 100 --max-retries 0 "$victim" |
    grep -v -e '^ *$' -e 'Starting Nmap' -e 'Warning' -e 'MAC Address'
wait_for "the block" grep -q 'blocked 203' "$lab/log"

say "The fourth port exceeded the threshold. The log of the service:"
log_lines 'port scan by| blocked [0-9]'

say "Blocked addresses, with reasons:"
on_terminal victim list

say "The kernel drops packets of the attacker. Other hosts can connect."
expect_no_connection attacker
expect_connection bystander
on victim iptables -S tcptracker
on victim ipset list tcptracker-eth0-v4 | grep -e '\$' -e timeout.*packets

say "The attacker tries IPv6."
on attacker nmap -6 -n -Pn -sS --top-ports 20 --max-rate 100 --max-retries 0 "$victim6" |
    grep -e '\$' -e 'Nmap done'
wait_for "the second block" grep -q 'blocked 2001' "$lab/log"
on_terminal victim list

say "The victim unblocks the attacker."
tracker unblock 203.0.113.66
expect_connection attacker

say "The service stops and removes its rules."
kill "$service"
wait "$service" || bad "the service failed to stop cleanly"
service=
log_lines 'stopped by'
on victim iptables -S
on victim ipset list -name
if ip netns exec "$tag-victim" iptables -S | grep -q tcptracker; then bad "rules remain"; fi
good "no rule, chain or set remains"
