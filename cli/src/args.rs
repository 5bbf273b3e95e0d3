//! What is given on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::sandbox::place::{Place, Ports, Side};

/// AI-agent sessions on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "longhand", version, propagate_version = true)]
pub struct Args {
    /// Where and as whom.
    #[command(flatten)]
    pub target: Target,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The cluster, the namespace, the session service, and the account that a token is requested for.
#[derive(Clone, Debug, clap::Args)]
pub struct Target {
    /// Namespace of the session; without it, that of the kubeconfig's context
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// Kubeconfig file; without it, $KUBECONFIG or ~/.kube/config
    #[arg(long, global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// ServiceAccount of the session's namespace whose token goes to the session service
    #[arg(long, global = true, default_value = "longhand-cli")]
    pub service_account: String,
    /// Service of the session service
    #[arg(long, global = true, default_value = "longhand-session")]
    pub service: String,
    /// Namespace that Longhand is installed in
    #[arg(long, global = true, default_value = "longhand-system")]
    pub service_namespace: String,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List objects
    Get {
        /// Which kind
        #[arg(value_enum)]
        kind: Kind,
        /// In all namespaces
        #[arg(short = 'A', long)]
        all_namespaces: bool,
    },
    /// Show a session's events
    Events {
        /// Name of the AgentSession, or sesn_...
        session: String,
        /// Go on with new events as they happen
        #[arg(short, long)]
        follow: bool,
        /// Begin after this sequence number
        #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
        after: u64,
        /// How events look.
        #[command(flatten)]
        view: View,
    },
    /// Send a message to a session
    Send {
        /// Name of the AgentSession, or sesn_...
        session: String,
        /// The message; - reads it from standard input
        text: String,
        /// Show the events that follow, until the session is idle
        #[arg(short, long, visible_alias = "wait")]
        follow: bool,
        /// How long to follow
        #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds)]
        timeout: Duration,
        /// How events look.
        #[command(flatten)]
        view: View,
    },
    /// Make a session that begins with the history of another one: a rewind, if it ends before the last event
    Fork {
        /// Name of the AgentSession, or sesn_...
        session: String,
        /// The last event that they have in common; without it, the last one there is
        #[arg(long, value_name = "SEQUENCE")]
        at: Option<u64>,
    },
    /// Write a session and its whole log to a file that `longhand verify` can prove
    Export {
        /// Name of the AgentSession, or sesn_...
        session: String,
        /// The file; without it, standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Prove that the events of an exported file are whole, unchanged and in order; needs no cluster
    Verify {
        /// The file; - reads standard input
        file: PathBuf,
    },
    /// Make the session of an exported file
    Import {
        /// The file; - reads standard input
        file: PathBuf,
    },
    /// Copy a file or a folder into a sandbox, or out of it
    Cp {
        /// A local path, SESSION[/SANDBOX]:PATH, or - for standard input
        #[arg(value_name = "FROM")]
        from: Side,
        /// The same; - for standard output. What exists is replaced; a path with a slash at its end is a folder to copy into
        #[arg(value_name = "TO")]
        to: Side,
        /// The name is that of a Sandbox that belongs to no session
        #[arg(long)]
        standalone: bool,
    },
    /// Run a command or a shell in a sandbox; its exit code is that of the command
    Exec {
        /// SESSION[/SANDBOX]; without SANDBOX, the session's first one
        #[arg(value_name = "SANDBOX")]
        sandbox: Place,
        /// Hand standard input on
        #[arg(short = 'i', long)]
        stdin: bool,
        /// Give it a terminal
        #[arg(short, long)]
        tty: bool,
        /// The name is that of a Sandbox that belongs to no session
        #[arg(long)]
        standalone: bool,
        /// The command and its arguments; without it, a shell
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Forward local ports to servers that run in a sandbox, until interrupted
    PortForward {
        /// SESSION[/SANDBOX]; without SANDBOX, the session's first one
        #[arg(value_name = "SANDBOX")]
        sandbox: Place,
        /// [LOCAL:]REMOTE; LOCAL may be 0 for any
        #[arg(required = true, value_name = "PORTS")]
        ports: Vec<Ports>,
        /// Only print a link for a browser that leads to each port, good for a minute; the installation has to have a domain for it
        #[arg(long)]
        link: bool,
        /// The name is that of a Sandbox that belongs to no session
        #[arg(long)]
        standalone: bool,
    },
    /// Hand a sandbox to another session: its workspace moves into a new pod there, its processes end
    Handoff {
        /// SESSION[/SANDBOX]; without SANDBOX, the session's first one
        #[arg(value_name = "SANDBOX")]
        sandbox: Place,
        /// The session that gets it, SESSION[/SANDBOX], and as which of its sandboxes; without SANDBOX, its first one
        #[arg(long, value_name = "SANDBOX")]
        to: Place,
    },
    /// Apply a file and follow its AgentSession until it is idle
    Run {
        /// YAML with one AgentSession, and what else it needs; - reads standard input
        #[arg(short, long)]
        file: PathBuf,
        /// How long to follow
        #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds)]
        timeout: Duration,
        /// How events look.
        #[command(flatten)]
        view: View,
    },
}

/// How events are shown.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct View {
    /// json: one object a line
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
    /// Also Longhand's own events (x.*), such as those of sandboxes
    #[arg(short, long)]
    pub all: bool,
}

/// How an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Sequence number, time, type and a short text.
    Text,
    /// The whole event, one a line.
    Json,
}

/// What `get` lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// `AgentSession`s.
    #[value(alias = "session", alias = "agentsessions", alias = "agentsession")]
    Sessions,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim_end_matches('s').parse::<u64>() {
        Ok(0) | Err(_) => Err("a whole number of seconds, at least 1".to_owned()),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
    }
}

/// The name that usage texts show: as kubectl's plugin, that of the plugin.
#[must_use]
pub fn shown_name(program: &str) -> &'static str {
    let file = program.rsplit('/').next().unwrap_or_default();
    if file.starts_with("kubectl-") { "kubectl longhand" } else { "longhand" }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::{CommandFactory as _, Parser as _};
    use rstest::rstest;

    use super::{Args, Command, Format, shown_name};

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[rstest]
    #[case(&["longhand", "get", "sessions", "-A"])]
    #[case(&["longhand", "-n", "a", "get", "session"])]
    #[case(&["longhand", "events", "hello", "-n", "a", "--follow", "--after", "3", "-o", "json", "--all"])]
    #[case(&["longhand", "send", "sesn_1", "hi there", "--wait"])]
    #[case(&["longhand", "send", "hello", "-", "-f", "--timeout", "5"])]
    #[case(&["longhand", "run", "-f", "a.yaml", "--context", "c"])]
    #[case(&["longhand", "fork", "hello", "--at", "12"])]
    #[case(&["longhand", "export", "hello", "-o", "hello.ndjson"])]
    #[case(&["longhand", "verify", "hello.ndjson"])]
    #[case(&["longhand", "import", "hello.ndjson", "-n", "b"])]
    #[case(&["longhand", "cp", "a.txt", "hello:src/", "-n", "b"])]
    #[case(&["longhand", "cp", "hello/db:/var/log", "-"])]
    #[case(&["longhand", "cp", "--standalone", "bench:out", "./out"])]
    #[case(&["longhand", "exec", "-it", "hello", "--", "sh", "-c", "ls -l"])]
    #[case(&["longhand", "exec", "-it", "hello/db"])]
    #[case(&["longhand", "port-forward", "hello", "8080:80", "3000"])]
    fn what_the_manual_says_is_understood(#[case] words: &[&str]) {
        Args::try_parse_from(words).unwrap();
    }

    #[rstest]
    #[case(&["longhand", "events"])]
    #[case(&["longhand", "events", "hello", "--after", "-1"])]
    #[case(&["longhand", "get", "pods"])]
    #[case(&["longhand", "send", "hello"])]
    #[case(&["longhand", "run"])]
    #[case(&["longhand", "run", "-f", "a", "--timeout", "0"])]
    #[case(&["longhand", "fork", "hello", "--at", "-1"])]
    #[case(&["longhand", "export"])]
    #[case(&["longhand", "verify"])]
    #[case(&["longhand", "cp", "a.txt"])]
    #[case(&["longhand", "exec"])]
    #[case(&["longhand", "exec", "hello", "ls"])]
    #[case(&["longhand", "port-forward", "hello"])]
    #[case(&["longhand", "port-forward", "hello", "x"])]
    fn what_is_wrong_is_refused(#[case] words: &[&str]) {
        Args::try_parse_from(words).unwrap_err();
    }

    #[test]
    fn flags_have_their_values() {
        let args =
            Args::try_parse_from(["longhand", "events", "hello", "--after", "3", "-o", "json", "-n", "a"]).unwrap();
        assert_eq!(args.target.namespace.as_deref(), Some("a"));
        assert_eq!(args.target.service_account, "longhand-cli");
        let Command::Events { after, follow, view, .. } = args.command else { panic!("events") };
        assert_eq!((after, follow, view.output, view.all), (3, false, Format::Json, false));
        let args = Args::try_parse_from(["longhand", "run", "-f", "x", "--timeout", "90s"]).unwrap();
        let Command::Run { timeout, .. } = args.command else { panic!("run") };
        assert_eq!(timeout, Duration::from_secs(90));
    }

    #[rstest]
    #[case("longhand", "longhand")]
    #[case("/usr/local/bin/longhand", "longhand")]
    #[case("/usr/local/bin/kubectl-longhand", "kubectl longhand")]
    fn a_plugin_calls_itself_so(#[case] program: &str, #[case] expected: &str) {
        assert_eq!(shown_name(program), expected);
    }
}
