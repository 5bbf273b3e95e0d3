//! Writes `crds/yaml/` from the types, or with `--check` fails when a file there is not what they give.

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
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
    for definition in longhand_crds::definitions() {
        let file = folder.join(format!("{}.yaml", definition.spec.names.plural));
        let yaml = serde_yaml::to_string(&definition).map_err(|error| format!("{}: {error}", file.display()))?;
        if !check {
            std::fs::write(&file, yaml).map_err(|error| format!("{}: {error}", file.display()))?;
        } else if std::fs::read_to_string(&file).unwrap_or_default() != yaml {
            return Err(format!("{} is not current: run `make generate`", file.display()));
        }
    }
    Ok(())
}
