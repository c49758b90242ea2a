//! Reads arbitrary configurations, from a file and from environment variables.
//!
//! What precedes a NUL is the file; each further part is a variable, `NAME=value`.

#![no_main]

mod scratch;

use libfuzzer_sys::fuzz_target;
use tcptracker::internals::{Effective, Sources};

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.split(|byte| *byte == 0);
    let file = scratch::write(parts.next().unwrap_or_default());
    let variables = parts.filter_map(|part| {
        let (name, value) = std::str::from_utf8(part).ok()?.split_once('=')?;
        Some((format!("TCPTRACKER_{name}"), value.to_owned()))
    });
    let sources = Sources::new(None, Some(file)).with_environment(variables);
    match Effective::load(&sources) {
        Ok(effective) => {
            // Each value comes from somewhere, and a configuration does not differ from itself.
            assert!(effective.settings().count() > 0);
            assert_eq!(effective.changes_since(&effective), Vec::<String>::new());
        }
        Err(error) => assert!(!error.to_string().is_empty(), "an error says what is wrong"),
    }
});
