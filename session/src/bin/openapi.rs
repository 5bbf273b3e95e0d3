//! Writes `docs/openapi.json`, or with `--check` fails when it is not what the types give.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let check = std::env::args().any(|argument| argument == "--check");
    match run(check) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(check: bool) -> Result<(), String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let document = longhand_session::openapi::document();
    let text = serde_json::to_string_pretty(&document).map_err(|error| error.to_string())? + "\n";
    if !check {
        return std::fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()));
    }
    if std::fs::read_to_string(&file).unwrap_or_default() == text {
        return Ok(());
    }
    Err("docs/openapi.json is not current: run `make generate`".to_owned())
}
