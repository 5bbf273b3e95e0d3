//! Pages of kinds that the wire API writes, the newest first.

use jiff::Timestamp;
use kube::api::ObjectMeta;
use longhand_protocol::wire::Order;

use super::cursor;
use super::session_page::{At, Key, Selection};
use crate::api::error::{ApiError, Result};
use crate::api::query::Params;
use crate::resources::ResourceError;
use crate::resources::named::{archived_at, created_at};
use crate::resources::objects::{Kind, Objects};

pub(super) const PAGE: usize = 20;
pub(super) const LONGEST_PAGE: usize = 100;

/// Which objects a list shall hold.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    at: Option<At>,
    limit: usize,
    archived: bool,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl Listing {
    /// Takes what every list knows.
    pub(super) fn take(params: &mut Params) -> Result<Self> {
        let at = params.one("page")?.filter(|page| !page.is_empty());
        Ok(Self {
            at: at.map(|page| cursor::decode(&page, Order::Desc)).transpose()?,
            limit: params.limit(PAGE, LONGEST_PAGE)?,
            archived: params.flag("include_archived")?,
            since: None,
            until: None,
        })
    }

    /// Takes `created_at[gte]` and `created_at[lte]` as well.
    pub(super) fn with_dates(mut self, params: &mut Params) -> Result<Self> {
        self.since = date(params, "created_at[gte]")?;
        self.until = date(params, "created_at[lte]")?;
        Ok(self)
    }

    /// The page, and where the next one begins.
    pub(super) async fn of<K: Kind>(
        self,
        objects: &dyn Objects<K>,
        namespace: &str,
    ) -> Result<(Vec<K>, Option<String>)> {
        self.of_pages(|from| objects.page(namespace, from), K::meta).await
    }

    /// The same of anything that comes page by page.
    pub(super) async fn of_pages<T, F>(
        self,
        mut page: impl FnMut(Option<String>) -> F,
        meta: impl Fn(&T) -> &ObjectMeta,
    ) -> Result<(Vec<T>, Option<String>)>
    where
        F: Future<Output = Result<(Vec<T>, Option<String>), ResourceError>>,
    {
        let mut selection = Selection::new(Order::Desc, self.at.clone(), self.limit);
        let mut from = None;
        loop {
            let (items, next) = page(from).await?;
            for item in items.into_iter().filter(|item| self.wants(meta(item))) {
                selection.offer(key(meta(&item)), item);
            }
            from = next;
            if from.is_none() {
                break;
            }
        }
        let selected = selection.select();
        let next = selected.next.map(|at| cursor::encode(Order::Desc, at)).transpose()?;
        Ok((selected.items, next))
    }

    fn wants(&self, meta: &ObjectMeta) -> bool {
        let created = created_at(meta).unwrap_or_default();
        (self.archived || archived_at(meta).is_none())
            && self.since.is_none_or(|since| created >= since)
            && self.until.is_none_or(|until| created <= until)
    }
}

fn key(meta: &ObjectMeta) -> Key {
    Key { created: created_at(meta).map_or(0, Timestamp::as_second), name: meta.name.clone().unwrap_or_default() }
}

fn date(params: &mut Params, name: &str) -> Result<Option<Timestamp>> {
    let parse = |value: String| {
        value.parse().map_err(|_| ApiError::bad_request(format!("`{name}` is not a date of RFC 3339: `{value}`")))
    };
    params.one(name)?.map(parse).transpose()
}
