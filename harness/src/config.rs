//! What the environment says.

use std::num::NonZeroU32;
use std::path::PathBuf;

use longhand_protocol::SessionId;
use longhand_protocol::client;
use longhand_protocol::id::InvalidId;

/// Where a harness finds what it calls, and what it shows there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// `LOG_URL`: the session service.
    pub log_url: String,
    /// `LOG_CA`: the authority that it is known by, certificates in PEM; needed for an `https` URL of a cluster.
    pub log_ca: Option<String>,
    /// `SESSION_TOKEN_FILE`: the pod's projected token.
    pub token_file: PathBuf,
    /// `MODEL_BASE_URL`: the model API, or the proxy in front of it.
    pub model_base_url: String,
    /// `MCP_BASE_URL`: the proxy in front of MCP servers; not needed by an agent that has none.
    pub mcp_base_url: Option<String>,
}

/// What a harness needs to know before it can ask anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `SESSION_ID`: the session that it serves.
    pub session: SessionId,
    /// What it calls.
    pub endpoints: Endpoints,
}

/// What a harness needs to know that belongs to no session: its pod sets no `SESSION_ID`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedConfig {
    /// `SESSIONS_PER_POD`: how many sessions it serves at once; one if it is not set.
    pub sessions: NonZeroU32,
    /// What it calls.
    pub endpoints: Endpoints,
}

/// What is wrong with the environment.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A variable is not set, or empty.
    #[error(
        "the environment variable {0} is not set; the pod that the operator makes sets SESSION_ID, LOG_URL, SESSION_TOKEN_FILE and MODEL_BASE_URL"
    )]
    Missing(&'static str),
    /// `SESSION_ID` is not an identifier.
    #[error("SESSION_ID: {0}")]
    Session(#[from] InvalidId),
    /// `SESSIONS_PER_POD` is not a number of sessions.
    #[error("SESSIONS_PER_POD is `{0}`, and must be 1 or more")]
    Sessions(String),
    /// A URL cannot be used.
    #[error("{variable}: {source}")]
    Url {
        /// The variable.
        variable: &'static str,
        /// Why.
        source: client::Error,
    },
}

impl Endpoints {
    fn from_env(get: &impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        Ok(Self {
            log_url: needed(get, "LOG_URL")?,
            log_ca: given(get, "LOG_CA"),
            token_file: needed(get, "SESSION_TOKEN_FILE")?.into(),
            model_base_url: needed(get, "MODEL_BASE_URL")?,
            mcp_base_url: given(get, "MCP_BASE_URL"),
        })
    }
}

impl Config {
    /// Reads the configuration by `get`, which is [`std::env::var`] but in tests.
    ///
    /// # Errors
    /// Names the first variable that is missing or wrong.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        Ok(Self { session: needed(&get, "SESSION_ID")?.parse()?, endpoints: Endpoints::from_env(&get)? })
    }
}

impl ParkedConfig {
    /// Reads the configuration by `get`, which is [`std::env::var`] but in tests.
    ///
    /// # Errors
    /// Names the first variable that is missing or wrong.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let sessions = match given(&get, "SESSIONS_PER_POD") {
            None => NonZeroU32::MIN,
            Some(sessions) => sessions.parse().map_err(|_| ConfigError::Sessions(sessions))?,
        };
        Ok(Self { sessions, endpoints: Endpoints::from_env(&get)? })
    }
}

/// Whether the environment names a session.
#[must_use]
pub fn has_session(get: impl Fn(&str) -> Option<String>) -> bool {
    given(&get, "SESSION_ID").is_some()
}

fn given(get: &impl Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    get(name).filter(|value| !value.is_empty())
}

fn needed(get: &impl Fn(&str) -> Option<String>, name: &'static str) -> Result<String, ConfigError> {
    given(get, name).ok_or(ConfigError::Missing(name))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{Config, ParkedConfig, has_session};

    const ALL: [(&str, &str); 4] = [
        ("SESSION_ID", "sesn_1"),
        ("LOG_URL", "http://log"),
        ("SESSION_TOKEN_FILE", "/token"),
        ("MODEL_BASE_URL", "http://model"),
    ];

    fn variable(name: &str, changed: &str, to: Option<&str>) -> Option<String> {
        if name == changed {
            return to.map(ToOwned::to_owned);
        }
        ALL.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    fn read(changed: &str, to: Option<&str>) -> Result<Config, String> {
        Config::from_env(|name| variable(name, changed, to)).map_err(|error| error.to_string())
    }

    #[rstest]
    #[case("", None, Ok(1))]
    #[case("SESSIONS_PER_POD", Some("4"), Ok(4))]
    #[case("SESSIONS_PER_POD", Some("0"), Err("SESSIONS_PER_POD is `0`"))]
    #[case("LOG_URL", Some(""), Err("LOG_URL"))]
    fn a_parked_harness_needs_no_session(
        #[case] name: &str,
        #[case] value: Option<&str>,
        #[case] expected: Result<u32, &str>,
    ) {
        let read = ParkedConfig::from_env(|asked| variable(asked, name, value));
        match expected {
            Ok(sessions) => assert_eq!(read.unwrap().sessions.get(), sessions),
            Err(part) => {
                let error = read.unwrap_err().to_string();
                assert!(error.contains(part), "{error}");
            }
        }
        assert!(has_session(|asked| variable(asked, name, value)));
        assert!(!has_session(|asked| variable(asked, "SESSION_ID", Some(""))));
    }

    #[test]
    fn the_whole_environment_is_read() {
        let config = read("", None).unwrap();
        assert_eq!(config.session.as_str(), "sesn_1");
        assert_eq!(config.endpoints.log_url, "http://log");
        assert_eq!(config.endpoints.log_ca, None);
        assert_eq!(read("LOG_CA", Some("PEM")).unwrap().endpoints.log_ca.as_deref(), Some("PEM"));
        assert_eq!(config.endpoints.token_file.to_str(), Some("/token"));
        assert_eq!(config.endpoints.model_base_url, "http://model");
        assert_eq!(config.endpoints.mcp_base_url, None);
        assert_eq!(
            read("MCP_BASE_URL", Some("http://mcp")).unwrap().endpoints.mcp_base_url.as_deref(),
            Some("http://mcp")
        );
    }

    #[rstest]
    #[case("SESSION_ID", None)]
    #[case("SESSION_ID", Some("nonsense"))]
    #[case("LOG_URL", None)]
    #[case("SESSION_TOKEN_FILE", Some(""))]
    #[case("MODEL_BASE_URL", None)]
    fn what_is_wrong_is_named(#[case] name: &str, #[case] value: Option<&str>) {
        let error = read(name, value).unwrap_err();
        assert!(error.contains(name), "{error}");
    }
}
