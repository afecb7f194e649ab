//! `hpk doctor`: checks what HPK needs on this site, each with its result and a remedy.
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]

mod checks;
mod executor;
mod images;
mod network;
mod policy;
mod storage;

use crate::cli::{self, Format};
use anyhow::Result;
use serde::Serialize;
use std::borrow::Cow;
use std::process::ExitCode;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// HPK works, but less well.
    Warning,
    /// HPK does not work.
    Failed,
}

/// One check's outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was looked at.
    pub check: Cow<'static, str>,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Finding {
    fn ok(check: impl Into<Cow<'static, str>>, found: impl Into<String>) -> Self {
        Self { check: check.into(), verdict: Verdict::Ok, found: found.into(), remedy: String::new() }
    }
    fn warning(check: impl Into<Cow<'static, str>>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check: check.into(), verdict: Verdict::Warning, found: found.into(), remedy: remedy.into() }
    }
    fn failed(check: impl Into<Cow<'static, str>>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check: check.into(), verdict: Verdict::Failed, found: found.into(), remedy: remedy.into() }
    }
}

/// `hpk doctor`. Exit code 1 when a check failed.
pub(crate) async fn run(args: &cli::Doctor) -> Result<ExitCode> {
    let mut findings = Vec::new();
    let mut show = |finding: Finding| {
        if args.output.output == Format::Text {
            print!("{}", line(&finding));
        }
        findings.push(finding);
    };
    checks::login(&mut show);
    if args.job {
        checks::job(&mut show);
    }
    let failed = findings.iter().filter(|f| f.verdict == Verdict::Failed).count();
    match args.output.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
        Format::Text if failed > 0 => println!("\n{failed} of {} checks failed", findings.len()),
        Format::Text if !args.job => println!("\nno check failed here; hpk doctor --job checks a compute node too"),
        Format::Text => println!("\nno check failed"),
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn line(f: &Finding) -> String {
    let word = match f.verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Failed => "FAILED",
    };
    let mut text = format!("{word:<8}{:<28} {}\n", f.check, f.found);
    if !f.remedy.is_empty() {
        text.push_str(&format!("{:<8}{:<28} → {}\n", "", "", f.remedy));
    }
    text
}
