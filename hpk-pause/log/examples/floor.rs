//! The least that keeping a program's output can cost: it is read from the pipe and written to files as it is, with no time
//! stamp and without a look at its lines. What a log costs beyond this is the log's own. For bench/logs.
//!
//! `floor FOLDER MAX_BYTES PROGRAM [ARGUMENT…]`
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// As the pump reads.
const READ: usize = 64 << 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: floor FOLDER MAX_BYTES PROGRAM [ARGUMENT…]");
    let (dir, max_bytes, program) = (next()?, next()?.parse::<u64>()?, next()?);
    std::fs::create_dir_all(&dir)?;
    let began = Instant::now();
    let mut child = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().ok_or("no pipe")?;
    let mut buffer = vec![0u8; READ];
    let (mut total, mut written, mut files) = (0u64, 0u64, 0u32);
    let mut file = File::create(Path::new(&dir).join("0"))?;
    loop {
        let count = output.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        if written + count as u64 > max_bytes {
            files += 1;
            file = File::create(Path::new(&dir).join(files.to_string()))?;
            written = 0;
        }
        file.write_all(&buffer[..count])?;
        total += count as u64;
        written += count as u64;
    }
    child.wait()?;
    let seconds = began.elapsed().as_secs_f64();
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let time = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    println!("{seconds} {} {total}", time(usage.user_time()) + time(usage.system_time()));
    Ok(())
}
