//! The queues and the link of the interface before and after the XDP program is attached. The attachment may change both:
//! a driver may add queues, and may take the link down for a while. Binds the queues that are to be served.

use std::time::Duration;

use interruptlet_xdp::{AttachMode, Program};

use super::StartError;
use super::interface::Interface;
use crate::config::Config;
use crate::port::xsk::{Bound, WhyCopy, XskOptions, bind};

/// The longest wait for a link, and the interval at which it is checked.
const LINK_TIMEOUT: Duration = Duration::from_secs(5);
const LINK_LOOK_EVERY: Duration = Duration::from_millis(50);

/// Checks, before the attachment, that the queues asked for exist or may be added by it: a driver may then add queues, up
/// to its maximum.
pub(super) fn check_possible(config: &Config, interface: &Interface) -> Result<(), StartError> {
    let queues = interface.queues.max(interface.queues_max);
    check_range(config, interface.queues.and(queues))
}

/// Checks, after the attachment, that the queues asked for exist and can send. Warns of queues without a worker, and
/// refuses those that the driver added.
pub(super) fn check_served(config: &Config, interface: &Interface) -> Result<(), StartError> {
    let now = interface.queues_now();
    let transmit = interface.transmit_queues_now();
    check_range(config, now)?;
    check_can_send(config, transmit)?;
    let spread = interface.spread_now();
    match served(&config.queues, interface.queues, now, spread.as_deref()) {
        Served::All => Ok(()),
        Served::Some { unserved } => {
            log::warn!(
                "{} also has queue {}: TCP and UDP that arrive there are left to the kernel; serve all queues, or steer \
                 or reduce them (`ethtool -N`, `ethtool -L`)",
                config.interface,
                list(&unserved)
            );
            Ok(())
        }
        Served::Added { added } => {
            Err(queues_added(config, &added, transmit, interface.queues_max))
        }
    }
}

/// Returns those of an interface's `queues` receive queues that are not among `workers`, the queues with a worker.
pub(super) fn without_worker(workers: &[u32], queues: u32) -> Vec<u32> {
    (0..queues)
        .filter(|queue| !workers.contains(queue))
        .collect()
}

/// Binds `queues` in their order, in the mode that the configuration asks for.
pub(super) fn bind_all(
    config: &Config,
    queues: &[u32],
    interface: &Interface,
    program: &Program,
) -> Result<Vec<Bound>, StartError> {
    let no_zero_copy = no_zero_copy(
        program.mode(),
        interface.has_zero_copy(),
        interface.driver.as_deref(),
        interface.mtu,
    );
    let mut bound = Vec::new();
    for queue in queues {
        let options = XskOptions {
            no_zero_copy: no_zero_copy.clone(),
            driver: interface.driver.clone(),
            ..XskOptions::new(&config.interface, *queue, interface.mtu, &config.limits)
        };
        bound.push(bind(&options, config.mode)?);
    }
    Ok(bound)
}

/// Waits for the interface's link before anything is sent on it, for [`LINK_TIMEOUT`] at most, and warns if none comes.
/// Some drivers (igb) take the link down when a program is detached, so a server that starts right after another one ended
/// may find none.
pub(super) fn with_link(interface: Interface) -> Interface {
    let has_link = link_comes(|| interface.has_link_now(), std::thread::sleep);
    if !has_link {
        log::warn!(
            "{} has no link, also after {} seconds: nothing can arrive until it has (`ip link show {}`)",
            interface.name,
            LINK_TIMEOUT.as_secs(),
            interface.name
        );
    }
    Interface {
        has_link,
        ..interface
    }
}

/// Waits, after the attachment, for a link that was there before, for [`LINK_TIMEOUT`] at most, and warns if it does not
/// come back.
pub(super) fn wait_for_link(interface: &Interface) {
    if interface.has_link && !link_comes(|| interface.has_link_now(), std::thread::sleep) {
        log::warn!(
            "the link of {} went down when the XDP program was attached and is not back after {} seconds: nothing can \
             arrive until it is",
            interface.name,
            LINK_TIMEOUT.as_secs()
        );
    }
}

fn check_range(config: &Config, queues: Option<u32>) -> Result<(), StartError> {
    if let Some(queues) = queues
        && let Some(queue) = config.queues.iter().find(|queue| **queue >= queues)
    {
        return Err(StartError::QueueOutOfRange {
            interface: config.interface.clone(),
            queue: *queue,
            last: queues.saturating_sub(1),
        });
    }
    Ok(())
}

/// Checks that the queues asked for can send. The kernel binds a socket to a queue that can only receive as well. With
/// Linux 7.3.4's virtio_net in zero-copy mode nothing was sent then, and the kernel crashed at the next attachment.
fn check_can_send(config: &Config, transmit: Option<u32>) -> Result<(), StartError> {
    if let Some(transmit) = transmit
        && let Some(queue) = config.queues.iter().find(|queue| **queue >= transmit)
    {
        return Err(StartError::QueueCannotSend {
            interface: config.interface.clone(),
            queue: *queue,
            transmit,
            last: transmit.saturating_sub(1),
        });
    }
    Ok(())
}

/// Which of an interface's queues have a worker.
#[derive(Debug, PartialEq, Eq)]
enum Served {
    All,
    /// Not all had one before the attachment, or the card spreads no flow to the others: the user steers the stack's
    /// traffic to the served queues.
    Some {
        unserved: Vec<u32>,
    },
    /// All had one before the attachment. The queues in `added` are new and, as far as the kernel tells, get flows.
    Added {
        added: Vec<u32>,
    },
}

/// Compares the queues that have a worker (`workers`) with the number of queues before the attachment (`before`), their
/// number after it (`now`), and the queues that the card spreads flows over (`spread`); `None` if the kernel does not tell.
fn served(
    workers: &[u32],
    before: Option<u32>,
    now: Option<u32>,
    spread: Option<&[u32]>,
) -> Served {
    let unserved = without_worker(workers, now.unwrap_or(0));
    let all_before = before.is_some_and(|before| without_worker(workers, before).is_empty());
    let is_steered =
        spread.is_some_and(|spread| spread.iter().all(|queue| workers.contains(queue)));
    if unserved.is_empty() {
        Served::All
    } else if all_before && !is_steered {
        Served::Added { added: unserved }
    } else {
        Served::Some { unserved }
    }
}

/// Returns the refusal for queues that the driver `added`. `transmit` is the number of transmit queues after that, and
/// `max` the largest number of queues that the interface can have; `None` if the kernel does not tell.
fn queues_added(
    config: &Config,
    added: &[u32],
    transmit: Option<u32>,
    max: Option<u32>,
) -> StartError {
    let interface = &config.interface;
    let served = config.queues.len();
    let mut ways_out = String::new();
    if transmit.is_none_or(|transmit| added.iter().all(|queue| *queue < transmit)) {
        let all: Vec<u32> = config.queues.iter().chain(added).copied().collect();
        ways_out += &format!("serve all ({}), ", arguments(config, &all));
    }
    // A driver whose interface has its largest number of queues adds none.
    if let Some(max) = max
        && max > served as u32
    {
        let all: Vec<u32> = (0..max).collect();
        let arguments = arguments(config, &all);
        ways_out += &format!(
            "let it have all that it can (`ethtool -L {interface} combined {max}`) and serve those ({arguments}), "
        );
    }
    ways_out += &format!(
        "or have the card use the first {served} only, if it can (`ethtool -X {interface} equal {served}`)"
    );
    StartError::QueuesAdded {
        interface: interface.clone(),
        added: list(added),
        ways_out,
    }
}

/// Returns the command-line flags that serve `queues`, with the configured cores assigned in turn.
fn arguments(config: &Config, queues: &[u32]) -> String {
    let cores = config.cores.iter().cycle().take(queues.len());
    let cores: Vec<usize> = cores.copied().collect();
    let text = format!("--queues {} --cores {}", list(queues), list(&cores));
    text.replace(", ", ",")
}

/// Returns why zero-copy need not be tried: the driver has none, or the program runs in generic mode. `None` if it is to be
/// tried.
fn no_zero_copy(
    mode: AttachMode,
    has_zero_copy: Option<bool>,
    driver: Option<&str>,
    mtu: usize,
) -> Option<WhyCopy> {
    match (has_zero_copy, mode) {
        (Some(false), _) => Some(WhyCopy::Driver {
            driver: driver.map(str::to_owned),
        }),
        (_, AttachMode::Generic) => Some(WhyCopy::GenericXdp { mtu }),
        (_, AttachMode::Native) => None,
    }
}

/// Checks for a link, with `pause` between two checks, for [`LINK_TIMEOUT`] at most. Returns whether there is one.
fn link_comes(mut has_link: impl FnMut() -> bool, mut pause: impl FnMut(Duration)) -> bool {
    let mut waited = Duration::ZERO;
    loop {
        if has_link() {
            return true;
        }
        if waited >= LINK_TIMEOUT {
            return false;
        }
        pause(LINK_LOOK_EVERY);
        waited += LINK_LOOK_EVERY;
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    items.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_without_a_worker_are_named_and_added_ones_refused() {
        let some = |unserved: &[u32]| Served::Some {
            unserved: unserved.to_vec(),
        };
        let added = |added: &[u32]| Served::Added {
            added: added.to_vec(),
        };
        for (workers, before, now, expected) in [
            (&[0][..], Some(1), Some(1), Served::All),
            (&[0, 1], Some(2), Some(2), Served::All),
            // virtio_net: two became four.
            (&[0, 1], Some(2), Some(4), added(&[2, 3])),
            (&[1, 0], Some(2), Some(4), added(&[2, 3])),
            // The refusal advises to serve all four.
            (&[0, 1, 2, 3], Some(2), Some(4), Served::All),
            (&[0, 1, 2], Some(2), Some(4), added(&[3])),
            // The user steers, before the attachment and after it.
            (&[0], Some(2), Some(2), some(&[1])),
            (&[1], Some(2), Some(4), some(&[0, 2, 3])),
            // The kernel does not tell, or the queues became fewer.
            (&[0], None, Some(2), some(&[1])),
            (&[0], Some(2), None, Served::All),
            (&[0], Some(2), Some(1), Served::All),
        ] {
            let result = served(workers, before, now, None);
            assert_eq!(result, expected, "{workers:?} of {before:?}, {now:?}");
        }
        // The card's indirection table decides.
        for (spread, expected) in [
            (&[0, 1, 2, 3, 0, 1, 2, 3], added(&[2, 3])),
            (&[0, 1, 0, 1, 0, 1, 0, 1], some(&[2, 3])),
        ] {
            let result = served(&[0, 1], Some(2), Some(4), Some(spread));
            assert_eq!(result, expected, "{spread:?}");
        }
    }

    #[test]
    fn a_refusal_for_added_queues_names_them_and_the_ways_out() {
        let mut config = Config::new("eth7");
        config.queues = vec![0, 1];
        config.cores = vec![2, 3];
        let all = "--queues 0,1,2,3 --cores 2,3,2,3";
        let serve_them = format!("serve all ({all})");
        let have_more = format!("`ethtool -L eth7 combined 4`) and serve those ({all})");
        for (transmit, max, ways_out, others) in [
            (Some(4), None, vec![&serve_them], vec![&have_more]),
            (None, Some(4), vec![&serve_them, &have_more], vec![]),
            // virtio_net: the new ones cannot send.
            (Some(2), Some(4), vec![&have_more], vec![&serve_them]),
        ] {
            let line = queues_added(&config, &[2, 3], transmit, max).to_string();
            for part in ["queue 2, 3", "eth7", "ethtool -X eth7 equal 2"] {
                assert!(line.contains(part), "no {part:?} in: {line}");
            }
            assert!(ways_out.iter().all(|way| line.contains(*way)), "{line}");
            assert!(!others.iter().any(|way| line.contains(*way)), "{line}");
            assert!(!line.contains('\n') && !line.contains("  "), "{line}");
        }
    }

    #[test]
    fn a_queue_that_cannot_send_is_not_served() {
        let mut config = Config::new("eth7");
        config.queues = vec![0, 2];
        check_can_send(&config, Some(3)).unwrap();
        check_can_send(&config, None).unwrap();
        let error = check_can_send(&config, Some(2)).unwrap_err();
        let line = error.to_string();
        assert!(
            line.contains("queue 2 of eth7") && line.contains("queues 0 to 1"),
            "{line}"
        );
    }

    #[test]
    fn queues_are_in_range_of_what_there_is_or_may_be() {
        let with_queues = |queues: &[u32]| {
            let mut config = Config::new("eth7");
            config.queues = queues.to_vec();
            config
        };
        check_range(&with_queues(&[0, 3]), Some(4)).unwrap();
        check_range(&with_queues(&[9]), None).unwrap();
        let error = check_range(&with_queues(&[0, 4]), Some(4)).unwrap_err();
        assert!(
            matches!(
                error,
                StartError::QueueOutOfRange {
                    queue: 4,
                    last: 3,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn zero_copy_is_not_tried_where_it_cannot_be() {
        let veth = || Some("veth".to_owned());
        for (mode, has_zero_copy, expected) in [
            (AttachMode::Native, Some(true), None),
            (AttachMode::Native, None, None),
            (
                AttachMode::Native,
                Some(false),
                Some(WhyCopy::Driver { driver: veth() }),
            ),
            (
                AttachMode::Generic,
                Some(false),
                Some(WhyCopy::Driver { driver: veth() }),
            ),
            (
                AttachMode::Generic,
                Some(true),
                Some(WhyCopy::GenericXdp { mtu: 3050 }),
            ),
            (
                AttachMode::Generic,
                None,
                Some(WhyCopy::GenericXdp { mtu: 3050 }),
            ),
        ] {
            let why = no_zero_copy(mode, has_zero_copy, Some("veth"), 3050);
            assert_eq!(why, expected);
        }
    }

    #[test]
    fn a_link_is_waited_for_with_a_bound() {
        let wait = |up_after: Option<Duration>| {
            let looked_at = std::cell::Cell::new(Duration::ZERO);
            let comes = link_comes(
                || up_after.is_some_and(|after| looked_at.get() >= after),
                |pause| looked_at.set(looked_at.get() + pause),
            );
            (comes, looked_at.get())
        };
        assert_eq!(wait(Some(Duration::ZERO)), (true, Duration::ZERO));
        let second = Duration::from_secs(1);
        assert_eq!(wait(Some(second)), (true, second));
        assert_eq!(wait(None), (false, LINK_TIMEOUT));
    }
}
