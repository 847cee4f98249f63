//! Owns a test's network: namespaces joined by veth pairs, their addresses, a scratch directory, and
//! the removal of all of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::netns::Netns;
use crate::sys;

/// The server's end of the veth pair, in the server's namespace.
pub const SERVER_IF: &str = "srv0";
/// The client's end, in the client's namespace (behind the router, if there is one).
pub const CLIENT_IF: &str = "cli0";
/// The relay's end of its pair with the server.
pub(crate) const RELAY_SERVER_IF: &str = "rl0";
/// The relay's end of its pair with the client.
pub(crate) const RELAY_CLIENT_IF: &str = "rl1";

/// Both IP versions, for tests that do everything twice.
pub const VERSIONS: [Version; 2] = [Version::V4, Version::V6];

/// An IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// What a test wants of its network.
#[derive(Debug, Clone)]
pub struct Options {
    /// Receive and transmit queues of each end.
    pub queues: u32,
    /// MTU of each end.
    pub mtu: u32,
    /// Whether the kernel owns the server's addresses (shared-address deployment), rather than
    /// the stack alone.
    pub kernel_address: bool,
    /// Whether a router stands between client and server, so that the client is not on-link.
    pub router: bool,
    /// Whether a namespace stands between client and server in which nobody forwards frames until a
    /// [`crate::relay::Relay`] is started there. Not together with `router`.
    pub relay: bool,
    /// Whether the client's end leaves transport checksums to a card that is not there, as veth does unless it is
    /// told otherwise.
    pub leaves_checksums: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queues: 1,
            mtu: 1500,
            kernel_address: false,
            router: false,
            relay: false,
            leaves_checksums: false,
        }
    }
}

/// A network of its own for one test. Everything is removed on drop.
#[derive(Debug)]
pub struct Lab {
    server: Netns,
    client: Netns,
    router: Option<Netns>,
    relay: Option<Netns>,
    directory: PathBuf,
    /// The first two bytes after `10.` and the middle of the ULA prefix: unique per lab.
    subnet: (u8, u8),
    id: u32,
}

impl Lab {
    /// Makes the network, or gives `None` (having said so) where `ILET_UNPRIVILEGED=1` asks to skip
    /// what needs root.
    ///
    /// # Panics
    ///
    /// If not root without being asked to skip, or if the network cannot be made.
    pub fn new(options: Options) -> Option<Self> {
        if std::env::var_os("ILET_UNPRIVILEGED").is_some_and(|value| value == "1") {
            eprintln!("skipped: needs root");
            return None;
        }
        assert!(
            sys::is_root(),
            "needs root; ILET_UNPRIVILEGED=1 skips this test"
        );

        let id = unique_id();
        // `scripts/test` chooses a prefix, to find what is left if the tests are interrupted.
        let prefix = std::env::var("ILET_LAB_PREFIX").unwrap_or_else(|_| "ilet".to_owned());
        let directory = std::env::temp_dir().join(format!("{prefix}-test-{id:08x}"));
        std::fs::create_dir(&directory).expect("make the scratch directory");
        let name = |role: &str| Netns::new(format!("{prefix}-{role}-{id:08x}"));
        let lab = Self {
            server: name("ts"),
            client: name("tc"),
            router: options.router.then(|| name("tr")),
            relay: options.relay.then(|| name("tl")),
            directory,
            subnet: (20 + (id >> 8) as u8 % 200, (id as u8) & 0xfe),
            id,
        };
        // From here on `lab` is dropped, and so removed, also if a step panics.
        lab.set_up(&options);
        Some(lab)
    }

    fn set_up(&self, options: &Options) {
        for namespace in self.namespaces() {
            ip(&["netns", "add", namespace.name()]);
            // No duplicate address detection: nothing should wait for tentative addresses.
            for scope in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad");
                namespace.inside(|| std::fs::write(&path, "0").expect("turn DAD off"));
            }
            self.ip_in(namespace, &["link", "set", "lo", "up"]);
        }

        if let Some(router) = &self.router {
            self.join(options, (router, "rt0"), (&self.server, SERVER_IF));
            self.join(options, (&self.client, CLIENT_IF), (router, "rt1"));
            self.add_addresses(router, "rt0", self.gateways());
            self.add_addresses(router, "rt1", self.far_addresses(2));
            for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                let path = format!("/proc/sys/net/{path}");
                router.inside(|| std::fs::write(&path, "1").expect("turn forwarding on"));
            }
            self.add_addresses(&self.client, CLIENT_IF, self.far_addresses(1));
            self.add_default_routes(&self.client, self.far_addresses(2));
        } else if let Some(relay) = &self.relay {
            // The relay's kernel says nothing by itself.
            let path = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
            relay.inside(|| std::fs::write(path, "1").expect("turn IPv6 off"));
            self.join(options, (relay, RELAY_SERVER_IF), (&self.server, SERVER_IF));
            self.join(options, (&self.client, CLIENT_IF), (relay, RELAY_CLIENT_IF));
            // Segments must not be merged on their way: the result would be longer than a frame.
            relay.run_ok("ethtool", &["-K", RELAY_SERVER_IF, "gro", "off"]);
            self.add_addresses(&self.client, CLIENT_IF, self.gateways());
        } else {
            self.join(
                options,
                (&self.client, CLIENT_IF),
                (&self.server, SERVER_IF),
            );
            self.add_addresses(&self.client, CLIENT_IF, self.gateways());
        }
        if options.kernel_address {
            let addresses = VERSIONS.map(|version| self.server_ip(version));
            self.add_addresses(&self.server, SERVER_IF, addresses);
            if self.router.is_some() {
                self.add_default_routes(&self.server, self.gateways());
            }
        }
    }

    /// Makes a veth pair between two namespaces (never in the root namespace) and brings it up.
    fn join(&self, options: &Options, near: (&Netns, &str), far: (&Netns, &str)) {
        let queues = options.queues.to_string();
        let mtu = options.mtu.to_string();
        self.ip_in(
            near.0,
            &[
                "link",
                "add",
                near.1,
                "mtu",
                &mtu,
                "numtxqueues",
                &queues,
                "numrxqueues",
                &queues,
                "type",
                "veth",
                "peer",
                "name",
                far.1,
                "mtu",
                &mtu,
                "numtxqueues",
                &queues,
                "numrxqueues",
                &queues,
                "netns",
                far.0.name(),
            ],
        );
        // The kernel would send partial checksums over veth, and the stack verifies them. GRO gives
        // this end the NAPI context that frames sent back by XDP need.
        let tx = if options.leaves_checksums {
            "on"
        } else {
            "off"
        };
        near.0
            .run_ok("ethtool", &["-K", near.1, "tx", tx, "gro", "on"]);
        for (namespace, interface) in [near, far] {
            self.ip_in(namespace, &["link", "set", interface, "up"]);
        }
    }

    fn add_addresses(&self, namespace: &Netns, interface: &str, addresses: [IpAddr; 2]) {
        for address in addresses {
            let with_prefix = with_prefix(address);
            let mut arguments = vec!["address", "add", with_prefix.as_str(), "dev", interface];
            if address.is_ipv6() {
                arguments.push("nodad");
            }
            self.ip_in(namespace, &arguments);
        }
    }

    fn add_default_routes(&self, namespace: &Netns, gateways: [IpAddr; 2]) {
        for gateway in gateways {
            let gateway = gateway.to_string();
            self.ip_in(namespace, &["route", "add", "default", "via", &gateway]);
        }
    }

    /// Runs `ip` with `arguments` on `namespace`; panics unless it succeeds.
    pub fn ip_in(&self, namespace: &Netns, arguments: &[&str]) {
        let mut all = vec!["-n", namespace.name()];
        all.extend_from_slice(arguments);
        ip(&all);
    }

    /// The namespace that servers run in.
    pub fn server(&self) -> &Netns {
        &self.server
    }

    /// The namespace that clients run in.
    pub fn client(&self) -> &Netns {
        &self.client
    }

    /// The namespace between client and server, if a relay was asked for.
    pub(crate) fn relay(&self) -> Option<&Netns> {
        self.relay.as_ref()
    }

    /// A scratch directory, removed with the lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The server's address.
    pub fn server_ip(&self, version: Version) -> IpAddr {
        self.address(version, 0, 2)
    }

    /// The server's address with its prefix length, as `--address` takes it.
    pub fn server_cidr(&self, version: Version) -> String {
        with_prefix(self.server_ip(version))
    }

    /// A socket address of the server.
    pub fn server_at(&self, version: Version, port: u16) -> SocketAddr {
        SocketAddr::new(self.server_ip(version), port)
    }

    /// The client's address.
    pub fn client_ip(&self, version: Version) -> IpAddr {
        self.address(version, u8::from(self.router.is_some()), 1)
    }

    /// An address on the server's link that nobody has.
    pub fn spare_ip(&self, version: Version) -> IpAddr {
        self.address(version, 0, 99)
    }

    /// The addresses of the next hop on the server's link: the router's, or the client's own.
    pub fn gateways(&self) -> [IpAddr; 2] {
        VERSIONS.map(|version| self.address(version, 0, 1))
    }

    /// The link address of an interface, from what the kernel says of it.
    pub fn link_address(&self, namespace: &Netns, interface: &str) -> [u8; 6] {
        let text = namespace.run_ok("cat", &[&format!("/sys/class/net/{interface}/address")]);
        let mut address = [0; 6];
        for (byte, hex) in address.iter_mut().zip(text.trim().split(':')) {
            *byte = u8::from_str_radix(hex, 16).expect("a link address");
        }
        address
    }

    /// Whether an XDP program is attached to the server's interface.
    pub fn xdp_attached(&self) -> bool {
        self.xdp_attached_to(&self.server, SERVER_IF)
    }

    /// Whether an XDP program is attached to an interface.
    pub fn xdp_attached_to(&self, namespace: &Netns, interface: &str) -> bool {
        namespace
            .run_ok("ip", &["-d", "link", "show", "dev", interface])
            .contains("xdp")
    }

    /// A prefix in which nobody has an address, unless there is a router.
    pub fn spare_prefix(&self, version: Version) -> String {
        with_prefix(self.address(version, 1, 0))
    }

    fn far_addresses(&self, host: u8) -> [IpAddr; 2] {
        VERSIONS.map(|version| self.address(version, 1, host))
    }

    /// Host `host` of this lab's link number `link` (0: the server's link, 1: beyond the router).
    fn address(&self, version: Version, link: u8, host: u8) -> IpAddr {
        let (high, low) = self.subnet;
        match version {
            Version::V4 => Ipv4Addr::new(10, high, low + link, host).into(),
            Version::V6 => {
                let id = self.id;
                Ipv6Addr::new(
                    0xfd00,
                    (id >> 16) as u16,
                    id as u16,
                    u16::from(link),
                    0,
                    0,
                    0,
                    u16::from(host),
                )
                .into()
            }
        }
    }

    fn namespaces(&self) -> impl Iterator<Item = &Netns> {
        let between = self.router.iter().chain(&self.relay);
        [&self.server, &self.client].into_iter().chain(between)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in self.namespaces() {
            // Best effort: a namespace that was never made cannot be deleted.
            let _ = Command::new("ip")
                .args(["netns", "del", namespace.name()])
                .output();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn with_prefix(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 })
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("run ip");
    assert!(
        output.status.success(),
        "ip {arguments:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Differs between the labs of one process, and between processes that run at once.
fn unique_id() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let clock = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock")
        .subsec_nanos();
    // An odd multiplier spreads neighbouring pids over all bits.
    (std::process::id().wrapping_mul(0x9e37_79b1) ^ clock)
        .wrapping_add(count.wrapping_mul(0x0101_0101))
}
