//! The images that `images/build` makes for tests and measurements; an existing cluster has them in a registry of its own.

/// That of `examples/harness-python`: Debian with Python, and nothing of Longhand.
#[must_use]
pub fn harness_python_image() -> String {
    image("E2E_HARNESS_PYTHON_IMAGE", "harness-python")
}

/// That of the scripted model: one static program and nothing else.
#[must_use]
pub fn model_image() -> String {
    image("E2E_MODEL_IMAGE", "scripted-model")
}

/// That of `e2e/clients`.
#[must_use]
pub fn clients_image() -> String {
    image("E2E_CLIENTS_IMAGE", "clients")
}

/// That of `e2e/coupled`, which the time to the first token is held against.
#[must_use]
pub fn coupled_image() -> String {
    image("BENCH_COUPLED_IMAGE", "coupled")
}

/// What the variable names, or what the image is called in the nodes of kind.
fn image(variable: &str, component: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| format!("longhand/{component}:{}", env!("CARGO_PKG_VERSION")))
}
