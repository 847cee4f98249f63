//! The program on interfaces: modes, refusals, and that the kernel gets its traffic back.

use std::env;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::in_namespace;
use super::namespace::{Namespace, has_xdp, ip};
use super::socket::XdpSocket;
use crate::{AttachError, AttachMode, Outcome, PortRule, Program, Protocol, RegisterError, Rules};

const SERVER: &str = "10.77.0.1";
const CLIENT: &str = "10.77.0.2";
const PORT: u16 = 7777;

/// Longer than the kernel takes to deliver a datagram or to find a neighbour again.
const WAIT: Duration = Duration::from_secs(5);
/// Long enough for a datagram that arrives at all.
const MOMENT: Duration = Duration::from_millis(200);

/// Set for a copy of this test binary: the interface that `hold_for_parent` is to take over.
const HOLD: &str = "ILET_TEST_HOLD_INTERFACE";

fn own(address: &str) -> Rules {
    Rules {
        own: vec![(address.parse::<IpAddr>().unwrap(), 32)],
        ports: Vec::new(),
    }
}

/// Make a veth pair, `server` here and `client` in a namespace of its own, both up and with addresses.
/// This thread stays here.
fn veth_pair(here: &Namespace) -> Namespace {
    let there = Namespace::enter_new();
    let path = here.path();
    ip(&format!(
        "link add client type veth peer name server netns {path}"
    ));
    ip(&format!("address add {CLIENT}/24 dev client"));
    ip("link set client up");
    here.enter();
    ip(&format!("address add {SERVER}/24 dev server"));
    ip("link set server up");
    there
}

/// Run `body` in a namespace with one end of a veth pair, `server`; its arguments are that namespace and
/// the one of the other end, `client`.
fn with_veth(body: impl FnOnce(&Namespace, &Namespace) + Send) {
    in_namespace(|here| {
        let there = veth_pair(here);
        body(here, &there);
    });
}

/// Datagrams from the client to the kernel of the server.
struct Datagrams {
    client: UdpSocket,
    server: UdpSocket,
}

impl Datagrams {
    fn new(here: &Namespace, there: &Namespace) -> Datagrams {
        let server = UdpSocket::bind((SERVER, PORT)).unwrap();
        there.enter();
        let client = UdpSocket::bind((CLIENT, 0)).unwrap();
        client.connect((SERVER, PORT)).unwrap();
        here.enter();
        Datagrams { client, server }
    }

    /// Whether one of several datagrams arrives within this time.
    fn arrive_within(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        self.server.set_read_timeout(Some(MOMENT)).unwrap();
        while Instant::now() < end {
            // The error may be that of an earlier one.
            let _ = self.client.send(b"hello");
            if self.server.recv(&mut [0; 16]).is_ok() {
                return true;
            }
        }
        false
    }

    /// Take what already has arrived off the socket.
    fn drain(&self) {
        self.server.set_nonblocking(true).unwrap();
        while self.server.recv(&mut [0; 16]).is_ok() {}
        self.server.set_nonblocking(false).unwrap();
    }
}

#[test]
fn veth_is_native_and_dropping_detaches() {
    with_veth(|_, _| {
        let program = Program::attach("server", &own(SERVER)).unwrap();
        assert_eq!(program.mode(), AttachMode::Native);
        assert!(program.native_refusal().is_none());
        assert!(program.is_attached() && has_xdp("server"));
        drop(program);
        assert!(!has_xdp("server"));

        Program::attach("server", &own(SERVER))
            .unwrap()
            .detach()
            .unwrap();
        assert!(!has_xdp("server"));
    });
}

#[test]
fn an_interface_that_is_down_will_do() {
    with_veth(|_, _| {
        ip("link set server down");
        let program = Program::attach("server", &own(SERVER)).unwrap();
        assert_eq!(program.mode(), AttachMode::Native);
        ip("link set server up");
        assert!(program.is_attached());
    });
}

#[test]
fn a_driver_without_xdp_gets_the_generic_mode() {
    in_namespace(|_| {
        let program = Program::attach("lo", &Rules::default()).unwrap();
        assert_eq!(program.mode(), AttachMode::Generic);
        let refusal = program.native_refusal().unwrap();
        assert_eq!(refusal.raw_os_error(), Some(libc::EOPNOTSUPP));
        assert!(ip("link show dev lo").contains("xdpgeneric"));
        drop(program);
        assert!(!has_xdp("lo"));
    });
}

#[test]
fn another_program_is_named() {
    with_veth(|_, _| {
        for interface in ["server", "lo"] {
            let first = Program::attach(interface, &own(SERVER)).unwrap();
            let error = Program::attach(interface, &own(SERVER)).unwrap_err();
            let AttachError::OtherProgram {
                interface: named,
                id,
                name,
            } = &error
            else {
                panic!("{error}");
            };
            assert_eq!((named.as_str(), name.as_deref()), (interface, Some("ilet")));
            assert!(
                ip(&format!("link show dev {interface}")).contains(&format!("prog/xdp id {id} "))
            );
            assert!(
                first.is_attached(),
                "the second took the place of the first"
            );
        }
    });
}

#[test]
fn an_unknown_interface_is_refused() {
    in_namespace(|_| {
        for name in [
            "nosuch0",
            "",
            "a-name-longer-than-the-kernel-has-room-for",
            "a\0b",
        ] {
            let error = Program::attach(name, &Rules::default()).unwrap_err();
            assert!(
                matches!(&error, AttachError::NoSuchInterface { interface } if interface == name),
                "{error}"
            );
        }
    });
}

#[test]
fn an_mtu_beyond_a_page_is_named() {
    in_namespace(|_| {
        ip("link add big type veth peer name bigger");
        ip("link set big mtu 8000");
        // It is the peer's that veth looks at.
        ip("link set bigger mtu 9000");
        let error = Program::attach("big", &Rules::default()).unwrap_err();
        assert!(
            matches!(&error, AttachError::MtuTooLarge { interface, mtu: 8000, .. } if interface == "big"),
            "{error}"
        );
        assert!(!has_xdp("big"));
        // The largest that the error names is one that works.
        let AttachError::MtuTooLarge { max, .. } = error else {
            unreachable!()
        };
        ip(&format!("link set big mtu {max}"));
        ip(&format!("link set bigger mtu {max}"));
        let program = Program::attach("big", &Rules::default()).unwrap();
        assert_eq!(program.mode(), AttachMode::Native);
    });
}

#[test]
fn a_missing_capability_is_named() {
    for (capability, name) in [
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::PERFMON, "CAP_PERFMON"),
    ] {
        in_namespace(|_| {
            // CAP_SYS_ADMIN stands for the others. Capabilities are a thread's, and this one ends here.
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(capability | CapabilitySet::SYS_ADMIN);
            set_capabilities(None, sets).unwrap();
            let error = Program::attach("lo", &own(SERVER)).unwrap_err();
            assert!(
                matches!(&error, AttachError::MissingCapability { missing } if missing[..] == [name]),
                "{error}"
            );
        });
    }
}

#[test]
fn the_three_capabilities_suffice() {
    in_namespace(|_| {
        let mut sets = capabilities(None).unwrap();
        sets.effective = CapabilitySet::NET_ADMIN | CapabilitySet::BPF | CapabilitySet::PERFMON;
        set_capabilities(None, sets).unwrap();
        Program::attach("lo", &own(SERVER)).unwrap();
    });
}

#[test]
fn a_deleted_interface_is_noticed() {
    with_veth(|_, _| {
        let program = Program::attach("server", &own(SERVER)).unwrap();
        ip("link del server");
        assert!(!program.is_attached());
        program.detach().unwrap();
    });
}

#[test]
fn only_xdp_sockets_of_possible_queues_are_registered() {
    with_veth(|_, _| {
        let program = Program::attach("server", &own(SERVER)).unwrap();
        let bound = XdpSocket::bind("server");
        program.register(0, bound.as_fd()).unwrap();
        program.register(0, bound.as_fd()).unwrap();
        program.register(255, bound.as_fd()).unwrap();
        assert!(matches!(
            program.register(256, bound.as_fd()),
            Err(RegisterError::QueueOutOfRange {
                queue: 256,
                queues: 256
            })
        ));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(matches!(
            program.register(1, udp.as_fd()),
            Err(RegisterError::NotAccepted { queue: 1, .. })
        ));
        for queue in [0, 0, 1, 256] {
            program.unregister(queue).unwrap();
        }
    });
}

#[test]
fn the_kernel_has_what_is_not_ours() {
    with_veth(|here, there| {
        let datagrams = Datagrams::new(here, there);
        let rules = Rules {
            own: Vec::new(),
            ports: vec![PortRule {
                address: SERVER.parse().unwrap(),
                protocol: Protocol::Udp,
                port: PORT + 1,
            }],
        };
        let program = Program::attach("server", &rules).unwrap();
        let socket = XdpSocket::bind("server");
        program.register(0, socket.as_fd()).unwrap();
        assert!(datagrams.arrive_within(WAIT));
        let counters = program.counters().unwrap();
        assert!(counters.get(Outcome::PassNotOurs) > 0);
        assert_eq!(counters.redirected(), 0);
    });
}

#[test]
fn what_is_ours_follows_the_socket() {
    with_veth(|here, there| {
        let datagrams = Datagrams::new(here, there);
        let program = Program::attach("server", &own(SERVER)).unwrap();
        assert!(datagrams.arrive_within(WAIT), "no socket: fail open");
        assert!(program.counters().unwrap().get(Outcome::PassNoSocket) > 0);

        let socket = XdpSocket::bind("server");
        program.register(0, socket.as_fd()).unwrap();
        datagrams.drain();
        assert!(!datagrams.arrive_within(3 * MOMENT));
        assert!(program.counters().unwrap().get(Outcome::RedirectOwn) > 0);

        program.unregister(0).unwrap();
        assert!(datagrams.arrive_within(WAIT));

        program.register(0, socket.as_fd()).unwrap();
        let registration = program.registration(0).unwrap();
        datagrams.drain();
        assert!(!datagrams.arrive_within(3 * MOMENT));
        thread::spawn(move || registration.end().unwrap())
            .join()
            .unwrap();
        assert!(datagrams.arrive_within(WAIT));

        program.register(0, socket.as_fd()).unwrap();
        drop(socket);
        assert!(
            datagrams.arrive_within(WAIT),
            "a closed socket is forgotten"
        );
    });
}

/// A copy of this test binary that runs `hold_for_parent`; killed at the end.
struct Holder(Child);

impl Holder {
    fn start(interface: &str) -> Holder {
        let child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "privileged::attach::hold_for_parent",
                "--nocapture",
            ])
            .env(HOLD, interface)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut holder = Holder(child);
        let output = BufReader::new(holder.0.stdout.take().unwrap());
        let holds = output.lines().any(|line| line.unwrap().contains("holding"));
        assert!(holds, "the holder ended");
        holder
    }

    /// SIGKILL, and wait until the process is gone.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test of its own: what the process to be killed does.
#[test]
fn hold_for_parent() {
    let Ok(interface) = env::var(HOLD) else {
        return;
    };
    // Not to be left behind should the parent be killed itself.
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let program = Program::attach(&interface, &own(SERVER)).unwrap();
    let socket = XdpSocket::bind(&interface);
    program.register(0, socket.as_fd()).unwrap();
    println!("holding {interface}");
    loop {
        thread::park();
    }
}

#[test]
fn kill_gives_the_traffic_back() {
    with_veth(|here, there| {
        let datagrams = Datagrams::new(here, there);
        assert!(datagrams.arrive_within(WAIT));

        let mut holder = Holder::start("server");
        assert!(has_xdp("server"));
        datagrams.drain();
        assert!(!datagrams.arrive_within(3 * MOMENT));

        holder.kill();
        assert!(datagrams.arrive_within(WAIT));
        assert!(!has_xdp("server"));
        Program::attach("server", &own(SERVER)).unwrap();
    });
}
