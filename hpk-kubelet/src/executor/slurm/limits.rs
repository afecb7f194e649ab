//! What the site gives jobs that ask for nothing, and how long they may run: `scontrol show partition` and `show config`.

pub(crate) use hpk_api::time_limit::TimeLimit;

/// Partitions with their limits, and what the environment of `hpk up` chooses among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    partitions: Vec<(String, Limits)>,
    /// The partition of jobs that name none.
    usual: Option<String>,
    /// For all partitions that say nothing of their own.
    memory: SiteMemory,
    /// Time limit of jobs that name none, from the environment.
    time: Option<TimeLimit>,
}

/// Of one partition, or of several of which Slurm chooses one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The longest that a job may run. None: not known.
    pub most_time: Option<TimeLimit>,
    /// Time limit of a job that names none. None: not known.
    pub usual_time: Option<TimeLimit>,
    /// Memory of a job that names none.
    pub memory: SiteMemory,
}

/// Memory of a job that names none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SiteMemory {
    /// The site sets nothing: such a job has all of its node's.
    #[default]
    Unset,
    /// MiB.
    Job(u64),
    /// MiB for each CPU.
    Cpu(u64),
}

impl SiteMemory {
    /// MiB of a job with so many CPUs.
    #[must_use]
    pub fn of(self, cpus: u64) -> u64 {
        match self {
            Self::Unset => 0,
            Self::Job(mib) => mib,
            Self::Cpu(mib) => mib.saturating_mul(cpus),
        }
    }

    /// From the values of DefMemPerNode and DefMemPerCPU. 0 and UNLIMITED set nothing.
    fn parse(node: Option<&str>, cpu: Option<&str>) -> Self {
        let number = |text: Option<&str>| text.and_then(|t| t.parse().ok()).filter(|n| *n > 0);
        number(node).map(Self::Job).or_else(|| number(cpu).map(Self::Cpu)).unwrap_or_default()
    }
}

impl Site {
    /// From the answers of `scontrol show config` and `scontrol --oneliner show partition`, and from the environment.
    #[must_use]
    pub fn parse(config: &str, partitions: &str, environment: impl Fn(&str) -> Option<String>) -> Self {
        let setting = |name: &str| {
            let of = |line: &&str| line.split_once('=').filter(|(key, _)| key.trim() == name).is_some();
            config.lines().find(of).and_then(|line| line.split_once('=')).map(|(_, value)| value.trim())
        };
        let mut site = Self {
            usual: environment("SBATCH_PARTITION"),
            memory: SiteMemory::parse(setting("DefMemPerNode"), setting("DefMemPerCPU")),
            time: environment("SBATCH_TIMELIMIT").and_then(|t| TimeLimit::parse(&t)),
            ..Self::default()
        };
        for line in partitions.lines() {
            let field = |name: &str| line.split_whitespace().find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
            let Some(name) = field("PartitionName") else { continue };
            let most_time = field("MaxTime").and_then(TimeLimit::parse);
            let limits = Limits {
                most_time,
                // A partition that says NONE gives what it allows.
                usual_time: field("DefaultTime").and_then(TimeLimit::parse).or(most_time),
                memory: SiteMemory::parse(field("DefMemPerNode"), field("DefMemPerCPU")),
            };
            site.partitions.push((name.to_owned(), limits));
            if field("Default") == Some("YES") && site.usual.is_none() {
                site.usual = Some(name.to_owned());
            }
        }
        site
    }

    /// The partition of jobs that name none.
    #[must_use]
    pub fn usual(&self) -> Option<&str> {
        self.usual.as_deref()
    }

    /// What holds for a job of these partitions (`a,b`), or of the usual one. Of several partitions the shortest times and
    /// the most memory: so it holds wherever the job runs.
    #[must_use]
    pub fn limits(&self, partitions: Option<&str>) -> Limits {
        let names = partitions.or(self.usual.as_deref()).unwrap_or_default();
        let mut all = Limits::default();
        for name in names.split(',') {
            let Some((_, one)) = self.partitions.iter().find(|(n, _)| n == name.trim()) else { continue };
            all.most_time = least(all.most_time, one.most_time);
            all.usual_time = least(all.usual_time, one.usual_time);
            if one.memory.of(1) > all.memory.of(1) {
                all.memory = one.memory;
            }
        }
        if all.memory == SiteMemory::Unset {
            all.memory = self.memory;
        }
        all.usual_time = self.time.or(all.usual_time);
        all
    }
}

fn least(a: Option<TimeLimit>, b: Option<TimeLimit>) -> Option<TimeLimit> {
    a.into_iter().chain(b).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use TimeLimit::{Seconds, Unlimited};

    const CONFIG: &str =
        "Configuration data as of 2026\nDefMemPerCPU            = 100\nDefMemPerNode           = UNLIMITED\n";
    const PARTITIONS: &str = "\
PartitionName=main AllowGroups=ALL Default=YES QoS=N/A DefaultTime=NONE MaxTime=UNLIMITED DefMemPerCPU=UNLIMITED
PartitionName=debug AllowGroups=ALL Default=NO DefaultTime=00:01:00 MaxTime=00:05:00 DefMemPerCPU=2000 MaxMemPerNode=UNLIMITED
PartitionName=big Default=NO DefaultTime=NONE MaxTime=1-00:00:00 DefMemPerNode=64000
";

    #[test]
    fn limits_of_partitions() {
        let site = Site::parse(CONFIG, PARTITIONS, |_| None);
        let of = |name: Option<&str>| {
            let limits = site.limits(name);
            (limits.most_time, limits.usual_time, limits.memory)
        };
        let day = Some(Seconds(86_400));
        assert_eq!(of(None), (Some(Unlimited), Some(Unlimited), SiteMemory::Cpu(100)));
        assert_eq!(of(Some("debug")), (Some(Seconds(300)), Some(Seconds(60)), SiteMemory::Cpu(2000)));
        assert_eq!(of(Some("big")), (day, day, SiteMemory::Job(64_000)));
        assert_eq!(of(Some("debug,big")), (Some(Seconds(300)), Some(Seconds(60)), SiteMemory::Job(64_000)));
        assert_eq!(of(Some("nowhere")), (None, None, SiteMemory::Cpu(100)));
        assert_eq!(Site::default().limits(None), Limits::default());
    }

    #[test]
    fn the_environment_chooses() {
        let chosen = |name: &str| match name {
            "SBATCH_PARTITION" => Some("debug".to_owned()),
            "SBATCH_TIMELIMIT" => Some("3".to_owned()),
            _ => None,
        };
        let limits = Site::parse(CONFIG, PARTITIONS, chosen).limits(None);
        assert_eq!((limits.most_time, limits.usual_time), (Some(Seconds(300)), Some(Seconds(180))));
    }
}
