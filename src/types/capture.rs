//! What the kernel counts of a capture.

/// Packets counted since the interface was opened. The kernel's counters are 32 bits wide and wrap.
#[derive(Clone, Copy, Debug, Default)]
pub struct CaptureCounters {
    /// Passed the filter.
    pub received: u32,
    /// Lost because the ring was full.
    pub dropped_by_kernel: u32,
    /// Lost by the network interface or its driver.
    pub dropped_by_interface: u32,
}
