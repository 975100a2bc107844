//! The decision: largest proposal, then each limit in turn. Every step is monotone in the count it is given, which is
//! what makes the whole monotone in load.

use std::cmp::Ordering;
use std::time::Duration;

use crate::measure::{is_downstream_saturated, report};
use crate::{
    Adjustment, Change, Decision, Observation, Policy, PolicyConfig, Reason, ScalingRules, SelectPolicy,
    State, TriggerFailure, TriggerKind, TriggerReport, Verdict,
};

/// Decides how many replicas there should be. Call it on every observation, as often as there is one; `state` takes note
/// of the recommendation. When the caller then changes the workload's replica count, it must say so with
/// [`State::record_scale`], or rate policies do not see the change.
pub fn decide(policy: &Policy, state: &mut State, observation: &Observation) -> Decision {
    let config = policy.config();
    let current = observation.replicas;
    let triggers: Vec<_> = [(TriggerKind::Cpu, config.cpu), (TriggerKind::QueueDepth, config.queue_depth)]
        .into_iter()
        .filter_map(|(kind, trigger)| Some(report(config, kind, trigger?, observation)))
        .collect();
    let measured = || triggers.iter().filter_map(|report| report.outcome.as_ref().ok());
    let failed = triggers.iter().any(|report| report.outcome.is_err());
    let unclear = measured().any(|measured| measured.verdict == Verdict::Unclear);
    // A cluster that has no pods yet, or none ready, is not failing to be measured, and more pods would not help it.
    let unmeasured = |report: &TriggerReport| matches!(report.outcome, Err(TriggerFailure::NoSample { .. }));
    let failures = state.advance(observation.now, triggers.iter().any(unmeasured));

    let proposal = measured().map(|measured| measured.proposal).max();
    let mut count = Count { value: proposal.unwrap_or(current), adjustments: Vec::new() };
    if failed {
        count.adjust(Reason::FailedTriggerForbidsShrink, count.value.max(current));
    }
    if let Some(guard) = &config.downstream_guard
        && count.value > current
        && is_downstream_saturated(config, guard, observation)
    {
        count.adjust(Reason::DownstreamSaturated, current);
    }
    if let Some(fallback) = config.fallback
        && failures >= fallback.failures
    {
        count.adjust(Reason::Fallback, count.value.max(fallback.replicas));
    }
    count.bound(config);
    // Growth is not held back by moments in which nothing could be seen, so they leave no mark on its window.
    let unseen = failed && count.value <= current;
    stabilize(config, state, current, unseen, &mut count);
    // Only now, so that the window remembers how many pods would do at worst: were it to remember the present count, a
    // few lost samples within each window would keep a cluster large for good.
    if unclear {
        count.adjust(Reason::FailedTriggerForbidsShrink, count.value.max(current));
    }
    limit_rate(config, state, current, &mut count);
    count.bound(config);
    Decision { current, desired: count.value, triggers, adjustments: count.adjustments }
}

/// The count on its way, and what moved it.
struct Count {
    value: u32,
    adjustments: Vec<Adjustment>,
}

impl Count {
    fn adjust(&mut self, reason: Reason, to: u32) {
        if to != self.value {
            self.adjustments.push(Adjustment { reason, from: self.value, to });
            self.value = to;
        }
    }

    fn bound(&mut self, config: &PolicyConfig) {
        self.adjust(Reason::Min, self.value.max(config.replicas_min));
        self.adjust(Reason::Max, self.value.min(config.replicas_max));
    }
}

/// Moves only as far as everything recommended within the direction's window agrees with.
fn stabilize(config: &PolicyConfig, state: &mut State, current: u32, unseen: bool, count: &mut Count) {
    let wanted = count.value;
    let down = state.recommend_down(wanted, config.behavior.scale_down.stabilization_window);
    let window = config.behavior.scale_up.stabilization_window;
    let up = if unseen { wanted } else { state.recommend_up(wanted, window) };
    count.adjust(Reason::StabilizedWindow, current.clamp(up, down));
}

/// Moves only as far as the rate policies of the direction allow for now.
fn limit_rate(config: &PolicyConfig, state: &State, current: u32, count: &mut Count) {
    let behavior = &config.behavior;
    let (rules, allowed) = match count.value.cmp(&current) {
        Ordering::Equal => return,
        Ordering::Greater => (
            &behavior.scale_up,
            allowed(&behavior.scale_up, |change, period| {
                highest(change, state.replicas_at_start(current, period)).saturating_sub(current)
            }),
        ),
        Ordering::Less => (
            &behavior.scale_down,
            allowed(&behavior.scale_down, |change, period| {
                current.saturating_sub(lowest(change, state.replicas_at_start(current, period)))
            }),
        ),
    };
    let reason = if rules.select_policy == SelectPolicy::Disabled {
        Reason::ScalingDisabled
    } else {
        Reason::RatePolicy
    };
    let limit = current.saturating_sub(allowed)..=current.saturating_add(allowed);
    count.adjust(reason, count.value.clamp(*limit.start(), *limit.end()));
}

/// How many pods may change now: the selected policy's allowance.
fn allowed(rules: &ScalingRules, allowance: impl Fn(Change, Duration) -> u32) -> u32 {
    let allowances = rules.policies.iter().map(|policy| allowance(policy.change, policy.period));
    match rules.select_policy {
        SelectPolicy::Max => allowances.max(),
        SelectPolicy::Min => allowances.min(),
        SelectPolicy::Disabled => None,
    }
    .unwrap_or(0)
}

/// The most replicas a policy allows in a period that began with `start`; part of a pod counts as one.
fn highest(change: Change, start: u32) -> u32 {
    start.saturating_add(match change {
        Change::Pods(pods) => pods,
        Change::Percent(percent) => clip((u64::from(start) * u64::from(percent)).div_ceil(100)),
    })
}

/// The fewest replicas a policy allows in a period that began with `start`; part of a pod counts as one.
fn lowest(change: Change, start: u32) -> u32 {
    start.saturating_sub(match change {
        Change::Pods(pods) => pods,
        Change::Percent(percent) => clip((u64::from(start) * u64::from(percent)).div_ceil(100)),
    })
}

fn clip(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
