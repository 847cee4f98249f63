//! Answers of interfaces and their drivers.

use super::in_namespace;
use super::namespace::ip;
use crate::{
    interface_driver, interface_has_link, interface_has_zero_copy, interface_mtu,
    interface_queues_max, interface_spread,
};

#[test]
fn a_veth_pair_tells_what_it_is() {
    in_namespace(|_| {
        ip("link add ilet0 numrxqueues 3 numtxqueues 2 mtu 1400 type veth peer name ilet1");
        ip("link set ilet0 up");
        assert!(!interface_has_link("ilet0").unwrap(), "its peer is down");
        ip("link set ilet1 up");
        // The kernel may report a link up to about a second after it came up.
        let has_link = || interface_has_link("ilet0").unwrap();
        let came_up = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            has_link()
        });
        assert!(came_up);
        ip("link set ilet0 down");
        assert!(!interface_has_link("ilet0").unwrap(), "it is down");

        assert_eq!(interface_driver("ilet0").unwrap(), "veth");
        assert_eq!(interface_mtu("ilet0").unwrap(), 1400);
        assert_eq!(interface_queues_max("ilet0").unwrap(), 3);
        // Before Linux 6.3 the kernel does not tell.
        assert_ne!(interface_has_zero_copy("ilet0"), Some(true));
        assert_eq!(
            interface_spread("ilet0").unwrap_err().raw_os_error(),
            Some(libc::EOPNOTSUPP)
        );
    });
}

#[test]
fn an_interface_that_is_not_there_tells_nothing() {
    in_namespace(|_| {
        for name in ["nope0", "a-name-that-is-too-long"] {
            interface_has_link(name).unwrap_err();
            interface_driver(name).unwrap_err();
            interface_queues_max(name).unwrap_err();
            interface_spread(name).unwrap_err();
            assert_eq!(interface_has_zero_copy(name), None);
        }
        assert!(interface_has_link("lo").unwrap());
    });
}
