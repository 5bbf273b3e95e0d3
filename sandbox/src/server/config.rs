//! The environment of `sandboxd`, and the one that it hands on.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use longhand_process::listen::everywhere;

use crate::canary::{Canary, InvalidCanary};
use crate::token::{KeyError, Verifier};
use crate::wire::DEFAULT_PORT;

const LISTEN: &str = "SANDBOXD_LISTEN";
const VERIFY_KEY: &str = "SANDBOXD_VERIFY_KEY";
const WORKSPACE: &str = "SANDBOXD_WORKSPACE";
const GRACE: &str = "SANDBOXD_GRACE_SECONDS";
const TERMINAL_IDLE: &str = "SANDBOXD_TERMINAL_IDLE_SECONDS";
const STATE: &str = "SANDBOXD_STATE";
const MAX_PROCESSES: &str = "SANDBOXD_MAX_PROCESSES";
const RELAY: &str = "SANDBOXD_RELAY";
const CANARIES: &str = "SANDBOXD_CANARIES";
const REQUIRE_FENCE: &str = "SANDBOXD_REQUIRE_FENCE";
const COMMAND: &str = "SANDBOXD_COMMAND";
const POD_UID: &str = "POD_UID";

const DEFAULT_WORKSPACE: &str = "/workspace";
const DEFAULT_GRACE: Duration = Duration::from_secs(20);
const DEFAULT_TERMINAL_IDLE: Duration = Duration::from_secs(30 * 60);
const DEFAULT_STATE: &str = ".sandboxd-state";
const DEFAULT_MAX_PROCESSES: usize = 4096;
const DEFAULT_RELAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 3129);

/// What `sandboxd` is told by its environment.
#[derive(Debug)]
pub struct Config {
    /// `SANDBOXD_LISTEN`: the address to listen on; default `[::]:8090`, which is every address of
    /// both families.
    pub listen: SocketAddr,
    /// From `SANDBOXD_VERIFY_KEY` (base64 of the 32 bytes of an Ed25519 public key) and `POD_UID`.
    pub verifier: Verifier,
    /// `SANDBOXD_WORKSPACE`: where tools work; default `/workspace`. Made if missing.
    pub workspace: PathBuf,
    /// `SANDBOXD_GRACE_SECONDS`: how long running calls may go on after SIGTERM; default 20.
    pub grace: Duration,
    /// What tools see: the environment of the image, without what is meant for `sandboxd`.
    pub environment: Vec<(OsString, OsString)>,
    /// What is seldom set.
    pub options: Options,
}

/// Settings that have a default everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `SANDBOXD_MAX_PROCESSES`: with more processes of commands than this, the command that has most of them is killed;
    /// default 4096.
    pub max_processes: usize,
    /// `SANDBOXD_TERMINAL_IDLE_SECONDS`: a terminal in which nothing is typed or shown for so long is closed; default 1800.
    pub terminal_idle: Duration,
    /// `SANDBOXD_STATE`: a directory for what a restarted process must know of the calls before; default `.sandboxd-state` in
    /// the directory for temporary files. Without one, or if it cannot be used, calls are remembered by this process only.
    pub state: Option<PathBuf>,
    /// `SANDBOXD_RELAY`: where programs find the way out, on loopback; default `127.0.0.1:3129`. `off` for none.
    pub relay: Option<SocketAddr>,
    /// `SANDBOXD_CANARIES`: what must not be reachable, such as `api=tcp://10.96.0.1:443,dns=dns://10.96.0.10:53`.
    pub canaries: Vec<Canary>,
    /// `SANDBOXD_REQUIRE_FENCE`: `true` if the sandbox is ready only while none of the canaries answers.
    pub require_fence: bool,
    /// `SANDBOXD_COMMAND`: a program that is run beside the tools, with its arguments, as a JSON array such as
    /// `["python3", "-m", "http.server"]`; none by default.
    pub command: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_processes: DEFAULT_MAX_PROCESSES,
            terminal_idle: DEFAULT_TERMINAL_IDLE,
            state: None,
            relay: None,
            canaries: Vec::new(),
            require_fence: false,
            command: Vec::new(),
        }
    }
}

/// A variable that is missing or wrong.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A required variable is not set.
    #[error("the environment variable {0} is required")]
    Missing(&'static str),
    /// The value is of another form.
    #[error("the environment variable {name} is not {expected}: {value:?}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// What it should hold.
        expected: &'static str,
        /// What it holds.
        value: String,
    },
    /// The relay would be open to others.
    #[error("the environment variable {RELAY} names {0}, which is not on loopback")]
    Relay(SocketAddr),
    /// The canaries cannot be understood.
    #[error("the environment variable {CANARIES}: {0}")]
    Canaries(#[from] InvalidCanary),
    /// The key cannot be used.
    #[error("the environment variable {VERIFY_KEY}: {0}")]
    Key(#[from] KeyError),
}

impl Config {
    /// Reads the configuration from the variables of an environment, such as [`std::env::vars_os`].
    pub fn from_env(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, ConfigError> {
        let (own, environment): (Vec<_>, Vec<_>) = variables.into_iter().partition(|(name, _)| is_own(name));
        let get = |wanted: &'static str| {
            let value =
                own.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.to_string_lossy().into_owned());
            value.filter(|value| !value.is_empty())
        };
        let require = |name| get(name).ok_or(ConfigError::Missing(name));
        let listen = match get(LISTEN) {
            None => everywhere(DEFAULT_PORT),
            Some(value) => parse(LISTEN, "an address such as [::]:8090", value)?,
        };
        let grace = match get(GRACE) {
            None => DEFAULT_GRACE,
            Some(value) => Duration::from_secs(parse(GRACE, "a number of seconds", value).map(u32::into)?),
        };
        let max_processes = match get(MAX_PROCESSES) {
            None => DEFAULT_MAX_PROCESSES,
            Some(value) => parse(MAX_PROCESSES, "a number of processes", value)?,
        };
        let terminal_idle = match get(TERMINAL_IDLE) {
            None => DEFAULT_TERMINAL_IDLE,
            Some(value) => Duration::from_secs(parse(TERMINAL_IDLE, "a number of seconds", value).map(u32::into)?),
        };
        let relay = match get(RELAY).as_deref() {
            None => Some(DEFAULT_RELAY),
            Some("off") => None,
            Some(value) => Some(parse(RELAY, "an address such as 127.0.0.1:3129, or off", value.to_owned())?),
        };
        if let Some(address) = relay.filter(|address| !address.ip().is_loopback()) {
            return Err(ConfigError::Relay(address));
        }
        let require_fence = match get(REQUIRE_FENCE) {
            None => false,
            Some(value) => parse(REQUIRE_FENCE, "true or false", value)?,
        };
        let command = match get(COMMAND) {
            None => Vec::new(),
            Some(value) => program(&value).ok_or(ConfigError::Invalid {
                name: COMMAND,
                expected: "a JSON array of the name of a program and its arguments",
                value,
            })?,
        };
        let canaries = Canary::list(&get(CANARIES).unwrap_or_default())?;
        Ok(Self {
            listen,
            verifier: Verifier::new(&require(VERIFY_KEY)?, &require(POD_UID)?)?,
            workspace: get(WORKSPACE).unwrap_or_else(|| DEFAULT_WORKSPACE.to_owned()).into(),
            grace,
            environment,
            options: Options {
                max_processes,
                terminal_idle,
                state: Some(get(STATE).map_or_else(|| std::env::temp_dir().join(DEFAULT_STATE), PathBuf::from)),
                relay,
                canaries,
                require_fence,
                command,
            },
        })
    }
}

fn is_own(name: &OsString) -> bool {
    name == POD_UID || name.as_encoded_bytes().starts_with(b"SANDBOXD_")
}

fn program(value: &str) -> Option<Vec<String>> {
    let words: Vec<String> = serde_json::from_str(value).ok()?;
    let is_sound = words.first().is_some_and(|name| !name.is_empty()) && words.iter().all(|word| !word.contains('\0'));
    is_sound.then_some(words)
}

fn parse<T: std::str::FromStr>(name: &'static str, expected: &'static str, value: String) -> Result<T, ConfigError> {
    value.parse().map_err(|_| ConfigError::Invalid { name, expected, value })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::Path;
    use std::time::Duration;

    use rstest::rstest;

    use super::Config;
    use crate::token::Signer;

    fn environment(extra: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        let key = Signer::generate().unwrap().0.public_key();
        let base = [("PATH", "/bin"), ("POD_UID", "uid"), ("SANDBOXD_VERIFY_KEY", key.as_str())];
        let all = base.iter().filter(|(name, _)| extra.iter().all(|(other, _)| other != name)).chain(extra);
        all.map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
    }

    #[test]
    fn the_defaults_are_as_documented() {
        let config = Config::from_env(environment(&[])).unwrap();
        assert_eq!(config.listen.to_string(), "[::]:8090");
        assert_eq!(config.workspace, Path::new("/workspace"));
        assert_eq!(config.grace, Duration::from_secs(20));
        assert_eq!(config.options.max_processes, 4096);
        assert_eq!(config.options.terminal_idle, Duration::from_secs(1800));
        assert_eq!(config.options.relay.unwrap().to_string(), "127.0.0.1:3129");
        assert!(
            config.options.command.is_empty() && config.options.canaries.is_empty() && !config.options.require_fence
        );
        assert!(config.options.state.unwrap().ends_with(".sandboxd-state"));
    }

    #[test]
    fn tools_do_not_see_what_is_meant_for_sandboxd() {
        let config = Config::from_env(environment(&[("SANDBOXD_GRACE_SECONDS", "3"), ("SANDBOXD_NEW", "x")])).unwrap();
        assert_eq!(config.grace, Duration::from_secs(3));
        assert_eq!(config.environment, [(OsString::from("PATH"), OsString::from("/bin"))]);
    }

    #[rstest]
    #[case("POD_UID", "", "the environment variable POD_UID is required")]
    #[case("SANDBOXD_VERIFY_KEY", "", "the environment variable SANDBOXD_VERIFY_KEY is required")]
    #[case("SANDBOXD_VERIFY_KEY", "x", "SANDBOXD_VERIFY_KEY: the verify key is not the base64")]
    #[case("SANDBOXD_LISTEN", "8090", "SANDBOXD_LISTEN is not an address such as [::]:8090: \"8090\"")]
    #[case("SANDBOXD_RELAY", "0.0.0.0:3129", "SANDBOXD_RELAY names 0.0.0.0:3129, which is not on loopback")]
    #[case("SANDBOXD_CANARIES", "x", "SANDBOXD_CANARIES: \"x\" is not name=tcp://address:port")]
    #[case("SANDBOXD_REQUIRE_FENCE", "1", "SANDBOXD_REQUIRE_FENCE is not true or false: \"1\"")]
    #[case("SANDBOXD_COMMAND", "serve", "SANDBOXD_COMMAND is not a JSON array of the name of a program")]
    #[case("SANDBOXD_COMMAND", r#"[""]"#, "SANDBOXD_COMMAND is not a JSON array of the name of a program")]
    #[case("SANDBOXD_MAX_PROCESSES", "many", "SANDBOXD_MAX_PROCESSES is not a number of processes: \"many\"")]
    #[case("SANDBOXD_GRACE_SECONDS", "-1", "SANDBOXD_GRACE_SECONDS is not a number of seconds: \"-1\"")]
    fn a_wrong_variable_is_named(#[case] name: &str, #[case] value: &str, #[case] message: &str) {
        let error = Config::from_env(environment(&[(name, value)])).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
