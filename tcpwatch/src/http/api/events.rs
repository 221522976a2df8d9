//! `/events`: every transition as its record comes, as server-sent events, for `tcpwatch trace`.

use std::{convert::Infallible, sync::Arc};

use axum::response::{
    IntoResponse, Response, Sse,
    sse::{Event, KeepAlive},
};
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;

use crate::http::{Api, ApiError, filter::Filter, server::FOLLOWERS};

pub(crate) async fn answer(api: Api, filter: Filter) -> Result<Response, ApiError> {
    let place = Arc::clone(&api.followers).try_acquire_owned();
    let place = place.map_err(|_| ApiError::too_many_followers(FOLLOWERS))?;
    let receiver = api.ask(false, |node, _| node.transitions.subscribe()).await?;
    let events = stream::unfold((receiver, filter, place), |(mut receiver, filter, place)| async {
        loop {
            let event = match receiver.recv().await {
                Ok(transition) if filter.wants(&transition) => Event::default().json_data(&*transition),
                Ok(_) => continue,
                // The client reads slower than things happen: reported, not hidden.
                Err(RecvError::Lagged(count)) => Ok(Event::default().event("missed").data(count.to_string())),
                Err(RecvError::Closed) => return None,
            };
            let event = event.unwrap_or_else(|error| Event::default().event("error").data(error.to_string()));
            return Some((Ok::<_, Infallible>(event), (receiver, filter, place)));
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}
