//! From a URL to a store.

use std::str::FromStr;
use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreScheme};
use url::Url;

use super::{ObjectsError, Result};

/// A place that was found.
pub(super) struct Opened {
    pub(super) store: Arc<dyn ObjectStore>,
    /// The prefix of every name in it.
    pub(super) root: Path,
    /// Where its files are, if it is a folder.
    pub(super) folder: Option<Arc<std::path::Path>>,
}

/// The place that a URL names.
pub(super) fn open(text: &str, env: &[(String, String)]) -> Result<Opened> {
    let wrong = |reason: String| ObjectsError::Place { url: text.to_owned(), reason };
    let url = Url::parse(text).map_err(|error| wrong(error.to_string()))?;
    let (scheme, root) = ObjectStoreScheme::parse(&url).map_err(|error| wrong(error.to_string()))?;
    if scheme != ObjectStoreScheme::Local && rustls::crypto::CryptoProvider::get_default().is_none() {
        return Err(wrong("this program has no TLS provider".to_owned()));
    }
    let built: object_store::Result<Arc<dyn ObjectStore>> = match scheme {
        ObjectStoreScheme::Local => return folder(&url).map_err(wrong),
        ObjectStoreScheme::AmazonS3 => {
            let builder = AmazonS3Builder::new().with_url(text);
            let builder = settings(env, "AWS_").fold(builder, |builder, (key, value)| builder.with_config(key, value));
            builder.build().map(|store| Arc::new(store) as _)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let builder = GoogleCloudStorageBuilder::new().with_url(text);
            let builder =
                settings(env, "GOOGLE_").fold(builder, |builder, (key, value)| builder.with_config(key, value));
            builder.build().map(|store| Arc::new(store) as _)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let builder = MicrosoftAzureBuilder::new().with_url(text);
            let builder =
                settings(env, "AZURE_").fold(builder, |builder, (key, value)| builder.with_config(key, value));
            builder.build().map(|store| Arc::new(store) as _)
        }
        _ => return Err(wrong(format!("{} is not served", url.scheme()))),
    };
    Ok(Opened { store: built.map_err(|error| wrong(error.to_string()))?, root, folder: None })
}

/// The variables of one cloud that mean something to its client.
fn settings<'a, K: FromStr>(env: &'a [(String, String)], prefix: &'a str) -> impl Iterator<Item = (K, &'a str)> {
    let own = env.iter().filter(move |(name, _)| name.starts_with(prefix));
    own.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.as_str())))
}

/// A folder whose files are on the disk when a write is acknowledged.
fn folder(url: &Url) -> Result<Opened, String> {
    let folder = url.to_file_path().map_err(|()| "it names no folder".to_owned())?;
    std::fs::create_dir_all(&folder).map_err(|error| format!("the folder cannot be made: {error}"))?;
    let store = LocalFileSystem::new_with_prefix(&folder).map_err(|error| error.to_string())?;
    let store = Arc::new(store.with_fsync(true).with_automatic_cleanup(true));
    Ok(Opened { store, root: Path::default(), folder: Some(folder.into()) })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::open;

    #[rstest]
    #[case("")]
    #[case("/var/objects")]
    #[case("http://example.com/objects")]
    #[case("memory:///")]
    #[case("ftp://example.com/objects")]
    #[case("file:///proc/no/such/folder")]
    fn what_is_no_place_is_refused(#[case] url: &str) {
        assert!(open(url, &[]).is_err());
    }

    #[test]
    fn a_folder_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        open(&format!("file://{}", folder.display()), &[]).unwrap();
        assert!(folder.is_dir());
    }

    #[test]
    fn a_bucket_may_have_a_prefix() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let env = [("AWS_REGION".to_owned(), "eu-1".to_owned()), ("AWS_WHATEVER".to_owned(), "x".to_owned())];
        let opened = open("s3://bucket/some/prefix", &env).unwrap();
        assert_eq!(opened.root.as_ref(), "some/prefix");
        assert!(format!("{:?}", opened.store).contains("eu-1"));
    }
}
