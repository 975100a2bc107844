//! Decides how many pods a ledger cluster should have. Owns the arithmetic, the limits on how fast and how far to move,
//! and the explanation of each decision.
//! Never reads a clock, never does IO, never knows Kubernetes: time, samples and history come in as values.
//! Promises: the desired count is within the policy's bounds; what could not be measured never shrinks a cluster, as it
//! counts for full there; more load never means fewer pods; the same input gives the same answer.
//! Read next: [`decide`], then [`PolicyConfig`]; the algorithm in prose is in `docs/autoscaling.md`.
#![deny(clippy::disallowed_methods)]

mod decision;
mod engine;
mod measure;
mod observation;
mod policy;
mod state;

pub use decision::{
    Adjustment, Decision, Measured, MissingSample, Reason, TriggerFailure, TriggerReport, Verdict,
};
pub use engine::decide;
pub use observation::{
    CpuSample, DownstreamSample, MissingReason, Observation, PodObservation, PodPhase, QueueSample,
};
pub use policy::{
    Behavior, Change, DownstreamGuard, Fallback, Policy, PolicyConfig, PolicyError, RatePolicy, ScalingRules,
    SelectPolicy, Trigger, TriggerKind,
};
pub use state::State;
