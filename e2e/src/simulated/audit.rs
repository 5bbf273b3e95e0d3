//! The API server's audit log, which says who wrote what.

use serde::Deserialize;

/// A write that the API server was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Who asked.
    pub user: String,
    /// `create`, `update`, `patch` or `delete`.
    pub verb: String,
    /// Such as `pods`, or `pods/status`.
    pub resource: String,
    /// The object's name.
    pub name: String,
    /// The answer's status code.
    pub code: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    verb: String,
    user: Requester,
    #[serde(default)]
    object_ref: Option<Reference>,
    #[serde(default)]
    response_status: Answer,
}

#[derive(Deserialize)]
struct Requester {
    username: String,
}

#[derive(Deserialize)]
struct Reference {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
    #[serde(default)]
    name: String,
}

#[derive(Default, Deserialize)]
struct Answer {
    #[serde(default)]
    code: u16,
}

/// Every write in the log; the last line may be unfinished.
pub(super) fn parse(log: &str) -> Vec<Write> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).filter_map(write).collect()
}

fn write(entry: Entry) -> Option<Write> {
    let object = entry.object_ref?;
    let resource = match object.subresource.as_str() {
        "" => object.resource,
        sub => format!("{}/{sub}", object.resource),
    };
    let (user, code) = (entry.user.username, entry.response_status.code);
    Some(Write { user, verb: entry.verb, resource, name: object.name, code })
}

#[cfg(test)]
mod tests {
    use super::{Write, parse};

    #[test]
    fn writes_are_read() {
        let line = r#"{"kind":"Event","level":"Metadata","stage":"ResponseComplete","verb":"patch","user":{"username":"operator"},"objectRef":{"resource":"sandboxes","namespace":"n","name":"a","subresource":"status"},"responseStatus":{"code":200}}"#;
        let expected = Write {
            user: "operator".into(),
            verb: "patch".into(),
            resource: "sandboxes/status".into(),
            name: "a".into(),
            code: 200,
        };
        assert_eq!(parse(&format!("{line}\n{{\"verb\":")), [expected]);
    }
}
