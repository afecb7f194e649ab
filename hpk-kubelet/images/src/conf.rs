//! `registries.conf`, which Podman, Skopeo, Buildah and CRI-O read: mirrors, short names, registries that are blocked or
//! insecure. Rules: containers-registries.conf(5), version 2.
//!
//! It is read at each pull, so that a change counts at once and a fault is told where the image is waited for. Which place an
//! image is asked at ([`Conf::places`]) is pure.

use crate::error::SourceError;
use oci_client::Reference;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where the files may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfFiles {
    /// The first that is there counts.
    main: Vec<PathBuf>,
    /// Folders of further files, which change what the one before says.
    folders: Vec<PathBuf>,
    /// Short names that Podman has asked its user about.
    aliases: Option<PathBuf>,
}

impl ConfFiles {
    /// Of a user with these variables of environment.
    #[must_use]
    pub fn of_user(variable: impl Fn(&str) -> Option<String>) -> Self {
        let folder = |name: &str| variable(name).filter(|value| value.starts_with('/')).map(PathBuf::from);
        let home = folder("HOME");
        let below = |folder: &Option<PathBuf>, name: &str| folder.as_ref().map(|folder| folder.join(name));
        let own = folder("XDG_CONFIG_HOME").or_else(|| below(&home, ".config"));
        let cache = folder("XDG_CACHE_HOME").or_else(|| below(&home, ".cache"));
        let system = Path::new("/etc/containers");
        let main = match folder("CONTAINERS_REGISTRIES_CONF") {
            Some(named) => vec![named],
            None => {
                below(&own, "containers/registries.conf").into_iter().chain([system.join("registries.conf")]).collect()
            }
        };
        let folders = [Some(system.join("registries.conf.d")), below(&own, "containers/registries.conf.d")];
        let aliases = below(&cache, "containers/short-name-aliases.conf");
        Self { main, folders: folders.into_iter().flatten().collect(), aliases }
    }

    /// Reads them; blocking.
    ///
    /// # Errors
    /// A file that is there and cannot be used.
    pub(crate) fn read(&self) -> Result<Conf, SourceError> {
        let mut conf = Conf::default();
        for path in &self.main {
            if let Some(text) = text_of(path)? {
                conf.add(path, &text)?;
                break;
            }
        }
        for folder in &self.folders {
            let mut files: Vec<PathBuf> = match std::fs::read_dir(folder) {
                Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(SourceError::io("read", folder)(e)),
            };
            files.retain(|path| path.extension().is_some_and(|end| end == "conf"));
            files.sort();
            for path in files {
                if let Some(text) = text_of(&path)? {
                    conf.add(&path, &text)?;
                }
            }
        }
        if let Some(path) = &self.aliases
            && let Some(text) = text_of(path)?
        {
            conf.add(path, &text)?;
        }
        Ok(conf)
    }
}

fn text_of(path: &Path) -> Result<Option<String>, SourceError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(SourceError::io("read", path)(e)),
    }
}

/// What the files say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Conf {
    search: Option<Vec<String>>,
    /// Several registries may be searched for a short name, whoever answers first.
    searches_all: bool,
    rules: Vec<Rule>,
    aliases: BTreeMap<String, String>,
}

/// One file.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    unqualified_search_registries: Option<Vec<String>>,
    short_name_mode: Option<String>,
    #[serde(default)]
    registry: Vec<Rule>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    /// Version 1.
    registries: Option<toml::Value>,
}

/// A table `[[registry]]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Rule {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
    /// Who says so.
    #[serde(skip)]
    file: PathBuf,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: String,
}

/// A place where an image may be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    /// What the image is called there by those who do not know of mirrors.
    pub(crate) name: Reference,
    /// What is asked for.
    pub(crate) at: Reference,
    /// Plain http, and TLS with certificates that nobody trusts, are good enough.
    pub(crate) insecure: bool,
}

impl Place {
    fn itself(name: &Reference) -> Self {
        Self { name: name.clone(), at: name.clone(), insecure: false }
    }
}

impl Conf {
    /// What one more file says.
    fn add(&mut self, path: &Path, text: &str) -> Result<(), SourceError> {
        let bad = |why: &str| SourceError::Other(format!("{}: {why}", path.display()));
        let file: File = toml::from_str(text).map_err(|e| {
            let before = e.span().map_or(0, |span| span.start);
            let line = text.bytes().take(before).filter(|byte| *byte == b'\n').count() + 1;
            bad(&format!("line {line}: {}", e.message()))
        })?;
        if file.registries.is_some() {
            return Err(bad(
                "[registries.…] is version 1 of this file: write unqualified-search-registries and [[registry]]",
            ));
        }
        if let Some(search) = file.unqualified_search_registries {
            self.search = Some(search);
        }
        match file.short_name_mode.as_deref() {
            None | Some("") => {}
            Some("enforcing") => self.searches_all = false,
            Some("permissive" | "disabled") => self.searches_all = true,
            Some(_) => return Err(bad("short-name-mode must be enforcing, permissive or disabled")),
        }
        for mut rule in file.registry {
            if rule.prefix.is_empty() {
                rule.prefix.clone_from(&rule.location);
            }
            if rule.prefix.is_empty() {
                return Err(bad("a [[registry]] needs a prefix or a location"));
            }
            if let Some(word) =
                rule.mirror.iter().map(|m| &m.pull_from_mirror).find(|w| !MIRROR_WORDS.contains(&w.as_str()))
            {
                return Err(bad(&format!("pull-from-mirror must be all, digest-only or tag-only, not {word:?}")));
            }
            path.clone_into(&mut rule.file);
            self.rules.retain(|known| known.prefix != rule.prefix);
            self.rules.push(rule);
        }
        for (name, full) in file.aliases {
            if full.is_empty() {
                self.aliases.remove(&name);
            } else {
                self.aliases.insert(name, full);
            }
        }
        Ok(())
    }

    /// Where an image is to be asked for, one place after the other until one has it. `short`: its name as it was written,
    /// where that names no registry.
    ///
    /// # Errors
    /// A registry that is blocked, or a short name that may mean several.
    pub(crate) fn places(&self, image: &Reference, short: Option<&str>) -> Result<Vec<Place>, SourceError> {
        let names = match short {
            Some(short) => self.names(image, short)?,
            None => vec![image.clone()],
        };
        let mut places = Vec::new();
        for name in names {
            places.extend(self.places_of(&name)?);
        }
        Ok(places)
    }

    /// What a short name stands for.
    fn names(&self, image: &Reference, short: &str) -> Result<Vec<Reference>, SourceError> {
        let end = short.find('@').unwrap_or(short.len());
        let repository = match short[..end].rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => name,
            _ => &short[..end],
        };
        let of = |registry: &str, repository: &str| {
            let text = format!("{registry}/{repository}{}", ending(image));
            let parsed = Reference::try_from(text.as_str());
            parsed.map_err(|e| SourceError::Other(format!("registries.conf makes {text:?} of {short:?}: {e}")))
        };
        if let Some(full) = self.aliases.get(repository) {
            let (registry, repository) = full.split_once('/').unwrap_or((full, ""));
            return Ok(vec![of(registry, repository)?]);
        }
        let search = match &self.search {
            // Kubernetes' own meaning of such a name.
            None => return Ok(vec![image.clone()]),
            Some(search) if self.searches_all || search.len() == 1 => search,
            Some(search) if search.iter().any(|registry| registry == "docker.io") => return Ok(vec![image.clone()]),
            Some(search) => {
                return Err(SourceError::Forbidden(format!(
                    "{short:?} names no registry, and unqualified-search-registries of registries.conf leaves open which it is \
                     ({}): write one before the name, or add it to [aliases]",
                    search.join(", ")
                )));
            }
        };
        search.iter().map(|registry| of(registry, repository)).collect()
    }

    fn places_of(&self, name: &Reference) -> Result<Vec<Place>, SourceError> {
        let whole = plain(name);
        let matching = self.rules.iter().filter_map(|rule| Some((rule.matches(&whole)?, rule)));
        let Some((length, rule)) = matching.max_by_key(|(_, rule)| rule.prefix.len()) else {
            return Ok(vec![Place::itself(name)]);
        };
        if rule.blocked {
            let (prefix, file) = (&rule.prefix, rule.file.display());
            return Err(SourceError::Forbidden(format!("registry {prefix} is blocked by {file}")));
        }
        let rewritten = |location: &str, insecure| {
            let text = if location.is_empty() { whole.clone() } else { format!("{location}{}", &whole[length..]) };
            match Reference::try_from(text.as_str()) {
                Ok(at) => Ok(Place { name: name.clone(), at, insecure }),
                Err(e) => Err(SourceError::Other(format!("{}: makes {text:?} of {whole:?}: {e}", rule.file.display()))),
            }
        };
        let by_digest = name.digest().is_some();
        let fits = |mirror: &&Mirror| match mirror.pull_from_mirror.as_str() {
            _ if rule.mirror_by_digest_only => by_digest,
            "digest-only" => by_digest,
            "tag-only" => !by_digest,
            _ => true,
        };
        let mirrors = rule.mirror.iter().filter(fits).map(|mirror| rewritten(&mirror.location, mirror.insecure));
        mirrors.chain([rewritten(&rule.location, rule.insecure)]).collect()
    }
}

const MIRROR_WORDS: [&str; 4] = ["", "all", "digest-only", "tag-only"];

/// `registry/repository` with tag or digest. With both the digest is what counts.
fn plain(name: &Reference) -> String {
    format!("{}/{}{}", name.registry(), name.repository(), ending(name))
}

fn ending(name: &Reference) -> String {
    match (name.digest(), name.tag()) {
        (Some(digest), _) => format!("@{digest}"),
        (None, Some(tag)) => format!(":{tag}"),
        (None, None) => String::new(),
    }
}

impl Rule {
    /// How much of a full name its prefix covers.
    fn matches(&self, name: &str) -> Option<usize> {
        let length = match self.prefix.strip_prefix('*') {
            // `*.example.com`: every host below it.
            Some(end) => {
                let at = name.find(end).filter(|at| *at > 0 && !name[..*at].contains('/'))?;
                at + end.len()
            }
            None => name.starts_with(&self.prefix).then_some(self.prefix.len())?,
        };
        matches!(name.as_bytes().get(length), None | Some(b'/' | b':' | b'@')).then_some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(texts: &[&str]) -> Conf {
        let mut conf = Conf::default();
        texts.iter().for_each(|text| conf.add(Path::new("/etc/containers/registries.conf"), text).unwrap());
        conf
    }

    fn places(conf: &Conf, image: &str) -> Result<Vec<String>, String> {
        let reference = Reference::try_from(image).unwrap();
        let short = crate::reference::is_short(image).then_some(image);
        let places = conf.places(&reference, short).map_err(|e| e.to_string())?;
        Ok(places.iter().map(|p| format!("{}{}", plain(&p.at), if p.insecure { " insecure" } else { "" })).collect())
    }

    #[test]
    fn mirrors_come_first_and_the_place_itself_last() {
        let conf = conf(&[r#"
            [[registry]]
            prefix = "docker.io"
            location = "docker.io"
            [[registry.mirror]]
            location = "mirror.site:5000/hub"
            insecure = true
            [[registry.mirror]]
            location = "digests.site"
            pull-from-mirror = "digest-only"
            [[registry]]
            prefix = "quay.io/team"
            location = "harbor.site/quay-team"
            [[registry]]
            location = "plain.site:5000"
            insecure = true
            [[registry]]
            prefix = "*.bad.example"
            blocked = true
            [[registry]]
            prefix = "ok.bad.example"
            location = "ok.bad.example"
        "#]);
        let digest = format!("@sha256:{}", "a".repeat(64));
        for (image, expected) in [
            (
                "busybox:1",
                vec![
                    "mirror.site:5000/hub/library/busybox:1 insecure".to_owned(),
                    "docker.io/library/busybox:1".into(),
                ],
            ),
            (
                &*format!("docker.io/a/b{digest}"),
                vec![
                    format!("mirror.site:5000/hub/a/b{digest} insecure"),
                    format!("digests.site/a/b{digest}"),
                    format!("docker.io/a/b{digest}"),
                ],
            ),
            ("quay.io/team/app:2", vec!["harbor.site/quay-team/app:2".into()]),
            ("quay.io/teams/app:2", vec!["quay.io/teams/app:2".into()]),
            ("plain.site:5000/x:1", vec!["plain.site:5000/x:1 insecure".into()]),
            ("plain.site:50/x:1", vec!["plain.site:50/x:1".into()]),
            ("ok.bad.example/x:1", vec!["ok.bad.example/x:1".into()]),
        ] {
            assert_eq!(places(&conf, image).unwrap(), expected, "{image}");
        }
        let error = places(&conf, "a.b.bad.example/x:1").unwrap_err();
        assert_eq!(error, "registry *.bad.example is blocked by /etc/containers/registries.conf");
        assert!(places(&conf, "bad.example/x:1").is_ok());
    }

    #[test]
    fn short_names() {
        for (text, image, expected) in [
            ("", "busybox", Ok(vec!["docker.io/library/busybox:latest"])),
            (r#"unqualified-search-registries = ["quay.io"]"#, "busybox:1", Ok(vec!["quay.io/busybox:1"])),
            (r#"unqualified-search-registries = ["quay.io"]"#, "team/app", Ok(vec!["quay.io/team/app:latest"])),
            (r#"unqualified-search-registries = ["quay.io"]"#, "docker.io/x", Ok(vec!["docker.io/library/x:latest"])),
            (r#"unqualified-search-registries = ["quay.io", "docker.io"]"#, "x:1", Ok(vec!["docker.io/library/x:1"])),
            (r#"unqualified-search-registries = ["quay.io", "ghcr.io"]"#, "x:1", Err("(quay.io, ghcr.io)")),
            (r#"unqualified-search-registries = []"#, "x:1", Err("names no registry")),
            (
                "unqualified-search-registries = [\"quay.io\", \"ghcr.io\"]\nshort-name-mode = \"permissive\"",
                "x:1",
                Ok(vec!["quay.io/x:1", "ghcr.io/x:1"]),
            ),
            ("[aliases]\nx = \"quay.io/team/x\"", "x:1", Ok(vec!["quay.io/team/x:1"])),
        ] {
            let got = places(&conf(&[text]), image);
            match expected {
                Ok(list) => assert_eq!(got.unwrap(), list, "{text} {image}"),
                Err(part) => assert!(got.unwrap_err().contains(part), "{text} {image}"),
            }
        }
    }

    #[test]
    fn later_files_win_and_bad_ones_are_named() {
        let two = conf(&[
            "[[registry]]\nlocation = \"a.example\"\nblocked = true\n[aliases]\nx = \"a.example/x\"\ny = \"a.example/y\"",
            "[[registry]]\nlocation = \"a.example\"\n[aliases]\nx = \"\"",
        ]);
        assert_eq!(places(&two, "a.example/z:1").unwrap(), ["a.example/z:1"]);
        assert_eq!(places(&two, "x:1").unwrap(), ["docker.io/library/x:1"]);
        assert_eq!(places(&two, "y:1").unwrap(), ["a.example/y:1"]);
        for (text, part) in [
            ("[registries.search]\nregistries = []", "version 1"),
            ("[[registry]]\nblocked = true", "needs a prefix"),
            ("short-name-mode = \"maybe\"", "enforcing, permissive or disabled"),
            ("[[registry]]\nlocation = 5", "invalid type"),
            ("\nx = ", "line 2: "),
            (
                "[[registry]]\nlocation=\"a\"\n[[registry.mirror]]\nlocation=\"b\"\npull-from-mirror=\"x\"",
                "pull-from-mirror",
            ),
        ] {
            let error = Conf::default().add(Path::new("/x.conf"), text).unwrap_err().to_string();
            assert!(error.starts_with("/x.conf: ") && error.contains(part), "{error}");
        }
    }

    #[test]
    fn files_are_where_podman_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().display().to_string();
        let files = ConfFiles::of_user(|name| (name == "HOME").then(|| home.clone()));
        let own = dir.path().join(".config/containers");
        assert_eq!(files.main, [own.join("registries.conf"), "/etc/containers/registries.conf".into()]);
        std::fs::create_dir_all(own.join("registries.conf.d")).unwrap();
        std::fs::create_dir_all(dir.path().join(".cache/containers")).unwrap();
        let put = |path: &str, text: &str| std::fs::write(dir.path().join(path), text).unwrap();
        put(".config/containers/registries.conf", "unqualified-search-registries = [\"a.example\"]");
        put(".config/containers/registries.conf.d/9.conf", "unqualified-search-registries = [\"c.example\"]");
        put(".config/containers/registries.conf.d/1.conf", "unqualified-search-registries = [\"b.example\"]");
        put(".config/containers/registries.conf.d/not", "]");
        put(".cache/containers/short-name-aliases.conf", "[aliases]\nx = \"d.example/x\"");
        let files =
            ConfFiles { folders: files.folders.into_iter().filter(|f| f.starts_with(dir.path())).collect(), ..files };
        let conf = files.read().unwrap();
        assert_eq!(places(&conf, "y:1").unwrap(), ["c.example/y:1"]);
        assert_eq!(places(&conf, "x:1").unwrap(), ["d.example/x:1"]);
        let named = ConfFiles::of_user(|name| (name == "CONTAINERS_REGISTRIES_CONF").then(|| "/r.conf".to_owned()));
        assert_eq!(named.main, [PathBuf::from("/r.conf")]);
    }
}
