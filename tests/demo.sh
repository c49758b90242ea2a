#!/bin/bash
# A port scan and what tcptracker makes of it, for a person to watch: `make demo`.
#
# Three hosts as network namespaces on one switch, with a message bus of their own; the tool, the
# scanner, the packets and the firewall are real. Nothing outside the namespaces is touched, and
# nothing is left, whether it ends by itself, with an error or with Ctrl-C.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
tcptracker=${TCPTRACKER:-$here/target/release/tcptracker}
[ -x "$tcptracker" ] || { echo "there is no $tcptracker; build it first: make build" >&2; exit 1; }
if [ "$(id -u)" != 0 ]; then
    echo "network namespaces need root: sudo $0"
    exec sudo TCPTRACKER="$tcptracker" "$0"
fi

tag=ttdemo$$
# Not in $TMPDIR: the path of a socket must be short.
lab=$(mktemp -d /tmp/tcptracker-demo.XXXXXX)
service='' bus='' web=''

# shellcheck disable=SC2329 # by the trap
clean_up() {
    trap '' INT TERM HUP
    # The service first: it takes its rules down.
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
    # Nor tcptracker, whose terminal is one of the demo's own.
    export NO_COLOR=1
fi

# A line of the story.
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

# How a step went.
good() { printf '%s  ok: %s%s\n' "$green" "$*" "$plain"; }
bad() { printf '%s  FAILED: %s%s\n' "$red" "$*" "$plain"; exit 1; }

indent() { sed 's/\r$//; s/^/  /'; }

# What somebody types on one of the hosts, and what comes of it.
on() {
    local host=$1
    shift
    printf '%s%s $ %s%s\n' "$dim" "$host" "$*" "$plain"
    ip netns exec "$tag-$host" "$@" 2>&1 | indent
}

# The same with a terminal, for which tcptracker prints tables.
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
gets_in() { ip netns exec "$tag-$1" curl -s -m 2 -o /dev/null "http://$victim/"; }

expect_in() {
    on "$1" curl -sS -m 2 "http://$victim/" || bad "the $1 cannot connect"
    good "the $1 gets in"
}

expect_out() {
    on "$1" curl -sS -m 2 "http://$victim/" || { good "the $1 gets no answer"; return; }
    bad "the $1 still gets in"
}

# The addresses are those kept free for documentation.
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

# A message bus as systems have it: nothing is allowed but what the shipped policy allows.
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
    wait_for "the web server" gets_in bystander
}

start_service() {
    # The host's own configuration and service manager are none of the demo's business.
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
    bad "$what did not come up"
}

log_lines() { grep -E "$1" "$lab/log" | cut -d. -f1,2- | indent; }

for variable in ${!TCPTRACKER_@}; do unset "$variable"; done

say "Three hosts: a victim with a web server, an attacker, a bystander."
make_hosts
start_bus
start_web_server
expect_in attacker

say "On the victim the service is started."
start_service

say "The attacker scans the hundred most common ports."
on attacker nmap -n -Pn -sS --top-ports 100 --max-rate 100 --max-retries 0 "$victim" |
    grep -v -e '^ *$' -e 'Starting Nmap' -e 'Warning' -e 'MAC Address'
wait_for "the block" grep -q 'blocked 203' "$lab/log"

say "The fourth port was one too many. What the service saw and did:"
log_lines 'port scan by| blocked [0-9]'

say "Who is blocked, and why:"
on_terminal victim list

say "The kernel drops the attacker. Everybody else is served."
expect_out attacker
expect_in bystander
on victim iptables -S tcptracker
on victim ipset list tcptracker-eth0-v4 | grep -e '\$' -e timeout.*packets

say "The attacker tries IPv6."
on attacker nmap -6 -n -Pn -sS --top-ports 20 --max-rate 100 --max-retries 0 "$victim6" |
    grep -e '\$' -e 'Nmap done'
wait_for "the second block" grep -q 'blocked 2001' "$lab/log"
on_terminal victim list

say "The attacker is let in again, by hand."
tracker unblock 203.0.113.66
expect_in attacker

say "The service is stopped and takes its rules with it."
kill "$service"
wait "$service" || bad "the service did not stop in order"
service=
log_lines 'stopped by'
on victim iptables -S
on victim ipset list -name
if ip netns exec "$tag-victim" iptables -S | grep -q tcptracker; then bad "rules were left"; fi
good "no rule, no chain, no set is left"
