//! What several answers show in the same way: a connection, counts of a group, text in columns.

pub(crate) mod completeness;
pub(crate) mod counts;
pub(crate) mod figures;
pub(crate) mod text;
pub(crate) mod view;
