//! Names that must not be taken for one another. In JSON they are strings.

use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// As text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        /// A map with this key is read with a `&str`.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.0 == other
            }
        }
    };
}

id! {
    /// The UID of a pod's API object. It is also the name of the pod's folders.
    PodUid
}
id! {
    /// What an executor calls one run of a pod: the id of a Slurm job.
    JobId
}
id! {
    /// The name of a Node of the API.
    NodeName
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn an_id_is_a_string_in_json_and_as_a_key() {
        let uid = PodUid::from("u-1");
        assert_eq!(serde_json::to_string(&uid).ok().as_deref(), Some("\"u-1\""));
        assert_eq!(serde_json::from_str::<JobId>("\"7\"").ok(), Some(JobId::from("7")));
        assert_eq!(HashMap::from([(uid, 1)]).get("u-1"), Some(&1));
    }
}
