//! Wakes the task that waits for a link, and not the one that is working with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake};

use futures_util::task::AtomicWaker;

/// hyper tells the other end of each of its channels that something happened. Here both ends are one task that looks
/// anyway: to be woken for that would only run it once more for nothing, after each request and each piece of a body.
#[derive(Default)]
pub(in crate::mesh) struct Bell {
    task: AtomicWaker,
    muted: AtomicBool,
}

impl Bell {
    /// From now on it rings for this task.
    pub(in crate::mesh) fn attach(&self, cx: &Context<'_>) {
        self.task.register(cx.waker());
    }

    /// It rings for nobody.
    pub(in crate::mesh) fn detach(&self) {
        self.task.take();
    }

    /// Does something that need not be told, because the link is polled before its user waits.
    pub(in crate::mesh) fn mute<T>(&self, work: impl FnOnce() -> T) -> T {
        self.muted.store(true, Ordering::Relaxed);
        let done = work();
        self.muted.store(false, Ordering::Relaxed);
        done
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.muted.load(Ordering::Relaxed) {
            self.task.wake();
        }
    }
}
