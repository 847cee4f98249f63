//! Everything that can keep a server from starting: one line that names what is wrong, an exit code
//! that is not 0, and nothing left attached.

// Clippy knows test functions, but not their helpers.
#![allow(clippy::expect_used, clippy::panic)]

use std::fs::Permissions;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use interruptlet_tests::echo::assert_serves;
use interruptlet_tests::lab::{CLIENT_IF, Lab, Options, SERVER_IF, VERSIONS, Version};
use interruptlet_tests::server::{ECHO_PORT, Launch};

/// Checks that a server refuses to start with one line on standard error that has each of `names`
/// in it, and leaves no XDP program behind.
fn assert_refuses(lab: &Lab, launch: Launch<'_>, names: &[&str]) {
    let attached_before = lab.xdp_attached();
    let refusal = launch.refuse();
    assert_eq!(refusal.code, Some(1), "{refusal:?}");
    let [line] = refusal.stderr.as_slice() else {
        panic!("not one line: {refusal:?}")
    };
    assert!(line.starts_with("error: "), "{line}");
    for name in names {
        assert!(
            line.to_lowercase().contains(&name.to_lowercase()),
            "no {name:?} in: {line}"
        );
    }
    assert!(
        !refusal.stdout.iter().any(|line| line.starts_with("ready:")),
        "{refusal:?}"
    );
    assert_eq!(
        lab.xdp_attached(),
        attached_before,
        "an XDP program is left or gone"
    );
}

/// Checks that nothing of an earlier refusal stands in the way.
fn assert_starts(lab: &Lab, launch: Launch<'_>) {
    let server = launch.start();
    assert!(lab.xdp_attached());
    assert_serves(lab);
    server.stop();
    assert!(!lab.xdp_attached());
}

#[test]
fn no_such_interface() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let launch = Launch::bare(&lab, "ilet-echo")
        .with("--interface", "nope0")
        .with("--port", "7")
        .with_addresses();
    assert_refuses(&lab, launch, &["nope0"]);
}

#[test]
fn interfaces_that_are_not_ethernet_are_called_what_they_are() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let on = |interface: &str| {
        Launch::bare(&lab, "ilet-echo")
            .with("--interface", interface)
            .with("--port", "7")
            .with_addresses()
    };
    assert_refuses(&lab, on("lo"), &["lo is the loopback interface", "veth"]);
    lab.ip_in(
        lab.server(),
        &["tuntap", "add", "dev", "tun0", "mode", "tun"],
    );
    lab.ip_in(lab.server(), &["link", "set", "tun0", "up"]);
    assert_refuses(
        &lab,
        on("tun0"),
        &["tun0", "no Ethernet interface", "65534"],
    );
}

#[test]
fn addresses_that_stand_for_their_network() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let with = |address: &str| {
        Launch::bare(&lab, "ilet-echo")
            .with("--interface", SERVER_IF)
            .with("--port", "7")
            .with("--address", address)
    };
    for (address, meaning) in [
        ("10.1.2.0/24", "network address"),
        ("10.1.2.255/24", "broadcast address"),
        ("fd00:1::/64", "subnet-router anycast address"),
    ] {
        assert_refuses(&lab, with(address), &[address, meaning]);
    }
    for address in ["10.1.2.0/31", "10.1.2.255/32", "fd00:1::/127"] {
        with(address).start().stop();
    }
}

#[test]
fn interface_down() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    lab.ip_in(lab.server(), &["link", "set", SERVER_IF, "down"]);
    assert_refuses(&lab, Launch::echo(&lab), &[SERVER_IF, "down"]);
    lab.ip_in(lab.server(), &["link", "set", SERVER_IF, "up"]);
    assert_starts(&lab, Launch::echo(&lab));
}

#[test]
fn queue_out_of_range() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    assert_refuses(
        &lab,
        Launch::echo(&lab).with("--queues", "5"),
        &[SERVER_IF, "queue", "5"],
    );
    // The first queue is there; what was set up for it must go again.
    let launch = Launch::echo(&lab)
        .with("--queues", "0,1")
        .with("--cores", "0,1");
    assert_refuses(&lab, launch, &[SERVER_IF, "queue", "1"]);
    assert_starts(&lab, Launch::echo(&lab));
}

#[test]
fn core_that_is_not_there() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    assert_refuses(
        &lab,
        Launch::echo(&lab).with("--cores", "4000"),
        &["core", "4000"],
    );
}

#[test]
fn each_missing_capability_is_named() {
    for (dropped, named) in [
        ("-net_raw", "CAP_NET_RAW"),
        ("-net_admin,-sys_admin", "CAP_NET_ADMIN"),
        // CAP_SYS_ADMIN includes CAP_BPF.
        ("-bpf,-sys_admin", "CAP_BPF"),
    ] {
        let Some(lab) = Lab::new(Options::default()) else {
            return;
        };
        let launch = Launch::echo(&lab).through(&["setpriv", "--bounding-set", dropped]);
        assert_refuses(&lab, launch, &[named]);
    }
}

#[test]
fn all_missing_capabilities_are_named_at_once() {
    let Some(lab) = Lab::new(Options {
        kernel_address: true,
        ..Options::default()
    }) else {
        return;
    };
    let launch = || Launch::echo(&lab).with_flag("--shared-address");
    // Locked memory for less than any queue needs.
    let bare = launch().through(&[
        "prlimit",
        "--memlock=65536",
        "setpriv",
        "--bounding-set",
        "-all",
        "--inh-caps",
        "-all",
    ]);
    assert_refuses(
        &lab,
        bare,
        &[
            "CAP_NET_ADMIN",
            "CAP_NET_RAW",
            "CAP_BPF",
            "CAP_PERFMON",
            "CAP_IPC_LOCK",
            "64 KiB",
            "CAP_NET_BIND_SERVICE",
            "port 7",
        ],
    );
    assert_starts(&lab, launch());
}

#[test]
fn an_address_that_a_neighbour_has() {
    for version in VERSIONS {
        let Some(lab) = Lab::new(Options::default()) else {
            return;
        };
        let theirs = lab.server_ip(version);
        let cidr = lab.server_cidr(version);
        let change = |what: &str| {
            let mut arguments = vec!["address", what, cidr.as_str(), "dev", CLIENT_IF];
            if version == Version::V6 && what == "add" {
                arguments.push("nodad");
            }
            lab.ip_in(lab.client(), &arguments);
        };
        change("add");
        let link = lab.link_address(lab.client(), CLIENT_IF);
        let link: Vec<String> = link.iter().map(|byte| format!("{byte:02x}")).collect();
        let link = link.join(":");
        assert_refuses(
            &lab,
            Launch::echo(&lab),
            &[
                "neighbour",
                &theirs.to_string(),
                &link,
                SERVER_IF,
                "--shared-address",
            ],
        );
        change("delete");
        assert_starts(&lab, Launch::echo(&lab));
    }
}

#[test]
fn a_link_without_a_carrier_has_no_neighbours_to_ask() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    lab.ip_in(lab.client(), &["link", "set", CLIENT_IF, "down"]);
    let server = Launch::echo(&lab).start();
    lab.ip_in(lab.client(), &["link", "set", CLIENT_IF, "up"]);
    server.stop();
}

#[test]
fn another_xdp_program_is_named_and_left_alone() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let source = lab.directory().join("foreign.c");
    let object = lab.directory().join("foreign.o");
    let code = "__attribute__((section(\"xdp\"), used)) int foreign_pass(void *c) { return 2; }\n";
    std::fs::write(&source, code).expect("write the program");
    let clang = Command::new("clang")
        .args(["-O2", "-g", "-target", "bpf", "-c"])
        .arg(&source)
        .arg("-o")
        .arg(&object)
        .output();
    let clang = clang.expect("run clang");
    assert!(
        clang.status.success(),
        "{}",
        String::from_utf8_lossy(&clang.stderr)
    );
    let object = object.to_str().expect("a path in UTF-8");
    lab.server().run_ok(
        "ip",
        &[
            "link", "set", "dev", SERVER_IF, "xdpdrv", "object", object, "section", "xdp",
        ],
    );

    let shown = lab
        .server()
        .run_ok("ip", &["-d", "link", "show", "dev", SERVER_IF]);
    let mut words = shown
        .split_whitespace()
        .skip_while(|word| !word.starts_with("prog/xdp"));
    let id = words.nth(2).expect("the program's id").to_owned();
    let refusal = Launch::echo(&lab).refuse();
    let [line] = refusal.stderr.as_slice() else {
        panic!("not one line: {refusal:?}")
    };
    assert!(
        line.starts_with("error: ") && line.contains(SERVER_IF),
        "{line}"
    );
    assert!(
        line.contains("foreign_pass") || line.contains(&id),
        "neither name nor id {id}: {line}"
    );
    assert_eq!(refusal.code, Some(1));
    let shown = lab
        .server()
        .run_ok("ip", &["-d", "link", "show", "dev", SERVER_IF]);
    assert!(
        shown.contains(&format!("id {id}")),
        "the other program is gone: {shown}"
    );

    lab.server()
        .run_ok("ip", &["link", "set", "dev", SERVER_IF, "xdpdrv", "off"]);
    assert_starts(&lab, Launch::echo(&lab));
}

#[test]
fn a_second_server_on_a_queue_does_not_disturb_the_first() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let first = Launch::echo(&lab).start();
    assert_refuses(&lab, Launch::echo(&lab), &[SERVER_IF]);
    assert_serves(&lab);
    first.stop();
}

#[test]
fn an_address_that_is_the_kernel_s_already() {
    let Some(lab) = Lab::new(Options {
        kernel_address: true,
        ..Options::default()
    }) else {
        return;
    };
    let address = lab.server_ip(Version::V4).to_string();
    assert_refuses(&lab, Launch::echo(&lab), &[&address]);
    assert_starts(&lab, Launch::echo(&lab).with_flag("--shared-address"));
}

#[test]
fn an_mtu_that_frames_cannot_hold() {
    let Some(lab) = Lab::new(Options {
        mtu: 9000,
        ..Options::default()
    }) else {
        return;
    };
    assert_refuses(&lab, Launch::echo(&lab), &[SERVER_IF, "mtu", "9000"]);
}

#[test]
fn a_port_that_the_kernel_serves() {
    let Some(lab) = Lab::new(Options {
        kernel_address: true,
        ..Options::default()
    }) else {
        return;
    };
    let launch = || Launch::echo(&lab).with_flag("--shared-address");
    let port = ECHO_PORT.to_string();
    for version in VERSIONS {
        let at = lab.server_at(version, ECHO_PORT);
        let listener = lab.server().inside(|| TcpListener::bind(at)).expect("bind");
        assert_refuses(&lab, launch(), &["port", &port]);
        drop(listener);
        let socket = lab.server().inside(|| UdpSocket::bind(at)).expect("bind");
        assert_refuses(&lab, launch(), &["port", &port]);
        drop(socket);
    }
    assert_starts(&lab, launch());
}

#[test]
fn a_root_that_cannot_be_read() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let missing = lab.directory().join("missing");
    assert_refuses(
        &lab,
        Launch::httpd(&lab, &missing),
        &[&missing.to_string_lossy()],
    );

    let file = lab.directory().join("file");
    std::fs::write(&file, "no directory").expect("write a file");
    assert_refuses(&lab, Launch::httpd(&lab, &file), &[&file.to_string_lossy()]);

    let closed = lab.directory().join("closed");
    std::fs::create_dir(&closed).expect("make a directory");
    std::fs::set_permissions(&closed, Permissions::from_mode(0o000)).expect("close the directory");
    // Root may read everything unless these are taken from it.
    let launch = Launch::httpd(&lab, &closed).through(&[
        "setpriv",
        "--bounding-set",
        "-dac_override,-dac_read_search",
    ]);
    assert_refuses(&lab, launch, &[&closed.to_string_lossy()]);
}

#[test]
fn wrong_usage_has_an_exit_code_of_its_own() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let cidr = lab.server_cidr(Version::V4);
    let base = || Launch::bare(&lab, "ilet-echo").with("--interface", SERVER_IF);
    for launch in [
        Launch::bare(&lab, "ilet-echo"),
        base()
            .with("--port", "7")
            .with("--address", "10.0.0.300/24"),
        base().with("--port", "7").with("--address", "10.0.0.3/99"),
        base().with("--port", "70000").with("--address", &cidr),
        base()
            .with("--port", "7")
            .with("--address", &cidr)
            .with("--mode", "fast"),
        base()
            .with("--port", "7")
            .with("--address", &cidr)
            .with("--poll", "never"),
        base()
            .with("--port", "7")
            .with("--address", &cidr)
            .with_flag("--unheard-of"),
    ] {
        let refusal = launch.refuse();
        assert_eq!(refusal.code, Some(2), "{refusal:?}");
        assert!(!refusal.stderr.is_empty(), "{refusal:?}");
        assert!(!lab.xdp_attached());
    }
}
