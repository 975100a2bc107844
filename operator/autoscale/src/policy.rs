//! What the user wants of scaling, checked once. The words are those of the `LedgerCluster` resource and of the
//! Kubernetes `HorizontalPodAutoscaler` v2.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

/// Longest stabilisation window, as in HPA v2.
const STABILIZATION_WINDOW_MAX: Duration = Duration::from_secs(3600);
/// Longest period of a rate policy, as in HPA v2.
pub(crate) const PERIOD_MAX: Duration = Duration::from_secs(1800);
/// Largest replica count that can be asked for. It bounds the history kept for stabilisation, which holds at most one
/// entry per distinct count, and is far above any ledger on one PostgreSQL.
const REPLICAS_LIMIT: u32 = 10_000;
/// Largest target or threshold; a fraction of one pod's capacity far above any sensible one.
const FRACTION_MAX: f64 = 1_000.0;
/// Smallest target: a thousand units of the engine's fixed-point arithmetic.
const FRACTION_MIN: f64 = 0.001;

/// A scaling policy as written, not yet checked. [`PolicyConfig::default`] is the product's default.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyConfig {
    /// Fewest replicas, at least 1.
    pub replicas_min: u32,
    /// Most replicas.
    pub replicas_max: u32,
    /// Scales on CPU in use as a fraction of the request.
    pub cpu: Option<Trigger>,
    /// Scales on how full the admission queues are: the larger of events and bytes as a fraction of their bounds, and
    /// of the oldest waiting event's age as a fraction of [`queue_age_full`](Self::queue_age_full).
    pub queue_depth: Option<Trigger>,
    /// How long the oldest event may wait before its queue counts as full whatever its depth.
    pub queue_age_full: Duration,
    /// How fast and how readily to move in each direction.
    pub behavior: Behavior,
    /// What to do when measuring keeps failing; without it, keep the present count.
    pub fallback: Option<Fallback>,
    /// When to take the database for the bottleneck and hold growth; without it, never.
    pub downstream_guard: Option<DownstreamGuard>,
    /// How long after its start a pod's CPU counts only once it is ready and measured wholly since it became so.
    pub cpu_initialization_period: Duration,
    /// A pod that turned unready no later than this after its start is taken never to have been ready.
    pub initial_readiness_delay: Duration,
}

/// When one measure asks for more or fewer pods, and where it wants to land. All three are fractions of one pod's
/// capacity; `scale_down_threshold <= target <= scale_up_threshold`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trigger {
    /// The mean per pod that a move aims for.
    pub target: f64,
    /// Grow only when the mean is above this.
    pub scale_up_threshold: f64,
    /// Shrink only when the mean is below this.
    pub scale_down_threshold: f64,
}

/// Which measure a trigger looks at. Written as the field of the resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerKind {
    /// CPU in use as a fraction of the request.
    Cpu,
    /// How full the admission queue is.
    QueueDepth,
}

impl fmt::Display for TriggerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TriggerKind::Cpu => "cpu",
            TriggerKind::QueueDepth => "queueDepth",
        })
    }
}

/// Rules per direction.
#[derive(Clone, Debug, PartialEq)]
pub struct Behavior {
    /// Rules for growth.
    pub scale_up: ScalingRules,
    /// Rules for shrinking. Its stabilisation window is the cooldown.
    pub scale_down: ScalingRules,
}

/// How fast and how readily to move in one direction.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalingRules {
    /// Move only as far as every recommendation of this last while agrees with; at most an hour.
    pub stabilization_window: Duration,
    /// Which of the policies counts.
    pub select_policy: SelectPolicy,
    /// Limits on the change per period; at least one unless `select_policy` is `Disabled`.
    pub policies: Vec<RatePolicy>,
    /// How far from the target the mean must be at least, as a fraction of the target. It matters where a trigger's own
    /// threshold is nearer than that.
    pub tolerance: f64,
}

/// Which of several rate policies counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectPolicy {
    /// The one that allows the largest change.
    Max,
    /// The one that allows the smallest change.
    Min,
    /// No move in this direction at all.
    Disabled,
}

/// The most that may change within a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RatePolicy {
    /// How much.
    pub change: Change,
    /// Within how long; at most half an hour.
    pub period: Duration,
}

/// An amount of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// This many pods.
    Pods(u32),
    /// This many percent of the replicas at the start of the period.
    Percent(u32),
}

/// Where to go when measuring keeps failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// How many evaluations in a row must fail first, at least 1. One fails when pods should have samples for a trigger
    /// and none has.
    pub failures: u32,
    /// Have at least this many replicas then; never fewer than at present.
    pub replicas: u32,
}

/// Takes the database for the bottleneck when most of the pods that commit do so slowly, or none commits at all, while
/// their CPU idles. More pods would then only add connections to a database that is already behind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DownstreamGuard {
    /// A pod commits slowly when its mean commit takes longer than this.
    pub commit_latency: Duration,
    /// The mean CPU utilization under which the pods themselves are not the bottleneck.
    pub cpu_below: f64,
}

/// A checked [`PolicyConfig`].
#[derive(Clone, Debug, PartialEq)]
pub struct Policy(PolicyConfig);

impl Default for PolicyConfig {
    /// Scales between 3 and 20 replicas on CPU (target 0.70, band 0.40 to 0.80) and queue depth (target 0.30, band 0.10
    /// to 0.50), shrinking only to what the last 300 s agree with. Growth is limited as by the HPA's own default: twice
    /// the pods or four more in 15 s.
    fn default() -> Self {
        let quarter_minute = Duration::from_secs(15);
        PolicyConfig {
            replicas_min: 3,
            replicas_max: 20,
            cpu: Some(Trigger { target: 0.70, scale_up_threshold: 0.80, scale_down_threshold: 0.40 }),
            queue_depth: Some(Trigger { target: 0.30, scale_up_threshold: 0.50, scale_down_threshold: 0.10 }),
            queue_age_full: Duration::from_secs(2),
            behavior: Behavior {
                scale_up: ScalingRules {
                    stabilization_window: Duration::ZERO,
                    select_policy: SelectPolicy::Max,
                    policies: vec![
                        RatePolicy { change: Change::Pods(4), period: quarter_minute },
                        RatePolicy { change: Change::Percent(100), period: quarter_minute },
                    ],
                    tolerance: 0.0,
                },
                scale_down: ScalingRules {
                    stabilization_window: Duration::from_secs(300),
                    select_policy: SelectPolicy::Max,
                    policies: vec![RatePolicy { change: Change::Percent(100), period: quarter_minute }],
                    tolerance: 0.0,
                },
            },
            fallback: None,
            downstream_guard: Some(DownstreamGuard {
                commit_latency: Duration::from_millis(500),
                cpu_below: 0.40,
            }),
            cpu_initialization_period: Duration::from_secs(300),
            initial_readiness_delay: Duration::from_secs(30),
        }
    }
}

impl Policy {
    /// Checks `config`. What this accepts, [`decide`](crate::decide) cannot fail on.
    pub fn new(config: PolicyConfig) -> Result<Self, PolicyError> {
        let PolicyConfig {
            replicas_min: min,
            replicas_max: max,
            cpu,
            queue_depth,
            queue_age_full,
            behavior,
            fallback,
            downstream_guard,
            cpu_initialization_period: _,
            initial_readiness_delay: _,
        } = &config;
        if *min < 1 || min > max || *max > REPLICAS_LIMIT {
            return Err(PolicyError::ReplicaBounds { min: *min, max: *max });
        }
        if cpu.is_none() && queue_depth.is_none() {
            return Err(PolicyError::NoTrigger);
        }
        for (kind, trigger) in [(TriggerKind::Cpu, cpu), (TriggerKind::QueueDepth, queue_depth)] {
            if let Some(trigger) = trigger {
                check_trigger(kind, trigger)?;
            }
        }
        if queue_age_full.is_zero() {
            return Err(PolicyError::ZeroDuration { field: "queueAgeFull" });
        }
        check_rules("scaleUp", &behavior.scale_up)?;
        check_rules("scaleDown", &behavior.scale_down)?;
        if let Some(Fallback { failures, replicas }) = *fallback
            && (failures < 1 || replicas < *min || replicas > *max)
        {
            return Err(PolicyError::Fallback { failures, replicas });
        }
        if let Some(DownstreamGuard { commit_latency, cpu_below }) = *downstream_guard {
            if commit_latency.is_zero() {
                return Err(PolicyError::ZeroDuration { field: "downstreamGuard.commitLatency" });
            }
            if !(cpu_below > 0.0 && cpu_below <= FRACTION_MAX) {
                return Err(PolicyError::GuardCpu { cpu_below });
            }
        }
        Ok(Policy(config))
    }

    /// What was checked.
    pub fn config(&self) -> &PolicyConfig {
        &self.0
    }
}

// The comparisons are written so that NaN fails them.
fn check_trigger(kind: TriggerKind, trigger: &Trigger) -> Result<(), PolicyError> {
    let Trigger { target, scale_up_threshold: up, scale_down_threshold: down } = *trigger;
    if down >= 0.0 && down <= target && target <= up && up <= FRACTION_MAX && target >= FRACTION_MIN {
        Ok(())
    } else {
        Err(PolicyError::Trigger { trigger: kind, down, target, up })
    }
}

fn check_rules(direction: &'static str, rules: &ScalingRules) -> Result<(), PolicyError> {
    let ScalingRules { stabilization_window: window, select_policy, policies, tolerance } = rules;
    if *window > STABILIZATION_WINDOW_MAX {
        return Err(PolicyError::StabilizationWindow { direction, window: *window });
    }
    if policies.is_empty() && *select_policy != SelectPolicy::Disabled {
        return Err(PolicyError::NoRatePolicy { direction });
    }
    for (index, policy) in policies.iter().enumerate() {
        let (Change::Pods(value) | Change::Percent(value)) = policy.change;
        if value == 0 || policy.period.is_zero() || policy.period > PERIOD_MAX {
            return Err(PolicyError::RatePolicy { direction, index });
        }
    }
    if !(*tolerance >= 0.0 && *tolerance <= FRACTION_MAX) {
        return Err(PolicyError::Tolerance { direction, tolerance: *tolerance });
    }
    Ok(())
}

/// Why a policy makes no sense. Field names are those of [`PolicyConfig`].
#[derive(Clone, Debug, PartialEq, Error)]
pub enum PolicyError {
    /// Bounds in the wrong order or out of range.
    #[error("replicas must satisfy 1 <= min <= max <= {REPLICAS_LIMIT}, got min {min} and max {max}")]
    ReplicaBounds {
        /// The minimum given.
        min: u32,
        /// The maximum given.
        max: u32,
    },
    /// Nothing to scale on.
    #[error("at least one of the triggers cpu and queueDepth is needed")]
    NoTrigger,
    /// A trigger whose numbers are out of range or order.
    #[error(
        "{trigger} must satisfy 0 <= scaleDownThreshold <= target <= scaleUpThreshold <= {FRACTION_MAX} and target >= {FRACTION_MIN}, got {down}, {target} and {up}"
    )]
    Trigger {
        /// Which trigger.
        trigger: TriggerKind,
        /// `scaleDownThreshold`.
        down: f64,
        /// `target`.
        target: f64,
        /// `scaleUpThreshold`.
        up: f64,
    },
    /// A stabilisation window beyond an hour.
    #[error("{direction}.stabilizationWindow must be at most {STABILIZATION_WINDOW_MAX:?}, got {window:?}")]
    StabilizationWindow {
        /// `scaleUp` or `scaleDown`.
        direction: &'static str,
        /// The window given.
        window: Duration,
    },
    /// No rate policy to select from.
    #[error("{direction}.policies must not be empty unless selectPolicy is Disabled")]
    NoRatePolicy {
        /// `scaleUp` or `scaleDown`.
        direction: &'static str,
    },
    /// A rate policy that allows nothing, or over an impossible period.
    #[error(
        "{direction}.policies[{index}] needs a value above 0 and a period above 0 and at most {PERIOD_MAX:?}"
    )]
    RatePolicy {
        /// `scaleUp` or `scaleDown`.
        direction: &'static str,
        /// Position in the list.
        index: usize,
    },
    /// A tolerance that is not a fraction.
    #[error("{direction}.tolerance must be at least 0 and at most {FRACTION_MAX}, got {tolerance}")]
    Tolerance {
        /// `scaleUp` or `scaleDown`.
        direction: &'static str,
        /// The tolerance given.
        tolerance: f64,
    },
    /// A zero where a positive duration is needed.
    #[error("{field} must be above 0")]
    ZeroDuration {
        /// Which field.
        field: &'static str,
    },
    /// A fallback outside the bounds, or after no failures.
    #[error(
        "fallback needs failures of at least 1 and replicas within min and max, got {failures} and {replicas}"
    )]
    Fallback {
        /// `fallback.failures`.
        failures: u32,
        /// `fallback.replicas`.
        replicas: u32,
    },
    /// A guard threshold that is not a fraction.
    #[error("downstreamGuard.cpuBelow must be above 0 and at most {FRACTION_MAX}, got {cpu_below}")]
    GuardCpu {
        /// The threshold given.
        cpu_below: f64,
    },
}

#[cfg(test)]
mod tests;
