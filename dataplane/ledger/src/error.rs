//! Error classes: what a caller does next follows from the class alone.

/// What the caller of a failed operation should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Fix the input.
    Invalid,
    /// Slow down, then try again: nothing was done.
    Overloaded,
    /// Try again later: nothing was done.
    Unavailable,
    /// The effect may or may not have happened: a repeat can duplicate it.
    OutcomeUnknown,
    /// Stored bytes are not what was committed to: call a human.
    Corrupt,
    /// A defect of this software: report it.
    Bug,
}

impl Class {
    /// All classes, for metrics that show each from the start.
    pub const ALL: [Self; 6] =
        [Self::Invalid, Self::Overloaded, Self::Unavailable, Self::OutcomeUnknown, Self::Corrupt, Self::Bug];

    /// The name used in metric labels and log fields.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Corrupt => "corrupt",
            Self::Bug => "bug",
        }
    }
}
