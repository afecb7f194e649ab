//! The last word on a streaming session, in the form that its protocol wants.

use hpk_api::control::StreamEnd;
use serde_json::{Value, json};

/// How the error stream is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorFormat {
    /// v4 and later: a JSON metav1.Status, always.
    Status,
    /// Before v4: text, only on failure.
    Text,
}

/// Payload of the error stream; None when there is nothing to say.
pub(crate) fn error_payload(end: &StreamEnd, format: ErrorFormat) -> Option<Vec<u8>> {
    match format {
        ErrorFormat::Status => Some(status(end).to_string().into_bytes()),
        ErrorFormat::Text => match end {
            StreamEnd::Success => None,
            StreamEnd::Exit { code } => {
                Some(format!("command terminated with non-zero exit code: exit status {code}").into_bytes())
            }
            StreamEnd::Failed { message } => {
                Some(format!("error executing command in container: {message}").into_bytes())
            }
        },
    }
}

/// metav1.Status as upstream's remotecommand server writes it.
fn status(end: &StreamEnd) -> Value {
    match end {
        StreamEnd::Success => json!({"metadata": {}, "status": "Success"}),
        StreamEnd::Exit { code } => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        StreamEnd::Failed { message } => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("Internal error occurred: {message}"),
            "reason": "InternalError",
            "details": {"causes": [{"message": message}]},
            "code": 500,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_travel_as_causes() {
        let payload = error_payload(&StreamEnd::Exit { code: 7 }, ErrorFormat::Status).unwrap();
        let value: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(value["reason"], "NonZeroExitCode");
        assert_eq!(value["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
        let ok = error_payload(&StreamEnd::Success, ErrorFormat::Status).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&ok).unwrap()["status"], "Success");
        assert_eq!(error_payload(&StreamEnd::Success, ErrorFormat::Text), None);
    }
}
