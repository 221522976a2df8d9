//! `/nat`: whom connections dialled and whom they reached, where the kernel translates addresses on the way (REDIRECT,
//! DNAT, SNAT), by process.
//!
//! Connection tracking is asked in a thread of its own, as a whole in each namespace that has connections: a walk through
//! all of its buckets for each of them. So other answers count what is translated for those only who ask for it.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use axum::{extract::State, response::Response};
use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::{
    events::decode::Endpoint,
    http::{
        Api, ApiError, Asked, Render,
        api::connections::{DEFAULT_LIMIT, show},
        filter::Chosen,
        render::{
            counts::{cut, problems},
            text::{printable, table},
            view::{self, End},
        },
        request::Params,
        respond,
    },
    kernel::{
        conntrack::{self, Translation},
        netns::OfEach,
    },
    model::{groups::Role, table::Conn},
    node::Node,
};

#[derive(Debug, Serialize)]
struct Nat {
    /// How many match, shown or not.
    total: usize,
    /// Whether `limit` cut the list.
    truncated: bool,
    /// The most connections first.
    translations: Vec<Row>,
    /// What could not be asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    /// The name of the local process; `null` for one that is not known.
    process: Option<Arc<str>>,
    role: Role,
    dialled: End,
    reached: End,
    #[serde(flatten)]
    found: Found,
}

#[derive(Debug, Default, Serialize)]
struct Found {
    connections: usize,
    /// Of these, whom the server knows by another address or port than the client's own.
    source_translated: usize,
}

/// Of a row: process, role, whom it dialled and whom it reached.
type Key = (Option<Arc<str>>, Role, Endpoint, Endpoint);

/// What each namespace that could be asked said: the translation of each connection by its local and remote end, as both of
/// its sides would be found in the table; `None` where zones of conntrack have different ones for the same ends, and a
/// socket does not say in which it is tracked.
#[derive(Default)]
pub(crate) struct Translations {
    told: FxHashMap<u32, FxHashMap<(Endpoint, Endpoint), Option<Translation>>>,
    /// What could not be asked.
    pub problems: Vec<String>,
}

impl Translations {
    /// No namespace was asked, or could be.
    pub(crate) fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// `None` where that is not known.
    pub(crate) fn has(&self, conn: &Conn) -> Option<bool> {
        self.told.get(&conn.netns).map(|by_ends| by_ends.contains_key(&(conn.local, conn.remote)))
    }

    fn of(&self, conn: &Conn) -> Option<&Option<Translation>> {
        self.told.get(&conn.netns)?.get(&(conn.local, conn.remote))
    }
}

/// Whether an answer is to tell of translations too.
pub(crate) fn take(params: &mut Params) -> Result<bool, ApiError> {
    Ok(params.take_as("nat")?.unwrap_or(false))
}

/// What is translated now; nothing is asked unless that is `wanted`.
pub(crate) async fn ask(api: &Api, wanted: bool) -> Result<Translations, ApiError> {
    if !wanted {
        return Ok(Translations::default());
    }
    let asked = if api.live {
        let namespaces = api.ask(false, |node, _| node.namespaces_of(may_be_tracked)).await?;
        conntrack::ask_all(namespaces).await
    } else {
        Err("a recording does not have what the kernel translated".to_owned())
    };
    Ok(match asked {
        Ok(told) => by_ends(told),
        Err(problem) => Translations { problems: vec![problem], ..Translations::default() },
    })
}

fn by_ends(told: OfEach<Vec<Translation>>) -> Translations {
    let mut translations = Translations::default();
    for (netns, told) in told {
        match told {
            Ok(told) => {
                let by_ends = translations.told.entry(netns).or_default();
                for one in told {
                    for ends in one.ends() {
                        let known = by_ends.entry(ends).or_insert(Some(one));
                        if *known != Some(one) {
                            *known = None;
                        }
                    }
                }
            }
            Err(problem) => translations.problems.push(problem),
        }
    }
    translations.problems.sort_unstable();
    translations
}

pub(crate) async fn handle(State(api): State<Api>, mut asked: Asked) -> Response {
    let answer = match parse(&mut asked.params) {
        Ok((chosen, limit)) => answer(&api, chosen, limit).await,
        Err(error) => Err(error),
    };
    respond(asked.format, answer)
}

fn parse(params: &mut Params) -> Result<(Chosen, usize), ApiError> {
    let (chosen, limit) = (Chosen::take(params)?, params.take_limit(DEFAULT_LIMIT)?);
    params.finish(&[&Chosen::PARAMETERS[..], &["limit"]].concat())?;
    Ok((chosen, limit))
}

async fn answer(api: &Api, chosen: Chosen, limit: usize) -> Result<Nat, ApiError> {
    let translations = ask(api, true).await?;
    api.ask(true, move |node, _| list(node, translations, &chosen, limit)).await
}

fn may_be_tracked(conn: &Conn) -> bool {
    conn.role != Role::Listener && conn.local.port != 0
}

fn list(node: &Node, translations: Translations, chosen: &Chosen, limit: usize) -> Nat {
    let tracker = &node.tracker;
    let mut found: BTreeMap<Key, Found> = BTreeMap::new();
    let mut unclear = 0;
    for conn in tracker.table.iter().filter(|conn| may_be_tracked(conn)) {
        let Some(translation) = translations.of(conn) else { continue };
        let process = conn.process.map(|id| Arc::clone(&tracker.processes.get(id).comm));
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
    let total = found.len();
    let mut translations: Vec<_> = found
        .into_iter()
        .map(|((process, role, dialled, reached), found)| Row {
            process,
            role,
            dialled: view::end(dialled),
            reached: view::end(reached),
            found,
        })
        .collect();
    translations.sort_by_key(|row| Reverse(row.found.connections));
    translations.truncate(limit);
    Nat { total, truncated: total > translations.len(), translations, problems }
}

impl Render for Nat {
    fn text(&self) -> String {
        let rows: Vec<_> = self
            .translations
            .iter()
            .map(|row| {
                vec![
                    row.process.as_deref().map_or("-".to_owned(), printable),
                    row.role.name().to_owned(),
                    show(&row.dialled),
                    show(&row.reached),
                    row.found.connections.to_string(),
                    row.found.source_translated.to_string(),
                ]
            })
            .collect();
        let header = ["PROCESS", "ROLE", "DIALLED", "REACHED", "NOW", "SOURCE TRANSLATED"];
        table(&header, &rows)
            + &problems("not complete", &self.problems)
            + &cut(self.translations.len(), self.total)
    }
}
