//! What is asked: protocol, address and path, from a URL.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// How the target is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A datagram that comes back.
    UdpEcho,
    /// Bytes of a stream that come back.
    TcpEcho,
    /// HTTP, many requests on a connection.
    Http,
    /// HTTP, one request on a connection.
    HttpConnection,
    /// HTTP, many requests on a connection, with bodies that take their time.
    HttpDownload,
    /// Bytes of a stream that nobody answers, one upload on a connection.
    TcpUpload,
}

impl Protocol {
    /// The scheme of its URLs.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::UdpEcho => "udp-echo",
            Self::TcpEcho => "tcp-echo",
            Self::Http => "http",
            Self::HttpConnection => "http-connection",
            Self::HttpDownload => "http-download",
            Self::TcpUpload => "tcp-upload",
        }
    }

    /// Whether requests are HTTP.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::HttpConnection | Self::HttpDownload)
    }

    /// Whether each request has a connection of its own.
    pub fn is_single(self) -> bool {
        matches!(self, Self::HttpConnection | Self::TcpUpload)
    }

    const ALL: [Self; 6] = [
        Self::UdpEcho,
        Self::TcpEcho,
        Self::Http,
        Self::HttpConnection,
        Self::HttpDownload,
        Self::TcpUpload,
    ];
}

/// Who is asked, how, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// How.
    pub protocol: Protocol,
    /// Who.
    pub address: SocketAddr,
    /// The path with its query, beginning with a slash; empty unless HTTP.
    pub path: String,
}

impl Target {
    /// Address and port as in a URL and in the `Host` field: without the port if that is HTTP's own.
    pub fn authority(&self) -> String {
        let whole = self.address.to_string();
        match whole.strip_suffix(":80") {
            Some(bare) if self.protocol.is_http() => bare.to_owned(),
            _ => whole,
        }
    }
}

/// Not a URL that this program knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{url}` {wrong}: give udp-echo://, tcp-echo:// or tcp-upload:// with IP:PORT, or http://, http-connection:// \
     or http-download:// with IP[:PORT]/PATH; IPv6 in brackets"
)]
pub struct TargetError {
    url: String,
    wrong: &'static str,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(url: &str) -> Result<Self, TargetError> {
        parse(url).map_err(|wrong| TargetError {
            url: url.to_owned(),
            wrong,
        })
    }
}

fn parse(url: &str) -> Result<Target, &'static str> {
    let (scheme, rest) = url.split_once("://").ok_or("is not a URL")?;
    let protocol = Protocol::ALL
        .into_iter()
        .find(|protocol| protocol.scheme() == scheme)
        .ok_or("has a scheme that is not known")?;
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let address = if protocol.is_http() {
        if path.is_empty() {
            return Err("has no path");
        }
        // What would end the request line, or is never sent (RFC 9112 section 3.2.1, RFC 3986 section 3.5).
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) || path.contains('#') {
            return Err(
                "has a character in its path that a request cannot have (percent-encode it)",
            );
        }
        with_port_or(authority, 80)
    } else {
        if !path.is_empty() {
            return Err("has a path, which only HTTP has");
        }
        authority.parse().ok()
    };
    let address = address.ok_or("has no IP address and port")?;
    let ip = address.ip();
    if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
        return Err("names an address that cannot be asked");
    }
    Ok(Target {
        protocol,
        address,
        path: path.to_owned(),
    })
}

fn with_port_or(authority: &str, port: u16) -> Option<SocketAddr> {
    let bare = || -> Option<IpAddr> {
        if let Some(inside) = authority
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            return inside.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
        }
        authority.parse().ok().filter(IpAddr::is_ipv4)
    };
    authority
        .parse()
        .ok()
        .or_else(|| Some(SocketAddr::new(bare()?, port)))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.protocol.scheme();
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_and_what_they_say() {
        for (url, protocol, address, path) in [
            ("udp-echo://10.0.0.2:7", Protocol::UdpEcho, "10.0.0.2:7", ""),
            (
                "tcp-echo://[fd00::2]:7",
                Protocol::TcpEcho,
                "[fd00::2]:7",
                "",
            ),
            ("http://10.0.0.2/", Protocol::Http, "10.0.0.2:80", "/"),
            (
                "http://[fd00::2]/a/b?c=d",
                Protocol::Http,
                "[fd00::2]:80",
                "/a/b?c=d",
            ),
            (
                "http-connection://10.0.0.2:8080/x",
                Protocol::HttpConnection,
                "10.0.0.2:8080",
                "/x",
            ),
            (
                "http-download://10.0.0.2/big%20file",
                Protocol::HttpDownload,
                "10.0.0.2:80",
                "/big%20file",
            ),
            (
                "tcp-upload://10.0.0.2:9",
                Protocol::TcpUpload,
                "10.0.0.2:9",
                "",
            ),
        ] {
            let target: Target = url.parse().unwrap();
            assert_eq!(target.protocol, protocol, "{url}");
            assert_eq!(target.address, address.parse().unwrap(), "{url}");
            assert_eq!(target.path, path, "{url}");
            // As it was given.
            assert_eq!(target.to_string(), url);
        }
    }

    #[test]
    fn what_is_no_target_is_told_in_a_line() {
        for (url, word) in [
            ("", "not a URL"),
            ("10.0.0.2:7", "not a URL"),
            ("ftp://10.0.0.2/", "scheme"),
            ("HTTP://10.0.0.2/", "scheme"),
            ("tcp-echo://10.0.0.2", "no IP address and port"),
            ("tcp-echo://fd00::2:7", "no IP address and port"),
            ("tcp-echo://10.0.0.2:7/", "a path"),
            ("udp-echo://localhost:7", "no IP address"),
            ("udp-echo://10.0.0.2:0", "cannot be asked"),
            ("udp-echo://224.0.0.1:7", "cannot be asked"),
            ("http://0.0.0.0/", "cannot be asked"),
            ("http://10.0.0.2", "no path"),
            ("http://fd00::2/", "no IP address"),
            ("http://me@10.0.0.2/", "no IP address"),
            ("http://10.0.0.2:80:80/", "no IP address"),
            ("http://10.0.0.2/a b", "percent-encode"),
            ("http://10.0.0.2/a\r\nb", "percent-encode"),
            ("http://10.0.0.2/a#b", "percent-encode"),
        ] {
            let line = url.parse::<Target>().unwrap_err().to_string();
            assert!(line.contains(word), "{url}: {line}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(url in ".*", tail in ".*") {
            let _ = url.parse::<Target>();
            let _ = format!("http://10.0.0.2{tail}").parse::<Target>();
        }
    }
}
