//! The server as its callers see it: over HTTP, in this process and as the real binary.

#[cfg(test)]
mod binary;
#[cfg(test)]
mod egress;
#[cfg(test)]
mod full_disk;
#[cfg(test)]
mod http;
#[cfg(test)]
mod mcp;
#[cfg(test)]
mod port;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod provision;
#[cfg(test)]
mod sandboxd;
#[cfg(test)]
mod support;
#[cfg(test)]
mod terminal;
#[cfg(test)]
mod transfer;
#[cfg(test)]
mod workspace;
