//! A member of a load run: opens its link, joins its room, and from then on gives every frame to the scoreboard. The run
//! starts one task for each member. A member never reconnects: a connection that ends is a fault that the report counts.

use super::{frame, link::Link, run_context::RunContext};
use crate::connection::Connection;
use std::{future::poll_fn, rc::Rc};
use tokio::sync::OwnedSemaphorePermit;

/// Lives as long as the connection of member `number`. The permit is held until the room has been joined, which bounds
/// how many members are connecting at a time.
pub(super) async fn run(context: Rc<RunContext>, number: usize, permit: OwnedSemaphorePermit) {
    let nodes = context.nodes.len();
    // Every room has members on every node.
    let room = number / nodes % context.options.rooms;
    let index = context.scoreboard.borrow_mut().add_member(room);
    let mut link = match context.nodes[number % nodes].open(context.options.local_address(number)).await {
        Ok(link) => link,
        Err(why) => return context.fail(why),
    };
    if let Err(why) = join(&context, &mut link, index, room).await {
        return context.fail(why);
    }
    context.joined.notify_one();
    drop(permit);
    let why = loop {
        if let Err(why) = receive(&context, &mut link, index).await {
            break why;
        }
    };
    context.scoreboard.borrow_mut().disconnected(index, why);
}

async fn join(context: &RunContext, link: &mut Link<Connection>, index: usize, room: usize) -> Result<(), String> {
    let mut request = Vec::new();
    let name = context.options.room(room);
    frame::text(format!(r#"{{"type":"join","id":1,"room":"{name}"}}"#).as_bytes(), &mut request);
    link.send(&request).await?;
    // Nothing but the welcome can have come with the response to the handshake.
    link.take_early(&mut |_| {})?;
    let mut outcome = None;
    while outcome.is_none() {
        poll_fn(|task| {
            let mut scratch = context.scratch.borrow_mut();
            link.poll(task, &mut scratch, &mut |text| match outcome {
                // Where another run publishes, messages follow the `joined` frame at once.
                Some(_) => deliver(context, index, text),
                None => {
                    outcome = join_outcome(text);
                    if outcome == Some(Ok(())) {
                        context.scoreboard.borrow_mut().joined(index);
                    }
                }
            })
        })
        .await?;
    }
    outcome.unwrap_or(Ok(()))
}

/// What a frame says about the join, if anything.
fn join_outcome(text: &[u8]) -> Option<Result<(), String>> {
    if text.starts_with(br#"{"type":"joined""#) {
        Some(Ok(()))
    } else if text.starts_with(br#"{"type":"error""#) {
        Some(Err(format!("the join was refused: {}", String::from_utf8_lossy(text))))
    } else {
        None
    }
}

async fn receive(context: &RunContext, link: &mut Link<Connection>, index: usize) -> Result<(), String> {
    poll_fn(|task| {
        let mut scratch = context.scratch.borrow_mut();
        link.poll(task, &mut scratch, &mut |text| deliver(context, index, text))
    })
    .await?;
    link.send(&[]).await
}

fn deliver(context: &RunContext, index: usize, text: &[u8]) {
    let mut scoreboard = context.scoreboard.borrow_mut();
    match scoreboard.received(index, text, context.now_ns()) {
        Ok(publisher) => context.wake(publisher),
        Err(_) if text.starts_with(br#"{"type":"gap""#) => scoreboard.counters.gaps += 1,
        Err(_) if text.starts_with(br#"{"type":"error""#) => {
            scoreboard.counters.complain(String::from_utf8_lossy(text).into_owned());
        }
        Err(_) => {}
    }
}
