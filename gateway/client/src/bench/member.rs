//! A member of a load run: opens its link, joins its room, and from then on gives every frame to the board. The run starts
//! one task for each. It never reconnects: a connection that ends is a finding.

use super::{
    frame::{self, Frame},
    link::{Door, Link},
    stage::Stage,
};
use std::{future::poll_fn, net::IpAddr, rc::Rc};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    sync::{Notify, OwnedSemaphorePermit},
};

/// Where a member goes.
pub(super) struct Way {
    pub(super) door: Rc<Door>,
    pub(super) from: Option<IpAddr>,
    pub(super) room: usize,
    /// Rung when it has been joined.
    pub(super) joined: Rc<Notify>,
}

/// Lives as long as the connection does. The permit is held until the room has been joined: so few members are on their way
/// at a time.
pub(super) async fn attend(stage: Rc<Stage>, way: Way, permit: OwnedSemaphorePermit) {
    let index = stage.board.borrow_mut().enter(way.room);
    let mut link = match way.door.open(way.from).await {
        Ok(link) => link,
        Err(why) => return stage.fail(why),
    };
    if let Err(why) = join(&stage, &mut link, index, &way).await {
        return stage.fail(why);
    }
    way.joined.notify_one();
    drop((way, permit));
    let why = loop {
        if let Err(why) = receive(&stage, &mut link, index).await {
            break why;
        }
    };
    stage.board.borrow_mut().left(index, why);
}

async fn join(stage: &Stage, link: &mut Link<TcpStream>, index: usize, way: &Way) -> Result<(), String> {
    let mut ask = Vec::new();
    let name = stage.order.room(way.room);
    frame::text(format!(r#"{{"type":"join","id":1,"room":"{name}"}}"#).as_bytes(), &mut ask);
    link.stream.write_all(&ask).await.map_err(|error| error.to_string())?;
    // The welcome may have come with the handshake's answer; nothing else can have.
    link.take_early(&mut |_, _| {})?;
    let mut outcome = None;
    while outcome.is_none() {
        poll_fn(|context| {
            let mut scratch = stage.scratch.borrow_mut();
            link.poll(context, &mut scratch, &mut |stream, frame| match frame {
                // Whoever joins while another run publishes is told so at once.
                frame if outcome.is_some() => deliver(stage, index, stream, frame),
                frame => {
                    outcome = joined(frame);
                    if outcome == Some(Ok(())) {
                        stage.board.borrow_mut().joined(index);
                    }
                }
            })
        })
        .await?;
    }
    outcome.unwrap_or(Ok(()))
}

/// What a frame says about the join, if anything.
fn joined(frame: Frame<'_>) -> Option<Result<(), String>> {
    let Frame::Text(text) = frame else { return None };
    if text.starts_with(br#"{"type":"joined""#) {
        Some(Ok(()))
    } else if text.starts_with(br#"{"type":"error""#) {
        Some(Err(format!("the join was refused: {}", String::from_utf8_lossy(text))))
    } else {
        None
    }
}

async fn receive(stage: &Stage, link: &mut Link<TcpStream>, index: usize) -> Result<(), String> {
    poll_fn(|context| {
        let mut scratch = stage.scratch.borrow_mut();
        link.poll(context, &mut scratch, &mut |stream, frame| deliver(stage, index, stream, frame))
    })
    .await
}

fn deliver(stage: &Stage, index: usize, stream: &TcpStream, frame: Frame<'_>) {
    match frame {
        Frame::Text(text) => {
            let mut board = stage.board.borrow_mut();
            match board.received(index, text, stage.clock.now_ns()) {
                Ok(publisher) => stage.ring(publisher),
                Err(()) if text.starts_with(br#"{"type":"gap""#) => board.tally.gaps += 1,
                Err(()) if text.starts_with(br#"{"type":"error""#) => {
                    board.tally.complain(String::from_utf8_lossy(text).into_owned());
                }
                Err(()) => {}
            }
        }
        Frame::Ping(payload) => {
            let mut answer = Vec::with_capacity(16);
            frame::pong(payload, &mut answer);
            // A few bytes on a socket that sends nothing else: there is room, or the connection is broken and will say so.
            let _ = stream.try_write(&answer);
        }
        Frame::Pong | Frame::Close(..) => {}
    }
}
