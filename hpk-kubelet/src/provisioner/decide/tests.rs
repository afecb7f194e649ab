use super::*;
use serde_json::{Value, json};

fn world(classes: &[Value]) -> World {
    let mut world = World { home: "/h/volumes".into(), ..World::default() };
    for class in classes {
        let class: StorageClass = serde_json::from_value(class.clone()).expect("a class");
        world.classes.insert(class.metadata.name.clone().unwrap(), class);
    }
    world
}

fn class(name: &str, more: Value) -> Value {
    let mut class = json!({"metadata": {"name": name}, "provisioner": PROVISIONER});
    class.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    class
}

fn claim(spec: Value, annotations: Value) -> PersistentVolumeClaim {
    let mut whole = json!({"storageClassName": "home", "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let metadata = json!({"name": "data", "namespace": "ns", "uid": "0123456789ab", "annotations": annotations});
    serde_json::from_value(json!({"metadata": metadata, "spec": whole})).expect("a claim")
}

fn asked() -> Value {
    json!({ASKED[0]: PROVISIONER})
}

fn volume(phase: &str, policy: &str, finalizers: &[&str]) -> PersistentVolume {
    serde_json::from_value(json!({
        "metadata": {"name": "pvc-0123456789ab", "annotations": {ANNOTATION_BY: PROVISIONER}, "finalizers": finalizers},
        "spec": {"capacity": {"storage": "1Gi"}, "persistentVolumeReclaimPolicy": policy,
            "hostPath": {"path": "/h/volumes/ns/data-01234567"},
            "claimRef": {"namespace": "ns", "name": "data", "uid": "0123456789ab"}},
        "status": {"phase": phase}}))
    .expect("a volume")
}

#[test]
fn a_claim_gets_a_folder_that_people_find() {
    let world = world(&[class("home", json!({})), class("s", json!({"parameters": {"path": "/scratch"}}))]);
    let ForClaim::Provision(made) = world.for_claim(&claim(json!({}), asked())) else { panic!("nothing") };
    assert_eq!(made.place.path(), Path::new("/h/volumes/ns/data-01234567"));
    assert_eq!((made.volume.as_str(), made.reclaim.as_str()), ("pvc-0123456789ab", "Delete"));
    let ForClaim::Provision(made) = world.for_claim(&claim(json!({"storageClassName": "s"}), asked())) else {
        panic!("nothing")
    };
    assert_eq!(made.place.path(), Path::new("/scratch/ns/data-01234567"));
}

#[test]
fn nothing_is_made_before_it_is_asked_for() {
    let mut world = world(&[
        class("home", json!({})),
        class("late", json!({"volumeBindingMode": "WaitForFirstConsumer"})),
        json!({"metadata": {"name": "other"}, "provisioner": "example.org/other"}),
    ]);
    let late = || json!({"storageClassName": "late"});
    for (claim, why) in [
        (claim(json!({}), json!({})), "not asked"),
        (claim(json!({"storageClassName": "other"}), asked()), "another provisioner's"),
        (claim(json!({"storageClassName": "none"}), asked()), "no such class"),
        (claim(late(), asked()), "no consumer yet"),
        (claim(json!({"volumeName": "x"}), asked()), "it has a volume"),
    ] {
        assert_eq!(world.for_claim(&claim), ForClaim::Nothing, "{why}");
    }
    let consumed = claim(late(), json!({ASKED[0]: PROVISIONER, SELECTED: "hpk"}));
    assert!(matches!(world.for_claim(&consumed), ForClaim::Provision(_)));
    world.volumes.insert("pvc-0123456789ab".into(), volume("Available", "Delete", &[]));
    assert_eq!(world.for_claim(&consumed), ForClaim::Nothing, "made, not bound yet");
}

#[test]
fn what_cannot_be_is_refused_by_its_field() {
    let world = world(&[class("home", json!({})), class("bad", json!({"parameters": {"fsType": "x"}}))]);
    for (spec, word) in [
        (json!({"volumeMode": "Block"}), "volumeMode"),
        (json!({"selector": {"matchLabels": {"a": "b"}}}), "spec.selector"),
        (json!({"storageClassName": "bad"}), "parameters.fsType"),
        (json!({"dataSource": {"kind": "VolumeSnapshot", "name": "s"}}), "snapshots"),
        (json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "none"}}), "not bound"),
    ] {
        let ForClaim::Refuse(why) = world.for_claim(&claim(spec.clone(), asked())) else { panic!("{spec}") };
        assert!(why.to_string().contains(word), "{why}");
    }
    let climbs = claim(json!({}), json!({ASKED[0]: PROVISIONER, ANNOTATION_RESTORE: "../other/x"}));
    assert!(matches!(world.for_claim(&climbs), ForClaim::Refuse(Refusal::Restore(_))));
}

#[test]
fn a_copy_comes_from_a_bound_claim_of_the_same_namespace() {
    let mut world = world(&[class("home", json!({}))]);
    let mut source = claim(json!({"volumeName": "pvc-0123456789ab"}), json!({}));
    source.metadata.name = Some("source".into());
    source.status = serde_json::from_value(json!({"phase": "Bound"})).unwrap();
    let mut its = volume("Bound", "Delete", &[]);
    let of = its.spec.as_mut().unwrap();
    of.claim_ref.as_mut().unwrap().name = Some("source".into());
    of.host_path.as_mut().unwrap().path = "/h/volumes/ns/source-01234567".into();
    world.claims.insert(("ns".into(), "source".into()), source.clone());
    world.volumes.insert("pvc-0123456789ab".into(), its.clone());
    let from = |world: &World, size: &str| {
        let mut copy = claim(
            json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "source"},
                "resources": {"requests": {"storage": size}}}),
            asked(),
        );
        copy.metadata.uid = Some("ffff".into());
        world.for_claim(&copy)
    };
    let ForClaim::Provision(made) = from(&world, "1Gi") else { panic!("nothing") };
    assert_eq!(made.origin, Origin::CopyOf("/h/volumes/ns/source-01234567".into()));
    assert!(matches!(from(&world, "1Mi"), ForClaim::Refuse(Refusal::Smaller(..))));
    let none = |world: &World, why: &str| {
        assert!(matches!(from(world, "1Gi"), ForClaim::Refuse(Refusal::NoSource(_))), "{why}");
    };
    source.status = None;
    world.claims.insert(("ns".into(), "source".into()), source.clone());
    none(&world, "not bound");
    // Whoever makes a claim may name any volume in it.
    source.status = serde_json::from_value(json!({"phase": "Bound"})).unwrap();
    world.claims.insert(("ns".into(), "source".into()), source);
    for change in [json!({"uid": "another"}), json!({"namespace": "other"}), json!({"name": "other"}), Value::Null] {
        let mut foreign = serde_json::to_value(&its).unwrap();
        match change {
            Value::Null => foreign["spec"]["claimRef"] = Value::Null,
            change => foreign["spec"]["claimRef"].as_object_mut().unwrap().extend(change.as_object().unwrap().clone()),
        }
        world.volumes.insert("pvc-0123456789ab".into(), serde_json::from_value(foreign).unwrap());
        none(&world, "the volume is another claim's");
    }
}

#[test]
fn a_claim_that_grows_is_expanded_until_it_is_told() {
    let mut world = world(&[class("home", json!({}))]);
    world.volumes.insert("pvc-0123456789ab".into(), volume("Bound", "Delete", &[]));
    let bound = |asked: &str, told: &str| {
        let mut claim =
            claim(json!({"volumeName": "pvc-0123456789ab", "resources": {"requests": {"storage": asked}}}), json!({}));
        claim.status = serde_json::from_value(json!({"phase": "Bound", "capacity": {"storage": told}})).unwrap();
        claim
    };
    let grow = |size: &str| ForClaim::Expand { volume: "pvc-0123456789ab".into(), size: Quantity(size.into()) };
    assert_eq!(world.for_claim(&bound("1Gi", "1Gi")), ForClaim::Nothing);
    assert_eq!(world.for_claim(&bound("2Gi", "1Gi")), grow("2Gi"));
    assert_eq!(world.for_claim(&bound("1Gi", "512Mi")), grow("1Gi"), "the volume has grown, the claim is not told");
}

#[test]
fn a_volume_goes_when_its_claim_is_gone() {
    let world = world(&[]);
    let place = Place { root: "/h/volumes".into(), namespace: "ns".into(), leaf: "data-01234567".into() };
    let remove = ForVolume::Remove { place, archive: false };
    assert_eq!(world.for_volume(&volume("Bound", "Delete", &[FINALIZER])), ForVolume::Nothing);
    assert_eq!(world.for_volume(&volume("Released", "Delete", &[FINALIZER])), remove);
    assert_eq!(world.for_volume(&volume("Released", "Retain", &[])), ForVolume::Nothing);
    assert_eq!(world.for_volume(&volume("Bound", "Retain", &[FINALIZER])), ForVolume::LetGo);
    let mut others = volume("Released", "Delete", &[]);
    others.metadata.annotations = None;
    assert_eq!(world.for_volume(&others), ForVolume::Nothing, "a static volume");
}

#[test]
fn no_folder_is_removed_that_was_not_made_here() {
    let world = world(&[]);
    for path in ["/home/alice", "/h/volumes/other/data-01234567", "/h/volumes/ns/data-99999999", "/"] {
        let mut changed = volume("Released", "Delete", &[FINALIZER]);
        changed.spec.as_mut().unwrap().host_path.as_mut().unwrap().path = path.into();
        assert_eq!(world.for_volume(&changed), ForVolume::LetGo, "{path}");
    }
}
