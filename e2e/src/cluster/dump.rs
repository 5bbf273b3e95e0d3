//! What a person needs to see when a test has failed.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, LogParams};
use kube::{Resource, ResourceExt as _};
use longhand_crds::{Agent, AgentSession, Sandbox, SandboxTemplate, Vault};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{SYSTEM_NAMESPACE, TestNamespace};

const LOG_LINES: i64 = 60;

/// Prints the namespace's objects, events and logs, and the logs of Longhand itself, to standard error.
pub(super) async fn dump(namespace: &TestNamespace) {
    eprintln!("==== dump of {} ====", namespace.name);
    objects(namespace.api::<AgentSession>()).await;
    objects(namespace.api::<Sandbox>()).await;
    objects(namespace.api::<Agent>()).await;
    objects(namespace.api::<SandboxTemplate>()).await;
    objects(namespace.api::<Vault>()).await;
    events(namespace).await;
    pods(&namespace.api::<Pod>()).await;
    pods(&Api::namespaced(namespace.client.clone(), SYSTEM_NAMESPACE)).await;
    eprintln!("==== end of dump ====");
}

async fn objects<K>(api: Api<K>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let kind = K::kind(&());
    match api.list(&ListParams::default()).await {
        Ok(list) => {
            for mut object in list {
                object.managed_fields_mut().clear();
                eprintln!("--- {kind}\n{}", serde_yaml::to_string(&object).unwrap_or_default());
            }
        }
        Err(error) => eprintln!("--- {kind}: {error}"),
    }
}

async fn events(namespace: &TestNamespace) {
    let Ok(list) = namespace.api::<Event>().list(&ListParams::default()).await else { return };
    for event in list {
        let about = event.regarding.and_then(|object| object.name).unwrap_or_default();
        eprintln!("event {about}: {} {}", event.reason.unwrap_or_default(), event.note.unwrap_or_default());
    }
}

async fn pods(api: &Api<Pod>) {
    let Ok(list) = api.list(&ListParams::default()).await else { return };
    for pod in list {
        let status = pod.status.clone().unwrap_or_default();
        eprintln!("--- pod {} {}", pod.name_any(), status.phase.unwrap_or_default());
        let spec = pod.spec.clone().unwrap_or_default();
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let params = LogParams {
                container: Some(container.name.clone()),
                tail_lines: Some(LOG_LINES),
                ..LogParams::default()
            };
            match api.logs(&pod.name_any(), &params).await {
                Ok(log) => eprintln!("--- log of {}/{}\n{log}", pod.name_any(), container.name),
                Err(error) => eprintln!("--- no log of {}/{}: {error}", pod.name_any(), container.name),
            }
        }
    }
}
