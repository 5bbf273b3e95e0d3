//! A namespace with sandboxes in it, of the simulated cluster or of another.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use longhand_cli::backend::is_ready;
use longhand_crds::{Sandbox, SandboxTemplate, labels};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::control_plane::ControlPlane;
use super::roll::Roll;
use crate::cluster::{TestResult, eventually, wait_for};

/// Who has a pool of hundreds of pods made waits for a scheduler and a kubelet on the same two cores.
const POOL: Duration = Duration::from_secs(600);
const READY: Duration = Duration::from_secs(120);

/// A namespace with sandboxes.
pub struct Team {
    /// All sandboxes in it.
    pub roll: Roll,
    client: Client,
    name: String,
}

impl Team {
    /// Makes the namespace in the simulated cluster.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create(plane: &ControlPlane, name: &str) -> TestResult<Self> {
        plane.namespace(name).await?;
        Self::open(plane.client.clone(), name).await
    }

    /// The namespace of this name, which is there.
    ///
    /// # Errors
    /// When its sandboxes cannot be watched.
    pub async fn open(client: Client, name: &str) -> TestResult<Self> {
        let roll = Roll::open(client.clone(), name).await?;
        Ok(Self { roll, client, name: name.to_owned() })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Makes a template with a pool of `warm` pods, and waits until they are ready.
    ///
    /// # Errors
    /// When they are not within ten minutes.
    pub async fn template(&self, name: &str, warm: usize) -> TestResult {
        self.make_template(name, "Ephemeral", warm).await?;
        self.pool_is(name, warm).await
    }

    /// Makes a template whose sandboxes keep their workspaces.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn persistent_template(&self, name: &str) -> TestResult {
        self.make_template(name, "Persistent", 0).await
    }

    async fn make_template(&self, name: &str, persistence: &str, warm: usize) -> TestResult {
        let template: SandboxTemplate = serde_json::from_value(json!({
            "apiVersion": "longhand.dev/v1alpha1", "kind": "SandboxTemplate", "metadata": { "name": name },
            "spec": {
                "resources": { "requests": { "cpu": "10m", "memory": "32Mi" }, "limits": { "cpu": "1", "memory": "256Mi" } },
                "workspace": { "size": "64Mi", "persistence": persistence }, "warm": warm,
            },
        }))?;
        self.api().create(&PostParams::default(), &template).await?;
        Ok(())
    }

    /// Waits until `warm` pods of the pool are ready. The template's status follows the pods, so that for a moment it may count
    /// those that were just taken: the pods are looked at too.
    ///
    /// # Errors
    /// When they are not within ten minutes.
    pub async fn pool_is(&self, template: &str, warm: usize) -> TestResult {
        let what = format!("{warm} pods wait");
        let uid = wait_for(self.api::<SandboxTemplate>(), template, &what, POOL, |template| {
            let template = template?;
            let ready = template.status.as_ref()?.warm_ready;
            (usize::try_from(ready) == Ok(warm)).then(|| template.uid())?
        })
        .await?;
        let selector = ListParams::default().labels(&format!("{}={uid}", labels::POOL_UID));
        eventually(&what, POOL, || async {
            let pods = self.api::<Pod>().list(&selector).await?.items;
            let waiting = pods.iter().filter(|pod| is_ready(pod) && waits(pod, &uid)).count();
            Ok((waiting == warm).then_some(()))
        })
        .await
    }

    /// Makes a sandbox.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn claim(&self, name: &str, template: &str) -> TestResult {
        let sandbox: Sandbox = serde_json::from_value(json!({
            "apiVersion": "longhand.dev/v1alpha1", "kind": "Sandbox", "metadata": { "name": name },
            "spec": { "templateRef": { "name": template } },
        }))?;
        self.api().create(&PostParams::default(), &sandbox).await?;
        Ok(())
    }

    /// Makes a sandbox, and waits until it takes calls: in how many milliseconds the watch showed it.
    ///
    /// # Errors
    /// When it does not within two minutes.
    pub async fn timed_claim(&self, name: &str, template: &str) -> TestResult<f64> {
        let begun = Instant::now();
        self.claim(name, template).await?;
        let ready = self.roll.until(name, "it takes calls", READY, |seen| seen?.ready).await?;
        Ok(ready.duration_since(begun).as_secs_f64() * 1_000.0)
    }

    /// Suspends a sandbox, or resumes it.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn set_state(&self, name: &str, state: &str) -> TestResult {
        let patch = Patch::Merge(json!({ "spec": { "desiredState": state } }));
        self.api::<Sandbox>().patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Deletes a sandbox, and waits until it is gone; its pod follows.
    ///
    /// # Errors
    /// When it is not gone within a minute.
    pub async fn release(&self, name: &str) -> TestResult {
        self.api::<Sandbox>().delete(name, &DeleteParams::background()).await?;
        self.roll.until(name, "it is gone", Duration::from_secs(60), |seen| seen.is_none().then_some(())).await
    }

    /// Deletes every sandbox, and waits until they and their pods are gone.
    ///
    /// # Errors
    /// When they are not gone within ten minutes.
    pub async fn release_all(&self) -> TestResult {
        self.api::<Sandbox>().delete_collection(&DeleteParams::background(), &ListParams::default()).await?;
        eventually("all sandboxes are gone", POOL, || async { Ok(self.roll.is_empty().then_some(())) }).await
    }

    /// Deletes a template, with its pool.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn remove_template(&self, name: &str) -> TestResult {
        self.api::<SandboxTemplate>().delete(name, &DeleteParams::background()).await?;
        Ok(())
    }

    /// Makes a pod fail, as a kubelet would say it. One that is gone already is lost too: kwok deletes by name, and so now and then the
    /// next pod of a slot.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn fail_pod(&self, name: &str) -> TestResult {
        let patch: Patch<Value> =
            Patch::Merge(json!({ "status": { "phase": "Failed", "reason": "Evicted", "message": "on purpose" } }));
        unless_gone(self.api::<Pod>().patch_status(name, &PatchParams::default(), &patch).await)
    }

    /// Deletes a pod, unless it is gone.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn delete_pod(&self, name: &str) -> TestResult {
        unless_gone(self.api::<Pod>().delete(name, &DeleteParams::default()).await)
    }

    /// How many pods of sandboxes there are, those that wait too.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn pods(&self) -> TestResult<usize> {
        let selector = ListParams::default().labels(&format!("{}={}", labels::ROLE, labels::SANDBOX));
        Ok(self.api::<Pod>().list_metadata(&selector).await?.items.len())
    }

    /// Waits until there are so many pods of sandboxes.
    ///
    /// # Errors
    /// When there are others after ten minutes.
    pub async fn until_pods(&self, count: usize) -> TestResult {
        let what = format!("{count} pods are there");
        eventually(&what, POOL, || async { Ok((self.pods().await? == count).then_some(())) }).await
    }
}

/// Whether nobody has taken a pod of the pool, which owns it until then.
fn waits(pod: &Pod, pool: &str) -> bool {
    let deleted = pod.metadata.deletion_timestamp.is_some();
    !deleted && pod.owner_references().iter().any(|owner| owner.controller == Some(true) && owner.uid == pool)
}

fn unless_gone<T>(answer: kube::Result<T>) -> TestResult {
    match answer {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        other => Ok(other.map(drop)?),
    }
}
