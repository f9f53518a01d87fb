//! The token or API key that a command sends.

use crate::failure::Failure;
use hyper::header::HeaderValue;
use std::fmt;

/// A bearer token or API key; `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(String);

impl From<String> for Token {
    /// Any text is a token; the server judges it.
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Token {
    /// The value of the `Authorization` header, marked as secret.
    ///
    /// # Errors
    /// The token contains characters that a header cannot hold.
    pub(crate) fn header(&self) -> Result<HeaderValue, Failure> {
        let mut value = HeaderValue::try_from(format!("Bearer {}", self.0))
            .map_err(|_| Failure::config("--token: it contains characters that an HTTP header cannot hold"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}
