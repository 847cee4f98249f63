//! The options of a SYN in nine bits, for cookies that no mark helps: rounded, but never to what the peer does not take.

use crate::tcp::segment::PeerOptions;

/// Bits of a code.
pub(super) const CODE_BITS: u32 = 9;

/// Segment sizes that a code can say: the largest that the peer takes is rounded down to one of them, by 3 %
/// at most from 1,000 on, by 4 % from 536 on, and by 7 % below. The code behind the last one stands for "at least what
/// our MTU has room for".
#[rustfmt::skip]
const SIZES: [u16; 63] = [
    48, 52, 56, 60, 64, 69, 74, 80, 86, 92, 99, 106, 114, 122, 131, 141,
    151, 162, 174, 187, 201, 216, 232, 249, 268, 288, 309, 332, 356, 382, 410, 441,
    472, 505, 536, 559, 582, 607, 632, 659, 687, 716, 746, 778, 811, 845, 880, 917,
    956, 996, 1024, 1054, 1084, 1116, 1148, 1182, 1220, 1254, 1290, 1324, 1360, 1400, 1432,
];

/// Combinations of window scaling and SACK that a code can say. Whether windows are scaled is never rounded: both ends
/// must be of one mind about it.
const SCALES: [(Option<u8>, bool); 8] = [
    (None, false),
    (None, true),
    (Some(0), false),
    (Some(0), true),
    (Some(3), true),
    (Some(6), true),
    (Some(7), true),
    (Some(8), true),
];

/// Returns the code of the options that come nearest to these; `local_mss` is the largest segment that we can send.
pub(super) fn pack(options: PeerOptions, local_mss: u16) -> u32 {
    let size = if options.mss >= local_mss {
        SIZES.len()
    } else {
        // The smallest is the least that there is.
        SIZES.partition_point(|size| *size <= options.mss).max(1) - 1
    };
    let scale = SCALES
        .iter()
        .rposition(|(shift, sack)| {
            shift.is_some() == options.shift.is_some()
                && *shift <= options.shift
                && *sack <= options.sack
        })
        .unwrap_or(0);
    (size * SCALES.len() + scale) as u32
}

/// Returns what a code says.
pub(super) fn unpack(code: u32, local_mss: u16) -> PeerOptions {
    let (size, scale) = (code as usize / SCALES.len(), code as usize % SCALES.len());
    let (shift, sack) = SCALES[scale];
    PeerOptions {
        mss: SIZES
            .get(size)
            .map_or(local_mss, |size| (*size).min(local_mss)),
        shift,
        sack,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    use crate::tcp::segment::MSS_MIN;

    const LOCAL_MSS: u16 = 1460;

    #[test]
    fn codes_fit_their_bits() {
        assert!(SIZES.is_sorted() && SIZES[0] == MSS_MIN);
        assert_eq!((SIZES.len() + 1) * SCALES.len(), 1 << CODE_BITS);
        for code in 0..1 << CODE_BITS {
            assert_eq!(pack(unpack(code, LOCAL_MSS), LOCAL_MSS), code);
        }
    }

    #[test]
    fn sizes_are_rounded_down_by_a_few_percent() {
        for mss in MSS_MIN..9000 {
            let options = PeerOptions {
                mss,
                shift: None,
                sack: false,
            };
            let read = unpack(pack(options, LOCAL_MSS), LOCAL_MSS).mss;
            let most = f64::from(mss.min(LOCAL_MSS));
            let lost = 1.0 - f64::from(read) / most;
            let bound = match mss {
                ..536 => 0.07,
                536..1000 => 0.04,
                _ => 0.031,
            };
            assert!((0.0..=bound).contains(&lost), "{mss}: {read}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_rounded_to_what_the_peer_does_not_take(
            mss in 48u16..9000, shift in prop::option::of(0u8..=14), sack in any::<bool>(),
        ) {
            let read = unpack(pack(PeerOptions { mss, shift, sack }, LOCAL_MSS), LOCAL_MSS);
            prop_assert!(read.mss <= mss.min(LOCAL_MSS));
            prop_assert!(read.sack <= sack && read.shift <= shift);
            prop_assert_eq!(read.shift.is_some(), shift.is_some());
        }
    }
}
