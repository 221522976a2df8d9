//! `/events`: every transition as it is told, as server-sent events, for `tcpwatch trace`.

use std::convert::Infallible;

use axum::{
    extract::State,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;

use crate::http::{Api, ApiError, Asked, filter::Filter, request::Params};

pub(crate) async fn handle(State(api): State<Api>, mut asked: Asked) -> Response {
    match open(&api, &mut asked.params).await {
        Ok(events) => events,
        Err(error) => error.respond(asked.format),
    }
}

async fn open(api: &Api, params: &mut Params) -> Result<Response, ApiError> {
    let filter = Filter::take(params)?;
    params.finish(&Filter::PARAMETERS)?;
    let receiver = api.ask(false, |node, _| node.transitions.subscribe()).await?;
    let events = stream::unfold((receiver, filter), |(mut receiver, filter)| async {
        loop {
            let event = match receiver.recv().await {
                Ok(transition) if filter.wants(&transition) => Event::default().json_data(&*transition),
                Ok(_) => continue,
                // The asker reads slower than things happen: told, not hidden.
                Err(RecvError::Lagged(count)) => Ok(Event::default().event("missed").data(count.to_string())),
                Err(RecvError::Closed) => return None,
            };
            let event = event.unwrap_or_else(|error| Event::default().event("error").data(error.to_string()));
            return Some((Ok::<_, Infallible>(event), (receiver, filter)));
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}
