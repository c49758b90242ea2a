# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_tcptracker_global_optspecs
    string join \n h/help V/version
end

function __fish_tcptracker_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_tcptracker_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_tcptracker_using_subcommand
    set -l cmd (__fish_tcptracker_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c tcptracker -n "__fish_tcptracker_needs_command" -s h -l help -d 'Print help'
complete -c tcptracker -n "__fish_tcptracker_needs_command" -s V -l version -d 'Print version'
complete -c tcptracker -n "__fish_tcptracker_needs_command" -f -a "run" -d 'Watch an interface and block scanners, in the foreground (what the service unit starts)'
complete -c tcptracker -n "__fish_tcptracker_needs_command" -f -a "list" -d 'List what is blocked'
complete -c tcptracker -n "__fish_tcptracker_needs_command" -f -a "stats" -d 'Show what was counted since the start'
complete -c tcptracker -n "__fish_tcptracker_needs_command" -f -a "why" -d 'Show why an address is blocked, or not, and how to let it in'
complete -c tcptracker -n "__fish_tcptracker_needs_command" -f -a "watch" -d 'Show scans, blocks and unblocks as they happen'
complete -c tcptracker -n "__fish_tcptracker_needs_command" -f -a "block" -d 'Block an address or network by hand'
complete -c tcptracker -n "__fish_tcptracker_needs_command" -f -a "unblock" -d 'Let an address or network in again'
complete -c tcptracker -n "__fish_tcptracker_needs_command" -f -a "reload" -d 'Make the running service read its configuration again'
complete -c tcptracker -n "__fish_tcptracker_needs_command" -f -a "replay" -d 'Show what the detector would have done on a capture file'
complete -c tcptracker -n "__fish_tcptracker_needs_command" -f -a "config" -d 'Show the effective configuration and where each value comes from'
complete -c tcptracker -n "__fish_tcptracker_needs_command" -f -a "doctor" -d 'Check what the service needs, and say how to mend what fails'
complete -c tcptracker -n "__fish_tcptracker_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand run" -s i -l interface -d 'The network interface to watch, or "any"' -r -f -a "(__fish_tcptracker_interfaces)"
complete -c tcptracker -n "__fish_tcptracker_using_subcommand run" -l config -d 'Read this file instead of those in /etc/tcptracker' -r -F
complete -c tcptracker -n "__fish_tcptracker_using_subcommand run" -l observe -d 'Report scans, never block'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand list" -s i -l interface -d 'Only the instance on this network interface' -r -f -a "(__fish_tcptracker_interfaces)"
complete -c tcptracker -n "__fish_tcptracker_using_subcommand list" -l json -d 'Print JSON'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand stats" -s i -l interface -d 'Only the instance on this network interface' -r -f -a "(__fish_tcptracker_interfaces)"
complete -c tcptracker -n "__fish_tcptracker_using_subcommand stats" -l json -d 'Print JSON'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand stats" -s h -l help -d 'Print help'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand why" -s i -l interface -d 'Only the instance on this network interface' -r -f -a "(__fish_tcptracker_interfaces)"
complete -c tcptracker -n "__fish_tcptracker_using_subcommand why" -l json -d 'Print JSON'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand why" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand watch" -s i -l interface -d 'Only the instance on this network interface' -r -f -a "(__fish_tcptracker_interfaces)"
complete -c tcptracker -n "__fish_tcptracker_using_subcommand watch" -l json -d 'Print JSON'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand watch" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand block" -l for -d 'For how long, such as 30m, 1h or 7d; without it, until unblocked' -r -f
complete -c tcptracker -n "__fish_tcptracker_using_subcommand block" -l reason -d 'Why: shown wherever the block is' -r -f
complete -c tcptracker -n "__fish_tcptracker_using_subcommand block" -s i -l interface -d 'Only through the instance on this network interface' -r -f -a "(__fish_tcptracker_interfaces)"
complete -c tcptracker -n "__fish_tcptracker_using_subcommand block" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand unblock" -s i -l interface -d 'Only by the instance on this network interface' -r -f -a "(__fish_tcptracker_interfaces)"
complete -c tcptracker -n "__fish_tcptracker_using_subcommand unblock" -l all -d 'Everything that is blocked'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand unblock" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand reload" -s i -l interface -d 'Only the instance on this network interface' -r -f -a "(__fish_tcptracker_interfaces)"
complete -c tcptracker -n "__fish_tcptracker_using_subcommand reload" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand replay" -l preset -d 'By this preset\'s rules (detection.preset)' -r -f -a "classic\t''
balanced\t''"
complete -c tcptracker -n "__fish_tcptracker_using_subcommand replay" -l compare -d 'Put thresholds of the classic rule side by side, or without any the presets' -r
complete -c tcptracker -n "__fish_tcptracker_using_subcommand replay" -l ports -d 'More than this many distinct ports make a scan (detection.ports)' -r -f
complete -c tcptracker -n "__fish_tcptracker_using_subcommand replay" -l window -d 'Within this time (detection.window)' -r -f
complete -c tcptracker -n "__fish_tcptracker_using_subcommand replay" -l per -d 'Count per source, or per source and destination (detection.per)' -r -f -a "source\t''
pair\t''"
complete -c tcptracker -n "__fish_tcptracker_using_subcommand replay" -l ipv6-prefix -d 'Count IPv6 sources as networks of this length (detection.ipv6_prefix)' -r -f
complete -c tcptracker -n "__fish_tcptracker_using_subcommand replay" -l local -d 'An own address or network: what it sends is outbound. May be given several times' -r -f
complete -c tcptracker -n "__fish_tcptracker_using_subcommand replay" -l config -d 'Read this file instead of those in /etc/tcptracker' -r -F
complete -c tcptracker -n "__fish_tcptracker_using_subcommand replay" -l json -d 'Print JSON, one object a line'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand replay" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand config" -s i -l interface -d 'As it is for this network interface' -r -f -a "(__fish_tcptracker_interfaces)"
complete -c tcptracker -n "__fish_tcptracker_using_subcommand config" -l config -d 'Read this file instead of those in /etc/tcptracker' -r -F
complete -c tcptracker -n "__fish_tcptracker_using_subcommand config" -l observe -d 'As it is with `run --observe`'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand config" -l json -d 'Print JSON'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand config" -s h -l help -d 'Print help'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand doctor" -l config -d 'Read this file instead of those in /etc/tcptracker' -r -F
complete -c tcptracker -n "__fish_tcptracker_using_subcommand doctor" -l self-test -d 'Show detection, drop, release and expiry in throw-away network namespaces (as root)'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand doctor" -l json -d 'Print JSON'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand help; and not __fish_seen_subcommand_from run list stats why watch block unblock reload replay config doctor" -f -a "run" -d 'Watch an interface and block scanners, in the foreground (what the service unit starts)'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand help; and not __fish_seen_subcommand_from run list stats why watch block unblock reload replay config doctor" -f -a "list" -d 'List what is blocked'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand help; and not __fish_seen_subcommand_from run list stats why watch block unblock reload replay config doctor" -f -a "stats" -d 'Show what was counted since the start'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand help; and not __fish_seen_subcommand_from run list stats why watch block unblock reload replay config doctor" -f -a "why" -d 'Show why an address is blocked, or not, and how to let it in'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand help; and not __fish_seen_subcommand_from run list stats why watch block unblock reload replay config doctor" -f -a "watch" -d 'Show scans, blocks and unblocks as they happen'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand help; and not __fish_seen_subcommand_from run list stats why watch block unblock reload replay config doctor" -f -a "block" -d 'Block an address or network by hand'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand help; and not __fish_seen_subcommand_from run list stats why watch block unblock reload replay config doctor" -f -a "unblock" -d 'Let an address or network in again'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand help; and not __fish_seen_subcommand_from run list stats why watch block unblock reload replay config doctor" -f -a "reload" -d 'Make the running service read its configuration again'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand help; and not __fish_seen_subcommand_from run list stats why watch block unblock reload replay config doctor" -f -a "replay" -d 'Show what the detector would have done on a capture file'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand help; and not __fish_seen_subcommand_from run list stats why watch block unblock reload replay config doctor" -f -a "config" -d 'Show the effective configuration and where each value comes from'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand help; and not __fish_seen_subcommand_from run list stats why watch block unblock reload replay config doctor" -f -a "doctor" -d 'Check what the service needs, and say how to mend what fails'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand help; and not __fish_seen_subcommand_from run list stats why watch block unblock reload replay config doctor" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c tcptracker -n "__fish_tcptracker_using_subcommand unblock" -f -a "(__fish_tcptracker_blocked)"
complete -c tcptracker -n "__fish_tcptracker_using_subcommand why" -f -a "(__fish_tcptracker_blocked)"
complete -c tcptracker -n "__fish_tcptracker_using_subcommand block" -f

function __fish_tcptracker_interfaces
    echo any
    string replace -r '.*/' '' /sys/class/net/*
end

function __fish_tcptracker_blocked
    command tcptracker list 2>/dev/null | awk -F\t '{ print $(NF - 4) }'
end
