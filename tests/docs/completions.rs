//! Shell completions: clap's output, extended by the names of interfaces and the blocked addresses.

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

function __fish_tcptracker_blocked
    command tcptracker list 2>/dev/null | awk -F\t '{ print $(NF - 4) }'
end
";

/// Commands whose argument is a blocked address.
const TAKES_BLOCKED_ADDRESS: [&str; 2] = ["unblock", "why"];

pub(crate) fn script(shell: Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut tcptracker::cli::command(), "tcptracker", &mut text);
    let text = String::from_utf8(text).unwrap();
    // Some generators write trailing blanks.
    let text: String = text.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    match shell {
        Shell::Bash => bash(text),
        Shell::Zsh => zsh(&text),
        Shell::Fish => fish(&text),
        other => panic!("no completions for {other}"),
    }
}

/// Replaces `from` and fails if the text does not contain it.
#[track_caller]
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "clap_complete has changed its output: {from}");
    text.replace(from, to)
}

fn bash(mut text: String) -> String {
    for option in ["-i)", "--interface)"] {
        let ours = format!("{option}\n                    _tcptracker_interfaces\n");
        text = replaced(&text, &format!("{option}{BASH_UNKNOWN}"), &ours);
    }
    for command in TAKES_BLOCKED_ADDRESS {
        let begin = format!("        tcptracker__subcmd__{command})\n");
        let ours = "            if [[ ${cur} != -* && ${prev} != -i && ${prev} != --interface ]] ; then\n                \
                    _tcptracker_blocked\n                return 0\n            fi\n";
        text = replaced(&text, &begin, &format!("{begin}{ours}"));
    }
    text + BASH_FUNCTIONS
}

fn zsh(text: &str) -> String {
    let mut text = replaced(text, "]:INTERFACE:' \\\n", "]:INTERFACE:_tcptracker_interfaces' \\\n");
    for command in TAKES_BLOCKED_ADDRESS {
        let begin = text.find(&format!("\n({command})\n")).unwrap();
        let length = text[begin..].find("\n;;\n").unwrap();
        let of_command = &text[begin..begin + length];
        let ours = replaced(of_command, "192.0.2.0/24:'", "192.0.2.0/24:_tcptracker_blocked'");
        text.replace_range(begin..begin + length, &ours);
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
            completed.push_str(" -a \"(__fish_tcptracker_interfaces)\"");
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
