//! Which web pages may connect: a browser names the page's origin when it opens a WebSocket (RFC 6455, 10.2).

use std::str::FromStr;

/// A list of allowed origins; empty: any page. From text: origins as browsers write them, separated by commas.
///
/// `https://app.example.com` is that page alone, scheme and port included (a browser leaves the scheme's own port out).
/// `https://*.example.com` is every host below example.com, at any depth, but not example.com itself. `null` is what
/// sandboxed pages and files send. A client that sends no Origin is no browser, and is let in: the ticket says who it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origins(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Exact(String),
    /// `https://` and `.example.com:8443`.
    Under {
        scheme: String,
        suffix: String,
    },
}

impl Origins {
    /// Whether a request with this Origin header may go on.
    #[must_use]
    pub fn allow(&self, origin: &[u8]) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| pattern.fits(origin))
    }
}

impl Pattern {
    fn fits(&self, origin: &[u8]) -> bool {
        match self {
            Self::Exact(text) => origin.eq_ignore_ascii_case(text.as_bytes()),
            Self::Under { scheme, suffix } => {
                let label = |byte: &u8| byte.is_ascii_alphanumeric() || b"-.".contains(byte);
                let ends = |whole: &[u8]| whole.len().checked_sub(suffix.len()).filter(|at| *at > 0);
                origin
                    .split_at_checked(scheme.len())
                    .filter(|(head, _)| head.eq_ignore_ascii_case(scheme.as_bytes()))
                    .and_then(|(_, rest)| Some(rest.split_at(ends(rest)?)))
                    .is_some_and(|(host, tail)| {
                        tail.eq_ignore_ascii_case(suffix.as_bytes()) && host.iter().all(label)
                    })
            }
        }
    }
}

impl FromStr for Origins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(pattern).collect::<Result<_, _>>().map(Self)
    }
}

fn pattern(text: &str) -> Result<Pattern, String> {
    let wrong =
        || format!("{text:?} is no origin; write https://app.example.com, https://*.example.com or null");
    if text == "null" {
        return Ok(Pattern::Exact(text.to_owned()));
    }
    let (scheme, authority) = text.split_once("://").ok_or_else(wrong)?;
    let (wild, rest) = match authority.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, authority),
    };
    // An IPv6 host has colons of its own, in brackets.
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let scheme_ok = scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let host_ok = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.[]:".contains(&b));
    let port_ok = port.is_none_or(|port| port.parse::<u16>().is_ok());
    if scheme.is_empty() || host.is_empty() || !scheme_ok || !host_ok || !port_ok {
        return Err(wrong());
    }
    Ok(if wild {
        Pattern::Under { scheme: format!("{scheme}://"), suffix: format!(".{rest}") }
    } else {
        Pattern::Exact(text.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_allows_every_page() {
        assert!(Origins::default().allow(b"https://evil.example"));
        assert_eq!("".parse(), Ok(Origins::default()));
    }

    #[test]
    fn only_what_is_listed_is_allowed() {
        let list = "https://app.example.com, https://*.example.org:8443, http://[::1]:3000";
        let list: Origins = list.parse().expect("origins");
        for (origin, expected) in [
            ("https://app.example.com", true),
            ("HTTPS://App.Example.Com", true),
            ("http://app.example.com", false),
            ("https://app.example.com:444", false),
            ("https://app.example.com.evil.example", false),
            ("https://a.example.org:8443", true),
            ("https://a.b.example.org:8443", true),
            ("https://a.example.org", false),
            ("https://example.org:8443", false),
            ("https://.example.org:8443", false),
            ("https://evilexample.org:8443", false),
            ("https://evil.example/.example.org:8443", false),
            ("https://evil.example:1@a.example.org:8443", false),
            ("http://[::1]:3000", true),
            ("null", false),
            ("", false),
        ] {
            assert_eq!(list.allow(origin.as_bytes()), expected, "{origin}");
        }
        assert!("null".parse::<Origins>().expect("an origin").allow(b"null"));
    }

    #[test]
    fn what_is_no_origin_is_named() {
        for text in
            ["example.com", "https://", "https://*.", "https://a.com/", "*", "https://a.com:x", "https://*"]
        {
            let problem = text.parse::<Origins>().expect_err(text);
            assert!(problem.contains(text), "{problem}");
        }
    }
}
