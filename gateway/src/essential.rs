//! Tasks that a node cannot do without: a shard's loop, the acceptor, the broker's connections. After a panic in one of
//! them the node would look well and deliver nothing, so the process ends, with a last line in the log that names the
//! task. Whatever supervises the process then starts a new one.

use crate::log;
use futures_util::FutureExt as _;
use std::panic::AssertUnwindSafe;

/// `EX_SOFTWARE` of sysexits.h: a fault of this program.
const EX_SOFTWARE: i32 = 70;

/// Runs a task to its end. A panic in it ends the process.
pub(crate) async fn essential<T>(name: &'static str, task: impl Future<Output = T>) -> T {
    match AssertUnwindSafe(task).catch_unwind().await {
        Ok(result) => result,
        Err(_) => end_process(name),
    }
}

/// Ends the process because a task that the node needs has ended.
pub(crate) fn end_process(task: &str) -> ! {
    tracing::error!(task, "a task that this node needs has panicked: the process ends");
    log::flush();
    std::process::exit(EX_SOFTWARE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const CHILD: &str = "FANFARE_TEST_PANICS";

    #[test]
    fn a_panic_in_an_essential_task_ends_the_process_and_one_in_another_task_does_not() {
        if std::env::var_os(CHILD).is_some() {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                assert!(tokio::spawn(async { panic!("another task") }).await.is_err());
                let essential = tokio::spawn(essential("the essential task", async { panic!("a fault") }));
                unreachable!("the process goes on: {:?}", essential.await);
            });
        }
        let name = "essential::tests::a_panic_in_an_essential_task_ends_the_process_and_one_in_another_task_does_not";
        let child =
            Command::new(std::env::current_exe().unwrap()).args(["--exact", name]).env(CHILD, "").output().unwrap();
        assert_eq!(child.status.code(), Some(EX_SOFTWARE), "{child:?}");
    }
}
