//! What `/proc/PID/status` says of a process's memory.

/// A field in KiB, such as `VmRSS`; `None` if the text does not have it. Its unit is always `kB`, see `proc(5)`.
#[must_use]
pub fn kib(status: &str, field: &str) -> Option<f64> {
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::kib;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let status = "Name:\ta\nVmRSSish:\t 1 kB\nVmRSS:\t    2048 kB\n";
        assert_eq!(kib(status, "VmRSS"), Some(2048.0));
        assert_eq!(kib(status, "VmHWM"), None);
        assert_eq!(kib(status, "Name"), None);
    }
}
