//! An index of four bytes, also in an `Option`.

use std::num::NonZeroU32;

/// The index plus one, so that 0 is free for `None`. For collections that never have 2^32 elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DenseIndex(NonZeroU32);

impl DenseIndex {
    pub(crate) const fn new(index: usize) -> Self {
        Self(NonZeroU32::MIN.saturating_add(index as u32))
    }

    #[inline]
    pub(crate) const fn get(self) -> usize {
        self.0.get() as usize - 1
    }
}
