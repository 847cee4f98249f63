//! Owns the web site that the HTTP tests serve and ask for.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::echo::pattern;
use crate::http::{self, Connection, Response};
use crate::lab::{Lab, Options, Version};
use crate::server::{HTTP_PORT, Launch, Server};

/// A lab with a site in it.
#[derive(Debug)]
pub struct Site {
    root: PathBuf,
    lab: Lab,
}

impl Site {
    /// The content of `/small.txt`, 128 bytes.
    pub const SMALL: &str = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_\
                             0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";

    /// Makes the lab and the site; `None` where what needs root is skipped.
    pub fn new() -> Option<Self> {
        Self::with(Options::default())
    }

    /// Makes the site in a lab of the given kind; `None` where what needs root is skipped.
    pub fn with(options: Options) -> Option<Self> {
        let lab = Lab::new(options)?;
        let site = Self {
            root: lab.directory().join("www"),
            lab,
        };
        for directory in ["", "sub", "empty"] {
            std::fs::create_dir(site.root.join(directory)).expect("make a directory");
        }
        site.put("index.html", "<!doctype html><title>top</title>");
        site.put("sub/index.html", "<!doctype html><title>sub</title>");
        site.put("small.txt", Self::SMALL);
        site.put("with space.txt", "space");
        site.put("ümlaut.txt", "umlaut");
        site.put("empty.txt", "");
        site.put("medium.bin", pattern(1, 300_000));
        for (name, _) in CONTENT_TYPES {
            site.put(name, "x");
        }
        Some(site)
    }

    /// Writes a file of the site.
    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.root.join(name), content).expect("write a file of the site");
    }

    /// The directory that is served.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The server's command line, for tests that add to it.
    pub fn launch(&self) -> Launch<'_> {
        Launch::httpd(&self.lab, &self.root)
    }

    /// Starts the server.
    pub fn serve(&self) -> Server {
        self.launch().start()
    }

    /// Where the server listens, over IPv4.
    pub fn address(&self) -> SocketAddr {
        self.lab.server_at(Version::V4, HTTP_PORT)
    }

    /// Opens a connection over IPv4.
    pub fn connect(&self) -> Connection {
        Connection::open(self.lab.client(), self.address())
    }

    /// One GET with extra header lines (each ended with CRLF) on a connection of its own.
    pub fn get(&self, target: &str, headers: &str) -> Response {
        self.exchange(get(target, headers))
    }

    /// One request other than HEAD, as given, on a connection of its own.
    pub fn exchange(&self, request: impl AsRef<[u8]>) -> Response {
        http::exchange(self.lab.client(), self.address(), request)
    }

    /// Checks that the server still answers.
    pub fn assert_serves(&self) {
        let response = self.get("/small.txt", "");
        assert_eq!(
            (response.status, response.body.as_slice()),
            (200, Self::SMALL.as_bytes())
        );
    }

    /// Runs curl in the client's namespace, and gives its standard output as bytes.
    pub fn curl(&self, arguments: &[&str]) -> Vec<u8> {
        let all = [
            &["--silent", "--show-error", "--globoff", "--max-time", "30"],
            arguments,
        ]
        .concat();
        let output = self.lab.client().run("curl", &all);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "curl {arguments:?}: {errors}");
        output.stdout
    }

    /// The URL of a file over the given IP version.
    pub fn url(&self, version: Version, path: &str) -> String {
        let host = match version {
            Version::V4 => self.lab.server_ip(version).to_string(),
            Version::V6 => format!("[{}]", self.lab.server_ip(version)),
        };
        format!("http://{host}{path}")
    }
}

/// Files of the site by extension, and the media type that each must have.
pub const CONTENT_TYPES: [(&str, &str); 8] = [
    ("type.html", "text/html"),
    ("type.css", "text/css"),
    ("type.js", "text/javascript"),
    ("type.json", "application/json"),
    ("type.svg", "image/svg+xml"),
    ("type.png", "image/png"),
    ("type.txt", "text/plain"),
    ("type.unheard-of", "application/octet-stream"),
];

/// A GET request of HTTP/1.1 with extra header lines, each ended with CRLF.
pub fn get(target: &str, headers: &str) -> String {
    request("GET", target, headers)
}

/// A request of HTTP/1.1 with extra header lines, each ended with CRLF.
pub fn request(method: &str, target: &str, headers: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: test\r\n{headers}\r\n")
}
