//! Which applications there are, and what an installation of one consists of. Pure.
//!
//! The list is `images/apps/apps.json`, which `images/apps/build.sh` builds bundles from: the version, where upstream's
//! manifest comes from and its SHA-256, the images, and the few settings that a rootless cluster needs.

use hpk_layout::app as app_file;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;

const LIST: &str = include_str!("../../../../images/apps/apps.json");

/// An application. What only the build of its bundle needs is not read here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct App {
    /// What the user calls it.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// Upstream's version, `v1.2.3`.
    pub version: String,
    /// SHA-256 of the bundle's manifest.yaml, in hex.
    pub manifest_sha256: String,
    /// Where its own pods run.
    pub namespace: String,
    /// Whether upstream's manifest leaves the namespace to whoever applies it.
    #[serde(default)]
    pub makes_namespace: bool,
    /// Images of its own.
    pub images: Vec<Image>,
    /// Commands for the user.
    #[serde(default)]
    pub programs: Vec<Program>,
    /// Changes of upstream's manifest.
    #[serde(default)]
    pub settings: Vec<Setting>,
}

/// An image of an application.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Image {
    /// Its folder in the bundle.
    pub name: String,
    /// Its name in upstream's manifest, without a tag.
    pub upstream: String,
}

/// A command for the user.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Program {
    /// Its file's name.
    pub name: String,
}

/// One change of upstream's manifest.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Setting {
    /// The reason, for people.
    pub why: String,
    /// Which object, as kustomize's `patches[].target` has it.
    pub target: Value,
    /// A JSON patch or a strategic merge patch. `$IMAGE(name)` in a text is the image of that name.
    pub patch: Value,
}

/// Where pods find the images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Images {
    /// OCI layouts in folders below this one.
    Files(PathBuf),
    /// A registry, and a path in it if there is one: `login:5000/apps`.
    Registry(String),
}

impl Images {
    /// The image without its tag.
    fn name(&self, image: &Image) -> String {
        match self {
            Self::Files(folder) => format!("oci:{}", folder.join(&image.name).display()),
            Self::Registry(registry) => format!("{}/{}", registry.trim_end_matches('/'), image.name),
        }
    }
}

/// All applications.
///
/// # Errors
/// When the list that is built in is not as it should be, which a test excludes.
pub(crate) fn list() -> serde_json::Result<Vec<App>> {
    serde_json::from_str(LIST)
}

impl App {
    /// What kubectl makes the objects from: a kustomization beside the bundle's `manifest.yaml`.
    pub(crate) fn kustomization(&self, images: &Images) -> Value {
        let named =
            |image: &Image| json!({"name": image.upstream, "newName": images.name(image), "newTag": self.version});
        let patch = |setting: &Setting| {
            let mut text = setting.patch.to_string();
            for image in &self.images {
                let whole = format!("{}:{}", images.name(image), self.version);
                text = text.replace(&format!("$IMAGE({})", image.name), &whole);
            }
            json!({"target": setting.target, "patch": text})
        };
        let mut whole = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [app_file::MANIFEST],
            "images": self.images.iter().map(named).collect::<Vec<_>>(),
            "patches": self.settings.iter().map(patch).collect::<Vec<_>>(),
        });
        if self.makes_namespace {
            whole["namespace"] = json!(self.namespace);
            whole["resources"] = json!([app_file::NAMESPACE, app_file::MANIFEST]);
        }
        whole
    }

    /// The namespace as an object, for an application whose manifest has none.
    pub(crate) fn namespace(&self) -> Value {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})
    }

    /// The name of its bundle's folder.
    pub(crate) fn bundle(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }
}

/// The application of a name.
///
/// # Errors
/// With the names that there are.
pub(crate) fn find(apps: Vec<App>, name: &str) -> Result<App, String> {
    let names: Vec<String> = apps.iter().map(|app| app.name.clone()).collect();
    let found = apps.into_iter().find(|app| app.name == name);
    found.ok_or_else(|| format!("{name}: no such application; there are {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sound() {
        let apps = list().unwrap();
        let mut names: Vec<_> = apps.iter().map(|a| a.name.as_str()).collect();
        names.dedup();
        assert_eq!(names.len(), apps.len());
        for app in &apps {
            let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            assert!(plain(&app.name) && plain(&app.namespace), "{}: names of files and namespaces", app.name);
            assert!(app.images.iter().all(|image| plain(&image.name)), "{}", app.name);
            assert_eq!(app.manifest_sha256.len(), 64, "{}", app.name);
            for setting in &app.settings {
                assert!(!setting.why.is_empty() && setting.target["kind"].is_string(), "{}: {setting:?}", app.name);
            }
            let made = app.kustomization(&Images::Registry("r".into())).to_string();
            assert!(!made.contains("$IMAGE("), "{}: an image that it does not have: {made}", app.name);
        }
    }

    #[test]
    fn images_are_named_where_they_lie() {
        let app: App = serde_json::from_value(json!({
            "name": "x", "title": "X", "version": "v1", "manifest_sha256": "", "namespace": "x-system",
            "images": [{"name": "one", "upstream": "quay.io/x/one"}],
            "settings": [{"why": "w", "target": {"kind": "Deployment"},
                "patch": [{"op": "replace", "path": "/a", "value": "$IMAGE(one)"}]}],
        }))
        .unwrap();
        let of = |images| app.kustomization(&images);
        let files = of(Images::Files("/home/me/.hpk/apps/x/images".into()));
        assert_eq!(
            files["images"],
            json!([{"name": "quay.io/x/one", "newName": "oci:/home/me/.hpk/apps/x/images/one", "newTag": "v1"}])
        );
        assert!(files["patches"][0]["patch"].as_str().unwrap().contains("oci:/home/me/.hpk/apps/x/images/one:v1"));
        assert_eq!(of(Images::Registry("login:5000/a/".into()))["images"][0]["newName"], "login:5000/a/one");
        assert_eq!(files["resources"], json!(["manifest.yaml"]));
        assert_eq!(files["namespace"], Value::Null);
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_right_ones() {
        let refused = find(list().unwrap(), "argoo").unwrap_err();
        assert!(refused.contains("argoo") && refused.contains("there are argo"), "{refused}");
    }
}
