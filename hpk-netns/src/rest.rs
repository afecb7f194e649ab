//! Idle times of the control side's thread. It is idle nearly always. Memory that an `exec` or a change of a Service needed is
//! given back some time after it. The thread wakes for work, and once after it, and never else.

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::runtime::Builder;
use tokio::sync::Notify;

/// Silence after which a rest begins.
const QUIET: Duration = Duration::from_secs(10);

/// Of one runtime with one thread. All is done on that thread.
#[derive(Clone, Debug, Default)]
pub struct Rest(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// How often the thread has woken.
    wakes: AtomicUsize,
    /// Memory is to be given back when the thread sleeps next.
    due: AtomicBool,
    /// It was, and the thread sleeps.
    resting: AtomicBool,
    woken: Notify,
}

impl Rest {
    /// To be asked when the runtime is made. `settle` is the last that is done before the thread sleeps.
    pub fn watch(&self, runtime: &mut Builder, settle: impl Fn() + Send + Sync + 'static) {
        let (parks, unparks) = (self.0.clone(), self.0.clone());
        runtime.on_thread_park(move || {
            if parks.due.swap(false, Relaxed) {
                parks.resting.store(true, Relaxed);
                settle();
            }
        });
        runtime.on_thread_unpark(move || {
            unparks.wakes.fetch_add(1, Relaxed);
            if unparks.resting.swap(false, Relaxed) {
                unparks.woken.notify_one();
            }
        });
    }

    /// Runs beside the runtime's work.
    pub async fn keep(self) {
        if let Err(error) = self.after(QUIET).await {
            hpk_api::say!("hpk-netns: memory is not given back: {error}");
        }
    }

    async fn after(self, quiet: Duration) -> io::Result<()> {
        // The runtime's own timers wake more than once for a long time: it counts time in steps.
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        // It is read as a pipe is: eight bytes, when it is over.
        let mut over = pipe::Receiver::from_owned_fd_unchecked(timer.as_fd().try_clone_to_owned()?)?;
        let wakes = || self.0.wakes.load(Relaxed);
        loop {
            let before = wakes();
            timer.set(Expiration::OneShot(quiet.into()), TimerSetTimeFlags::empty())?;
            over.read_u64().await?;
            // The end of the silence is a wake-up of its own.
            if wakes() <= before + 1 {
                self.0.due.store(true, Relaxed);
                self.0.woken.notified().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn memory_is_given_back_once_after_work_and_only_after_work() {
        let (rest, mut builder) = (Rest::default(), Builder::new_current_thread());
        let (settled, times) = std::sync::mpsc::channel();
        rest.watch(builder.enable_all(), move || settled.send(()).unwrap());
        let (mut outside, inside) = UnixStream::pair().unwrap();
        inside.set_nonblocking(true).unwrap();
        let wakes = rest.0.clone();
        let runtime = std::thread::spawn(move || {
            builder.build().unwrap().block_on(async move {
                tokio::spawn(rest.after(Duration::from_millis(100)));
                let mut work = tokio::net::UnixStream::from_std(inside).unwrap();
                while work.read_u8().await.is_ok() {}
            });
        });
        times.recv().unwrap();
        for _ in 0..3 {
            let before = wakes.wakes.load(Relaxed);
            outside.write_all(b"work").unwrap();
            times.recv().unwrap();
            // The work, and the end of the silence after it: of a second one, when the work was seen in parts.
            let woken = wakes.wakes.load(Relaxed) - before;
            assert!((2..=4).contains(&woken), "{woken}");
        }
        outside.shutdown(std::net::Shutdown::Both).unwrap();
        runtime.join().unwrap();
        assert!(times.try_recv().is_err(), "once each time");
    }
}
