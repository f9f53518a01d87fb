//! What all transports of `sub` do alike: act on the steps of `subscription`, and turn refusals and failed connections into
//! steps.

use crate::{
    output::{Failure, note, print},
    subscription::{AFTER_MAX, SubscriptionAction},
};
use hyper::{HeaderMap, StatusCode, header::RETRY_AFTER};
use std::time::Duration;

/// How long connecting, and then the first byte, may take.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Acts on the step that the frame `text` led to. The error is a step that ends the connection.
pub(super) fn perform(step: SubscriptionAction, text: &str) -> Result<(), SubscriptionAction> {
    match step {
        // A closed output ends a pipeline; it is no failure.
        SubscriptionAction::Message => print(text).map_err(|_| SubscriptionAction::Nothing),
        SubscriptionAction::Note(text) => {
            note("sub", &text);
            Ok(())
        }
        SubscriptionAction::Nothing | SubscriptionAction::Begin { .. } => Ok(()),
        SubscriptionAction::Reconnect { .. } | SubscriptionAction::Stop(_) => Err(step),
    }
}

/// The step after a response with another status than the one that was asked for. A client error stays one, everything else
/// may pass. A success with another status (204) is how a server ends an EventSource.
pub(super) fn refused(status: StatusCode, headers: &HeaderMap, why: String) -> SubscriptionAction {
    let passes = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    if (status.is_client_error() || status.is_success()) && !passes {
        return SubscriptionAction::Stop(why);
    }
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    SubscriptionAction::Reconnect { after: seconds.map(|seconds| Duration::from_secs(seconds).min(AFTER_MAX)), why }
}

pub(super) fn not_connected(failure: Failure) -> SubscriptionAction {
    match failure.is_permanent {
        true => SubscriptionAction::Stop(failure.text),
        false => SubscriptionAction::Reconnect { after: None, why: failure.text },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_tried_again_only_where_that_can_help() {
        let step = |status: u16, headers: &HeaderMap| {
            refused(StatusCode::from_u16(status).unwrap(), headers, format!("refused with {status}"))
        };
        let mut headers = HeaderMap::new();
        for status in [204, 400, 401, 403, 404] {
            assert!(matches!(step(status, &headers), SubscriptionAction::Stop(_)), "{status}");
        }
        headers.insert(RETRY_AFTER, "7".parse().unwrap());
        for status in [429, 500, 502, 503] {
            let step = step(status, &headers);
            assert!(
                matches!(step, SubscriptionAction::Reconnect { after: Some(after), .. } if after.as_secs() == 7),
                "{status}"
            );
        }
    }
}
