//! What waits to be sent to one other replica. Bounded: a message of which a piece was lost is no longer previewed there.

use std::collections::VecDeque;

use longhand_protocol::EventId;
use longhand_protocol::event::Preview;
use longhand_protocol::internal::PeerPost;

/// Posts that wait. A replica that takes nothing for as long as this many take is not waited for.
const WAITING: usize = 256;
/// Posts that go in one request.
const AT_ONCE: usize = 64;
/// Messages that are known to have a hole; as many may be written at the same time, about.
const BROKEN: usize = 1_024;

/// What waits to be sent to one other replica.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<PeerPost>,
    broken: VecDeque<EventId>,
}

impl Outbox {
    /// Takes a post in; whether it was all taken.
    pub(super) fn put(&mut self, mut post: PeerPost) -> bool {
        post.frames.retain(|frame| !self.broken.contains(message(frame)));
        if post.frames.is_empty() {
            return true;
        }
        if self.waiting.len() >= WAITING {
            self.lose(&post);
            return false;
        }
        self.waiting.push_back(post);
        true
    }

    /// The next posts to send.
    pub(super) fn take(&mut self) -> Vec<PeerPost> {
        let count = self.waiting.len().min(AT_ONCE);
        self.waiting.drain(..count).collect()
    }

    /// These did not arrive: what follows of their messages would show a text with a hole.
    pub(super) fn lost(&mut self, posts: &[PeerPost]) {
        posts.iter().for_each(|post| self.lose(post));
        let broken = &self.broken;
        for post in &mut self.waiting {
            post.frames.retain(|frame| !broken.contains(message(frame)));
        }
        self.waiting.retain(|post| !post.frames.is_empty());
    }

    fn lose(&mut self, post: &PeerPost) {
        for frame in &post.frames {
            let id = message(frame);
            if !self.broken.contains(id) {
                self.broken.truncate(BROKEN - 1);
                self.broken.push_front(id.clone());
            }
        }
    }
}

fn message(frame: &Preview) -> &EventId {
    match frame {
        Preview::EventStart { event } => &event.id,
        Preview::EventDelta { event_id, .. } => event_id,
    }
}

#[cfg(test)]
mod tests {
    use longhand_protocol::EventId;
    use longhand_protocol::event::{Delta, DeltaContent, Preview};
    use longhand_protocol::internal::PeerPost;

    use super::{AT_ONCE, Outbox, WAITING};

    fn post(id: &EventId, text: &str) -> PeerPost {
        let content = DeltaContent::Text { text: text.to_owned() };
        let frame = Preview::EventDelta { event_id: id.clone(), delta: Delta::ContentDelta { index: 0, content } };
        PeerPost { session: "sesn_1".parse().unwrap(), frames: vec![frame] }
    }

    #[test]
    fn what_comes_goes_in_order_and_in_bounded_pieces() {
        let (mut outbox, id) = (Outbox::default(), EventId::generate());
        let posts: Vec<PeerPost> = (0..AT_ONCE + 1).map(|number| post(&id, &number.to_string())).collect();
        for post in &posts {
            assert!(outbox.put(post.clone()));
        }
        assert_eq!(outbox.take(), posts[..AT_ONCE]);
        assert_eq!(outbox.take(), posts[AT_ONCE..]);
        assert!(outbox.take().is_empty());
    }

    #[test]
    fn a_message_with_a_hole_is_not_continued() {
        let (mut outbox, full, other) = (Outbox::default(), EventId::generate(), EventId::generate());
        for _ in 0..WAITING {
            assert!(outbox.put(post(&full, "a")));
        }
        assert!(!outbox.put(post(&other, "no room")));
        while !outbox.take().is_empty() {}
        assert!(outbox.put(post(&other, "after the hole")), "it is no news that this message is broken");
        assert!(outbox.put(post(&full, "b")));
        assert_eq!(outbox.take(), [post(&full, "b")]);
    }

    #[test]
    fn what_did_not_arrive_breaks_what_waits() {
        let (mut outbox, one, two) = (Outbox::default(), EventId::generate(), EventId::generate());
        outbox.put(post(&one, "a"));
        let sent = outbox.take();
        outbox.put(post(&one, "b"));
        outbox.put(post(&two, "c"));
        outbox.lost(&sent);
        assert_eq!(outbox.take(), [post(&two, "c")]);
    }
}
