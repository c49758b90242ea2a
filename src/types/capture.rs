//! What the kernel counts of a capture.

/// Packets since the capture was opened. The kernel's counters are 32 bits wide and wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureCounters {
    /// Packets that passed the filter.
    pub received: u32,
    /// Packets lost because the ring was full.
    pub dropped_by_kernel: u32,
    /// Packets lost by the network interface or its driver.
    pub dropped_by_interface: u32,
}

impl CaptureCounters {
    /// Returns how many packets were lost since an earlier reading.
    pub fn lost_since(&self, earlier: &Self) -> u64 {
        let by_kernel = self.dropped_by_kernel.wrapping_sub(earlier.dropped_by_kernel);
        let by_interface = self.dropped_by_interface.wrapping_sub(earlier.dropped_by_interface);
        u64::from(by_kernel) + u64::from(by_interface)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_counted_across_a_wrap() {
        let counters = |dropped_by_kernel, dropped_by_interface| CaptureCounters {
            received: 0,
            dropped_by_kernel,
            dropped_by_interface,
        };
        assert_eq!(counters(3, 9).lost_since(&counters(u32::MAX - 1, 2)), 5 + 7);
    }
}
