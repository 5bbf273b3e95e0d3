//! What the environment says.

use std::path::PathBuf;

use longhand_protocol::SessionId;
use longhand_protocol::client;
use longhand_protocol::id::InvalidId;

/// What a harness needs to know before it can ask anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `SESSION_ID`: the session that it serves.
    pub session: SessionId,
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
    /// A URL cannot be used.
    #[error("{variable}: {source}")]
    Url {
        /// The variable.
        variable: &'static str,
        /// Why.
        source: client::Error,
    },
}

impl Config {
    /// Reads the configuration by `get`, which is [`std::env::var`] but in tests.
    ///
    /// # Errors
    /// Names the first variable that is missing or wrong.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let need = |name: &'static str| get(name).filter(|value| !value.is_empty()).ok_or(ConfigError::Missing(name));
        Ok(Self {
            session: need("SESSION_ID")?.parse()?,
            log_url: need("LOG_URL")?,
            log_ca: get("LOG_CA").filter(|value| !value.is_empty()),
            token_file: need("SESSION_TOKEN_FILE")?.into(),
            model_base_url: need("MODEL_BASE_URL")?,
            mcp_base_url: get("MCP_BASE_URL").filter(|value| !value.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::Config;

    const ALL: [(&str, &str); 4] = [
        ("SESSION_ID", "sesn_1"),
        ("LOG_URL", "http://log"),
        ("SESSION_TOKEN_FILE", "/token"),
        ("MODEL_BASE_URL", "http://model"),
    ];

    fn read(changed: &str, to: Option<&str>) -> Result<Config, String> {
        let get = |name: &str| {
            if name == changed {
                return to.map(ToOwned::to_owned);
            }
            ALL.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        Config::from_env(get).map_err(|error| error.to_string())
    }

    #[test]
    fn the_whole_environment_is_read() {
        let config = read("", None).unwrap();
        assert_eq!(config.session.as_str(), "sesn_1");
        assert_eq!(config.log_url, "http://log");
        assert_eq!(config.log_ca, None);
        assert_eq!(read("LOG_CA", Some("PEM")).unwrap().log_ca.as_deref(), Some("PEM"));
        assert_eq!(config.token_file.to_str(), Some("/token"));
        assert_eq!(config.model_base_url, "http://model");
        assert_eq!(config.mcp_base_url, None);
        assert_eq!(read("MCP_BASE_URL", Some("http://mcp")).unwrap().mcp_base_url.as_deref(), Some("http://mcp"));
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
