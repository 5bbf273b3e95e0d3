//! Tools of MCP servers: what the log says of them, and what is done next with a call.
//!
//! The brain calls such servers itself, so a call is on record twice before it is sent: what the model wants
//! (`agent.mcp_tool_use`), and that it is about to be sent (`x.tool.started`). A call without the second was certainly not
//! sent; one with it and without a result may have been, and is sent again only if the server says that this does no harm.

mod ledger;
mod names;
mod work;

pub use ledger::{Catalog, Ledger};
pub(super) use names::offered;
pub(super) use work::Work;
pub use work::{Answer, Call, Discovery, Outcome, Unreachable};
