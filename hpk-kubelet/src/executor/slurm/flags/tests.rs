//! The parser against sbatch's own: whatever leaves the parser means to `getopt_long` what it says, and nothing else.

use super::*;
use proptest::prelude::*;

fn parsed(text: &str) -> Result<Vec<String>, String> {
    parse(text, table::SBATCH, PodFlags::Allow).map_err(|e| e.to_string())
}

fn job(text: &str) -> Result<Vec<String>, FlagsError> {
    of_job(Some(&[(pod_flags::FLAGS.to_owned(), text.to_owned())].into()), PodFlags::Allow)
}

#[test]
fn each_flag_becomes_one_argument() {
    for (text, list) in [
        ("", vec![]),
        ("  --partition=debug  ", vec!["--partition=debug"]),
        ("-p debug --qos high", vec!["--partition=debug", "--qos=high"]),
        ("-N1 -n4 -c 2", vec!["--nodes=1", "--ntasks=4", "--cpus-per-task=2"]),
        ("--constraint='a&b'", vec!["--constraint=a&b"]),
        ("--constraint=\"[a|b]*2 \\\"\"", vec!["--constraint=[a|b]*2 \""]),
        ("--extra=a\\ b\n--wckey=$HOME", vec!["--extra=a b", "--wckey=$HOME"]),
        ("--exclusive --nodes 2 --nice -s", vec!["--exclusive", "--nodes=2", "--nice", "--oversubscribe"]),
        ("--exclusive=user --nice=-5", vec!["--exclusive=user", "--nice=-5"]),
        ("--qos=--output=x", vec!["--qos=--output=x"]),
    ] {
        assert_eq!(parsed(text).expect(text), list, "{text}");
    }
}

#[test]
fn what_is_refused_is_named_with_a_remedy() {
    for (text, part) in [
        ("--comment=x", "--comment is not a flag that a pod may give; remove it"),
        ("--job-n=x", "--job-n is not a flag"),
        ("-J x", "-J is not a flag"),
        ("--part=x", "--part is not a flag that a pod may give; write --partition=value"),
        ("-sJname", "-sJname is not a flag that a pod may give; write --oversubscribe"),
        ("-p=debug", "-p=debug is not a flag that a pod may give; write --partition=value"),
        ("--wckey='y", "single quote"),
        ("--wckey=\"y", "double quote"),
        ("x", "\"x\" is not a flag"),
        ("-", "\"-\" is not a flag"),
        ("--", "-- is not a flag"),
        ("--mem=1 /bin/evil", "\"/bin/evil\" is not a flag"),
        ("--mem=1 : --mem=2", "\":\" is not a flag"),
        ("--partition --qos=x", "--partition needs a value"),
        ("--partition=", "--partition needs a value"),
        ("--requeue=1", "--requeue takes no value"),
        ("-w /home/alice/.netrc", "--nodelist with a file name"),
        ("--exclude=./nodes", "--exclude with a file name"),
        ("--extra='a\nb'", "a line break"),
    ] {
        let error = job(text).expect_err(text).to_string();
        assert!(error.contains(part) && error.starts_with("annotation slurm-job.hpk.io/flags: "), "{error}");
    }
}

#[test]
fn both_keys_in_order() {
    let both = [("slurm-job.hpk.io/flags", "-p b"), ("slurm.hpk.io/flags", "-p a")];
    let both = both.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let list = of_job(Some(&both), PodFlags::Allow).expect("flags");
    assert_eq!(list, ["--partition=a", "--partition=b"]);
    assert_eq!(value(&list, "partition"), Some("b"));
    assert!(has(&list, "partition") && !has(&list, "part"));
}

#[test]
fn what_the_cluster_lets_through() {
    let with = |text: &str, policy| {
        let all = [(pod_flags::FLAGS.to_owned(), text.to_owned()), (pod_flags::MPI_FLAGS.to_owned(), text.to_owned())];
        (of_job(Some(&all.clone().into()), policy), of_step(Some(&all.into()), policy))
    };
    assert!(with("--time=5 -p debug --nice", PodFlags::List).0.is_ok());
    let refused = with("--cpus-per-task=32", PodFlags::List);
    assert!(refused.0.expect_err("refused").to_string().contains("--cpus-per-task does not say where and when"));
    assert!(refused.1.is_err());
    for result in [with("--time=5", PodFlags::Deny).0, with("--ntasks=5", PodFlags::Deny).1] {
        assert!(result.expect_err("refused").to_string().contains("takes no flags"));
    }
    assert_eq!(with(" ", PodFlags::Deny).0, Ok(vec![]));
}

#[test]
fn flags_of_a_priority_class() {
    assert_eq!(of_class("high", "--qos=high --nice=0").expect("flags"), ["--qos=high", "--nice=0"]);
    let error = of_class("high", "--mem=1G").expect_err("refused").to_string();
    assert!(error.starts_with("hpk up --priority-class high: --mem does not say where and when"), "{error}");
}

#[test]
fn flags_of_steps_name_no_file_and_no_program() {
    let step =
        |text: &str| of_step(Some(&[(pod_flags::MPI_FLAGS.to_owned(), text.to_owned())].into()), PodFlags::Allow);
    assert_eq!(step("--mpi=pmix -n 4").expect("flags"), ["--mpi=pmix", "--ntasks=4"]);
    for text in
        ["--output=x", "--task-prolog=x", "--prolog=x", "--multi-prog", "--bcast", "--chdir=/", "-lx", "--jobid=1"]
    {
        let error = step(text).expect_err(text).to_string();
        assert!(error.starts_with("annotation slurm-job.hpk.io/mpi-flags: "), "{error}");
    }
}

#[test]
fn the_guide_lists_them_all() {
    let guide = include_str!("../../../../../docs/guide/pods.md");
    let list = guide.lines().skip_while(|l| !l.contains("`--account` `-A`")).take_while(|l| !l.is_empty());
    let list = list.map(str::trim).collect::<Vec<_>>().join(" ");
    let rows: Vec<&str> = list.split("* **").skip(1).collect();
    assert_eq!(rows.len(), 3);
    for (row, line) in rows.iter().enumerate() {
        let (_, flags) = line.split_once(":** ").expect(line);
        for entry in flags.trim().split(", ") {
            let mut words = entry.split(' ').map(|w| w.trim_matches('`'));
            let name = words.next().and_then(|w| w.strip_prefix("--")).expect(entry);
            let flag = table::SBATCH.iter().find(|f| f.name == name).expect(name);
            assert_eq!(flag.where_and_when, row == 0, "{name}");
            assert_eq!(words.next(), flag.short.map(|c| format!("-{c}")).as_deref(), "{name}");
        }
    }
    let told = |name: &str| rows.iter().any(|line| line.contains(&format!("`--{name}`")));
    assert!(table::SBATCH.iter().all(|f| told(f.name)));
}

/// How an option of sbatch takes its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    No,
    Required,
    Optional,
}
use Takes::{No, Optional, Required};

/// The options of sbatch 24.11, as it hands them to `getopt_long`: name, whether there is a value, what it means (a letter's
/// code, or a number above).
const ALL: &[(&str, Takes, u32)] = &[
    ("account", Required, 65),
    ("acctg-freq", Required, 258),
    ("array", Required, 97),
    ("autocomplete", Required, 270),
    ("batch", Required, 261),
    ("begin", Required, 98),
    ("bb", Required, 267),
    ("bbf", Required, 266),
    ("cluster-constraint", Required, 269),
    ("chdir", Required, 68),
    ("cluster", Required, 268),
    ("clusters", Required, 77),
    ("comment", Required, 271),
    ("container", Required, 273),
    ("container-id", Required, 274),
    ("context", Required, 275),
    ("contiguous", No, 276),
    ("constraint", Required, 67),
    ("core-spec", Required, 83),
    ("cores-per-socket", Required, 278),
    ("cpu-freq", Required, 280),
    ("cpus-per-gpu", Required, 281),
    ("cpus-per-task", Required, 99),
    ("deadline", Required, 282),
    ("delay-boot", Required, 284),
    ("dependency", Required, 100),
    ("distribution", Required, 109),
    ("error", Required, 101),
    ("exclude", Required, 120),
    ("exclusive", Optional, 288),
    ("export", Required, 289),
    ("export-file", Required, 290),
    ("extra", Required, 292),
    ("extra-node-info", Required, 66),
    ("get-user-env", Optional, 293),
    ("gid", Required, 294),
    ("gpu-bind", Required, 295),
    ("gpu-freq", Required, 296),
    ("gpus", Required, 71),
    ("gpus-per-node", Required, 298),
    ("gpus-per-socket", Required, 299),
    ("gpus-per-task", Required, 300),
    ("gres", Required, 301),
    ("gres-flags", Required, 302),
    ("help", No, 104),
    ("hint", Required, 303),
    ("hold", No, 72),
    ("ignore-pbs", No, 304),
    ("input", Required, 105),
    ("job-name", Required, 74),
    ("kill-on-invalid-dep", Required, 307),
    ("licenses", Required, 76),
    ("mail-type", Required, 311),
    ("mail-user", Required, 312),
    ("mcs-label", Required, 313),
    ("mem", Required, 314),
    ("mem-bind", Required, 315),
    ("mem-per-cpu", Required, 316),
    ("mem-per-gpu", Required, 317),
    ("mincpus", Required, 319),
    ("network", Required, 326),
    ("nice", Optional, 327),
    ("no-kill", Optional, 107),
    ("no-requeue", No, 329),
    ("nodefile", Required, 70),
    ("nodelist", Required, 119),
    ("nodes", Required, 78),
    ("ntasks", Required, 110),
    ("ntasks-per-core", Required, 331),
    ("ntasks-per-gpu", Required, 332),
    ("ntasks-per-node", Required, 333),
    ("ntasks-per-socket", Required, 334),
    ("ntasks-per-tres", Required, 335),
    ("oom-kill-step", Optional, 336),
    ("open-mode", Required, 337),
    ("output", Required, 111),
    ("overcommit", No, 79),
    ("oversubscribe", No, 115),
    ("parsable", No, 340),
    ("partition", Required, 112),
    ("prefer", Required, 342),
    ("priority", Required, 343),
    ("profile", Required, 344),
    ("propagate", Optional, 346),
    ("qos", Required, 113),
    ("quiet", No, 81),
    ("reboot", No, 350),
    ("requeue", No, 351),
    ("reservation", Required, 352),
    ("resv-ports", Optional, 353),
    ("segment", Required, 354),
    ("signal", Required, 356),
    ("sockets-per-node", Required, 358),
    ("spread-job", No, 359),
    ("stepmgr", No, 360),
    ("switches", Required, 363),
    ("tasks-per-node", Required, 333),
    ("test-only", No, 366),
    ("thread-spec", Required, 367),
    ("threads-per-core", Required, 368),
    ("time", Required, 116),
    ("time-min", Required, 369),
    ("tmp", Required, 370),
    ("tres-bind", Required, 372),
    ("tres-per-task", Required, 374),
    ("uid", Required, 375),
    ("use-min-nodes", No, 378),
    ("verbose", No, 118),
    ("version", No, 86),
    ("usage", No, 377),
    ("wait", No, 87),
    ("wait-all-nodes", Required, 379),
    ("wckey", Required, 380),
    ("wrap", Required, 382),
];
const LETTERS: &str = "A:a:b:D:M:C:S:c:d:m:e:x:B:G:hHi:J:L:k::F:w:N:n:o:Osp:q:Qt:vVW";

/// glibc's `getopt_long` with an optstring that begins with `+`: what each option means, with its value. Err: it complains.
fn getopt_long(words: &[String], all: &[(&str, Takes, u32)]) -> Result<Vec<(u32, Option<String>)>, String> {
    let mut found = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if let Some(long) = word.strip_prefix("--").filter(|l| !l.is_empty()) {
            let (name, given) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v.to_owned())));
            let exact = all.iter().find(|o| o.0 == name);
            let mut begun = all.iter().filter(|o| o.0.starts_with(name));
            let first = begun.next();
            let alone = first.filter(|f| begun.all(|o| (o.1, o.2) == (f.1, f.2)));
            let option = exact.or(alone).ok_or_else(|| format!("--{name}: unknown or ambiguous"))?;
            let value = match (option.1, given) {
                (No, Some(_)) => return Err(format!("--{name} takes no value")),
                (Required, None) => Some(words.next().ok_or("no value")?.clone()),
                (_, given) => given,
            };
            found.push((option.2, value));
        } else if let Some(letters) = word.strip_prefix('-').filter(|l| !l.is_empty() && *l != "-") {
            let mut rest = letters.chars();
            while let Some(letter) = rest.next() {
                let at = LETTERS.find(letter).filter(|_| letter != ':').ok_or("unknown letter")?;
                let tail: String = rest.as_str().to_owned();
                let colons = LETTERS[at + 1..].chars().take_while(|c| *c == ':').count();
                let value = match (colons, tail.is_empty()) {
                    (0, _) => None,
                    (1, true) => Some(words.next().ok_or("no value")?.clone()),
                    (_, true) => None,
                    (_, false) => Some(tail),
                };
                found.push((u32::from(letter), value));
                if colons > 0 {
                    break;
                }
            }
        } else {
            // The first word that is no option is the script.
            return Err(format!("{word} is run as the script"));
        }
    }
    Ok(found)
}

fn meaning(name: &str) -> u32 {
    ALL.iter().find(|o| o.0 == name).expect(name).2
}

/// No flag of the list means one of these to sbatch.
const RESERVED: &[&str] = &[
    "array",
    "autocomplete",
    "bb",
    "bbf",
    "chdir",
    "cluster",
    "cluster-constraint",
    "clusters",
    "comment",
    "container",
    "container-id",
    "context",
    "error",
    "export",
    "export-file",
    "get-user-env",
    "gid",
    "help",
    "hold",
    "ignore-pbs",
    "input",
    "job-name",
    "no-kill",
    "nodefile",
    "open-mode",
    "output",
    "parsable",
    "quiet",
    "signal",
    "test-only",
    "uid",
    "usage",
    "verbose",
    "version",
    "wait",
    "wrap",
];

fn is_reserved(meant: u32) -> bool {
    RESERVED.iter().any(|r| meaning(r) == meant)
}

#[test]
fn list_and_reserved_are_all_that_sbatch_has() {
    for (name, takes, meant) in ALL {
        let listed = table::SBATCH.iter().find(|f| f.name == *name);
        assert!(listed.is_some() != is_reserved(*meant) || *name == "ntasks-per-tres", "{name}");
        let Some(flag) = listed else { continue };
        let same = match flag.value {
            Value::None => No,
            Value::Needed => Required,
            Value::Optional => Optional,
        };
        assert_eq!(same, *takes, "{name}");
        assert_eq!(flag.short.map(u32::from), Some(*meant).filter(|m| *m < 256), "{name}");
    }
    assert!(table::SBATCH.iter().all(|f| ALL.iter().any(|o| o.0 == f.name)));
}

/// A Slurm that does not know one of our flags must not take it for the beginning of a reserved one.
#[test]
fn a_flag_that_this_slurm_lacks_becomes_no_reserved_one() {
    for flag in table::SBATCH {
        let older: Vec<_> = ALL.iter().copied().filter(|o| o.0 != flag.name).collect();
        let meant = getopt_long(&[format!("--{}=1", flag.name)], &older);
        assert!(
            !meant.as_ref().is_ok_and(|m| m.iter().any(|(meant, _)| is_reserved(*meant))),
            "{}: {meant:?}",
            flag.name
        );
    }
}

/// What once got through, or nearly: each means a reserved option to sbatch, so the model is worth something.
#[test]
fn abbreviations_and_bundles_reach_sbatch_but_not_through_us() {
    for text in [
        "--ou=/home/alice/.bashrc",
        "--op=truncate",
        "--er=x",
        "--ch=/tmp",
        "--in=x",
        "--si=USR1",
        "--get",
        "--jo=x",
        "--comm=x",
        "--ar=1-3",
        "--wait",
        "--wr=id",
        "--clusters=x",
        "-sJname",
        "-OHk",
        "-sD/tmp",
        "-ka1-3",
        "-Oo/x",
        "--export-f=x",
        "--nodef=x",
        "--cont=x",
        "--uid=0",
        "-W",
        "-QJx",
    ] {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        let meant = getopt_long(&words, ALL);
        // `--cont` is ambiguous to sbatch; it is refused here all the same.
        let reaches = meant.as_ref().is_ok_and(|m| m.iter().any(|(meant, _)| is_reserved(*meant)));
        assert!(reaches || text == "--cont=x", "{text}: {meant:?}");
        assert!(parsed(text).is_err(), "{text}");
    }
}

/// Words that resemble flags: beginnings of sbatch's names, letters in one word, values that look like flags.
fn words() -> impl Strategy<Value = String> {
    let name = (0..ALL.len(), 1..20_usize).prop_map(|(i, n)| ALL[i].0.chars().take(n).collect::<String>());
    let whole = (0..ALL.len()).prop_map(|i| ALL[i].0.to_owned());
    let value = prop_oneof![Just(String::new()), "=[-a-z:/]{0,4}", " [-a-z:/]{0,4}", "='[ a\n-]{1,3}'"];
    let long = (prop_oneof![name, whole], value.clone()).prop_map(|(n, v)| format!("--{n}{v}"));
    let short = ("-[a-zA-Z:]{1,4}", value).prop_map(|(n, v)| format!("{n}{v}"));
    let any = "[-a-zA-Z=:'\"\\\\ ]{0,12}";
    proptest::collection::vec(prop_oneof![3 => long, 2 => short, 1 => any], 1..4).prop_map(|all| all.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn sbatch_takes_exactly_what_the_arguments_say(text in words()) {
        if let Ok(list) = parsed(&text) {
            let meant = getopt_long(&list, ALL).map_err(TestCaseError::fail)?;
            prop_assert_eq!(meant.len(), list.len());
            for (argument, (meant, value)) in list.iter().zip(meant) {
                let (name, said) = match argument.split_once('=') {
                    Some((name, said)) => (name, Some(said.to_owned())),
                    None => (argument.as_str(), None),
                };
                prop_assert!(!is_reserved(meant), "{}", argument);
                prop_assert_eq!(name.strip_prefix("--").map(meaning), Some(meant));
                prop_assert_eq!(value, said);
                prop_assert!(!argument.contains(char::is_control));
            }
        }
    }
}
