//! The completions in real shells, and the man pages in real readers.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::generated;

/// A command line before Tab, and the expected completion.
const TYPED: [(&str, &str); 12] = [
    ("tcptracker bl", "block"),
    ("tcptracker list --js", "--json"),
    ("tcptracker replay --preset ba", "balanced"),
    ("tcptracker run -i an", "any"),
    ("tcptracker config -i an", "any"),
    ("tcptracker why -i wg", "wg-0"),
    ("tcptracker reload --interface wg", "wg-0"),
    ("tcptracker unblock -i wg", "wg-0"),
    ("tcptracker unblock 192.0.2.1 2001:db8:", "2001:db8::7"),
    ("tcptracker unblock 192", "192.0.2.7"),
    ("tcptracker why 2001:db8:", "2001:db8::7"),
    ("tcptracker help rel", "reload"),
];

/// A fake tcptracker with one blocked address on each of two instances, and statistics of another one.
const LIST: &str = "#!/bin/sh\n\
                    [ $1 = stats ] && printf '{\\n  \"wg-0\": {\\n    \"scans\": 1\\n  }\\n}\\n' && exit\n\
                    printf 'eth0\\t192.0.2.7\\t2026-01-01T00:00:00Z\\tunblocked\\t-\\tmanual\\n'\n\
                    printf 'eth1\\t2001:db8::7\\t2026-01-01T00:00:00Z\\tunblocked\\t-\\t\\n'\n";

/// The generated files, in a directory of their own.
fn generated() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    generated::write(directory.path()).unwrap();
    directory
}

fn with_list() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("tcptracker");
    std::fs::write(&program, LIST).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    directory
}

/// Runs a program, for at most 60 s, with the fake `tcptracker` in PATH.
#[track_caller]
fn run(program: &str, arguments: &[&str]) -> Output {
    let list = with_list();
    let path = std::env::var("PATH").unwrap();
    Command::new("timeout")
        .args(["60", program])
        .args(arguments)
        .env("PATH", format!("{}:{path}", list.path().display()))
        .env("HOME", list.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Returns the completions that a script prints in a shell.
#[track_caller]
fn completions(shell: &str, script: &str) -> Vec<String> {
    let output = run(shell, &["-c", script]);
    assert!(output.status.success(), "{output:?} (if {shell} is missing: make test-deps)");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
}

#[test]
fn bash_offers_completions() {
    let directory = generated();
    let script = directory.path().join("tcptracker.bash");
    for (typed, wanted) in TYPED {
        // bash splits words at colons.
        let ask = format!(
            "source {}; typed='{typed}'; IFS=' '; COMP_WORDS=($typed); \
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE=$typed; COMP_POINT=${{#typed}}; \
             unset IFS; last=${{COMP_WORDS[-1]}}; \
             _tcptracker tcptracker \"${{last##*:}}\" \"${{COMP_WORDS[-2]}}\" 2>/dev/null; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let completions = completions("bash", &ask);
        // Completion replaces only the part after the last colon.
        let rest = wanted.rsplit(':').next().unwrap();
        let wanted = if wanted.contains(':') { format!(":{rest}") } else { wanted.to_owned() };
        assert_eq!(completions, [wanted], "{typed}");
    }
}

#[test]
fn fish_offers_completions() {
    let directory = generated();
    let script = directory.path().join("tcptracker.fish");
    for (typed, wanted) in TYPED {
        let ask = format!("source {}; complete -C '{typed}'", script.display());
        assert_eq!(completions("fish", &ask), [wanted], "{typed}");
    }
}

/// On a pseudo-terminal: completion is part of zsh's line editor.
#[test]
fn zsh_offers_completions() {
    let directory = generated();
    let mut script = format!(
        "zmodload zsh/zpty; zpty shell zsh -f -i\n\
         zpty -w shell \"PS1=; fpath=({} \\$fpath); autoload -Uz compinit; compinit -u -D; print READ'Y'\"\n\
         zpty -r shell said '*READY*'\n",
        directory.path().display()
    );
    for (typed, wanted) in TYPED {
        // Completes and runs the line; a shell function `tcptracker` prints its arguments.
        script += &format!(
            "zpty -n -w shell 'tcptracker() {{ print -r \"<$*>\" }}; {typed}'$'\\t\\n'\n\
             zpty -r shell said '*<*{}*>*' && print -r -- {wanted}\n",
            wanted.replace("--", "")
        );
    }
    let wanted: Vec<&str> = TYPED.iter().map(|(_, wanted)| *wanted).collect();
    assert_eq!(completions("zsh", &script), wanted);
}

#[test]
fn man_pages_have_no_warnings() {
    let directory = generated();
    for page in ["tcptracker.1", "tcptracker.toml.5"] {
        let page = directory.path().join(page);
        let page = page.to_str().unwrap();
        for (reader, arguments) in
            [("mandoc", &["-Tlint", "-Wwarning", page][..]), ("man", &["--warnings", "-l", page])]
        {
            let output = run(reader, arguments);
            assert!(output.status.success(), "{output:?} (if {reader} is missing: make test-deps)");
            assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{reader} {page}");
        }
    }
}
