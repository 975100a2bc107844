//! Which of the watched namespaces are known in full. Pure.
//!
//! A namespace that is gone, or in which a right is missing, must not hold up the others; and in it nothing may be done, as what
//! was never listed would be taken for absent. Promises: a namespace is known only while every required watch has had a
//! complete list and is not refused.

use std::collections::{BTreeMap, BTreeSet};

use super::Scope;

/// What a watch reports: that its list is complete, or that it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) watch: &'static str,
    /// Which of the watched namespaces.
    pub(crate) place: usize,
    pub(crate) complete: bool,
}

/// The lists of all required watches, in all watched namespaces.
#[derive(Debug)]
pub(crate) struct Lists {
    scope: Scope,
    required: BTreeSet<&'static str>,
    /// By place: the watches that have reported, and whether their list is complete.
    places: Vec<BTreeMap<&'static str, bool>>,
}

impl Lists {
    pub(crate) fn new(scope: &Scope, required: BTreeSet<&'static str>) -> Self {
        Self { scope: scope.clone(), required, places: vec![BTreeMap::new(); scope.namespaces().len()] }
    }

    /// Whether this was about a required watch; others may come late, or never.
    pub(crate) fn note(&mut self, listing: Listing) -> bool {
        let Listing { watch, place, complete } = listing;
        let place = self.places.get_mut(place).filter(|_| self.required.contains(watch));
        place.map(|place| place.insert(watch, complete)).is_some()
    }

    /// Every list is there or refused: there is nothing to wait for.
    pub(crate) fn have_begun(&self) -> bool {
        self.places.iter().all(|place| place.len() >= self.required.len())
    }

    /// Whether all of this namespace is known.
    pub(crate) fn is_known(&self, namespace: &str) -> bool {
        self.scope.place(namespace).is_some_and(|place| self.is_place_known(place))
    }

    /// Whether there is any namespace to work in.
    pub(crate) fn is_any_known(&self) -> bool {
        (0..self.places.len()).any(|place| self.is_place_known(place))
    }

    fn is_place_known(&self, place: usize) -> bool {
        let lists = self.places.get(place);
        lists.is_some_and(|lists| self.required.iter().all(|watch| lists.get(watch) == Some(&true)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_namespace_holds_up_no_other_and_is_left_alone() {
        let scope = Scope::Namespaces(vec!["a".parse().unwrap(), "b".parse().unwrap()]);
        let mut lists = Lists::new(&scope, BTreeSet::from(["pods", "services"]));
        let mut note = |watch, place, complete| {
            assert!(lists.note(Listing { watch, place, complete }));
            assert!(!lists.note(Listing { watch: "secrets", place, complete: !complete }));
            (lists.have_begun(), lists.is_known("a"), lists.is_known("b"), lists.is_any_known())
        };
        assert_eq!(note("pods", 0, true), (false, false, false, false));
        assert_eq!(note("services", 0, true), (false, true, false, true));
        assert_eq!(note("pods", 1, false), (false, true, false, true), "one list of b is still to come");
        assert_eq!(note("services", 1, true), (true, true, false, true));
        assert_eq!(note("pods", 1, true), (true, true, true, true));
        assert_eq!(note("services", 0, false), (true, false, true, true), "a right that was taken away");
        assert_eq!(note("services", 1, false), (true, false, false, false));
        assert!(!lists.is_known("c"));
        let mut all = Lists::new(&Scope::All, BTreeSet::from(["pods"]));
        assert!(!all.have_begun());
        assert!(all.note(Listing { watch: "pods", place: 0, complete: true }));
        assert!(all.have_begun() && all.is_known("any"));
    }
}
