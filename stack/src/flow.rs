//! The flow table: from the two ends of a connection to its state, by one hash lookup.
//!
//! Bounded, keyed with random seeds (a peer cannot aim at one bucket), and generational: a [`FlowId`]
//! that outlives its flow finds nothing instead of a stranger.

use ahash::RandomState;
use hashbrown::HashTable;

use crate::wire::FlowKey;

/// Names a flow of one table for as long as the flow lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowId {
    index: u32,
    generation: u32,
}

impl FlowId {
    /// A small number that is unique among the live flows of a table.
    pub(crate) fn index(self) -> u32 {
        self.index
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    /// Of the flow, if there is one. (Beside it and not with it in the option: that would be eight bytes more.)
    key: FlowKey,
    flow: Option<T>,
}

/// Flows by key and by id, at most `capacity` of them.
#[derive(Debug)]
pub struct FlowTable<T> {
    slots: Vec<Slot<T>>,
    vacant: Vec<u32>,
    by_key: HashTable<u32>,
    hasher: RandomState,
    capacity: usize,
}

impl<T> FlowTable<T> {
    /// An empty table for `capacity` flows, allocated whole, so that no packet pays for its growth. Memory
    /// that no flow has used stays untouched.
    pub fn new(capacity: usize, seed: u64) -> Self {
        Self {
            slots: Vec::with_capacity(capacity),
            vacant: Vec::with_capacity(capacity),
            by_key: HashTable::with_capacity(capacity),
            hasher: RandomState::with_seeds(
                seed,
                seed.rotate_left(17),
                seed.rotate_left(31) ^ 0x9e37_79b9_7f4a_7c15,
                !seed,
            ),
            capacity,
        }
    }

    /// Bytes of table per flow, with its state: the slot, its place on the list of vacant ones, and the largest part of
    /// the hash table that one flow may have (four bytes and a tag per bucket, of which up to 2 x 8/7 are there per
    /// flow).
    pub const BYTES_PER_FLOW: usize = size_of::<Slot<T>>() + size_of::<u32>() + 5 * 2 * 8 / 7;

    /// Flows in the table.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there is no flow.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Whether one more flow fits.
    pub fn has_room(&self) -> bool {
        self.len() < self.capacity
    }

    /// The flow with this key.
    #[inline]
    pub fn find(&self, key: &FlowKey) -> Option<FlowId> {
        let hash = self.hasher.hash_one(key);
        // What is in the hash table has a flow.
        let index = *self
            .by_key
            .find(hash, |index| self.slots[*index as usize].key == *key)?;
        Some(FlowId {
            index,
            generation: self.slots[index as usize].generation,
        })
    }

    /// Adds a flow. Gives it back if the table is full or the key is there already.
    pub fn insert(&mut self, key: FlowKey, flow: T) -> Result<FlowId, T> {
        if self.len() >= self.capacity || self.find(&key).is_some() {
            return Err(flow);
        }
        let index = match self.vacant.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot {
                    generation: 0,
                    key,
                    flow: None,
                });
                (self.slots.len() - 1) as u32
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.key = key;
        slot.flow = Some(flow);
        let generation = slot.generation;
        let (slots, hasher) = (&self.slots, &self.hasher);
        let hash = hasher.hash_one(key);
        self.by_key
            .insert_unique(hash, index, |index| rehash(slots, hasher, *index));
        Ok(FlowId { index, generation })
    }

    /// Takes a flow out.
    pub fn remove(&mut self, id: FlowId) -> Option<T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let flow = slot.flow.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        let hash = self.hasher.hash_one(slot.key);
        if let Ok(entry) = self.by_key.find_entry(hash, |index| *index == id.index) {
            entry.remove();
        }
        self.vacant.push(id.index);
        Some(flow)
    }

    /// The flow that `id` names, if it still lives.
    #[inline]
    pub fn get(&self, id: FlowId) -> Option<&T> {
        let slot = self.slots.get(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        slot.flow.as_ref()
    }

    /// As [`get`](Self::get), with the flow's key.
    #[inline]
    pub fn get_mut(&mut self, id: FlowId) -> Option<(&FlowKey, &mut T)> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let Slot { key, flow, .. } = slot;
        Some((key, flow.as_mut()?))
    }

    /// The id of the flow in slot `index`, if there is one: for timers, which know the index.
    pub(crate) fn id_at(&self, index: u32) -> Option<FlowId> {
        let slot = self.slots.get(index as usize)?;
        slot.flow.as_ref()?;
        Some(FlowId {
            index,
            generation: slot.generation,
        })
    }

    /// Ids of all flows. Not for the packet path: this is a scan (shutdown uses it).
    pub fn ids(&self) -> impl Iterator<Item = FlowId> + '_ {
        (0..self.slots.len() as u32).filter_map(|index| self.id_at(index))
    }
}

/// Only called if the hash table grows, which its first capacity rules out.
fn rehash<T>(slots: &[Slot<T>], hasher: &RandomState, index: u32) -> u64 {
    hasher.hash_one(slots[index as usize].key)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn key(number: u16) -> FlowKey {
        FlowKey {
            peer: IpAddr::from([10, 0, 0, 2]).into(),
            local: IpAddr::from([10, 0, 0, 1]).into(),
            peer_port: number,
            local_port: 80,
        }
    }

    #[test]
    fn an_id_does_not_find_the_next_flow_in_its_slot() {
        let mut table = FlowTable::new(2, 1);
        let old = table.insert(key(1), 'a').unwrap();
        assert_eq!(table.remove(old), Some('a'));
        let new = table.insert(key(2), 'b').unwrap();
        assert_eq!(old.index(), new.index());
        assert!(table.get_mut(old).is_none());
        assert!(table.remove(old).is_none());
        assert_eq!(*table.get_mut(new).unwrap().1, 'b');
    }

    #[test]
    fn a_full_table_gives_the_flow_back() {
        let mut table = FlowTable::new(1, 1);
        table.insert(key(1), 'a').unwrap();
        assert_eq!(table.insert(key(1), 'x'), Err('x'));
        assert_eq!(table.insert(key(2), 'b'), Err('b'));
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(operations in prop::collection::vec((any::<bool>(), 0u16..40), 0..300),
                              seed in any::<u64>()) {
            let mut table = FlowTable::new(20, seed);
            let mut model = HashMap::new();
            for (number, (insert, port)) in operations.into_iter().enumerate() {
                if insert {
                    let fits = model.len() < 20 && !model.contains_key(&port);
                    let inserted = table.insert(key(port), number);
                    prop_assert_eq!(inserted.is_ok(), fits);
                    if fits {
                        model.insert(port, number);
                    }
                } else {
                    let removed = table.find(&key(port)).and_then(|id| table.remove(id));
                    prop_assert_eq!(removed, model.remove(&port));
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert_eq!(table.ids().count(), model.len());
            }
        }
    }
}
