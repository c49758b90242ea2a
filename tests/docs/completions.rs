//! Shell completions: clap's output, extended by interfaces, running instances and blocked addresses.

use clap_complete::Shell;

/// clap_complete's bash code for a value without completion.
const BASH_UNKNOWN: &str = r#"
                    COMPREPLY=("${cur}")
                    if [[ "${BASH_VERSINFO[0]}" -ge 4 ]]; then
                        compopt -o nospace
                    fi
"#;

const BASH_FUNCTIONS: &str = r#"
_tcptracker_interfaces() {
    # No files, where there is nothing else.
    compopt +o default +o bashdefault 2>/dev/null
    COMPREPLY=( $(compgen -W "any $(command ls /sys/class/net 2>/dev/null)" -- "${cur}") )
}

_tcptracker_instances() {
    compopt +o default +o bashdefault 2>/dev/null
    COMPREPLY=( $(compgen -W "$(INSTANCES)" -- "${cur}") )
}

_tcptracker_blocked() {
    local word="${COMP_LINE:0:COMP_POINT}"
    word="${word##*[[:space:]]}"
    compopt +o default +o bashdefault 2>/dev/null
    COMPREPLY=( $(compgen -W "$(command tcptracker list 2>/dev/null | awk -F'\t' '{ print $(NF - 4) }')" -- "${word}") )
    # A colon ends what bash takes for a word.
    if [[ "${word}" == *:* && "${COMP_WORDBREAKS}" == *:* ]]; then
        COMPREPLY=( "${COMPREPLY[@]#"${word%"${word##*:}"}"}" )
    fi
}
"#;

const ZSH_FUNCTIONS: &str = r#"
(( $+functions[_tcptracker_interfaces] )) ||
_tcptracker_interfaces() {
    local -a names; names=(any /sys/class/net/*(N:t))
    compadd -a names
}
(( $+functions[_tcptracker_instances] )) ||
_tcptracker_instances() {
    local -a names
    names=(${(f)"$(INSTANCES)"})
    compadd -a names
}
(( $+functions[_tcptracker_blocked] )) ||
_tcptracker_blocked() {
    local -a addresses
    addresses=(${(f)"$(command tcptracker list 2>/dev/null | awk -F'\t' '{ print $(NF - 4) }')"})
    compadd -a addresses
}
"#;

const FISH_FUNCTIONS: &str = r"
function __fish_tcptracker_interfaces
    echo any
    string replace -r '.*/' '' /sys/class/net/*
end

function __fish_tcptracker_instances
    INSTANCES
end

function __fish_tcptracker_blocked
    command tcptracker list 2>/dev/null | awk -F\t '{ print $(NF - 4) }'
end
";

/// Prints the running instances, one per line: the outer keys of `stats --json`. Stands for INSTANCES in
/// the functions.
const INSTANCES: &str =
    r#"command tcptracker stats --json 2>/dev/null | sed -n 's/^  "\(.*\)": {$/\1/p'"#;

/// Commands whose `--interface` need not be a running instance.
const TAKES_ANY_INTERFACE: [&str; 2] = ["run", "config"];

/// Commands whose argument is a blocked address.
const TAKES_BLOCKED_ADDRESS: [&str; 2] = ["unblock", "why"];

pub(crate) fn script(shell: Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut tcptracker::cli::command(), "tcptracker", &mut text);
    let text = String::from_utf8(text).unwrap();
    // Some generators write trailing blanks.
    let text: String = text.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    let text = match shell {
        Shell::Bash => bash(text),
        Shell::Zsh => zsh(text),
        Shell::Fish => fish(&text),
        other => panic!("no completions for {other}"),
    };
    text.replace("INSTANCES", INSTANCES)
}

/// Returns the commands with an option `--interface`, and the completion function for it.
fn takes_interface() -> Vec<(String, &'static str)> {
    let command = tcptracker::cli::command();
    let with_option = command.get_subcommands().filter(|command| {
        command.get_arguments().any(|argument| argument.get_long() == Some("interface"))
    });
    let names = with_option.map(|command| command.get_name().to_owned());
    names
        .map(|name| {
            let takes_any = TAKES_ANY_INTERFACE.contains(&name.as_str());
            (name, if takes_any { "interfaces" } else { "instances" })
        })
        .collect()
}

/// Replaces `from` within the part of the text from `begin` to `end`.
#[track_caller]
fn replaced_within(text: &mut String, begin: &str, end: &str, from: &str, to: &str) {
    let at = text.find(begin).unwrap_or_else(|| panic!("no {begin:?}"));
    let length = text[at..].find(end).unwrap_or_else(|| panic!("no {end:?} after {begin:?}"));
    let part = replaced(&text[at..at + length], from, to);
    text.replace_range(at..at + length, &part);
}

/// Replaces `from` and fails if the text does not contain it.
#[track_caller]
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "clap_complete has changed its output: {from}");
    text.replace(from, to)
}

fn bash(mut text: String) -> String {
    for (command, kind) in takes_interface() {
        let begin = format!("        tcptracker__subcmd__{command})\n");
        for option in ["-i)", "--interface)"] {
            let ours = format!("{option}\n                    _tcptracker_{kind}\n");
            let theirs = format!("{option}{BASH_UNKNOWN}");
            replaced_within(&mut text, &begin, "\n            ;;\n", &theirs, &ours);
        }
    }
    for command in TAKES_BLOCKED_ADDRESS {
        let begin = format!("        tcptracker__subcmd__{command})\n");
        let ours = "            if [[ ${cur} != -* && ${prev} != -i && ${prev} != --interface ]] ; then\n                \
                    _tcptracker_blocked\n                return 0\n            fi\n";
        text = replaced(&text, &begin, &format!("{begin}{ours}"));
    }
    text + BASH_FUNCTIONS
}

fn zsh(mut text: String) -> String {
    for (command, kind) in takes_interface() {
        let ours = format!("]:INTERFACE:_tcptracker_{kind}' \\\n");
        let begin = format!("({command})\n");
        replaced_within(&mut text, &begin, "\n;;\n", "]:INTERFACE:' \\\n", &ours);
    }
    for command in TAKES_BLOCKED_ADDRESS {
        let (theirs, ours) = ("192.0.2.0/24:'", "192.0.2.0/24:_tcptracker_blocked'");
        replaced_within(&mut text, &format!("({command})\n"), "\n;;\n", theirs, ours);
    }
    let last = "\nif [ \"$funcstack[1]\" = \"_tcptracker\" ]; then\n";
    replaced(&text, last, &format!("{ZSH_FUNCTIONS}{last}"))
}

fn fish(text: &str) -> String {
    let mut completed = String::new();
    // Do not offer `help` after `help`.
    let text = replaced(text, " config doctor help\" -f", " config doctor\" -f");
    for line in text.lines() {
        completed.push_str(line);
        if line.contains(" -l interface ") {
            assert!(line.ends_with(" -r -f"), "clap_complete has changed its output: {line}");
            let takes = takes_interface();
            let (_, kind) = takes
                .iter()
                .find(|(command, _)| line.contains(&format!("using_subcommand {command}\"")))
                .unwrap_or_else(|| panic!("clap_complete has changed its output: {line}"));
            completed.push_str(&format!(" -a \"(__fish_tcptracker_{kind})\""));
        }
        completed.push('\n');
    }
    let of = |command: &str| {
        format!("complete -c tcptracker -n \"__fish_tcptracker_using_subcommand {command}\" -f")
    };
    for command in TAKES_BLOCKED_ADDRESS {
        completed += &format!("{} -a \"(__fish_tcptracker_blocked)\"\n", of(command));
    }
    completed + &of("block") + "\n" + FISH_FUNCTIONS
}
