//! Names in a gang's folder, `HPK_HOME/gangs/<id>`.

/// `hpk_api::gang::GangFile`, written by hpk-kubelet.
pub const FILE: &str = "gang.json";
/// Folder of the members' files, which the gang's agent writes.
pub const MEMBERS: &str = "members";

/// Name of a member's `hpk_api::gang::MemberFile` in [`MEMBERS`].
#[must_use]
pub fn member_file(uid: &str) -> String {
    format!("{uid}.json")
}
