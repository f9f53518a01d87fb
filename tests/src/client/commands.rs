//! The commands of the protocol as calls: each sends one and returns its reply, or fails the test. Called by the
//! tests; it never looks at the socket itself.

use serde_json::{Value, json};

use super::{Client, Frame};

impl Client {
    /// Sends a command with a fresh `id` and returns the reply to it, be it an error or not.
    ///
    /// # Panics
    /// When no reply comes in time.
    pub async fn ask(&mut self, mut command: Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        command["id"] = json!(id);
        self.send(command.clone()).await;
        self.find(&format!("the reply to {command}"), |frame| frame.json["id"] == json!(id)).await.json
    }

    /// Joins and returns `joined`.
    ///
    /// # Panics
    /// When the reply is something else.
    pub async fn join(&mut self, room: &str) -> Value {
        self.join_with(json!({"room": room})).await
    }

    /// Joins with more fields beside `room` and returns `joined`.
    ///
    /// # Panics
    /// When the reply is something else.
    pub async fn join_with(&mut self, mut fields: Value) -> Value {
        fields["type"] = json!("join");
        let reply = self.ask(fields).await;
        assert_eq!(reply["type"], "joined", "{reply}");
        reply
    }

    /// Leaves and returns `left`.
    ///
    /// # Panics
    /// When the reply is something else.
    pub async fn leave(&mut self, room: &str) -> Value {
        let reply = self.ask(json!({"type": "leave", "room": room})).await;
        assert_eq!(reply["type"], "left", "{reply}");
        reply
    }

    /// Publishes and returns `published`.
    ///
    /// # Panics
    /// When the reply is something else.
    pub async fn publish(&mut self, room: &str, data: Value) -> Value {
        self.publish_with(json!({"room": room, "data": data})).await
    }

    /// Publishes with more fields and returns `published`.
    ///
    /// # Panics
    /// When the reply is something else.
    pub async fn publish_with(&mut self, mut fields: Value) -> Value {
        fields["type"] = json!("publish");
        let reply = self.ask(fields).await;
        assert_eq!(reply["type"], "published", "{reply}");
        reply
    }

    /// Sends a command that must be refused and returns the error's code.
    ///
    /// # Panics
    /// When it is not refused.
    pub async fn refused(&mut self, command: Value) -> String {
        let reply = self.ask(command).await;
        assert_eq!(reply["type"], "error", "{reply}");
        reply["code"].as_str().expect("an error has a code").to_owned()
    }

    /// The `data` of the next `count` messages.
    ///
    /// # Panics
    /// When they do not come in time.
    pub async fn data(&mut self, count: usize) -> Vec<Value> {
        let mut data = Vec::with_capacity(count);
        for _ in 0..count {
            data.push(self.message().await["data"].take());
        }
        data
    }

    /// Everything that comes before the answer to a ping: what the server had queued for this session by now.
    ///
    /// # Panics
    /// When the pong does not come in time.
    pub async fn so_far(&mut self) -> Vec<Frame> {
        self.ask(json!({"type": "ping"})).await;
        self.received()
    }

    /// What has come and was not asked for; reads nothing more.
    pub fn received(&mut self) -> Vec<Frame> {
        self.stash.drain(..).collect()
    }
}
