//! The broker's thread, and the only file that starts tasks. All I/O with Redis happens on this thread: a reply of
//! megabytes is parsed here and not on the thread of the shard that asked, and a shard that ends takes no connection
//! with it.

use crate::{
    BrokerError, BrokerFuture,
    redis::{ConnectError, config::OnPanic},
};
use futures_util::FutureExt as _;
use std::{panic::AssertUnwindSafe, thread};
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// The thread's name, as `ps -L` and debuggers show it.
const NAME: &str = "redis";

/// The thread. It ends, with all its tasks, when this is dropped.
pub(crate) struct BrokerThread {
    runtime: Handle,
    _alive: oneshot::Sender<()>,
}

/// Starts tasks on the broker's thread.
#[derive(Clone)]
pub(crate) struct Tasks {
    runtime: Handle,
    on_panic: OnPanic,
}

impl BrokerThread {
    pub(crate) fn start() -> Result<Self, ConnectError> {
        let refused = |why: std::io::Error| ConnectError::Thread(why.to_string());
        let runtime = Builder::new_current_thread().enable_all().build().map_err(refused)?;
        let (alive, ended) = oneshot::channel();
        let handle = runtime.handle().clone();
        let run = move || drop(runtime.block_on(ended));
        thread::Builder::new().name(NAME.to_owned()).spawn(run).map_err(refused)?;
        Ok(Self { runtime: handle, _alive: alive })
    }

    pub(crate) fn tasks(&self, on_panic: OnPanic) -> Tasks {
        Tasks { runtime: self.runtime.clone(), on_panic }
    }
}

impl Tasks {
    /// Starts a task that the broker cannot do without. A panic in it is reported under its name.
    pub(crate) fn essential(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let on_panic = self.on_panic;
        drop(self.runtime.spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                on_panic(name);
            }
        }));
    }

    /// Starts a task whose result somebody waits for, on whatever thread. It goes on to its end if nobody does any more.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, BrokerError>> + Send + 'static,
    ) -> BrokerFuture<'static, T> {
        let task = self.runtime.spawn(task);
        // The only other end of a task is a panic, or that of the broker.
        Box::pin(async { task.await.unwrap_or(Err(BrokerError::Unavailable)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };
    use tokio::time::{sleep, timeout};

    static REPORTED: AtomicUsize = AtomicUsize::new(0);

    #[tokio::test]
    async fn a_panic_in_an_essential_task_is_reported_and_one_in_a_read_fails_the_read() {
        let thread = BrokerThread::start().unwrap();
        let tasks = thread.tasks(|name| {
            assert_eq!(name, "an essential task");
            REPORTED.fetch_add(1, Ordering::Relaxed);
        });
        tasks.essential("one that ends", async {});
        tasks.essential("an essential task", async { panic!("a fault") });
        let read = tasks.ask::<()>(async { panic!("a fault in a read") }).await;
        assert_eq!(read, Err(BrokerError::Unavailable));
        let reported = async {
            while REPORTED.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), reported).await.expect("the panic is reported");
        assert_eq!(tasks.ask(async { Ok(thread::current().name() == Some(NAME)) }).await, Ok(true));
    }

    #[tokio::test]
    async fn the_thread_ends_with_the_broker() {
        let thread = BrokerThread::start().unwrap();
        let waiting = thread.tasks(|_| {}).ask::<()>(async {
            sleep(Duration::from_secs(1000)).await;
            Ok(())
        });
        drop(thread);
        assert_eq!(timeout(Duration::from_secs(10), waiting).await, Ok(Err(BrokerError::Unavailable)));
    }
}
