//! Environments: made, listed, looked at, changed, archived and deleted. Each is a `SandboxTemplate`.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::ObjectMeta;
use longhand_crds::sandbox_template::{NetworkSpec, Packages};
use longhand_crds::wire_id::prefix;
use longhand_crds::{SandboxTemplate, SandboxTemplateSpec, wire_id};
use longhand_protocol::wire::Page;
use longhand_protocol::wire::environments as wire;

use super::agents::new_metadata;
use super::checks::{NewName, at_most, count, metadata, one_to, patched};
use super::listing::Listing;
use super::once::MaybeSeed;
use super::{namespace_for, set_archived};
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Body, Caller, PathOf, parse};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::Access;
use crate::resources::ResourceError;
use crate::resources::named::{age, archived_at, created_at, find, updated_at};
use crate::resources::objects::Created;

/// As RBAC knows the kind.
const TEMPLATES: &str = "sandboxtemplates";
const LONGEST_NAME: usize = 256;
const LONGEST_DESCRIPTION: usize = 4_096;
const MOST_HOSTS: usize = 256;
const LONGEST_HOST: usize = 253;
const MOST_PACKAGES: usize = 256;
const LONGEST_PACKAGE: usize = 256;
/// The operator writes the status of a template now and then, which makes a change of the spec begin anew.
const ATTEMPTS: usize = 5;

/// `POST environments`.
pub async fn create(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    MaybeSeed(seed): MaybeSeed,
    Body(body): Body,
) -> Result<Json<wire::Environment>> {
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(TEMPLATES, "create"), namespace).await?;
    let spec = created(parse(&body)?)?;
    let name = NewName::of("env", prefix::ENVIRONMENT, seed.as_ref());
    if let Some(name) = &name.name
        && let Some(known) = app.environments.named(namespace, name).await?
    {
        // Made when the request was carried out before.
        return Ok(Json(view(&known)));
    }
    let wanted = spec.display_name.clone().unwrap_or_default();
    if !named(&app, namespace, &wanted).await?.is_empty() {
        return Err(name_taken(&wanted));
    }
    let new = SandboxTemplate { metadata: new_metadata("env", &name), spec, status: None };
    let made = app.environments.create(namespace, &new).await.map_err(|error| ApiError::from(error).of_change())?;
    let Created::New(made) = made else {
        return Err(ApiError::unavailable("another request is making this environment: try again"));
    };
    // Whoever was first keeps the name, and everybody agrees on who that was.
    let rivals = named(&app, namespace, &wanted).await?;
    if rivals.iter().any(|rival| age(&rival.metadata) < age(&made.metadata)) {
        let uid = made.uid().unwrap_or_default();
        app.environments.delete(namespace, &made.name_any(), &uid).await?;
        return Err(name_taken(&wanted));
    }
    Ok(Json(view(&made)))
}

/// `GET environments`.
pub async fn list(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
) -> Result<Json<Page<wire::Environment>>> {
    let listing = Listing::take(&mut params)?;
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(TEMPLATES, "list"), namespace).await?;
    let (found, next_page) = listing.of(&*app.environments, namespace).await?;
    Ok(Json(Page { data: found.iter().map(view).collect(), next_page }))
}

/// `GET environments/{environment}`.
pub async fn retrieve(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<wire::Environment>> {
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(TEMPLATES, "get"), namespace).await?;
    Ok(Json(view(&environment(&app, namespace, path.of("environment")?).await?)))
}

/// `POST environments/{environment}`.
pub async fn update(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    Body(body): Body,
) -> Result<Json<wire::Environment>> {
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(TEMPLATES, "update"), namespace).await?;
    let update: wire::UpdateEnvironment = parse(&body)?;
    let name_or_id = path.of("environment")?;
    if let Some(name) = &update.name {
        let own = environment(&app, namespace, name_or_id).await?;
        let others = named(&app, namespace, name).await?;
        if others.iter().any(|other| other.metadata.uid != own.metadata.uid) {
            return Err(name_taken(name));
        }
    }
    let changed = change(&app, namespace, name_or_id, |template| {
        if archived_at(&template.metadata).is_some() {
            return Err(ApiError::bad_request("the environment is archived: it cannot be changed"));
        }
        template.spec = updated(template.spec.clone(), update.clone())?;
        Ok(())
    });
    Ok(Json(view(&changed.await?)))
}

/// `POST environments/{environment}/archive`.
pub async fn archive(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<wire::Environment>> {
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(TEMPLATES, "update"), namespace).await?;
    let archived = change(&app, namespace, path.of("environment")?, |template| {
        set_archived(&mut template.metadata, Timestamp::now());
        Ok(())
    });
    Ok(Json(view(&archived.await?)))
}

/// `DELETE environments/{environment}`: only if no session names it.
pub async fn delete(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<wire::EnvironmentDeleted>> {
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(TEMPLATES, "delete"), namespace).await?;
    let template = environment(&app, namespace, path.of("environment")?).await?;
    let name = template.name_any();
    if let Some(user) = user_of(&app, namespace, &name).await? {
        return Err(ApiError::conflict(format!("session {user} uses this environment: delete the session first")));
    }
    let deleted = app.environments.delete(namespace, &name, &template.uid().unwrap_or_default()).await;
    deleted.map_err(|error| ApiError::from(error).of_change())?;
    let id = wire_id(prefix::ENVIRONMENT, &template.metadata);
    Ok(Json(wire::EnvironmentDeleted { id, kind: "environment_deleted".to_owned() }))
}

/// The template that a name or an identifier means.
///
/// # Errors
/// Those of the API server.
pub(crate) async fn lookup(app: &App, namespace: &str, name_or_id: &str) -> Result<Option<SandboxTemplate>> {
    Ok(find(&*app.environments, prefix::ENVIRONMENT, namespace, name_or_id).await?)
}

async fn environment(app: &App, namespace: &str, name_or_id: &str) -> Result<SandboxTemplate> {
    lookup(app, namespace, name_or_id)
        .await?
        .ok_or_else(|| ApiError::not_found(format!("there is no environment `{name_or_id}` in namespace {namespace}")))
}

/// The environments with this name, other than archived ones.
async fn named(app: &App, namespace: &str, name: &str) -> Result<Vec<SandboxTemplate>> {
    let (mut found, mut from) = (Vec::new(), None);
    loop {
        let (items, next) = app.environments.page(namespace, from).await?;
        let live = |item: &SandboxTemplate| archived_at(&item.metadata).is_none();
        found.extend(items.into_iter().filter(|item| live(item) && item.display_name() == name));
        from = next;
        if from.is_none() {
            return Ok(found);
        }
    }
}

fn name_taken(name: &str) -> ApiError {
    ApiError::conflict(format!("`name`: there is an environment `{name}` already"))
}

/// A session that may use this template.
async fn user_of(app: &App, namespace: &str, template: &str) -> Result<Option<String>> {
    let mut from = None;
    loop {
        let (sessions, next) = app.resources.sessions(namespace, from).await?;
        let user = sessions
            .iter()
            .find(|session| session.spec.sandboxes.iter().any(|sandbox| sandbox.template_ref.name == template));
        if let Some(user) = user {
            return Ok(Some(wire_id(prefix::SESSION, &user.metadata)));
        }
        from = next;
        if from.is_none() {
            return Ok(None);
        }
    }
}

/// Changes a template as it is now; begins anew when another was faster. One that stays as it is is not written.
async fn change(
    app: &App,
    namespace: &str,
    name_or_id: &str,
    change: impl Fn(&mut SandboxTemplate) -> Result<()>,
) -> Result<SandboxTemplate> {
    for _ in 0..ATTEMPTS {
        let now = environment(app, namespace, name_or_id).await?;
        let mut wanted = now.clone();
        change(&mut wanted)?;
        if (&wanted.metadata, &wanted.spec) == (&now.metadata, &now.spec) {
            return Ok(now);
        }
        match app.environments.replace(&wanted).await {
            Ok(written) => return Ok(written),
            Err(ResourceError::Conflict { .. }) => {}
            Err(error) => return Err(ApiError::from(error).of_change()),
        }
    }
    Err(ApiError::conflict(format!("environment {name_or_id} is being changed by others: read it again and repeat")))
}

/// The spec of a new environment.
fn created(body: wire::CreateEnvironment) -> Result<SandboxTemplateSpec> {
    let wire::CreateEnvironment { name, description, config, metadata, scope } = body;
    let defaults = serde_json::from_value(serde_json::json!({}));
    let mut spec: SandboxTemplateSpec = defaults.map_err(|error| ApiError::internal(error.to_string()))?;
    spec.display_name = Some(name);
    spec.description = description;
    spec.metadata = metadata.unwrap_or_default();
    configure(&mut spec, config.unwrap_or(wire::ConfigParam::Cloud { networking: None, packages: None }));
    check(&spec, scope)?;
    Ok(spec)
}

/// The spec of an environment after an update.
fn updated(mut spec: SandboxTemplateSpec, update: wire::UpdateEnvironment) -> Result<SandboxTemplateSpec> {
    let wire::UpdateEnvironment { name, description, config, metadata, scope } = update;
    spec.display_name = name.or(spec.display_name);
    spec.description = description.apply(spec.description);
    if let Some(pairs) = metadata {
        let pairs = pairs.into_iter().map(|(key, value)| (key, value.filter(|value| !value.is_empty())));
        spec.metadata = patched(spec.metadata, pairs.collect());
    }
    if let Some(config) = config {
        let was_cloud = !spec.self_hosted;
        if was_cloud { spec.set_wire_config(config) } else { configure(&mut spec, config) }
    }
    check(&spec, scope)?;
    Ok(spec)
}

/// Takes over the configuration of what had none: without a word on the network, all of it may be reached.
fn configure(spec: &mut SandboxTemplateSpec, config: wire::ConfigParam) {
    let unrestricted = Some(wire::NetworkingParam::Unrestricted {});
    let config = match config {
        wire::ConfigParam::Cloud { networking, packages } => {
            wire::ConfigParam::Cloud { networking: networking.or(unrestricted), packages }
        }
        self_hosted @ wire::ConfigParam::SelfHosted {} => self_hosted,
    };
    spec.set_wire_config(config);
}

fn check(spec: &SandboxTemplateSpec, scope: Option<wire::Scope>) -> Result<()> {
    one_to("name", spec.display_name.as_deref().unwrap_or("-"), LONGEST_NAME)?;
    at_most("description", spec.description.as_deref().unwrap_or_default(), LONGEST_DESCRIPTION)?;
    metadata(&spec.metadata)?;
    if scope == Some(wire::Scope::Account) {
        return Err(ApiError::bad_request(
            "`scope`: account is not served: RBAC says who sees the environments of a namespace",
        ));
    }
    let network = spec.network.clone().unwrap_or_default();
    check_hosts(&network)?;
    let Some(packages) = &spec.packages else { return Ok(()) };
    check_packages(packages)?;
    match spec.wire_config() {
        wire::EnvironmentConfig::Cloud {
            networking: wire::Networking::Limited { allow_package_managers: false, .. },
            ..
        } => Err(ApiError::bad_request(
            "`config.packages`: networking is limited and `allow_package_managers` is false, so that nothing can be installed",
        )),
        _ => Ok(()),
    }
}

fn check_hosts(network: &NetworkSpec) -> Result<()> {
    let field = "config.networking.allowed_hosts";
    count(field, network.allowed_hosts.len(), MOST_HOSTS)?;
    match network.allowed_hosts.iter().position(|host| !is_host(host)) {
        None => Ok(()),
        Some(index) => Err(ApiError::bad_request(format!(
            "`{field}[{index}]` is not a host name in lower case, or `*.` and a host name: `{}`",
            network.allowed_hosts[index].chars().take(LONGEST_HOST).collect::<String>()
        ))),
    }
}

/// As `longhand_crds::patterns::HOSTS` has it.
fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host == "*" || host.len() <= LONGEST_HOST && host.strip_prefix("*.").unwrap_or(host).split('.').all(label)
}

fn check_packages(packages: &Packages) -> Result<()> {
    let Packages { apt, cargo, gem, go, npm, pip } = packages;
    for (manager, list) in [("apt", apt), ("cargo", cargo), ("gem", gem), ("go", go), ("npm", npm), ("pip", pip)] {
        let field = format!("config.packages.{manager}");
        count(&field, list.len(), MOST_PACKAGES)?;
        list.iter().try_for_each(|package| one_to(&field, package, LONGEST_PACKAGE))?;
    }
    Ok(())
}

/// The environment in the shape of the public API.
fn view(template: &SandboxTemplate) -> wire::Environment {
    let meta: &ObjectMeta = &template.metadata;
    wire::Environment {
        id: wire_id(prefix::ENVIRONMENT, meta),
        kind: "environment".to_owned(),
        name: template.display_name().to_owned(),
        description: template.spec.description.clone(),
        config: template.spec.wire_config(),
        metadata: template.spec.metadata.clone(),
        scope: Some(wire::Scope::Organization),
        created_at: created_at(meta).unwrap_or_default(),
        updated_at: updated_at(meta).unwrap_or_default(),
        archived_at: archived_at(meta),
    }
}

#[cfg(test)]
#[path = "environments_tests.rs"]
mod tests;
