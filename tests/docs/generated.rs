//! The files that are generated at build time: completions and man pages.

use std::io;
use std::path::Path;

use clap_complete::Shell;

use crate::{completions, keys, manual};

/// Returns the name and the text of every file.
pub(crate) fn files() -> [(&'static str, String); 5] {
    [
        ("tcptracker.bash", completions::script(Shell::Bash)),
        ("_tcptracker", completions::script(Shell::Zsh)),
        ("tcptracker.fish", completions::script(Shell::Fish)),
        ("tcptracker.1", manual::page()),
        ("tcptracker.toml.5", keys::page()),
    ]
}

/// Writes every file to a directory, which is created if it does not exist.
pub(crate) fn write(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    files().iter().try_for_each(|(name, text)| std::fs::write(directory.join(name), text))
}
