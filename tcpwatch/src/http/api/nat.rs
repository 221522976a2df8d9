//! `/nat`: whom connections dialled and whom they reached, where the kernel translates addresses on the way (REDIRECT,
//! DNAT, SNAT), by process.
//!
//! Connection tracking is asked in a thread of its own, as a whole in each namespace that has connections: a walk through
//! all of its buckets for each of them. So other answers count what is translated for those only who ask for it.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    events::decode::Endpoint,
    http::{
        Api, ApiError, List, Render,
        filter::Chosen,
        page::{Extent, Page},
        render::{
            completeness::Completeness,
            counts::cut,
            text::{printable, table},
        },
        translations::{self, Translations, may_be_tracked},
    },
    kernel::conntrack::Translation,
    model::{address::Address, groups::Role},
    node::Node,
};

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Translations")]
pub(crate) struct Nat {
    #[serde(flatten)]
    completeness: Completeness,
    #[serde(flatten)]
    extent: Extent,
    /// The most connections first.
    translations: Vec<Row>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "TranslationRow")]
pub(crate) struct Row {
    /// Name of the local process; `null` where it is not known.
    comm: Option<Arc<str>>,
    /// Which side of the connections the local sockets are.
    role: Role,
    /// The server's end as the client has it: the address that the connections were dialled to.
    dialled: Address,
    /// The server's end as the server has it: the address that they reached.
    reached: Address,
    #[serde(flatten)]
    found: Found,
}

#[derive(Debug, Default, Serialize, JsonSchema)]
struct Found {
    /// Number of connections now.
    connections: usize,
    /// Connections among them whose client the server sees under another address or port than the client's own.
    source_translated: usize,
}

/// Of a row: process, role, whom it dialled and whom it reached.
type Key = (Option<Arc<str>>, Role, Endpoint, Endpoint);

pub(crate) async fn answer(api: Api, chosen: Chosen, page: Page) -> Result<Nat, ApiError> {
    let translations = translations::ask(&api, true).await?;
    api.ask(true, move |node, _| list(node, translations, &chosen, &page)).await?
}

fn list(node: &Node, translations: Translations, chosen: &Chosen, page: &Page) -> Result<Nat, ApiError> {
    let tracker = &node.tracker;
    let mut found: BTreeMap<Key, Found> = BTreeMap::new();
    let mut unclear = 0;
    for conn in tracker.table().iter().filter(|conn| may_be_tracked(conn)) {
        let Some(translation) = translations.of(conn) else { continue };
        let process = conn.process.map(|id| Arc::clone(&tracker.processes().get(id).comm));
        match translation {
            _ if !chosen.matches(process.as_deref(), conn.role) => {}
            Some(Translation { dialled, reached }) => {
                let one = found.entry((process, conn.role, dialled.1, reached.1)).or_default();
                one.connections += 1;
                one.source_translated += usize::from(dialled.0 != reached.0);
            }
            None => unclear += 1,
        }
    }
    let mut problems = translations.problems;
    if unclear > 0 {
        problems.push(format!(
            "zones of conntrack translate the ends of {unclear} connections differently (`conntrack -L` lists them)"
        ));
    }
    let cut = page.cut(
        "connections",
        found.into_iter().collect(),
        |((process, role, dialled, reached), found)| {
            let ends = [dialled, reached].map(|end| (end.addr, end.port));
            (Reverse(found.connections), process.clone(), role.name().to_owned(), ends)
        },
    )?;
    let translations = cut.rows.into_iter().map(|((comm, role, dialled, reached), found)| Row {
        comm,
        role,
        dialled: dialled.into(),
        reached: reached.into(),
        found,
    });
    Ok(Nat {
        completeness: Completeness::of(node).and("translations", problems),
        extent: cut.extent,
        translations: translations.collect(),
    })
}

impl List for Nat {
    type Row = Row;

    const AT_ONCE: usize = usize::MAX;

    fn into_rows(self) -> (Vec<Row>, Option<String>) {
        (self.translations, self.extent.next_cursor)
    }
}

impl Render for Nat {
    fn text(&self) -> String {
        let rows: Vec<_> = self
            .translations
            .iter()
            .map(|row| {
                vec![
                    row.comm.as_deref().map_or("-".to_owned(), printable),
                    row.role.name().to_owned(),
                    row.dialled.to_string(),
                    row.reached.to_string(),
                    row.found.connections.to_string(),
                    row.found.source_translated.to_string(),
                ]
            })
            .collect();
        let header = ["PROCESS", "ROLE", "DIALLED", "REACHED", "NOW", "SOURCE TRANSLATED"];
        table(&header, &rows) + &self.completeness.text() + &cut(self.translations.len(), self.extent.total)
    }
}
