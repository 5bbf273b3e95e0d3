//! Which values must not come back from a host: those of every credential that may go there, as they are and as they were before
//! the last rotation.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use super::scrub::{MAX_VALUE, MIN_VALUE, Unscrubbable, Values};
use crate::{egress::Bound, policy::Host, secret::Secret};

/// How many hosts are kept; a binding of `*.example.com` has any number of them.
const MAX_HOSTS: usize = 256;

/// The values by host.
#[derive(Default)]
pub struct HostValues {
    hosts: Mutex<HashMap<Host, Entry>>,
}

struct Entry {
    current: Vec<Arc<Secret>>,
    previous: Vec<Arc<Secret>>,
    values: Values,
}

impl fmt::Debug for HostValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostValues")
    }
}

impl HostValues {
    /// The values for answers of a host that begin now.
    ///
    /// # Errors
    /// [`Unscrubbable`], when they cannot all be looked for.
    pub fn of(&self, host: &Host, bindings: &[Bound], now: Instant) -> Result<Values, Unscrubbable> {
        let current: Vec<Arc<Secret>> = bindings
            .iter()
            .filter(|bound| bound.binding.rule.covers(host))
            .flat_map(Bound::files)
            .filter_map(|file| file.current(now).ok())
            // A value that cannot be looked for is never placed either.
            .filter(|secret| (MIN_VALUE..=MAX_VALUE).contains(&secret.expose().len()))
            .collect();
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |entry: &&Entry| {
            entry.current.len() == current.len()
                && entry.current.iter().zip(&current).all(|(old, new)| Arc::ptr_eq(old, new))
        };
        if let Some(entry) = hosts.get(host).filter(same) {
            return Ok(entry.values.clone());
        }
        let gone = |old: &Arc<Secret>| !current.iter().any(|new| Arc::ptr_eq(old, new));
        let previous: Vec<Arc<Secret>> = match hosts.remove(host) {
            Some(old) => {
                let changed: Vec<_> = old.current.into_iter().filter(gone).collect();
                // A value that only came again replaces none.
                if changed.is_empty() { old.previous.into_iter().filter(gone).collect() } else { changed }
            }
            None => Vec::new(),
        };
        let values = Values::new(current.iter().chain(&previous).map(|secret| secret.expose()))?;
        if hosts.len() >= MAX_HOSTS {
            hosts.clear();
        }
        hosts.insert(host.clone(), Entry { current, previous, values: values.clone() });
        Ok(values)
    }
}
