//! The flows that are in one passing state, oldest first, with a bound on their number.

use std::collections::VecDeque;

use crate::flow::FlowId;

/// Flows in the order in which they entered the state.
///
/// Flows that left the state stay in the queue until they come to its front or it is tidied up, which
/// happens once in as many entries as the bound: constant cost per entry.
#[derive(Debug)]
pub(super) struct AgeQueue {
    ids: VecDeque<FlowId>,
    /// Flows that are in the state now.
    len: usize,
    max: usize,
}

impl AgeQueue {
    pub(super) fn new(max: usize) -> Self {
        Self {
            ids: VecDeque::with_capacity(2 * max),
            len: 0,
            max,
        }
    }

    /// Flows that are in the state now.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether one must leave before another enters.
    pub(super) fn is_full(&self) -> bool {
        self.len >= self.max
    }

    /// A flow enters the state. `is_in` tells of others whether they still are in it.
    pub(super) fn enter(&mut self, id: FlowId, is_in: impl Fn(FlowId) -> bool) {
        if self.ids.len() >= 2 * self.max {
            self.ids.retain(|id| is_in(*id));
        }
        self.ids.push_back(id);
        self.len += 1;
    }

    /// A flow left the state.
    pub(super) fn leave(&mut self) {
        debug_assert!(self.len > 0);
        self.len -= 1;
    }

    /// Takes the oldest flow that is in the state off the queue. It counts until it
    /// [leaves](Self::leave).
    pub(super) fn take_oldest(&mut self, is_in: impl Fn(FlowId) -> bool) -> Option<FlowId> {
        while let Some(id) = self.ids.pop_front() {
            if is_in(id) {
                return Some(id);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::FlowTable;
    use crate::wire::FlowKey;

    fn ids(count: u16) -> Vec<FlowId> {
        let mut table = FlowTable::new(count.into(), 1);
        (0..count)
            .map(|peer_port| {
                let address = std::net::IpAddr::from([10, 0, 0, 1]).into();
                let key = FlowKey {
                    peer: address,
                    local: address,
                    peer_port,
                    local_port: 1,
                };
                table.insert(key, ()).unwrap()
            })
            .collect()
    }

    #[test]
    fn those_that_left_do_not_count_and_are_skipped() {
        let ids = ids(5);
        let mut queue = AgeQueue::new(2);
        queue.enter(ids[0], |_| true);
        queue.enter(ids[1], |_| true);
        assert!(queue.is_full());
        queue.leave();
        assert!(!queue.is_full());
        assert_eq!(queue.take_oldest(|id| id != ids[0]), Some(ids[1]));
        assert_eq!(queue.take_oldest(|_| true), None);
    }

    #[test]
    fn the_queue_is_bounded_behind_one_that_stays() {
        let ids = ids(100);
        let mut queue = AgeQueue::new(4);
        queue.enter(ids[0], |_| true);
        for id in &ids[1..] {
            queue.enter(*id, |other| other == ids[0]);
            queue.leave();
            assert!(queue.ids.len() <= 8);
        }
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.take_oldest(|id| id == ids[0]), Some(ids[0]));
    }
}
