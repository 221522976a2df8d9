//! Which connections are translated on the way (NAT), asked of connection tracking for several answers.

use rustc_hash::FxHashMap;

use crate::{
    events::decode::Endpoint,
    http::{Api, ApiError, parameters::parameters},
    kernel::{
        conntrack::{self, Translation},
        netns::OfEach,
    },
    model::{groups::Role, table::Conn},
};

/// What each namespace that could be asked said: the translation of each connection by its local and remote end, as both of
/// its sides would be found in the table; `None` where zones of conntrack have different ones for the same ends, and a
/// socket does not say in which it is tracked.
#[derive(Default)]
pub(crate) struct Translations {
    by_namespace: FxHashMap<u32, FxHashMap<(Endpoint, Endpoint), Option<Translation>>>,
    /// What could not be asked.
    pub problems: Vec<String>,
}

impl Translations {
    /// `None` where that is not known.
    pub(crate) fn has(&self, conn: &Conn) -> Option<bool> {
        self.by_namespace.get(&conn.netns).map(|by_ends| by_ends.contains_key(&(conn.local, conn.remote)))
    }

    pub(crate) fn of(&self, conn: &Conn) -> Option<&Option<Translation>> {
        self.by_namespace.get(&conn.netns)?.get(&(conn.local, conn.remote))
    }
}

parameters! {
    /// Whether connection tracking is asked too.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Nat {
        /// whether connection tracking is asked too, for the number of connections whose addresses are translated
        pub nat: bool,
    }
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
        Ok(found) => by_ends(found),
        Err(problem) => Translations { problems: vec![problem], ..Translations::default() },
    })
}

fn by_ends(found: OfEach<Vec<Translation>>) -> Translations {
    let mut translations = Translations::default();
    for (netns, found) in found {
        match found {
            Ok(found) => {
                let by_ends = translations.by_namespace.entry(netns).or_default();
                for one in found {
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

/// Whether connection tracking may know the connection.
pub(crate) fn may_be_tracked(conn: &Conn) -> bool {
    conn.role != Role::Listener && conn.local.port != 0
}
