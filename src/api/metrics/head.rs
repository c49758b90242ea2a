//! The head of an HTTP request, as far as it has come.
//!
//! Pure. Owns what is let in as a request: how long a head may be, and what of it is passed on. A body is
//! never read, and no field of a head gets any further.

/// The longest head that is read. Browsers and scrapers send some hundred bytes.
pub const LIMIT: usize = 8192;

const END: &[u8] = b"\r\n\r\n";

/// What has come of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Head {
    /// Its end is still to come.
    Incomplete,
    /// No request that can be answered; the status that says so.
    Refused(&'static str),
    /// Somebody asks for something.
    Asks(Ask),
}

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub struct Ask {
    /// Method, path and version, with all that makes it a request of its own.
    pub request: String,
    /// How many bytes the head has taken.
    pub length: usize,
    /// No other can follow on this connection.
    pub last: bool,
}

/// Looks at what has come.
pub fn read(bytes: &[u8]) -> Head {
    let Some(end) = bytes.windows(END.len()).position(|window| window == END) else {
        let full = bytes.len() >= LIMIT;
        return if full {
            Head::Refused("431 Request Header Fields Too Large")
        } else {
            Head::Incomplete
        };
    };
    let mut lines = bytes[..end].split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let words: Vec<&str> = lines
        .next()
        .and_then(|line| std::str::from_utf8(line).ok())
        .map(|line| line.split(' ').collect())
        .unwrap_or_default();
    let &[method, path, version] = &words[..] else { return Head::Refused("400 Bad Request") };
    if [method, path]
        .iter()
        .any(|word| word.is_empty() || !word.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Head::Refused("400 Bad Request");
    }
    let last = match version {
        "HTTP/1.1" => lines.any(ends_the_connection),
        "HTTP/1.0" => true,
        _ => return Head::Refused("505 HTTP Version Not Supported"),
    };
    // To tiny_http all are requests of one connection.
    Head::Asks(Ask {
        request: format!("{method} {path} HTTP/1.1\r\n\r\n"),
        length: end + END.len(),
        last,
    })
}

/// Whether the client wants no other answer, or sends a body, behind which nobody looks for a request.
fn ends_the_connection(field: &[u8]) -> bool {
    let colon = field.iter().position(|byte| *byte == b':').unwrap_or(field.len());
    let (name, value) = field.split_at(colon);
    let value = value.strip_prefix(b":").unwrap_or_default().trim_ascii();
    if name.eq_ignore_ascii_case(b"connection") {
        !value.eq_ignore_ascii_case(b"keep-alive")
    } else {
        name.eq_ignore_ascii_case(b"content-length") && value != b"0"
            || name.eq_ignore_ascii_case(b"transfer-encoding")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_probe(text: &str) -> Ask {
        match read(text.as_bytes()) {
            Head::Asks(ask) => ask,
            other => panic!("{other:?} of {text:?}"),
        }
    }

    #[test]
    fn of_a_request_its_first_line_is_passed_on() {
        let head = "GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nX: y\r\n\r\n";
        let ask = is_probe(&format!("{head}GET /more"));
        assert_eq!(ask.request, "GET /metrics HTTP/1.1\r\n\r\n");
        assert_eq!(ask.length, head.len());
        assert!(!ask.last);
    }

    #[test]
    fn behind_some_requests_no_other_is_looked_for() {
        for fields in [
            "HTTP/1.0",
            "HTTP/1.1\r\nconnection: Close",
            "HTTP/1.1\r\nConnection: upgrade",
            "HTTP/1.1\r\nHost: a\r\nCONTENT-LENGTH:1000000000000000",
            "HTTP/1.1\r\nTransfer-Encoding: chunked",
        ] {
            let ask = is_probe(&format!("POST / {fields}\r\n\r\n"));
            assert!(ask.last, "{fields}");
            assert_eq!(ask.request, "POST / HTTP/1.1\r\n\r\n");
        }
        assert!(!is_probe("GET / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n").last);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let refused = |bytes: &[u8]| match read(bytes) {
            Head::Refused(status) => status.split(' ').next().unwrap().to_owned(),
            other => panic!("{other:?}"),
        };
        for bad in [
            &b"\r\n\r\n"[..],
            b"GET /metrics\r\n\r\n",
            b"GET  HTTP/1.1\r\n\r\n",
            b"GET / / HTTP/1.1\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\n\r\n",
            b"GET /\0 HTTP/1.1\r\n\r\n",
            b"G\rT / HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(refused(bad), "400", "{bad:?}");
        }
        assert_eq!(refused(b"GET / HTTP/2.0\r\n\r\n"), "505");
        assert_eq!(refused(&[b'x'; LIMIT]), "431");
        assert_eq!(read(&[b'x'; LIMIT - 1]), Head::Incomplete);
    }

    proptest! {
        /// Whatever comes: what is passed on is one line that tiny_http takes for a request.
        #[test]
        fn nothing_else_gets_through(start in "(GET|HEAD|[ -~]{0,9}) ?/?.{0,20}( HTTP/1.[01])?", rest in any::<Vec<u8>>()) {
            let bytes = [start.as_bytes(), b"\r\n", &rest, b"\r\n\r\n"].concat();
            if let Head::Asks(ask) = read(&bytes) {
                let words: Vec<&str> = ask.request.strip_suffix(" HTTP/1.1\r\n\r\n").unwrap().split(' ').collect();
                prop_assert_eq!(words.len(), 2);
                prop_assert!(words.iter().all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_graphic())));
                prop_assert!(ask.length <= bytes.len());
            }
        }
    }
}
