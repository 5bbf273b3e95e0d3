//! What a model reads of a tool call that has no result of its own: the same words, whoever runs the tool.

/// The client has stopped the turn before the call began.
pub const STOPPED_BEFORE: &str = "The call was not run: the user stopped the turn before.";

/// The client does not let the call run, and says why, or does not.
#[must_use]
pub fn denied(message: Option<&str>) -> String {
    let why = message.filter(|message| !message.trim().is_empty());
    let why = why.map(|message| format!(": {message}")).unwrap_or_default();
    format!("The call was not run: the user denied it{why}")
}

/// The call was given away, and nobody knows what came of it; `cause` is a clause.
#[must_use]
pub fn outcome_unknown(cause: &str) -> String {
    format!(
        "The outcome of this call is unknown ({cause}): it may have run in part, in full, or not at all. It is not run again by itself."
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::denied;

    #[rstest]
    #[case(None, "The call was not run: the user denied it")]
    #[case(Some(" "), "The call was not run: the user denied it")]
    #[case(Some("not today"), "The call was not run: the user denied it: not today")]
    fn a_reason_is_passed_on_if_there_is_one(#[case] message: Option<&str>, #[case] expected: &str) {
        assert_eq!(denied(message), expected);
    }
}
