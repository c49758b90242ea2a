//! Reads arbitrary heads of HTTP requests.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tcptracker::internals::head::{Head, LIMIT, read};

fuzz_target!(|bytes: &[u8]| {
    match read(bytes) {
        Head::Asks(ask) => {
            assert!(ask.length <= bytes.len() && ask.request.len() <= bytes.len() + 16);
            assert!(ask.request.ends_with("\r\n\r\n"));
            // More bytes do not change a complete head.
            let more = [bytes, &b"GET / HTTP/1.1\r\n\r\n"[..]].concat();
            assert_eq!(read(&more), Head::Asks(ask));
        }
        Head::Incomplete => assert!(bytes.len() < LIMIT, "a head has a limit"),
        Head::Refused(_) => {}
    }
});
