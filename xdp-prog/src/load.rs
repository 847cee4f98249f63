//! The program in the kernel, its maps filled, attached to nothing yet.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};

use crate::capability;
use crate::error::{AttachError, MapError};
use crate::log;
use crate::rules::{Keys, RuleError, Rules};
use crate::skel::{IletSkel, IletSkelBuilder};

/// The values of the maps of keys are not used.
const PRESENT: [u8; 1] = [1];

/// Descriptors of what was loaded. They keep it alive, so the skeleton and its borrowed object are not
/// kept: this has no lifetime and can move between threads.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) program: OwnedFd,
    pub(crate) xsks: MapHandle,
    pub(crate) counters: MapHandle,
}

impl Loaded {
    pub(crate) fn new(rules: &Rules) -> Result<Loaded, AttachError> {
        let keys = Keys::encode(rules)?;
        let mut object = MaybeUninit::uninit();
        let (skeleton, text) = log::capture(|| {
            let open = IletSkelBuilder::default().open(&mut object)?;
            open.load()
        });
        let skeleton = skeleton.map_err(|error| load_error(error, &text))?;

        let maps = &skeleton.maps;
        fill("own4", "own IPv4 prefixes", &maps.own4, &keys.own4)?;
        fill("own6", "own IPv6 prefixes", &maps.own6, &keys.own6)?;
        fill("ports", "ports", &maps.ports, &keys.ports)?;
        Loaded::keep(&skeleton)
    }

    fn keep(skeleton: &IletSkel<'_>) -> Result<Loaded, AttachError> {
        let program = skeleton.progs.ilet.as_fd().try_clone_to_owned();
        Ok(Loaded {
            program: program.map_err(|error| load_error(error.into(), ""))?,
            xsks: MapHandle::try_from(&skeleton.maps.xsks)
                .map_err(|source| MapError::new("xsks", source))?,
            counters: MapHandle::try_from(&skeleton.maps.counters)
                .map_err(|source| MapError::new("counters", source))?,
        })
    }
}

/// Put every key into the map called `name`.
fn fill<const N: usize>(
    name: &'static str,
    what: &'static str,
    map: &impl MapCore,
    keys: &[[u8; N]],
) -> Result<(), AttachError> {
    let max = map.max_entries() as usize;
    let count = keys.len();
    if count > max {
        return Err(RuleError::TooMany { what, count, max }.into());
    }
    for key in keys {
        map.update(key, &PRESENT, MapFlags::ANY)
            .map_err(|source| MapError::new(name, source))?;
    }
    Ok(())
}

/// Both a missing capability and a program that the verifier does not like are "permission denied".
fn load_error(source: libbpf_rs::Error, text: &str) -> AttachError {
    if source.kind() == ErrorKind::PermissionDenied {
        let missing = capability::missing();
        if !missing.is_empty() {
            return AttachError::MissingCapability { missing };
        }
        if !log::has_verifier_log(text) {
            return AttachError::NotPermitted {
                action: "load",
                source: io::Error::from_raw_os_error(libc::EPERM),
            };
        }
    }
    AttachError::Load {
        reason: log::reason(text).unwrap_or_else(|| source.to_string()),
        source,
    }
}
