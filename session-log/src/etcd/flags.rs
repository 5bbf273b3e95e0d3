//! How the programs that speak to etcd are told where it is, for all of them alike.

use std::path::PathBuf;
use std::str::FromStr;

use super::{EtcdOptions, Identity, Login, TlsFiles};

/// The members of one etcd cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints(pub Vec<String>);

/// A text that names no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an endpoint is missing")]
pub struct NoEndpoint;

impl FromStr for Endpoints {
    type Err = NoEndpoint;

    fn from_str(text: &str) -> Result<Self, NoEndpoint> {
        let endpoints: Vec<String> = text.split(',').map(|endpoint| endpoint.trim().to_owned()).collect();
        if endpoints.iter().any(String::is_empty) { Err(NoEndpoint) } else { Ok(Self(endpoints)) }
    }
}

/// Where etcd is, and who this program is for it.
#[derive(Clone, Debug, clap::Args)]
pub struct EtcdFlags {
    /// Where etcd is, as http://host:port or https://host:port. Members of one cluster are separated by commas; clusters
    /// that share the sessions between them by semicolons, always in the same order.
    #[arg(long, env = "ETCD_ENDPOINTS", value_delimiter = ';', required = true)]
    pub etcd_endpoints: Vec<Endpoints>,
    /// The authorities that sign etcd's certificate (PEM); needed for https.
    #[arg(long, env = "ETCD_CA_FILE")]
    pub etcd_ca_file: Option<PathBuf>,
    /// This program's certificate for etcd (PEM). Files are read again for each new connection.
    #[arg(long, env = "ETCD_CERT_FILE", requires_all = ["etcd_ca_file", "etcd_key_file"])]
    pub etcd_cert_file: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, env = "ETCD_KEY_FILE", requires = "etcd_cert_file")]
    pub etcd_key_file: Option<PathBuf>,
    /// This program's user in etcd. Without one, etcd goes by the common name of the certificate.
    #[arg(long, env = "ETCD_USERNAME", requires = "etcd_password_file")]
    pub etcd_username: Option<String>,
    /// The file that holds the password of that user. It is read again when etcd asks for a new login.
    #[arg(long, env = "ETCD_PASSWORD_FILE", requires = "etcd_username")]
    pub etcd_password_file: Option<PathBuf>,
}

impl EtcdFlags {
    /// What the flags say of a connection; everything else as usual.
    #[must_use]
    pub fn options(&self) -> EtcdOptions {
        let identity = self.etcd_cert_file.clone().zip(self.etcd_key_file.clone());
        let identity = identity.map(|(cert, key)| Identity { cert, key });
        let login = self.etcd_username.clone().zip(self.etcd_password_file.clone());
        EtcdOptions {
            tls: self.etcd_ca_file.clone().map(|ca| TlsFiles { ca, identity }),
            login: login.map(|(username, password_file)| Login { username, password_file }),
            ..EtcdOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::{EtcdFlags, Identity, TlsFiles};

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        etcd: EtcdFlags,
    }

    fn parse(flags: &[&str]) -> Result<EtcdFlags, clap::Error> {
        Program::try_parse_from([&["program"], flags].concat()).map(|program| program.etcd)
    }

    #[test]
    fn clusters_and_their_members_are_told_apart() {
        let flags = parse(&["--etcd-endpoints=http://a:1, http://b:2;http://c:3"]).unwrap();
        let clusters: Vec<Vec<String>> = flags.etcd_endpoints.iter().map(|cluster| cluster.0.clone()).collect();
        assert_eq!(clusters, [vec!["http://a:1", "http://b:2"], vec!["http://c:3"]]);
        assert_eq!((flags.options().tls, flags.options().login), (None, None));
    }

    #[test]
    fn files_become_options() {
        let flags = parse(&[
            "--etcd-endpoints=https://a",
            "--etcd-ca-file=ca",
            "--etcd-cert-file=cert",
            "--etcd-key-file=key",
            "--etcd-username=one",
            "--etcd-password-file=password",
        ]);
        let options = flags.unwrap().options();
        let identity = Some(Identity { cert: "cert".into(), key: "key".into() });
        assert_eq!(options.tls, Some(TlsFiles { ca: "ca".into(), identity }));
        assert_eq!(options.login.unwrap().username, "one");
    }

    #[rstest]
    #[case::no_endpoint(&[])]
    #[case::an_empty_endpoint(&["--etcd-endpoints=http://a,"])]
    #[case::an_empty_cluster(&["--etcd-endpoints=http://a;"])]
    #[case::no_key(&["--etcd-endpoints=a", "--etcd-ca-file=ca", "--etcd-cert-file=cert"])]
    #[case::no_ca(&["--etcd-endpoints=a", "--etcd-cert-file=cert", "--etcd-key-file=key"])]
    #[case::no_password(&["--etcd-endpoints=a", "--etcd-username=one"])]
    fn what_does_not_fit_is_refused(#[case] flags: &[&str]) {
        assert!(parse(flags).is_err());
    }
}
