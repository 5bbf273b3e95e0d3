//! How `sandboxd` gets into images that have none.

use std::time::Duration;

use kube::Client;
use tokio::time::{sleep, timeout};

/// From this minor version of Kubernetes on an API server takes image volumes, and cannot be told not to (KEP 4639).
const IMAGE_VOLUMES_SINCE: u32 = 36;
const DEADLINE: Duration = Duration::from_secs(10);
/// Another way in is another pod, so that every pool would be made anew.
const TRIES: usize = 5;
const AGAIN: Duration = Duration::from_secs(1);

/// The way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Injection {
    /// The image with it is mounted beside the sandbox's own. Its runtime on the nodes has to be able to: containerd 2.1, CRI-O 1.31.
    ImageVolume,
    /// A container that runs before the sandbox's own copies it into a volume.
    InitContainer,
}

impl Injection {
    /// What the cluster is able to, as far as its API server says so.
    pub(crate) async fn detect(client: &Client) -> Self {
        for _ in 0..TRIES {
            match timeout(DEADLINE, client.apiserver_version()).await {
                Ok(Ok(version)) => return Self::by_version(&version.major, &version.minor),
                Ok(Err(error)) => tracing::warn!(%error, "the API server does not say its version"),
                Err(_) => tracing::warn!("the API server does not say its version in time"),
            }
            sleep(AGAIN).await;
        }
        tracing::warn!("the version of the API server is not known: sandboxd is copied into images");
        Self::InitContainer
    }

    /// Some providers write a minor version as `36+`.
    fn by_version(major: &str, minor: &str) -> Self {
        let number = |text: &str| text.trim_end_matches(|last: char| !last.is_ascii_digit()).parse::<u32>().ok();
        match (number(major), number(minor)) {
            (Some(1), Some(minor)) if minor >= IMAGE_VOLUMES_SINCE => Self::ImageVolume,
            (Some(major), _) if major > 1 => Self::ImageVolume,
            _ => Self::InitContainer,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::Injection;

    #[rstest]
    #[case("1", "37", Injection::ImageVolume)]
    #[case("1", "36+", Injection::ImageVolume)]
    #[case("2", "0", Injection::ImageVolume)]
    #[case("1", "35", Injection::InitContainer)]
    #[case("", "", Injection::InitContainer)]
    fn image_volumes_are_used_where_they_cannot_be_off(
        #[case] major: &str,
        #[case] minor: &str,
        #[case] expected: Injection,
    ) {
        assert_eq!(Injection::by_version(major, minor), expected);
    }
}
