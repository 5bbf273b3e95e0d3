//! Which values must not come back from a host: those of every credential that may go there, as they are and as they were before
//! the last rotations.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use super::scrub::{Unscrubbable, Values, fits};
use crate::{
    egress::Bound,
    policy::Host,
    secret::{FileCondition, Secret, SecretFile},
};

/// How many values of one file are looked for: the last one, and those before it.
const MAX_RECENT: usize = 3;
/// How many searches are kept. Hosts with the same credentials share one, so there are few.
const MAX_SEARCHES: usize = 64;

/// The values that were read, and the searches for them.
#[derive(Default)]
pub struct HostValues {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By file, the newest last. There is no more than one for each file of the session's bindings.
    recent: HashMap<PathBuf, Vec<Arc<Secret>>>,
    searches: Vec<Search>,
}

struct Search {
    secrets: Vec<Arc<Secret>>,
    values: Values,
    used: Instant,
}

impl fmt::Debug for HostValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostValues")
    }
}

impl HostValues {
    /// Reads a value that may be placed; it is looked for from now on.
    ///
    /// # Errors
    /// [`FileCondition`], when there is none.
    pub fn read(&self, file: &SecretFile, now: Instant) -> Result<Arc<Secret>, FileCondition> {
        let secret = file.current(now)?;
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).remember(file, &secret);
        Ok(secret)
    }

    /// The values for the answer of a host to a request with the values `placed`: those that were read for it, however long
    /// ago, and those that are good for the host by now.
    ///
    /// # Errors
    /// [`Unscrubbable`], when they cannot all be looked for.
    pub fn of(
        &self,
        host: &Host,
        bindings: &[Bound],
        placed: &[Arc<Secret>],
        now: Instant,
    ) -> Result<Values, Unscrubbable> {
        let files: Vec<&SecretFile> =
            bindings.iter().filter(|bound| bound.binding.rule.covers(host)).flat_map(Bound::files).collect();
        for file in &files {
            // One that gives no value now may have given one before.
            let _ = self.read(file, now);
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = files.iter().filter_map(|file| inner.recent.get(file.path())).flatten();
        let mut secrets: Vec<Arc<Secret>> = Vec::new();
        for secret in recent {
            add(&mut secrets, secret);
        }
        let known = secrets.len();
        for secret in placed {
            add(&mut secrets, secret);
        }
        if secrets.len() > known {
            // An exchange that began long ago: nobody else looks for this.
            return Values::new(secrets.iter().map(|secret| secret.expose()));
        }
        inner.search(secrets, now)
    }
}

fn same(one: &Arc<Secret>, other: &Arc<Secret>) -> bool {
    Arc::ptr_eq(one, other) || one.matches(other.expose())
}

fn add(secrets: &mut Vec<Arc<Secret>>, secret: &Arc<Secret>) {
    // A value that cannot be looked for is never placed either.
    if fits(secret.expose()).is_ok() && !secrets.iter().any(|known| same(known, secret)) {
        secrets.push(secret.clone());
    }
}

impl Inner {
    fn remember(&mut self, file: &SecretFile, secret: &Arc<Secret>) {
        let Some(recent) = self.recent.get_mut(file.path()) else {
            self.recent.insert(file.path().to_owned(), vec![secret.clone()]);
            return;
        };
        if recent.last().is_some_and(|last| same(last, secret)) {
            return;
        }
        // A value that comes again is not two.
        recent.retain(|known| !same(known, secret));
        recent.push(secret.clone());
        let old = recent.len().saturating_sub(MAX_RECENT);
        for gone in recent.drain(..old) {
            // Nothing holds a value for longer than it is looked for.
            self.searches.retain(|search| !search.secrets.iter().any(|secret| same(secret, &gone)));
        }
    }

    fn search(&mut self, secrets: Vec<Arc<Secret>>, now: Instant) -> Result<Values, Unscrubbable> {
        let equal = |search: &&mut Search| {
            search.secrets.len() == secrets.len()
                && search.secrets.iter().zip(&secrets).all(|(one, other)| Arc::ptr_eq(one, other))
        };
        if let Some(search) = self.searches.iter_mut().find(equal) {
            search.used = now;
            return Ok(search.values.clone());
        }
        let values = Values::new(secrets.iter().map(|secret| secret.expose()))?;
        // The one that was not used for longest makes room.
        if self.searches.len() >= MAX_SEARCHES
            && let Some(oldest) = (0..self.searches.len()).min_by_key(|number| self.searches[*number].used)
        {
            self.searches.swap_remove(oldest);
        }
        self.searches.push(Search { secrets, values: values.clone(), used: now });
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Method;
    use tempfile::TempDir;

    use super::*;
    use crate::{
        config::{Binding, BindingPlacement, Location},
        hosts::HostPattern,
        intercept::scrub::MAX_VALUE,
        policy::{Rule, Scheme},
        unusable::Unusable,
    };

    struct World {
        files: TempDir,
        bindings: Vec<Bound>,
        values: HostValues,
        now: Instant,
    }

    impl World {
        /// Credentials `a` and `b`, for these hosts.
        fn new(a: &str, b: &str) -> Self {
            let files = tempfile::tempdir().unwrap();
            let bound = |name: &str, host: &str| {
                Bound::new(Binding {
                    vault: "v".to_owned(),
                    name: name.to_owned(),
                    file: files.path().join(name),
                    placement: BindingPlacement::EnvironmentVariable { locations: vec![Location::Header] },
                    rule: Rule {
                        scheme: Scheme::Https,
                        hosts: vec![HostPattern::parse(host).unwrap()],
                        port: 443,
                        methods: vec![Method::GET],
                        path_prefixes: vec![],
                        allow_private: false,
                    },
                    kept_in: None,
                })
            };
            let bindings = vec![bound("a", a), bound("b", b)];
            Self { files, bindings, values: HostValues::default(), now: Instant::now() }
        }

        /// A value is seen a second later.
        fn write(&mut self, name: &str, value: &str) {
            std::fs::write(self.files.path().join(name), value).unwrap();
            self.now += Duration::from_secs(2);
        }

        fn read(&self, number: usize) -> Arc<Secret> {
            self.values.read(&self.bindings[number].file, self.now).unwrap()
        }

        /// Which of these would come back.
        fn passing<'a>(&self, host: &str, placed: &[Arc<Secret>], all: &[&'a str]) -> Vec<&'a str> {
            let values = self.values.of(&Host::parse(host).unwrap(), &self.bindings, placed, self.now).unwrap();
            all.iter().copied().filter(|value| values.scrub(value.as_bytes()).is_none()).collect()
        }
    }

    const OLD: [&str; 5] = ["first-value", "second-value", "third-value", "fourth-value", "fifth-value"];

    #[test]
    fn a_value_that_was_placed_before_a_rotation_does_not_come_back_after_it() {
        let mut world = World::new("git.example", "*.other.example");
        world.write("a", OLD[0]);
        let placed = [world.read(0)];
        // As many as there are while the body of the request comes; nobody has asked for the values of the host yet.
        for value in &OLD[1..] {
            world.write("a", value);
            world.read(0);
        }
        assert_eq!(world.passing("git.example", &placed, &OLD), ["second-value"]);
        assert_eq!(world.passing("git.example", &[], &OLD), ["first-value", "second-value"]);
        assert_eq!(world.passing("a.other.example", &[], &OLD), OLD);
    }

    #[test]
    fn what_is_never_placed_is_no_credential_that_can_be_used() {
        let mut world = World::new("git.example", "b.example");
        for (value, expected) in [
            ("hunter2".to_owned(), Some(Unusable::Length(Unscrubbable::TooShort))),
            ("x".repeat(MAX_VALUE + 1), Some(Unusable::Length(Unscrubbable::TooLong))),
            ("long enough".to_owned(), None),
        ] {
            world.write("a", &value);
            assert_eq!(world.bindings[0].condition(world.now), expected);
        }
        assert_eq!(world.bindings[1].condition(world.now), Some(Unusable::File(FileCondition::Missing)));
    }

    #[test]
    fn a_value_of_any_host_is_known_at_each() {
        let mut world = World::new("*.git.example", "b.example");
        world.write("a", OLD[0]);
        assert!(world.passing("one.git.example", &[], &OLD[..1]).is_empty());
        world.write("a", OLD[1]);
        assert!(world.passing("two.git.example", &[], &OLD[..2]).is_empty());
        // Nor does a file that is gone make it unknown, or one that comes again another.
        std::fs::remove_file(world.files.path().join("a")).unwrap();
        world.now += Duration::from_secs(2);
        assert!(world.passing("one.git.example", &[], &OLD[..2]).is_empty());
        world.write("a", OLD[1]);
        assert!(world.passing("one.git.example", &[], &OLD[..2]).is_empty());
        world.write("a", OLD[0]);
        assert!(world.passing("one.git.example", &[], &OLD[..2]).is_empty());
    }

    #[test]
    fn hosts_with_the_same_credentials_share_a_search_and_one_goes_when_there_are_too_many() {
        let mut world = World::new("*.git.example", "b.example");
        world.write("a", OLD[0]);
        for number in 0..MAX_SEARCHES * 5 {
            assert!(world.passing(&format!("h{number}.git.example"), &[], &OLD[..1]).is_empty());
        }
        assert_eq!(world.values.inner.lock().unwrap().searches.len(), 1);
        for number in 0..10 {
            world.write("a", &format!("value-number-{number}"));
            assert!(world.passing("x.git.example", &[], &[&format!("value-number-{number}")]).is_empty());
        }
        let mut inner = world.values.inner.lock().unwrap();
        assert_eq!(inner.searches.len(), 1, "no search holds a value that is not looked for any more");
        inner.searches.clear();
        let kept = vec![Arc::new(Secret::of("kept-value"))];
        for number in 0..MAX_SEARCHES * 2 {
            world.now += Duration::from_secs(1);
            inner.search(kept.clone(), world.now).unwrap();
            inner.search(vec![Arc::new(Secret::of(&format!("value-number-{number}")))], world.now).unwrap();
        }
        assert_eq!(inner.searches.len(), MAX_SEARCHES);
        assert!(inner.searches.iter().any(|search| Arc::ptr_eq(&search.secrets[0], &kept[0])), "what is in use stays");
    }
}
