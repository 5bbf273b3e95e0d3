//! The whole mode over loopback.
