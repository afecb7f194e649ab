//! `hpk-pause`: PID 1 of a pod's parent container.
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]

use hpk_pause::options::{self, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    match options::parse(std::env::args().skip(1)) {
        Ok(Command::Run(run)) => {
            // What it makes is for the containers' users to read, and lies below a folder that is the user's alone.
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
            match hpk_pause::run(&run) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(error) => {
                    hpk_api::say!("hpk-pause: {error}");
                    ExitCode::from(3)
                }
            }
        }
        Ok(Command::Ctl(args)) => match hpk_pause::control::ctl::run(args) {
            Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(255)),
            Err(error) => {
                hpk_api::say!("hpk-pause: {error}");
                ExitCode::from(2)
            }
        },
        Ok(Command::Inner) => match hpk_sys::launch::nested::inner() {
            Ok(never) => match never {},
            Err(errno) => {
                hpk_api::say!("hpk-pause: inner: {}; this is for the nested launcher alone", errno.desc());
                ExitCode::from(2)
            }
        },
        Ok(Command::Keep) => match hpk_sys::launch::keep() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Ok(Command::Ranks(ranks)) => match hpk_pause::make_ranks(&ranks) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                hpk_api::say!("{error}");
                ExitCode::FAILURE
            }
        },
        Ok(Command::Version) => {
            println!("hpk-pause {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Ok(Command::Help) => {
            println!("{}", options::USAGE);
            ExitCode::SUCCESS
        }
        Err(error) => {
            hpk_api::say!("hpk-pause: {error}");
            ExitCode::from(2)
        }
    }
}
