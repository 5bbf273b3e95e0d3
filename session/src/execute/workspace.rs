//! What a session's workspaces hold before a call runs in them: what their template says, and the session's own resources.

use std::time::Duration;

use longhand_crds::session_resource::{FileResource, GithubRepository, SessionResource};
use longhand_crds::template_resource::{GitRepository, TemplateResource};
use longhand_crds::{AgentSession, Sandbox};
use longhand_sandbox::client::{NotStarted, SandboxError, Target};
use longhand_sandbox::provision::{ProvisionRequest, Provisioned, Resource, Source};
use longhand_session_log::store::{Claimant, SessionMeta};
use tokio::time::{Instant, sleep, timeout_at};

use super::run::{Call, Course, gone};
use super::sandboxes::{SandboxKey, SandboxView};
use super::{ExecuteError, Executor};
use crate::resources::templates::Template;

/// What a session's workspace shall hold is looked up again after this long: another replica may have changed it.
const FRESH: Duration = Duration::from_secs(5);
/// A sandbox is asked again after this long.
pub(super) const KNOWN_FOR: Duration = Duration::from_secs(10 * 60);
const SOON: Duration = Duration::from_millis(200);

/// What a sandbox is known to hold.
#[derive(Clone, Debug)]
pub(super) struct Filled {
    pod_uid: String,
    marks: String,
    looked: Instant,
}

/// What became of a workspace.
pub(super) enum Outcome {
    Whole,
    /// A resource could not be put into it: what the model reads, and what is said of the sandbox.
    Lacks(String),
    /// The sandbox cannot be asked; `leave` says that it will not be.
    NotNow {
        leave: bool,
        wait: Duration,
    },
    /// It is not the turn of a file to be read.
    Queued,
}

/// What to do with a call now.
pub(super) enum Ready {
    Run,
    LookAgain,
    Refuse(String),
}

/// What a workspace shall hold; or which resource there can be no way to. Pure, but for what `authorize` does.
fn wanted(
    session: &AgentSession,
    template: Option<&Template>,
    authorize: impl Fn(&SessionResource) -> Option<String>,
) -> Result<Vec<Resource>, String> {
    let of_template = template.into_iter().flat_map(|template| &template.provision).map(of_template);
    let of_session = session.spec.resources.iter().map(|resource| of_session(resource, authorize(resource)));
    of_template.chain(of_session).collect()
}

fn of_template(resource: &TemplateResource) -> Result<Resource, String> {
    let TemplateResource { name, mount_path, git_repository, file, archive } = resource;
    let source = match (git_repository, file, archive) {
        (Some(GitRepository { url, reference }), _, _) => {
            Source::Repository { url: url.clone(), reference: reference.clone(), authorization: None }
        }
        (_, Some(file), _) => {
            Source::File { content: file.content.clone(), mode: u32::try_from(file.mode).unwrap_or(0o644) }
        }
        (_, _, Some(archive)) => Source::Archive { url: archive.url.clone(), sha256: archive.sha256.clone() },
        (None, None, None) => return Err(format!("`{name}` of the template is of a kind that is not known here")),
    };
    Ok(Resource { name: name.clone(), path: mount_path.clone(), source })
}

fn of_session(resource: &SessionResource, authorization: Option<String>) -> Result<Resource, String> {
    let name = resource.id.as_ref().unwrap_or(&resource.name);
    if let Some(FileResource { file_id }) = &resource.file {
        let source = Source::Stored { id: file_id.clone() };
        return Ok(Resource { name: name.clone(), path: resource.mount_path.clone(), source });
    }
    let Some(GithubRepository { url, branch, commit, token_ref }) = &resource.github_repository else {
        return Err(format!("`{name}` of the session is of a kind that is not known here"));
    };
    if token_ref.is_some() && authorization.is_none() {
        return Err(format!("`{name}` has a token, which cannot be bound to its URL {url}"));
    }
    let reference = branch.as_ref().or(commit.as_ref()).cloned();
    let source = Source::Repository { url: url.clone(), reference, authorization };
    Ok(Resource { name: name.clone(), path: resource.mount_path.clone(), source })
}

fn refusal(what: &str) -> String {
    format!("The call was not run: its workspace lacks a resource of the session: {what}. The next call tries again.")
}

/// What is said of a resource that a workspace lacks.
pub(super) fn not_put(Resource { name, path, .. }: &Resource, why: &str) -> String {
    format!("`{name}` at {path} could not be put in place: {why}")
}

/// Sorts what the sandbox said of one content.
pub(super) fn judge_content(answer: Result<Provisioned, SandboxError>, resource: &Resource) -> Outcome {
    match judge(answer, std::slice::from_ref(resource)) {
        (Outcome::Lacks(why), _) => Outcome::Lacks(not_put(resource, &why)),
        (outcome, _) => outcome,
    }
}

/// Sorts what the sandbox said, and gives the names of what it wants.
fn judge(answer: Result<Provisioned, SandboxError>, resources: &[Resource]) -> (Outcome, Vec<String>) {
    let outcome = match answer {
        Ok(Provisioned { failed: None, wanted, .. }) => return (Outcome::Whole, wanted),
        Ok(Provisioned { failed: Some(failed), .. }) => {
            let resource = resources.iter().find(|resource| resource.name == failed.name);
            Outcome::Lacks(match resource {
                Some(resource) => not_put(resource, &failed.reason),
                None => format!("`{}` could not be put in place: {}", failed.name, failed.reason),
            })
        }
        Err(SandboxError::NotStarted(NotStarted::Draining | NotStarted::Terminating)) => {
            Outcome::NotNow { leave: true, wait: Duration::ZERO }
        }
        Err(SandboxError::NotStarted(NotStarted::Busy { retry_after })) => {
            Outcome::NotNow { leave: false, wait: retry_after }
        }
        Err(error @ (SandboxError::NotStarted(NotStarted::Rejected { .. }) | SandboxError::Deadline { .. })) => {
            Outcome::Lacks(error.to_string())
        }
        // It may be gone, and its status will say so.
        Err(error) => {
            tracing::info!(%error, "a sandbox could not be asked to fill its workspace");
            Outcome::NotNow { leave: false, wait: SOON }
        }
    };
    (outcome, Vec::new())
}

impl Executor {
    /// What the session's workspaces shall hold has changed: looked up again by the next call at this replica.
    pub fn resources_changed(&self, meta: &SessionMeta) {
        for sandbox in &meta.sandboxes {
            self.filled.remove(&(meta.uid.clone(), sandbox.clone()));
        }
    }

    async fn fill(
        &self,
        meta: &SessionMeta,
        harness: Option<&Claimant>,
        sandbox: &str,
        target: &Target,
    ) -> Result<Outcome, ExecuteError> {
        let key = (meta.uid.clone(), sandbox.to_owned());
        let before = self.filled.get(&key).filter(|filled| filled.pod_uid == target.pod_uid);
        if before.as_ref().is_some_and(|filled| filled.looked.elapsed() < FRESH) {
            return Ok(Outcome::Whole);
        }
        let session = self.resources.session(&meta.namespace, &meta.name).await?;
        let session = session.filter(|session| session.metadata.uid.as_ref() == Some(&meta.uid));
        let Some(session) = session else {
            let (namespace, name) = (meta.namespace.clone(), meta.name.clone());
            return Err(ExecuteError::NoSession { namespace, name });
        };
        let named = session.spec.sandboxes.iter().find(|found| found.name == sandbox);
        let template = match named {
            Some(named) => self.hosted.templates.template(&meta.namespace, &named.template_ref.name).await?,
            None => None,
        };
        let authorize = |resource: &SessionResource| self.egress.as_ref()?.authorization(meta, resource);
        let resources = match wanted(&session, template.as_ref(), authorize) {
            Ok(resources) => resources,
            Err(what) => return Ok(Outcome::Lacks(what)),
        };
        let marks: String = resources.iter().map(Resource::mark).collect();
        let known = before.is_some_and(|filled| filled.marks == marks);
        if !known && !resources.is_empty() {
            if let Some(egress) = &self.egress {
                egress.prepare(&self.client, meta, harness, sandbox, target).await;
            }
            let limit = template.as_ref().map_or(self.limits.provisioning, |template| template.provisioning);
            let until = Instant::now() + limit;
            let request = ProvisionRequest { deadline_seconds: limit.as_secs(), resources };
            let resources = &request.resources;
            let (outcome, wanted) = judge(self.client.provision(target, &request).await, resources);
            let outcome = match outcome {
                Outcome::Whole => {
                    let sending = self.send_stored(&meta.namespace, target, resources, &wanted);
                    timeout_at(until, sending).await.unwrap_or_else(|_| {
                        let seconds = limit.as_secs();
                        Outcome::Lacks(format!("its files could not be put in place within {seconds} s"))
                    })
                }
                lacking => lacking,
            };
            if !matches!(outcome, Outcome::Whole) {
                return Ok(outcome);
            }
        }
        let filled = Filled { pod_uid: target.pod_uid.clone(), marks, looked: Instant::now() };
        self.filled.put(key, filled, KNOWN_FOR);
        Ok(Outcome::Whole)
    }

    /// Gives a sandbox without a session the files of its template before somebody reaches in; the rest comes from the network, to which
    /// it has no way. What it could not be given holds nobody up: the Sandbox says so.
    pub(super) async fn fill_alone(&self, key: &SandboxKey, sandbox: &Sandbox, view: &SandboxView, target: &Target) {
        let known = (view.uid.clone(), String::new());
        let before = self.filled.get(&known).filter(|filled| filled.pod_uid == target.pod_uid);
        if before.as_ref().is_some_and(|filled| filled.looked.elapsed() < FRESH) {
            return;
        }
        let template = match self.hosted.templates.template(&key.namespace, &sandbox.spec.template_ref.name).await {
            Ok(Some(template)) => template,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, sandbox = key.name, "it is not known what a workspace shall hold");
                return;
            }
        };
        let files = template.provision.iter().filter(|resource| resource.file.is_some());
        let resources: Vec<Resource> = files.filter_map(|file| of_template(file).ok()).collect();
        let marks: String = resources.iter().map(Resource::mark).collect();
        if before.is_none_or(|filled| filled.marks != marks) {
            let request = ProvisionRequest { deadline_seconds: template.provisioning.as_secs(), resources };
            let outcome = match request.resources.is_empty() {
                true => Outcome::Whole,
                false => judge(self.client.provision(target, &request).await, &request.resources).0,
            };
            let lacks = match outcome {
                Outcome::Whole => None,
                Outcome::Lacks(what) => Some(what),
                // Whoever reaches in will see that.
                Outcome::NotNow { .. } | Outcome::Queued => return,
            };
            self.say_lacks(key, view, lacks.as_deref()).await;
            if lacks.is_some() {
                return;
            }
        }
        self.filled.put(known, Filled { pod_uid: target.pod_uid.clone(), marks, looked: Instant::now() }, KNOWN_FOR);
    }

    /// Has the Sandbox say what its workspace lacks, unless it says so.
    async fn say_lacks(&self, key: &SandboxKey, view: &SandboxView, lacks: Option<&str>) {
        if view.lacks.as_deref() == lacks {
            return;
        }
        if let Err(error) = self.resources.say_lacks(&key.namespace, &key.name, &view.uid, lacks).await {
            tracing::warn!(%error, "the Sandbox does not say what its workspace lacks");
        }
    }
}

impl Call<'_> {
    /// Sees to it that the workspace holds what it shall before the call is given to the sandbox.
    pub(super) async fn ready(&self, course: &mut Course, target: &Target) -> Result<Ready, ExecuteError> {
        let executor = self.executor;
        let outcome = tokio::select! {
            biased;
            outcome = executor.fill(&course.meta, course.harness.as_ref(), &course.intent.sandbox, target) => outcome?,
            () = gone(&mut course.seen, &target.pod_uid) => return Ok(Ready::LookAgain),
            () = self.interrupted.cancelled() => return Ok(Ready::LookAgain),
        };
        match outcome {
            Outcome::Whole => {
                self.say(course, None).await;
                Ok(Ready::Run)
            }
            Outcome::Lacks(what) => {
                tracing::info!(what, "a workspace lacks a resource");
                self.say(course, Some(&what)).await;
                Ok(Ready::Refuse(refusal(&what)))
            }
            Outcome::NotNow { leave, wait } => {
                course.avoid = leave.then(|| (target.pod_uid.clone(), Instant::now()));
                let why = (!leave).then_some("its sandbox could not be reached");
                Ok(self.look_again(course, wait, why).await)
            }
            Outcome::Queued => {
                let why = "the service reads as many files as it may, and those of its workspace were not among them";
                Ok(self.look_again(course, SOON, Some(why)).await)
            }
        }
    }

    /// Waits before the workspace is looked at again; the call is refused for this reason when there is no more time for it.
    async fn look_again(&self, course: &Course, wait: Duration, why: Option<&str>) -> Ready {
        self.interrupted.run_until_cancelled(sleep(wait)).await;
        match why.filter(|_| course.began.elapsed() >= self.executor.limits.provisioning) {
            Some(why) => Ready::Refuse(format!("The call was not run: {why}. The next call tries again.")),
            None => Ready::LookAgain,
        }
    }

    /// The Sandbox says what its workspace lacks, for who looks at it from outside.
    async fn say(&self, course: &Course, lacks: Option<&str>) {
        let seen = course.seen.borrow().clone();
        if let Some(seen) = seen {
            self.executor.say_lacks(&course.key, &seen, lacks).await;
        }
    }
}

#[cfg(test)]
#[path = "workspace_tests.rs"]
mod tests;
