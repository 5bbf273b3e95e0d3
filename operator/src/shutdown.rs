//! The end of the process.

use longhand_process::signals;
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by SIGTERM or SIGINT.
///
/// # Errors
/// When the signals cannot be listened to.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let mut asked = signals::Stop::listen()?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        asked.asked().await;
        cancel.cancel();
    });
    Ok(token)
}
