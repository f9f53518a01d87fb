//! The body of a post: one command, or an array of commands.

use super::error::Refusal;
use serde_json::value::RawValue;

/// The most commands in one post.
pub(crate) const COMMANDS_MAX: usize = 100;

/// The commands of a post as JSON texts, and whether the body is an array.
/// An error: the body as a whole is malformed, or has too many commands.
pub(crate) fn commands(body: &str) -> Result<(Vec<&RawValue>, bool), Refusal> {
    let is_array = body.trim_start().starts_with('[');
    let commands: Result<Vec<&RawValue>, _> =
        if is_array { serde_json::from_str(body) } else { serde_json::from_str(body).map(|one| vec![one]) };
    let commands = commands.map_err(|why| Refusal::bad_request(format!("the body is not JSON: {why}")))?;
    if !is_array && !body.trim_start().starts_with('{') {
        return Err(Refusal::bad_request("the body is neither a command nor an array of commands"));
    }
    if !(1..=COMMANDS_MAX).contains(&commands.len()) {
        return Err(Refusal::bad_request(format!("a post has 1 to {COMMANDS_MAX} commands")));
    }
    Ok((commands, is_array))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_post_is_one_command_or_an_array_of_commands() {
        assert_eq!(commands(r#" {"type":"ping"} "#).map(|(c, array)| (c.len(), array)).unwrap(), (1, false));
        assert_eq!(commands(r#"[{"a":1},{"b":2}]"#).map(|(c, array)| (c.len(), array)).unwrap(), (2, true));
        let many = format!("[{}1]", "1,".repeat(COMMANDS_MAX));
        for wrong in ["", "[]", "{", "{}{}", "7", "null", "\"a\"", &many] {
            assert!(commands(wrong).is_err(), "{wrong}");
        }
    }
}
