//! Runs the benchmarks, most of them on the cluster of the current kubeconfig, and renders `docs/benchmarks.md`.

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use longhand_e2e::bench::{Report, fleet, log, proxy, report, sandbox, sizes, soak, streams, ttft};
use longhand_e2e::cluster::{TestNamespace, TestResult, client};
use longhand_process::signals::Stop;

/// Runs benchmarks on the cluster of the current kubeconfig.
#[derive(Parser)]
struct Arguments {
    /// Only this one.
    #[arg(long, env = "BENCH", value_parser = ["ttft", "sandbox", "fleet", "soak", "log", "streams", "proxy", "sizes"])]
    bench: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    longhand_process::log::to_stderr();
    let arguments = Arguments::parse();
    // What it has started ends with it.
    let outcome = match Stop::listen() {
        Ok(mut stop) => tokio::select! {
            outcome = run(&arguments) => outcome,
            () = stop.asked() => Err("told to stop".into()),
        },
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> TestResult {
    let _ = rustls::crypto::ring::default_provider().install_default();
    if let Ok(endpoint) = std::env::var(log::TAILS_OF) {
        return log::hold_tails(&endpoint).await;
    }
    let reports = Path::new("target/bench");
    std::fs::create_dir_all(reports)?;
    for (name, _) in report::BENCHMARKS {
        if arguments.bench.as_deref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        let report = match name {
            "log" => log::run().await?,
            "streams" => streams::run()?,
            "proxy" => proxy::run().await?,
            "fleet" => fleet::run().await?,
            "soak" => soak::run().await?,
            name => on_cluster(name).await?,
        };
        std::fs::write(reports.join(format!("{name}.json")), serde_json::to_string_pretty(&report)?)?;
    }
    report::render(reports, Path::new("docs"))
}

async fn on_cluster(name: &str) -> TestResult<Report> {
    let client = client().await?;
    let namespace = TestNamespace::create(client, &format!("bench-{name}")).await?;
    let outcome = bench(name, &namespace).await;
    namespace.delete().await;
    outcome
}

async fn bench(name: &str, namespace: &TestNamespace) -> TestResult<Report> {
    match name {
        "ttft" => ttft::run(namespace).await,
        "sandbox" => sandbox::run(namespace).await,
        _ => sizes::run(namespace).await,
    }
}
