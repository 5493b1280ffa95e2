//! What KVM may refuse.

/// KVM refused something, or a saved state does not fit this host.
#[derive(Debug, thiserror::Error)]
pub enum ArchError {
    /// A request to KVM failed.
    #[error("KVM: {what}")]
    Kvm {
        /// The request.
        what: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Another file, or not the interface that all kernels since 2.6.22 have.
    #[error("this is not a /dev/kvm that can be used: its API version is {0}, not 12")]
    Version(i32),
    /// KVM is too old, or not complete.
    #[error("this host's KVM lacks {0}")]
    Lacks(&'static str),
    /// A model-specific register that KVM does not let us set.
    #[error("KVM: setting MSR {index:#x} to {value:#x}")]
    Msr {
        /// Which register.
        index: u32,
        /// To what.
        value: u64,
    },
    /// A vCPU that was saved on a CPU of another vendor.
    #[error("the snapshot is of a CPU by {saved}, and this one is by {host}")]
    Vendor {
        /// Of the CPU that it was saved on.
        saved: String,
        /// Of this host's.
        host: String,
    },
    /// A saved vCPU has features that this host's CPU, or its KVM, has not; by their bits in CPUID.
    #[error("the snapshot needs a CPU with what this one lacks: {0}")]
    Lacking(String),
    /// A saved state that is damaged, or of a host with other abilities.
    #[error("saved vCPU state: {0}")]
    State(&'static str),
}

impl ArchError {
    /// For `map_err`: the request `what` failed.
    pub(crate) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { what, source }
    }
}
