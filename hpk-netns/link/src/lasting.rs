//! Tasks that a program cannot do without.
//!
//! A task of tokio's that panics is gone without a word, and what it did is done by nobody from then on. A program that its
//! supervisor starts again loses nothing by ending, so it ends with such a task.

/// As [`tokio::spawn`], for a task that lives as long as the program: when it panics, the process ends with code 101.
pub fn spawn(name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(async move {
        // Cancelled is the program's own end.
        if tokio::spawn(task).await.is_err_and(|error| error.is_panic()) {
            hpk_api::say!("the task \"{name}\" failed: this process ends, to be started again");
            std::process::exit(101);
        }
    }));
}

#[cfg(test)]
mod tests {
    /// Ends this process when it is the child of the test below.
    #[tokio::test]
    async fn child() {
        if std::env::var_os("HPK_LASTING_CHILD").is_some() {
            super::spawn("at ease", async {});
            super::spawn("in trouble", async { panic!("no") });
            std::future::pending::<()>().await;
        }
    }

    #[test]
    fn a_task_that_panics_takes_its_process_with_it() {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lasting::tests::child", "--nocapture"])
            .env("HPK_LASTING_CHILD", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(101), "{said}");
        assert!(said.contains("the task \"in trouble\" failed"), "{said}");
    }
}
