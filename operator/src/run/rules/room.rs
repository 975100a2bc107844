//! How much memory the bodies of rules may take. Pure.
//!
//! Each is at most a megabyte, but nobody bounds how many there are. Promises: what is kept never exceeds the bounds; what is kept
//! already is not pushed out by what comes later.

use std::collections::HashMap;

use super::super::pods::ObjectKey;

/// For the rules of one cluster: some thousands of AlertRules as people write them.
pub(super) const CLUSTER_BYTES_MAX: usize = 8 << 20;
/// For all clusters together: a quarter of the memory that the chart allows the operator.
pub(super) const TOTAL_BYTES_MAX: usize = 64 << 20;

/// The bytes that are taken.
#[derive(Debug, Default)]
pub(super) struct Room {
    clusters: HashMap<ObjectKey, usize>,
    total: usize,
}

impl Room {
    /// Sets bytes aside for rules of a cluster; false if there are not so many.
    pub(super) fn take(&mut self, cluster: &ObjectKey, bytes: usize) -> bool {
        let taken = self.clusters.get(cluster).copied().unwrap_or(0);
        if taken + bytes > CLUSTER_BYTES_MAX || self.total + bytes > TOTAL_BYTES_MAX {
            return false;
        }
        if bytes > 0 {
            self.clusters.insert(cluster.clone(), taken + bytes);
            self.total += bytes;
        }
        true
    }

    /// Gives back what was taken before.
    pub(super) fn give_back(&mut self, cluster: &ObjectKey, bytes: usize) {
        if let Some(taken) = self.clusters.get_mut(cluster) {
            let bytes = bytes.min(*taken);
            *taken -= bytes;
            self.total -= bytes;
            if *taken == 0 {
                self.clusters.remove(cluster);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cluster_and_not_all_of_them_take_more_than_their_share() {
        let mut room = Room::default();
        let cluster = |number: usize| ObjectKey::new("ns", &number.to_string());
        assert!(room.take(&cluster(0), CLUSTER_BYTES_MAX - 1) && room.take(&cluster(0), 1));
        assert!(!room.take(&cluster(0), 1) && room.take(&cluster(0), 0));
        for number in 1..TOTAL_BYTES_MAX / CLUSTER_BYTES_MAX {
            assert!(room.take(&cluster(number), CLUSTER_BYTES_MAX));
        }
        assert!(!room.take(&cluster(99), 1), "all is taken");
        room.give_back(&cluster(0), 10);
        assert!(room.take(&cluster(99), 9) && room.take(&cluster(0), 1) && !room.take(&cluster(0), 1));
        for number in 0..100 {
            room.give_back(&cluster(number), CLUSTER_BYTES_MAX);
        }
        assert_eq!((room.total, room.clusters.len()), (0, 0));
    }
}
