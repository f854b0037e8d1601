//! A watch: what etcd tells of its keys, line by line.

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::client::EtcdError;
use super::wire::{Event, Line, Refusal, WatchAnswer};
use crate::words::root_cause;

/// gRPC's code.
const FAILED_PRECONDITION: u32 = 9;

/// What happens, as it happens.
pub(super) struct Watch {
    body: Incoming,
    buffer: BytesMut,
    /// No end of line up to here.
    searched: usize,
}

impl Watch {
    pub(super) fn new(body: Incoming) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            searched: 0,
        }
    }

    /// What happened at one revision or several, whole revisions only; empty for a word that is no news.
    pub(super) async fn next(&mut self) -> Result<Vec<Event>, EtcdError> {
        let broken = |why: String| EtcdError::Unreachable(format!("the watch broke off: {why}"));
        loop {
            if let Some(end) = self.buffer[self.searched..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let line = self.buffer.split_to(self.searched + end + 1);
                self.searched = 0;
                return understand(&line);
            }
            self.searched = self.buffer.len();
            match self.body.frame().await {
                Some(Ok(frame)) => self
                    .buffer
                    .extend_from_slice(&frame.into_data().unwrap_or_default()),
                Some(Err(e)) => return Err(broken(root_cause(&e))),
                None => return Err(broken("the member ended it".to_owned())),
            }
        }
    }
}

fn understand(line: &[u8]) -> Result<Vec<Event>, EtcdError> {
    let line: Line<WatchAnswer> = serde_json::from_slice(line)
        .map_err(|e| EtcdError::Unreachable(format!("the watch is not etcd's: {e}")))?;
    if let Some(Refusal { code, message }) = line.error {
        return Err(EtcdError::Refused { code, message });
    }
    match line.result {
        Some(answer) if answer.compact_revision > 0 => Err(EtcdError::Compacted),
        Some(answer) if answer.canceled => Err(EtcdError::Refused {
            code: FAILED_PRECONDITION,
            message: format!("the watch was cancelled ({})", answer.cancel_reason),
        }),
        Some(answer) => Ok(answer.events),
        None => Ok(Vec::new()),
    }
}
