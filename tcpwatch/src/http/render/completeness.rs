//! Whether an answer is the whole truth: the same fields in every answer, the same lines in every text.

use schemars::JsonSchema;
use serde::Serialize;

use crate::node::{Gap, Node};

/// Whether an answer is complete, and else why not.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Completeness {
    /// Whether the answer is the whole truth, as far as tcpwatch can know: `errors` is empty.
    complete: bool,
    /// What may be missing in the answer, or is `null` in it, and why.
    errors: Vec<Gap>,
}

impl Completeness {
    /// Of an answer about the connections.
    pub(crate) fn of(node: &Node) -> Self {
        Self::new(node.gaps())
    }

    /// Of an answer that also has what was counted since the start.
    pub(crate) fn of_counts(node: &Node) -> Self {
        Self::new([node.gaps(), node.count_gaps()].concat())
    }

    fn new(errors: Vec<Gap>) -> Self {
        Self { complete: errors.is_empty(), errors }
    }

    /// With reasons why `what`, a field of the answer, is not or only partly known.
    #[must_use]
    pub(crate) fn and(mut self, what: &'static str, reasons: impl IntoIterator<Item = String>) -> Self {
        self.errors.extend(reasons.into_iter().map(|why| Gap { what, why }));
        Self::new(self.errors)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// A line for each reason, behind what is known; nothing of a complete answer.
    pub(crate) fn text(&self) -> String {
        let lines = self.errors.iter().map(|Gap { what, why }| format!("INCOMPLETE: {what}: {why}\n"));
        let lines: String = lines.collect();
        if lines.is_empty() { lines } else { format!("\n{lines}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_until_something_is_missing() {
        let whole = Completeness::new(Vec::new()).and("nat", None);
        assert_eq!((whole.complete, &*whole.text()), (true, ""));
        let cut = whole.and("nat", ["may not be asked".to_owned()]);
        assert_eq!((cut.complete, &*cut.text()), (false, "\nINCOMPLETE: nat: may not be asked\n"));
        let json = serde_json::to_string(&cut).unwrap();
        assert_eq!(json, r#"{"complete":false,"errors":[{"what":"nat","why":"may not be asked"}]}"#);
    }
}
