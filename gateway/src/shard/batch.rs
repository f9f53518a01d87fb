//! What one pass delivers to one room: frames back to back, encoded once for each shape that a member takes. Batches
//! are filled and handed out by `fanout` alone.

use super::members::Members;
use crate::{
    protocol::{FrameShape, end_event, name_event, native, put_frame},
    session::{Frames, HeldBytes},
};
use bytes::BytesMut;
use fanfare_broker::{Cursor, SessionId};

/// The frames of one room in one pass.
#[derive(Debug)]
pub(super) struct Batch {
    /// The members' cursor before the first frame.
    pub(super) from: Option<Cursor>,
    /// The shapes that members take; the others are not encoded.
    wanted: [bool; FrameShape::COUNT],
    /// Whether the room has custom members, which need the marks.
    is_marked: bool,
    bytes: [BytesMut; FrameShape::COUNT],
    count: u32,
    marks: Vec<Mark>,
}

/// Where one frame of a batch ends, and who published it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// The end of the frame, in the bytes of each shape.
    pub(super) ends: [usize; FrameShape::COUNT],
    /// Where the id line begins, in the bytes of [`FrameShape::Sse`].
    pub(super) id_at: usize,
    /// The session that published it; `None`: a back end, or the frame is a gap.
    author: Option<SessionId>,
    /// The members' cursor after the frame.
    pub(super) at: Option<Cursor>,
}

/// One frame for a room's members, before it is put into a shape.
pub(super) struct Entry<'a> {
    /// The name of a server-sent event, by which pages listen for it. `None`: a message.
    pub(super) name: Option<&'static str>,
    /// The JSON text, in parts.
    pub(super) text: &'a [&'a [u8]],
    pub(super) author: Option<SessionId>,
    /// The members' cursor after the frame.
    pub(super) at: Option<Cursor>,
}

/// A batch that is complete, with frames that members can share.
pub(super) struct SealedBatch {
    pub(super) frames: [Frames; FrameShape::COUNT],
    pub(super) marks: Vec<Mark>,
}

impl Mark {
    /// Whether a member that excludes the messages of these sessions does not get the frame.
    pub(super) fn is_excluded(&self, excluded: &[SessionId]) -> bool {
        self.author.is_some_and(|author| excluded.contains(&author))
    }
}

impl Batch {
    /// An empty batch for a room's present members, whose cursor is `from`.
    pub(super) fn new(members: &Members, from: Option<Cursor>) -> Self {
        Self {
            from,
            wanted: FrameShape::ALL.map(|shape| members.want(shape)),
            is_marked: !members.custom.is_empty(),
            bytes: Default::default(),
            count: 0,
            marks: Vec::new(),
        }
    }

    /// Appends a frame in each shape that is wanted.
    pub(super) fn push(&mut self, entry: &Entry<'_>) {
        let mut id_at = 0;
        for shape in FrameShape::ALL.into_iter().filter(|shape| self.wanted[*shape as usize]) {
            let bytes = &mut self.bytes[shape as usize];
            if shape != FrameShape::Sse {
                put_frame(bytes, shape, entry.text);
                continue;
            }
            if let Some(name) = entry.name {
                name_event(bytes, name.as_bytes());
            }
            put_frame(bytes, shape, entry.text);
            id_at = bytes.len();
            end_event(bytes, Some(entry.at.map(native::cursor_text).as_deref().unwrap_or(b"-")));
        }
        self.count += 1;
        if self.is_marked {
            let ends = std::array::from_fn(|shape| self.bytes[shape].len());
            self.marks.push(Mark { ends, id_at, author: entry.author, at: entry.at });
        }
    }

    pub(super) fn seal(self, held: &HeldBytes) -> SealedBatch {
        SealedBatch { frames: self.bytes.map(|bytes| held.shared(bytes, self.count)), marks: self.marks }
    }
}

impl SealedBatch {
    /// Cuts the batch into the runs of frames that a member wants: stretches between the messages that it excludes.
    /// Without any, the whole batch is one run. Runs share the batch's bytes.
    pub(super) fn pick(&self, shape: FrameShape, excluded: &[SessionId], mut take: impl FnMut(Frames)) {
        let frames = &self.frames[shape as usize];
        let (mut start, mut end, mut count) = (0, 0, 0);
        for mark in &self.marks {
            let frame_end = mark.ends[shape as usize];
            if !mark.is_excluded(excluded) {
                (end, count) = (frame_end, count + 1);
                continue;
            }
            if count > 0 {
                take(frames.slice(start..end, count));
            }
            (start, end, count) = (frame_end, frame_end, 0);
        }
        if count > 0 {
            take(frames.slice(start..end, count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_member_gets_runs_of_frames_without_the_messages_it_excludes() {
        let (mine, other) = (SessionId([1; 12]), SessionId([2; 12]));
        let bytes = b"aabbccdd";
        let authors = [Some(other), Some(mine), None, Some(other)];
        let mark = |(author, end)| Mark { ends: [end, 0, 0], id_at: 0, author, at: None };
        let marks = authors.into_iter().zip([2, 4, 6, 8]).map(mark).collect();
        let frames = [&bytes[..], b"", b""].map(|bytes| HeldBytes::default().shared(BytesMut::from(bytes), 4));
        let batch = SealedBatch { frames, marks };
        let runs = |excluded: &[SessionId]| {
            let mut runs = vec![];
            batch.pick(FrameShape::WebSocket, excluded, |f| runs.push((f.bytes().clone(), f.count())));
            runs
        };
        assert_eq!(runs(&[]), [(Bytes::from_static(bytes), 4)]);
        assert_eq!(runs(&[mine]), [(Bytes::from("aa"), 1), (Bytes::from("ccdd"), 2)]);
        assert_eq!(runs(&[other]), [(Bytes::from("bbcc"), 2)]);
    }
}
