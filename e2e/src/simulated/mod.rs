//! A cluster without a container: etcd, an API server, a controller manager, a scheduler and kwok's nodes, as processes on loopback, and
//! the operator beside them. What happens in pods does not happen; all objects are real, and etcd syncs its disk.

mod audit;
mod control_plane;
mod faults;
mod kubeconfig;
mod operator;
mod program;
mod roll;
mod sandboxds;
mod team;

use std::net::TcpListener;

use crate::cluster::TestResult;

pub use self::audit::Write;
pub use self::control_plane::{ControlPlane, User};
pub use self::faults::Faults;
pub use self::operator::Operator;
pub use self::program::Usage;
pub use self::roll::{Roll, Seen};
pub use self::team::Team;

/// A port of loopback that is free now.
fn free_port() -> TestResult<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
