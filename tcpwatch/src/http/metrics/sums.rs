//! The JSON sums of `/processes` and `/peers`: the families that say where they stand in them, and the schema of that.

use std::sync::LazyLock;

use schemars::{Schema, json_schema};
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::{Map, Number, Value as JsonValue, json};

use crate::{
    http::metrics::{
        FAMILIES,
        family::{Family, Json, LabelValues, Part, Sample},
    },
    model::groups::Counts,
};

/// A number, nothing, or an object whose keys keep their order.
#[derive(Debug, PartialEq)]
pub(crate) enum Tree {
    Null,
    Number(Number),
    Object(Vec<(String, Tree)>),
}

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Number(number) => number.serialize(serializer),
            Self::Object(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

/// A key of a path, with the labels that are part of a longer key filled in.
#[derive(Debug)]
enum Key {
    Named(String),
    /// Absent when nothing is below it.
    Optional(String),
    /// One for each value of a label.
    Each(&'static str),
}

/// Where a family stands.
struct Place {
    family: &'static Family,
    json: Json,
    keys: Vec<Key>,
}

static PLACES: LazyLock<Vec<Place>> = LazyLock::new(|| {
    let rows = FAMILIES.iter().flat_map(|family| family.json.iter().map(move |json| (family, *json)));
    rows.flat_map(|(family, json)| {
        paths(family, json.path).into_iter().map(move |keys| Place { family, json, keys })
    })
    .collect()
});

/// The keys of a path: several where a label is part of a key.
fn paths(family: &'static Family, path: &'static str) -> Vec<Vec<Key>> {
    let mut paths = vec![Vec::new()];
    for segment in path.split('.') {
        let label = family.labels.iter().find(|label| segment.contains(&format!("{{{}}}", label.name)));
        match label {
            None => {
                for path in &mut paths {
                    path.push(match segment.strip_suffix('?') {
                        Some(name) => Key::Optional(name.to_owned()),
                        None => Key::Named(segment.to_owned()),
                    });
                }
            }
            Some(label) if segment.len() == label.name.len() + 2 => {
                for path in &mut paths {
                    path.push(Key::Each(label.name));
                }
            }
            Some(label) => {
                // A path has one such key, the first or the last.
                let LabelValues::Fixed(values) = label.values else { continue };
                let prefix = paths.pop().unwrap_or_default();
                for value in values {
                    let mut path: Vec<_> = prefix.iter().map(Key::copy).collect();
                    path.push(Key::Named(segment.replace(&format!("{{{}}}", label.name), value)));
                    paths.push(path);
                }
            }
        }
    }
    paths
}

impl Key {
    fn copy(&self) -> Self {
        match self {
            Self::Named(name) => Self::Named(name.clone()),
            Self::Optional(name) => Self::Optional(name.clone()),
            Self::Each(label) => Self::Each(label),
        }
    }
}

/// The sums of these counts.
pub(crate) fn of(counts: &Counts) -> Tree {
    let mut root = Vec::new();
    for family in FAMILIES.iter().filter(|family| !family.json.is_empty()) {
        family.samples(counts, &mut |values, sample| {
            for json in family.json {
                if let Some(number) = number(json, &sample) {
                    put(&mut root, family, json, values, number);
                }
            }
        });
    }
    for place in PLACES.iter() {
        fill(&mut root, &place.keys);
    }
    Tree::Object(root)
}

/// What is shown of a sample; `None` for a zero that is not.
fn number(json: &Json, sample: &Sample<'_>) -> Option<Number> {
    if json.sparse && sample.is_zero() {
        return None;
    }
    match (sample, json.part) {
        (Sample::Int(value), _) => Some((*value).into()),
        (Sample::Float(value), _) => Number::from_f64(*value),
        (Sample::Histogram(view), Part::SumSeconds) => Number::from_f64(view.sum_seconds()),
        (Sample::Histogram(view), Part::MeanSeconds) => {
            Number::from_f64(view.sum_seconds() / view.count() as f64)
        }
        (Sample::Histogram(view), _) => Some(view.count().into()),
    }
}

fn put(root: &mut Vec<(String, Tree)>, family: &Family, json: &Json, values: &[&str], number: Number) {
    let mut keys: Vec<String> =
        json.path.split('.').map(|key| key.trim_end_matches('?').to_owned()).collect();
    for (label, value) in family.labels.iter().zip(values) {
        let placeholder = format!("{{{}}}", label.name);
        if let Some(key) = keys.iter_mut().find(|key| key.contains(&placeholder)) {
            *key = key.replace(&placeholder, value);
        }
    }
    let Some(last) = keys.pop() else { return };
    let mut at = root;
    for key in keys {
        let index = match at.iter().position(|(known, _)| *known == key) {
            Some(index) => index,
            None if json.within => return,
            None => {
                at.push((key, Tree::Object(Vec::new())));
                at.len() - 1
            }
        };
        let Tree::Object(inner) = &mut at[index].1 else { return };
        at = inner;
    }
    at.push((last, Tree::Number(number)));
}

/// Puts what stands for nothing where there was no sample.
fn fill(root: &mut Vec<(String, Tree)>, keys: &[Key]) {
    let mut at = root;
    for (depth, key) in keys.iter().enumerate() {
        let Key::Named(name) = key else { return };
        let index = at.iter().position(|(known, _)| known == name);
        let Some(index) = index else {
            at.push((
                name.clone(),
                if holds_any(keys, depth) { Tree::Object(Vec::new()) } else { Tree::Null },
            ));
            return;
        };
        let Tree::Object(inner) = &mut at[index].1 else { return };
        at = inner;
    }
}

/// Whether what is under this key of a path may be any number of keys, also none.
fn holds_any(keys: &[Key], depth: usize) -> bool {
    matches!(keys.get(depth + 1), Some(Key::Each(_) | Key::Optional(_)))
}

/// The schema of [`of`]'s answer.
pub(crate) fn schema() -> Schema {
    let empty = of(&Counts::default());
    let mut root = Shape::default();
    for Place { family, json, keys } in PLACES.iter() {
        let mut at = &mut root;
        let mut in_empty = Some(&empty);
        for key in keys {
            in_empty = in_empty.and_then(|tree| tree.get(key));
            at = at.under(key);
            // Inside of what is absent without samples, a part may be without them too.
            at.nullable = matches!(in_empty, None | Some(Tree::Null)) && !matches!(key, Key::Each(_));
        }
        at.leaf = Some(leaf(family, json));
        at.nullable = json.nullable;
    }
    match root.json() {
        JsonValue::Object(root) => root.into(),
        _ => json_schema!({}),
    }
}

impl Tree {
    fn get(&self, key: &Key) -> Option<&Self> {
        match (self, key) {
            (Self::Object(entries), Key::Named(name)) => {
                entries.iter().find(|(known, _)| known == name).map(|(_, tree)| tree)
            }
            _ => None,
        }
    }
}

/// What an answer may have at one place.
#[derive(Default)]
struct Shape {
    named: Vec<(String, Shape)>,
    required: Vec<String>,
    /// Under any other key.
    each: Option<Box<Shape>>,
    nullable: bool,
    /// Of a number: its type and what it means.
    leaf: Option<(&'static str, String)>,
}

impl Shape {
    fn under(&mut self, key: &Key) -> &mut Self {
        let (name, optional) = match key {
            Key::Each(_) => return self.each.get_or_insert_default(),
            Key::Named(name) => (name, false),
            Key::Optional(name) => (name, true),
        };
        let index = self.named.iter().position(|(known, _)| known == name).unwrap_or(self.named.len());
        if index == self.named.len() {
            self.named.push((name.clone(), Self::default()));
            if !optional {
                self.required.push(name.clone());
            }
        }
        &mut self.named[index].1
    }

    fn json(&self) -> JsonValue {
        let kind = self.leaf.as_ref().map_or("object", |(kind, _)| kind);
        let kind = if self.nullable { json!([kind, "null"]) } else { json!(kind) };
        let mut schema = Map::from_iter([("type".to_owned(), kind)]);
        if let Some((_, description)) = &self.leaf {
            schema.insert("description".to_owned(), json!(description));
            return JsonValue::Object(schema);
        }
        if let Some(each) = &self.each {
            schema.insert("additionalProperties".to_owned(), each.json());
        }
        if !self.named.is_empty() {
            let properties = self.named.iter().map(|(name, shape)| (name.clone(), shape.json()));
            schema.insert("properties".to_owned(), JsonValue::Object(properties.collect()));
        }
        if !self.required.is_empty() {
            schema.insert("required".to_owned(), json!(self.required));
        }
        JsonValue::Object(schema)
    }
}

fn leaf(family: &Family, json: &Json) -> (&'static str, String) {
    let (kind, of) = match json.part {
        Part::Value => ("integer", ""),
        Part::Number => ("number", ""),
        Part::Count => ("integer", "Number of observations. "),
        Part::SumSeconds => ("number", "Sum of the observations. "),
        Part::MeanSeconds => ("number", "Mean of the observations. "),
    };
    (kind, format!("{of}{}", family.help))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(counts: &Counts) -> JsonValue {
        serde_json::to_value(of(counts)).unwrap()
    }

    #[test]
    fn what_was_never_counted_is_zero_null_or_empty() {
        let sums = json(&Counts::default());
        assert_eq!(sums["opened"], 0);
        assert_eq!((&sums["connects"]["refused"], &sums["closed_first"]["local"]), (&json!(0), &json!(0)));
        assert_eq!(
            sums["reset_discarded"],
            json!({"unread_bytes": 0, "unsent_bytes": 0, "unacknowledged_bytes": 0})
        );
        for key in ["answers", "live", "connect_durations"] {
            assert_eq!(sums.get(key), Some(&JsonValue::Null), "{key}");
        }
        for key in ["blocked", "idle_before_close", "resets_sent", "resets_received", "retransmits_by_kind"] {
            assert_eq!(sums[key], json!({}), "{key}");
        }
    }

    #[test]
    fn a_part_of_live_connections_without_a_value_is_null_or_absent() {
        let mut counts = Counts::default();
        counts.live.connections = 2;
        let live = &json(&counts)["live"];
        assert_eq!((&live["connections"], &live["options"]["nodelay"]), (&json!(2), &json!(0)));
        assert_eq!((&live["option_values"], &live["congestion_algorithms"]), (&json!({}), &json!({})));
        assert_eq!(
            (live.get("rtt"), live.get("min_rtt_seconds")),
            (Some(&JsonValue::Null), Some(&JsonValue::Null))
        );
    }

    #[test]
    fn histograms_show_how_many_and_their_mean_or_sum() {
        let mut counts = Counts::default();
        let connected = counts.connected.get_or_insert_default();
        connected.observe(1_000_000_000);
        connected.observe(2_000_000_000);
        counts.stalls.get_or_insert_default()[0].durations.observe(500_000_000);
        let sums = json(&counts);
        assert_eq!(sums["connect_durations"], json!({"count": 2, "mean_seconds": 1.5}));
        assert_eq!(
            sums["blocked"],
            json!({"fast": {"count": 1, "duration_seconds": 0.5, "waiting_bytes": 0}})
        );
    }

    #[test]
    fn the_schema_says_what_may_be_null() {
        let schema = JsonValue::from(schema());
        let properties = &schema["properties"];
        assert_eq!(properties["opened"]["type"], "integer");
        assert_eq!(properties["live"]["type"], json!(["object", "null"]));
        assert_eq!(properties["live"]["properties"]["rtt"]["type"], json!(["object", "null"]));
        assert_eq!(properties["reset_discarded"]["type"], "object");
        let stall = &properties["blocked"]["additionalProperties"]["properties"];
        assert_eq!(stall["duration_seconds"]["type"], "number");
        assert!(properties["resets_sent"]["additionalProperties"].is_object());
    }
}
