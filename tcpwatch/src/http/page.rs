//! Pages of a list: how many rows, and where the next page begins.
//!
//! A cursor holds the sort key of the last row shown, so what comes or goes meanwhile moves no other row. Keys are unique
//! within a list and order it.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value as Json, json};

use crate::http::{
    ApiError,
    parameters::{Value, parameters},
};

/// Rows of a list unless `limit` says otherwise.
const DEFAULT_LIMIT: usize = 100;
/// Rows of a list at most: a question runs on the task that owns the state.
const MAX_LIMIT: usize = 10_000;

parameters! {
    /// Which rows of a list.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Page {
        /// at most this many rows; with `format=ndjson` all rows where it is absent
        limit: Option<Limit>,
        /// only the rows that follow: `next_cursor` of an answer with the same `sort` and filters
        cursor: Option<Cursor>,
    }
}

#[derive(Clone, Copy, Debug)]
struct Limit(usize);

impl Value for Limit {
    fn parse(text: &str) -> Result<Self, String> {
        let limit = text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
        limit
            .map(Self)
            .ok_or_else(|| format!("is not an integer from 1 to {MAX_LIMIT}; format=ndjson gives all rows"))
    }

    fn schema() -> Json {
        json!({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT})
    }
}

/// Opaque to whoever asks: JSON in hexadecimal.
#[derive(Clone, Debug)]
struct Cursor(String);

impl Value for Cursor {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }

    fn schema() -> Json {
        json!({"type": "string", "format": "cursor"})
    }
}

/// One page of a list.
#[derive(Debug)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
pub(crate) struct Cut<T> {
    #[cfg_attr(test, serde(flatten))]
    pub extent: Extent,
    pub rows: Vec<T>,
}

/// How long a list is, and where its next page begins.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Extent {
    /// How many rows match, on this page or not.
    pub total: usize,
    /// What `cursor` takes for the next page; `null` at the end of the list.
    pub next_cursor: Option<String>,
}

impl Page {
    pub(crate) fn limit(&self) -> usize {
        self.limit.map_or(DEFAULT_LIMIT, |limit| limit.0)
    }

    /// The limit as given.
    pub(crate) fn explicit_limit(&self) -> Option<usize> {
        self.limit.map(|limit| limit.0)
    }

    /// The page of `limit` rows behind `cursor`.
    pub(crate) fn behind(limit: usize, cursor: String) -> Self {
        Self { limit: Some(Limit(limit)), cursor: Some(Cursor(cursor)) }
    }

    #[must_use]
    pub(crate) fn with_limit(self, limit: usize) -> Self {
        Self { limit: Some(Limit(limit)), ..self }
    }

    /// The rows of this page, sorted by `key`. `order` names the sort order: a cursor is valid only in its own.
    ///
    /// # Errors
    /// When the cursor is not one of this list in this order.
    pub(crate) fn cut<T, K: Ord + Serialize + DeserializeOwned>(
        &self,
        order: &str,
        mut rows: Vec<T>,
        key: impl Fn(&T) -> K,
    ) -> Result<Cut<T>, ApiError> {
        let total = rows.len();
        if let Some(cursor) = &self.cursor {
            let after: K = decode(order, &cursor.0)?;
            rows.retain(|row| key(row) > after);
        }
        let limit = self.limit();
        let is_cut = rows.len() > limit;
        if is_cut {
            rows.select_nth_unstable_by_key(limit, &key);
            rows.truncate(limit);
        }
        rows.sort_unstable_by_key(&key);
        let next_cursor = match rows.last() {
            Some(last) if is_cut => {
                Some(encode(order, &key(last)).map_err(|error| ApiError::internal(&error))?)
            }
            _ => None,
        };
        Ok(Cut { extent: Extent { total, next_cursor }, rows })
    }
}

fn encode(order: &str, key: &impl Serialize) -> serde_json::Result<String> {
    let mut cursor = String::new();
    for byte in serde_json::to_vec(&(order, key))? {
        let _ = write!(cursor, "{byte:02x}");
    }
    Ok(cursor)
}

fn decode<K: DeserializeOwned>(order: &str, text: &str) -> Result<K, ApiError> {
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
    let decoded = bytes.and_then(|bytes| serde_json::from_slice::<(String, K)>(&bytes).ok());
    match decoded {
        Some((its_order, key)) if its_order == order => Ok(key),
        Some((its_order, _)) => {
            Err(ApiError::bad("cursor", format!("it comes from an answer sorted by `{its_order}`")))
        }
        None => Err(ApiError::bad("cursor", format!("`{text}` is not the `next_cursor` of an answer"))),
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use super::*;

    #[test]
    fn pages_in_turn_give_each_row_once_in_order() {
        let rows: Vec<(u64, String)> = (0..10).map(|n| (n % 3, format!("name {n}"))).collect();
        let key = |row: &(u64, String)| (Reverse(row.0), Some(row.1.clone()));
        let mut sorted = rows.clone();
        sorted.sort_by_key(key);
        for limit in [1, 3, 9, 10, 11] {
            let (mut seen, mut page) = (Vec::new(), Page::default().with_limit(limit));
            loop {
                let cut = page.cut("size", rows.clone(), key).unwrap();
                assert_eq!(cut.extent.total, rows.len());
                assert!(cut.rows.len() <= limit);
                seen.extend(cut.rows);
                let Some(cursor) = cut.extent.next_cursor else { break };
                page = Page::behind(limit, cursor);
            }
            assert_eq!(seen, sorted, "{limit}");
        }
    }

    #[test]
    fn a_cursor_is_refused_in_another_order_and_when_malformed() {
        let rows = || vec![1_u64, 2, 3];
        let cursor =
            Page::default().with_limit(1).cut("age", rows(), |row| *row).unwrap().extent.next_cursor.unwrap();
        assert!(Page::behind(1, cursor.clone()).cut("age", rows(), |row| *row).is_ok());
        assert!(Page::behind(1, cursor.clone()).cut("size", rows(), |row| *row).is_err());
        assert!(Page::behind(1, cursor[1..].to_owned()).cut("age", rows(), |row| *row).is_err());
        for malformed in ["", "x", "é", "00", "5b5d", "+1"] {
            assert!(
                Page::behind(1, malformed.to_owned()).cut("age", rows(), |row| *row).is_err(),
                "{malformed}"
            );
        }
    }
}
