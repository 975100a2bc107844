//! The words of a `LedgerCluster`'s status: types and reasons of its conditions, as closed lists.
//! What they mean to a user, and what to do about them, stands in docs/conditions.md.

/// An enum whose variants are words of the API.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$meaning:meta])* $word:ident,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$meaning])* $word,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$word),*];

            /// The word itself.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$word => stringify!($word),)*
                }
            }
        }
    };
}

words! {
    /// Type of a condition, in the order in which they stand in the status.
    ConditionType {
        /// Enough pods take events.
        Ready,
        /// What runs is being changed into what is wanted.
        Progressing,
        /// Something needs attention.
        Degraded,
        /// The spec can be carried out.
        Accepted,
        /// Load is being measured.
        ScalingActive,
        /// A bound or a rate holds the number of pods.
        ScalingLimited,
        /// All pods that report can commit.
        DatabaseReachable,
        /// There is a key to sign the log with.
        SigningKey,
        /// There is a key that callers have to show.
        ApiKey,
        /// A Prometheus operator is told of the pods. Only where that is wanted.
        Monitored,
        /// The database is the bottleneck: more pods would not help. Only while it is true.
        DownstreamSaturated,
        /// Something else sets the number of pods as well. Only while it is true.
        AmbiguousOwner,
        /// The database is the embedded one. Only while it is true.
        EmbeddedDatabase,
        /// `spec.paused` is set. Only while it is true.
        Paused,
        /// `spec.stopped` is set. Only while it is true.
        Stopped,
        /// `spec.dryRun` is set. Only while it is true.
        DryRun,
    }
}

words! {
    /// Reason of a condition. Those of `ScalingLimited` are the autoscaler's; `Degraded`, and `Ready` of a cluster without
    /// pods, may also have a [`ProblemReason`].
    ConditionReason {
        /// Ready: so many pods as are needed take events.
        PodsReady,
        /// Ready: too few pods take events.
        PodsNotReady,
        /// Ready, DatabaseReachable: so far no pod of this cluster has been able to commit.
        DatabaseNeverReached,
        /// Ready, Progressing, ScalingActive, Stopped: `spec.stopped` is set.
        Stopped,
        /// Ready, Accepted: the spec cannot be carried out.
        Invalid,
        /// Accepted: the spec can be carried out.
        Valid,
        /// Progressing: pods are being created.
        AddingPods,
        /// Progressing: pods drain and go.
        RemovingPods,
        /// Progressing: pods exist and are not ready yet.
        PodsStarting,
        /// Progressing: pods of an earlier template are being replaced.
        RollingOut,
        /// Progressing: all is as wanted.
        Stable,
        /// Progressing: a problem keeps the cluster from being changed; `Degraded` tells which.
        Blocked,
        /// Progressing, ScalingActive, Paused: `spec.paused` is set.
        Paused,
        /// Progressing: `spec.dryRun` is set.
        DryRun,
        /// Degraded: nothing needs attention.
        AsExpected,
        /// Degraded: pods report that they cannot reach the database.
        DatabaseUnavailable,
        /// Degraded, DatabaseReachable: pods report that they could not compare the database with the signed log yet.
        LogUnchecked,
        /// Degraded: pods are restarted again and again.
        PodsCrashing,
        /// Degraded, Ready: an image of pods cannot be had.
        ImagePullFailed,
        /// Degraded, Ready: containers of pods cannot be made or started.
        PodsNotStarted,
        /// Degraded, Ready: no node takes pods.
        PodsUnschedulable,
        /// Degraded: pods ended and were not restarted.
        PodsFailed,
        /// ScalingActive: every trigger has a value.
        Measured,
        /// ScalingActive: there is no pod to measure yet.
        NotMeasured,
        /// ScalingActive: a trigger has no value.
        MeasurementFailed,
        /// ScalingActive: `spec.autoscaling.enabled` is false.
        Disabled,
        /// ScalingActive: something else sets the number of pods, and it is left to that.
        AmbiguousOwner,
        /// ScalingLimited: the triggers get what they ask for.
        NotLimited,
        /// DatabaseReachable: all pods that report can commit.
        Reachable,
        /// DatabaseReachable: pods report that they cannot reach the database.
        Unreachable,
        /// DatabaseReachable: no pod reports.
        NotReported,
        /// SigningKey, ApiKey: the operator made it.
        Generated,
        /// SigningKey, ApiKey: the spec names it.
        Referenced,
        /// SigningKey: it is not there, or is no key.
        Unusable,
        /// SigningKey: its Secret cannot be read.
        NotRead,
        /// Monitored: there is a ServiceMonitor.
        ServiceMonitor,
        /// Monitored: the Kubernetes cluster knows no ServiceMonitors.
        DefinitionMissing,
        /// DownstreamSaturated: commits are slow while pods are not busy.
        SlowCommits,
        /// AmbiguousOwner: another autoscaler sets the workload's replicas.
        OtherAutoscaler,
        /// EmbeddedDatabase: one pod, one volume, no backup.
        NotForProduction,
        /// DryRun: there is something that would be done.
        WouldChange,
        /// DryRun: nothing would be done.
        NothingToDo,
    }
}

words! {
    /// Why a cluster could not be made what its spec says, as whoever carries it out finds: the reason of `Degraded`.
    ProblemReason {
        /// A Secret or a key in one that pods refer to is not there.
        SecretMissing,
        /// A Secret holds something that cannot be used.
        SecretInvalid,
        /// An object of a name that is needed belongs to somebody else.
        NameTaken,
        /// The operator may not do what it has to.
        Forbidden,
        /// The API server refuses an object.
        ApplyRefused,
        /// An object cannot be changed into what the spec asks for, only made anew.
        ImmutableField,
        /// The API server does not answer.
        ApiUnavailable,
        /// A pod that is to go cannot finish what it has accepted.
        DrainStuck,
        /// The operator itself failed.
        OperatorBug,
    }
}

/// Something that keeps a cluster from being what its spec says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In one word.
    pub reason: ProblemReason,
    /// For a human: what, where, and what to do. The same while the problem is the same.
    pub message: String,
}

/// What keeps pods from running at all, as Kubernetes says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodsWaiting {
    /// The reason of `Degraded`.
    pub reason: ConditionReason,
    /// For a human: which pods, why, and what to do. The same while it is the same.
    pub message: String,
}
