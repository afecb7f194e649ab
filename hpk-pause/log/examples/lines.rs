//! Writes lines of one length as fast as it can: the container of bench/logs.
//!
//! `lines LENGTH MIB CPU_FILE` writes so many MiB of lines, LENGTH bytes each with their newline, then the CPU
//! seconds that it took into CPU_FILE, for harnesses that cannot tell it from the program under test.

use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: lines LENGTH MIB CPU_FILE");
    let (length, mib, cpu_file) = (next()?.parse::<usize>()?, next()?.parse::<usize>()?, next()?);
    let mut line = vec![b'x'; length.saturating_sub(1)];
    line.push(b'\n');
    let block = line.repeat((256 << 10) / length);
    let mut out = std::fs::File::from(std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned()?);
    for _ in 0..(mib << 20) / block.len() {
        out.write_all(&block)?;
    }
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let time = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    std::fs::write(cpu_file, (time(usage.user_time()) + time(usage.system_time())).to_string())?;
    Ok(())
}
