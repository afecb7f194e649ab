//! The reader against the rules said plainly, over any mix of records, streams and files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use flate2::{Compression, write::GzEncoder};
use hpk_api::cri_log::Stream;
use hpk_log::{LogReader, ReadOptions, ReadStatus, Stamper, tail_for_termination_message};
use proptest::prelude::*;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

#[derive(Clone, Debug)]
struct Record {
    second: u64,
    stderr: bool,
    partial: bool,
    content: String,
}

const START: u64 = 1_795_460_000;

fn records() -> impl Strategy<Value = Vec<Record>> {
    let record = (any::<bool>(), prop::bool::weighted(0.3), "[a-z ]{0,12}");
    prop::collection::vec(record, 0..60).prop_map(|records| {
        records
            .into_iter()
            .enumerate()
            .map(|(n, (stderr, partial, content))| Record { second: START + n as u64 / 3, stderr, partial, content })
            .collect()
    })
}

/// Writes records as a rotated log: `cuts` says after which records a new file begins.
fn write(dir: &Path, records: &[Record], cuts: &[usize], gz: bool) {
    let mut stamper = Stamper::new();
    let mut files: Vec<(String, u64)> = vec![(String::new(), START)];
    for (n, record) in records.iter().enumerate() {
        if cuts.contains(&n) {
            files.push((String::new(), record.second));
        }
        let time = stamper.format(Duration::from_secs(record.second));
        let stream = if record.stderr { "stderr" } else { "stdout" };
        let tag = if record.partial { "P" } else { "F" };
        let last = files.last_mut().unwrap();
        last.0.push_str(&format!("{} {stream} {tag} {}\n", String::from_utf8_lossy(&time), record.content));
        last.1 = record.second;
    }
    let count = files.len();
    for (n, (text, second)) in files.into_iter().enumerate() {
        let modified = UNIX_EPOCH + Duration::from_secs(second);
        let (name, compressed) = match count - 1 - n {
            0 => ("7.log".to_owned(), false),
            1 => (format!("7.log.20261123-{n:06}"), false),
            _ if gz => (format!("7.log.20261123-{n:06}.gz"), true),
            _ => (format!("7.log.20261123-{n:06}"), false),
        };
        let mut file = fs::File::create(dir.join(name)).unwrap();
        if compressed {
            let mut encoder = GzEncoder::new(&mut file, Compression::fast());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap();
        } else {
            file.write_all(text.as_bytes()).unwrap();
        }
        file.set_modified(modified).unwrap();
    }
}

fn expected(records: &[Record], options: &ReadOptions) -> Vec<u8> {
    let wanted = |r: &&Record| options.stream.is_none_or(|s| (s == Stream::Stderr) == r.stderr);
    let mut first = records.len();
    match options.tail_lines {
        None => first = 0,
        Some(0) => {}
        Some(mut lines) => {
            for (n, record) in records.iter().enumerate().rev() {
                let ends = !record.partial || n == records.len() - 1;
                if ends && wanted(&record) {
                    if lines == 0 {
                        break;
                    }
                    lines -= 1;
                }
                first = n;
            }
        }
    }
    let (mut out, mut stamper, mut at_start) = (Vec::new(), Stamper::new(), true);
    for record in records[first..].iter().filter(wanted) {
        let time = stamper.format(Duration::from_secs(record.second));
        if options.since.is_some_and(|since| i128::from(record.second) < i128::from(since.as_second())) {
            continue;
        }
        if options.timestamps && at_start {
            out.extend_from_slice(&time);
            out.push(b' ');
        }
        out.extend_from_slice(record.content.as_bytes());
        if !record.partial {
            out.push(b'\n');
        }
        at_start = !record.partial;
    }
    out.truncate(options.limit_bytes.map_or(usize::MAX, |n| usize::try_from(n).unwrap()));
    out
}

fn read(dir: &Path, options: ReadOptions) -> Vec<u8> {
    let mut reader = LogReader::open(dir, 7, options).unwrap();
    let mut out = Vec::new();
    while reader.read(&mut out).unwrap() == ReadStatus::More {}
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn reads_what_was_asked_for(
        records in records(),
        cuts in prop::collection::vec(0usize..60, 0..6),
        gz in any::<bool>(),
        tail in prop::option::of(0u64..70),
        since in prop::option::of(0i64..25),
        limit in prop::option::of(0u64..400),
        timestamps in any::<bool>(),
        stream in prop::option::of(prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)]),
    ) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &records, &cuts, gz);
        let since = since.map(|s| jiff::Timestamp::from_second(i64::try_from(START).unwrap() + s).unwrap());
        let options =
            ReadOptions { tail_lines: tail, since, limit_bytes: limit, timestamps, stream, snapshot: gz };
        let got = read(dir.path(), options.clone());
        let expected = expected(&records, &options);
        prop_assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&expected));
    }

    /// A second reader goes on from where a first one was, whether the log was rotated and compressed meanwhile or not.
    #[test]
    fn another_reader_goes_on(
        records in records(),
        cuts in prop::collection::vec(1usize..60, 0..6),
        (gz, gz_later) in any::<(bool, bool)>(),
        tail in prop::option::of(0u64..70),
        limit in prop::option::of(0u64..400),
        timestamps in any::<bool>(),
        reads in 0usize..7,
    ) {
        let dir = tempfile::tempdir().unwrap();
        // Files are told apart by when they were last written.
        let later = |(n, record): (usize, Record)| Record { second: START + n as u64, ..record };
        let records: Vec<Record> = records.into_iter().enumerate().map(later).collect();
        write(dir.path(), &records, &cuts, gz);
        let options = ReadOptions { tail_lines: tail, limit_bytes: limit, timestamps, ..ReadOptions::default() };
        let mut reader = LogReader::open(dir.path(), 7, options.clone()).unwrap();
        let mut out = Vec::new();
        for _ in 0..reads {
            reader.read(&mut out).unwrap();
        }
        let position = reader.position().unwrap();
        if gz_later && !gz {
            for entry in fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).filter(|p| !p.ends_with("7.log")) {
                compress(&entry);
            }
        }
        let mut second = LogReader::resume(dir.path(), options.clone(), &position).unwrap();
        while second.read(&mut out).unwrap() == ReadStatus::More {}
        let expected = expected(&records, &options);
        prop_assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&expected));
    }

    #[test]
    fn is_total_on_any_file(content in prop::collection::vec(any::<u8>(), 0..3000), tail in prop::option::of(0u64..5)) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("7.log"), content).unwrap();
        read(dir.path(), ReadOptions { tail_lines: tail, ..ReadOptions::default() });
    }
}

/// As the rotation does it: the time of the last record stays.
fn compress(path: &Path) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let file = fs::File::create(path.with_added_extension("gz")).unwrap();
    let mut encoder = GzEncoder::new(&file, Compression::fast());
    encoder.write_all(&fs::read(path).unwrap()).unwrap();
    encoder.finish().unwrap();
    file.set_modified(modified).unwrap();
    fs::remove_file(path).unwrap();
}

#[test]
fn a_place_inside_a_file_is_found_again_when_the_file_is_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let line = |n: usize| format!("2026-11-23T20:00:00.000000000Z stdout F {n:099}\n");
    let live = dir.path().join("7.log");
    fs::write(&live, (0..5000).map(line).collect::<String>()).unwrap();
    let mut reader = LogReader::open(dir.path(), 7, ReadOptions::default()).unwrap();
    let mut out = Vec::new();
    reader.read(&mut out).unwrap();
    reader.read(&mut out).unwrap();
    let position = reader.position().unwrap();
    assert!(position.offset > 0 && out.len() < 5000 * 100);
    let rotated = dir.path().join("7.log.20261123-200000");
    fs::rename(&live, &rotated).unwrap();
    fs::write(&live, (5000..6000).map(line).collect::<String>()).unwrap();
    for compressed in [false, true] {
        if compressed {
            compress(&rotated);
        }
        let mut all = out.clone();
        let mut second = LogReader::resume(dir.path(), ReadOptions::default(), &position).unwrap();
        while second.read(&mut all).unwrap() == ReadStatus::More {}
        assert_eq!(all.len(), 6000 * 100);
        assert!(all.chunks(100).enumerate().all(|(n, line)| line == format!("{n:099}\n").as_bytes()));
    }
}

#[test]
fn a_snapshot_ends_where_the_log_ended() {
    let dir = tempfile::tempdir().unwrap();
    let line = |n: usize| format!("2026-11-23T20:00:00.000000000Z stdout F {n:099}\n");
    let live = dir.path().join("7.log");
    fs::write(&live, (0..5000).map(line).collect::<String>()).unwrap();
    for (tail_lines, wanted) in [(None, 5000), (Some(1), 1), (Some(0), 0)] {
        let options = ReadOptions { tail_lines, snapshot: true, ..ReadOptions::default() };
        let mut reader = LogReader::open(dir.path(), 7, options).unwrap();
        // Its writer goes on, and rotates.
        fs::OpenOptions::new().append(true).open(&live).unwrap().write_all(line(5000).as_bytes()).unwrap();
        let rotated = dir.path().join("7.log.20261123-200000");
        fs::rename(&live, &rotated).unwrap();
        fs::write(&live, line(5001)).unwrap();
        let mut out = Vec::new();
        while reader.read(&mut out).unwrap() == ReadStatus::More {}
        assert_eq!(out.len(), wanted * 100, "{tail_lines:?}");
        fs::rename(&rotated, &live).unwrap();
        fs::OpenOptions::new().write(true).open(&live).unwrap().set_len(5000 * line(0).len() as u64).unwrap();
    }
}

#[test]
fn the_last_line_is_one_line_however_fast_its_writer_is() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("7.log");
    let lines = "2026-11-23T20:00:00.000000000Z stdout F y\n".repeat(100);
    let done = AtomicBool::new(false);
    let mut file = fs::File::create(&live).unwrap();
    file.write_all(lines.as_bytes()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                file.write_all(lines.as_bytes()).unwrap();
                if file.metadata().unwrap().len() > 10 << 20 {
                    fs::rename(&live, dir.path().join("7.log.20261123-200000")).unwrap();
                    file = fs::File::create(&live).unwrap();
                    file.write_all(lines.as_bytes()).unwrap();
                }
            }
        });
        let read: Vec<_> = (0..2000)
            .map(|_| read(dir.path(), ReadOptions { tail_lines: Some(1), snapshot: true, ..ReadOptions::default() }))
            .collect();
        done.store(true, Ordering::Relaxed);
        assert!(read.iter().all(|text| text == b"y\n"), "{:?}", read.iter().map(Vec::len).max());
    });
}

#[test]
fn a_log_that_is_not_there_is_empty_and_may_appear() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("later");
    let mut reader = LogReader::open(&folder, 7, ReadOptions::default()).unwrap();
    let mut out = Vec::new();
    assert_eq!(reader.read(&mut out).unwrap(), ReadStatus::CaughtUp);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("7.log"), "2026-11-23T20:00:00.000000000Z stdout F hello\n2026-11-23T20:00:00.0").unwrap();
    while reader.read(&mut out).unwrap() == ReadStatus::More {}
    assert_eq!(out, b"hello\n");
    fs::write(
        folder.join("7.log"),
        "2026-11-23T20:00:00.000000000Z stdout F hello\n2026-11-23T20:00:00.01Z stdout F you\n",
    )
    .unwrap();
    while reader.read(&mut out).unwrap() == ReadStatus::More {}
    assert_eq!(out, b"hello\nyou\n");
}

#[test]
fn termination_messages_are_the_last_80_lines_and_2048_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let log = |lines: usize, length: usize| {
        let text: String = (0..lines)
            .map(|n| format!("2026-11-23T20:00:00.000000000Z stdout F {n:03}{}\n", "x".repeat(length)))
            .collect();
        fs::write(dir.path().join("7.log"), text).unwrap();
        String::from_utf8(tail_for_termination_message(dir.path(), 7).unwrap()).unwrap()
    };
    let short = log(100, 0);
    assert_eq!(short.lines().collect::<Vec<_>>(), (20..100).map(|n| format!("{n:03}")).collect::<Vec<_>>());
    let long = log(100, 97);
    assert_eq!(long.len(), 2048);
    assert!(long.ends_with(&format!("099{}\n", "x".repeat(97))));
    assert_eq!(log(0, 0), "");
}

fn rest(reader: &mut LogReader) -> String {
    let mut out = Vec::new();
    while reader.read(&mut out).unwrap() == ReadStatus::More {}
    String::from_utf8(out).unwrap()
}

/// A follower was slow: the file that it is in and others of the same tick were rotated, and some compressed.
#[test]
fn files_of_one_moment_are_all_read_once() {
    for (seen, compressed) in [(1, 0), (1, 1), (1, 2), (2, 2), (3, 2)] {
        let dir = tempfile::tempdir().unwrap();
        let path = |n: usize| dir.path().join(format!("0.log.20261123-200000.{n:04}"));
        let live = dir.path().join("0.log");
        let tick = UNIX_EPOCH + Duration::from_secs(START);
        let write = |path: &Path, n: usize| {
            fs::write(path, format!("2026-11-23T20:00:00.000000000Z stdout F {n}\n")).unwrap();
            fs::File::options().append(true).open(path).unwrap().set_modified(tick).unwrap();
        };
        (1..seen).for_each(|n| write(&path(n), n));
        write(&live, seen);
        let mut reader = LogReader::open(dir.path(), 0, ReadOptions::default()).unwrap();
        let mut all = rest(&mut reader);
        fs::rename(&live, path(seen)).unwrap();
        (seen + 1..seen + 4).for_each(|n| write(&path(n), n));
        write(&live, seen + 4);
        for n in 1..=compressed {
            let gz = path(n).with_extension(format!("{n:04}.gz"));
            let mut encoder = GzEncoder::new(fs::File::create(&gz).unwrap(), Compression::fast());
            std::io::copy(&mut fs::File::open(path(n)).unwrap(), &mut encoder).unwrap();
            encoder.finish().unwrap().set_modified(tick).unwrap();
            fs::remove_file(path(n)).unwrap();
        }
        all.push_str(&rest(&mut reader));
        let expected: String = (1..=seen + 4).map(|n| format!("{n}\n")).collect();
        assert_eq!(all, expected, "{seen} seen, {compressed} compressed");
    }
}
