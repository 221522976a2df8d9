//! An index that is small, also in an `Option`.

use std::num::NonZeroU32;

/// The index plus one, of something that never has 2^32 elements.
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
