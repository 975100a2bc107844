//! What was decided and why: enough for a status and one event, without a second look at the samples.

use std::fmt;

use thiserror::Error;

use crate::{MissingReason, Trigger, TriggerKind};

/// The answer of [`decide`](crate::decide). Its `Display` is the explanation as one sentence for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The replica count of the workload's spec when this was decided.
    pub current: u32,
    /// How many replicas there should be, within the policy's bounds.
    pub desired: u32,
    /// What each configured trigger saw and asked for; CPU first.
    pub triggers: Vec<TriggerReport>,
    /// What turned the largest proposal into `desired`, in the order applied. Only steps that changed the count.
    pub adjustments: Vec<Adjustment>,
}

/// One step that changed the count on its way from proposal to decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adjustment {
    /// Why.
    pub reason: Reason,
    /// The count before this step.
    pub from: u32,
    /// The count after it.
    pub to: u32,
}

/// What a decision was owed to, for a status condition, an event or a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The triggers ask for more and get it.
    ScaleUp,
    /// The triggers ask for less and get it.
    ScaleDown,
    /// No trigger asks for a change.
    WithinBand,
    /// A trigger has no sample, or lacks so many that full pods in their place would end shrinking.
    FailedTriggerForbidsShrink,
    /// The database is the bottleneck: no growth.
    DownstreamSaturated,
    /// Measuring has failed for so long that the fallback count applies.
    Fallback,
    /// An earlier recommendation within the stabilisation window disagrees with so large a move.
    StabilizedWindow,
    /// A rate policy allows no more change yet.
    RatePolicy,
    /// The direction is switched off by `selectPolicy: Disabled`.
    ScalingDisabled,
    /// Not below the minimum.
    Min,
    /// Not above the maximum.
    Max,
}

impl Reason {
    /// The name as one CamelCase word.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::ScaleUp => "ScaleUp",
            Reason::ScaleDown => "ScaleDown",
            Reason::WithinBand => "WithinBand",
            Reason::FailedTriggerForbidsShrink => "FailedTriggerForbidsShrink",
            Reason::DownstreamSaturated => "DownstreamSaturated",
            Reason::Fallback => "Fallback",
            Reason::StabilizedWindow => "StabilizedWindow",
            Reason::RatePolicy => "RatePolicy",
            Reason::ScalingDisabled => "ScalingDisabled",
            Reason::Min => "Min",
            Reason::Max => "Max",
        }
    }
}

/// What one trigger saw.
#[derive(Clone, Debug, PartialEq)]
pub struct TriggerReport {
    /// Which one.
    pub kind: TriggerKind,
    /// Its thresholds.
    pub trigger: Trigger,
    /// What was measured, or why nothing was.
    pub outcome: Result<Measured, TriggerFailure>,
}

/// What a trigger measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The mean over the pods with a sample, as a fraction of one pod's capacity.
    pub value: f64,
    /// How many pods have a sample that counts.
    pub pods: usize,
    /// How many pods are still starting and do not count.
    pub starting: usize,
    /// Pods that should have a sample and have none, by name.
    pub missing: Vec<MissingSample>,
    /// Where the mean lies. For growth, starting pods and missing samples count as idle pods; for shrinking, missing
    /// samples count as full ones.
    pub verdict: Verdict,
    /// How many replicas this trigger asks for; the present count inside its band. If the verdict is unclear, how many
    /// would do even then, for the stabilisation window to remember.
    pub proposal: u32,
}

/// A pod without a usable sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingSample {
    /// The pod's name.
    pub pod: String,
    /// Why there is none.
    pub reason: MissingReason,
}

/// Where a trigger's mean lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Above the band: grow.
    Above,
    /// Inside it: stay.
    Within,
    /// Below it: shrink.
    Below,
    /// Below it as far as seen, but not if the pods without a sample were full: stay.
    Unclear,
}

/// Why a trigger has no value at all.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TriggerFailure {
    /// There is no pod, or all are leaving or failed.
    #[error("there are no pods to measure")]
    NoPods,
    /// Every pod is still starting.
    #[error("every pod is still starting")]
    AllStarting,
    /// Pods should have samples and none has; the first by name is given.
    #[error("no pod has a sample ({}: {})", .first.pod, .first.reason)]
    NoSample {
        /// The first such pod by name.
        first: MissingSample,
    },
}

impl Decision {
    /// The one reason that counts most: the last step that changed the count, else what the triggers asked for.
    pub fn reason(&self) -> Reason {
        match self.adjustments.last() {
            Some(adjustment) => adjustment.reason,
            None if self.desired > self.current => Reason::ScaleUp,
            None if self.desired < self.current => Reason::ScaleDown,
            None if self.triggers.iter().all(|report| report.outcome.is_err()) || self.is_unclear() => {
                Reason::FailedTriggerForbidsShrink
            }
            None => Reason::WithinBand,
        }
    }

    fn is_unclear(&self) -> bool {
        let unclear = |measured: &Measured| measured.verdict == Verdict::Unclear;
        self.triggers.iter().any(|report| report.outcome.as_ref().is_ok_and(unclear))
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.desired == self.current {
            write!(f, "stay at {}: ", self.current)?;
        } else {
            write!(f, "scale from {} to {}: ", self.current, self.desired)?;
        }
        for (index, report) in self.triggers.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            report.fmt(f)?;
        }
        for Adjustment { reason, from, to } in &self.adjustments {
            f.write_str("; ")?;
            match reason {
                Reason::FailedTriggerForbidsShrink => {
                    write!(f, "{to} instead of {from}, as missing samples forbid shrinking")
                }
                Reason::DownstreamSaturated => {
                    write!(f, "{to} instead of {from}, as the database is the bottleneck")
                }
                Reason::Fallback => {
                    write!(f, "{to} instead of {from}, as measuring keeps failing (fallback)")
                }
                Reason::StabilizedWindow => {
                    write!(
                        f,
                        "{to} instead of {from}, as recent recommendations differ (stabilization window)"
                    )
                }
                Reason::RatePolicy => write!(f, "{to} instead of {from} for now, by rate policy"),
                Reason::ScalingDisabled => write!(f, "{to} instead of {from}, as this direction is disabled"),
                Reason::Min => write!(f, "at least {to}"),
                Reason::Max => write!(f, "at most {to}"),
                Reason::ScaleUp | Reason::ScaleDown | Reason::WithinBand => Ok(()),
            }?;
        }
        Ok(())
    }
}

impl fmt::Display for TriggerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trigger { scale_up_threshold: up, scale_down_threshold: down, .. } = self.trigger;
        let measured = match &self.outcome {
            Ok(measured) => measured,
            Err(failure) => return write!(f, "{} unknown, as {failure}", self.kind),
        };
        write!(f, "{} {:.2} ", self.kind, measured.value)?;
        match measured.verdict {
            Verdict::Above => write!(f, "is above {up:.2} and asks for {}", measured.proposal),
            Verdict::Within => write!(f, "asks for no change (band {down:.2} to {up:.2})"),
            Verdict::Below => write!(f, "is below {down:.2} and asks for {}", measured.proposal),
            Verdict::Unclear => write!(f, "is below {down:.2} only where seen"),
        }?;
        if let Some(first) = measured.missing.first() {
            let all = measured.missing.len() + measured.pods;
            write!(
                f,
                " ({} of {all} pods without sample, first {}: {})",
                measured.missing.len(),
                first.pod,
                first.reason
            )?;
        }
        Ok(())
    }
}
