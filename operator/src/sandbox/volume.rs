//! The workspace of a sandbox that shall outlive its pods.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource as _, ResourceExt as _};
use longhand_crds::{Sandbox, SandboxTemplate, labels};

use super::pod;

/// What there is of a workspace's volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Volume {
    /// There is none.
    Missing,
    /// It has no storage yet.
    Pending {
        /// The claim's name.
        name: String,
        /// What it waits for.
        why: String,
    },
    /// It can be used.
    Bound {
        /// The claim's name.
        name: String,
    },
    /// Its storage is gone for ever.
    Lost {
        /// The claim's name.
        name: String,
    },
}

impl Volume {
    /// What there is of the claim, if it belongs to the object with the UID `owner`.
    pub(super) fn of(claim: Option<&PersistentVolumeClaim>, owner: &str) -> Self {
        let ours = |claim: &&PersistentVolumeClaim| {
            claim.metadata.deletion_timestamp.is_none()
                && claim.owner_references().iter().any(|reference| reference.uid == owner)
        };
        let Some(claim) = claim.filter(ours) else { return Self::Missing };
        let name = claim.name_any();
        match claim.status.as_ref().and_then(|status| status.phase.as_deref()) {
            Some("Bound") => Self::Bound { name },
            Some("Lost") => Self::Lost { name },
            _ => {
                let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
                let class = class.unwrap_or("the default, if there is one");
                let why = format!(
                    "PersistentVolumeClaim {name} of StorageClass {class} has no volume yet; its events say more"
                );
                Self::Pending { name, why }
            }
        }
    }

    /// Whether one must be made.
    pub(super) const fn is_missing(&self) -> bool {
        matches!(self, Self::Missing)
    }

    /// What it waits for, if it waits.
    pub(super) fn pending(&self) -> Option<&str> {
        match self {
            Self::Pending { why, .. } => Some(why),
            Self::Lost { .. } => Some("the storage behind its PersistentVolumeClaim is lost"),
            Self::Missing | Self::Bound { .. } => None,
        }
    }

    /// Whether a pod may have written to it.
    pub(super) const fn may_hold_files(&self) -> bool {
        matches!(self, Self::Bound { .. } | Self::Lost { .. })
    }

    /// The claim that keeps the workspace, if there is one.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Pending { name, .. } | Self::Bound { name } => Some(name),
            Self::Missing | Self::Lost { .. } => None,
        }
    }
}

/// The name of the claim that a sandbox keeps its workspace in: its own, or the one that another sandbox hands over.
pub(super) fn claim_name(sandbox: &Sandbox) -> String {
    let own = || pod::stem(&sandbox.name_any(), &sandbox.uid().unwrap_or_default());
    sandbox.spec.workspace_from.as_ref().and_then(|from| from.claim.clone()).unwrap_or_else(own)
}

/// The claim of a sandbox, which goes when the sandbox goes.
pub(super) fn build(sandbox: &Sandbox, template: &SandboxTemplate) -> PersistentVolumeClaim {
    let uid = sandbox.uid().unwrap_or_default();
    let workspace = &template.spec.workspace;
    let labels =
        [(labels::MANAGED_BY, labels::LONGHAND), (labels::ROLE, labels::SANDBOX), (labels::SANDBOX_UID, uid.as_str())];
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(claim_name(sandbox)),
            namespace: sandbox.namespace(),
            labels: Some(labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()),
            owner_references: sandbox.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: workspace.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), workspace.size.clone())])),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use longhand_crds::sandbox_template::Persistence;
    use rstest::rstest;
    use serde_json::json;

    use super::{Volume, build};
    use crate::fixtures;

    #[test]
    fn the_claim_is_as_designed() {
        let mut template = fixtures::template();
        template.spec.workspace.persistence = Persistence::Persistent;
        template.spec.workspace.storage_class_name = Some("fast".into());
        insta::assert_yaml_snapshot!(build(&fixtures::sandbox(), &template));
    }

    #[rstest]
    #[case::bound("Bound", "owner", None, Some("w"))]
    #[case::pending("Pending", "owner", Some("StorageClass fast"), Some("w"))]
    #[case::lost("Lost", "owner", Some("lost"), None)]
    #[case::of_somebody_else("Bound", "other", None, None)]
    fn a_claim_is_judged(
        #[case] phase: &str,
        #[case] owner: &str,
        #[case] pending: Option<&str>,
        #[case] name: Option<&str>,
    ) {
        let claim = serde_json::from_value(json!({
            "metadata": { "name": "w", "ownerReferences": [{ "apiVersion": "v", "kind": "Sandbox", "name": "s", "uid": "owner" }] },
            "spec": { "storageClassName": "fast" },
            "status": { "phase": phase },
        }))
        .unwrap();
        let volume = Volume::of(Some(&claim), owner);
        assert_eq!(volume.name(), name);
        assert_eq!(volume.is_missing(), owner != "owner");
        match pending {
            Some(expected) => assert!(volume.pending().unwrap().contains(expected), "{volume:?}"),
            None => assert_eq!(volume.pending(), None),
        }
    }
}
