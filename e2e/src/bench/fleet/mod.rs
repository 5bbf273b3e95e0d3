//! Thousands of sandboxes on a hundred simulated nodes: how soon many claims are bound, what they are to the API server, and what the
//! operator holds in memory. Needs no cluster, see [`crate::simulated`].

mod claims;
mod scale;
mod writes;

use std::path::Path;

use super::{Figure, Report};
use crate::cluster::TestResult;
use crate::simulated::{ControlPlane, Operator};

const NODES: usize = 100;
const FOLDER: &str = "target/bench/simulated";

const METHOD: &str = "At the level of objects: etcd with its disk syncs, kube-apiserver, kube-scheduler, kube-controller-manager (garbage \
    collector), kwok with 100 nodes in place of kubelets and the operator are processes on one machine, without other limits of their \
    requests; no container runs, and one server answers for every sandbox that it is fenced in. A claim is bound when the condition Ready of the new Sandbox is in a watch that was open before, from \
    before the request that creates it. Claims: 750 in 10 s, at fixed times whatever becomes of the others, from ten pools of 75 pods, \
    which are kept at a quarter meanwhile. Writes: from the API server's audit log, without leases; a claim is what is asked for the \
    sandbox and its pod by whoever makes it and by the operator; a life is that of a sandbox that is made, is ready and is deleted, with \
    what the garbage collector asks for; nodes' own writes are not in it. Memory is the resident set of the operator's process, \
    processor time that of 30 s in which nothing happens.";

/// Runs it.
///
/// # Errors
/// When a program is missing or ends, or something does not happen in time.
pub async fn run() -> TestResult<Report> {
    let mut plane = ControlPlane::start(Path::new(FOLDER), NODES).await?;
    let mut operator = Operator::start(&plane, None).await?;
    let outcome = measure(&plane, &mut operator).await;
    let ended = plane.check();
    // What the programs said stays when something went wrong.
    let (results, ()) = (outcome?, ended?);
    operator.stop().await;
    plane.stop().await;
    Ok(Report { date: jiff::Timestamp::now().to_string(), method: METHOD.to_owned(), results })
}

async fn measure(plane: &ControlPlane, operator: &mut Operator) -> TestResult<Vec<Figure>> {
    let mut results = writes::run(plane).await?;
    results.extend(claims::run(plane, operator).await?);
    results.extend(scale::run(plane, operator).await?);
    Ok(results)
}
