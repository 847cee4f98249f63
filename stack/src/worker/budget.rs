//! How much of each kind of work one turn does, so that no kind starves the others.

/// Frames received per turn. Large enough to spread the cost of a turn (ring operations, one send call),
/// small enough that a reply does not wait long for its batch, and no more than one ring operation moves.
pub(super) const RX_FRAMES: usize = 64;
/// Commands of slow-path threads per turn.
pub(super) const COMMANDS: usize = 64;
/// Timers per turn: each may send a retransmission.
pub(super) const TIMERS: usize = 64;
/// Turns between two looks at the run state and two published frame counts, while busy.
pub(super) const HOUSEKEEPING_TURNS: u32 = 256;
