//! What a walk wants of a graph.

/// A layered graph to walk: an [`super::Index`], or one that is being built.
pub(super) trait Links {
    /// Number of nodes. A link that leads beyond is passed over.
    fn len(&self) -> usize;
    /// The slot every search begins at, on the top level.
    fn entry(&self) -> u32;
    /// Levels above 0.
    fn upper_levels(&self) -> usize;
    /// Nodes that reach level `level + 1`.
    fn upper_len(&self, level: usize) -> usize;
    /// Visits the links of a slot on a level, 0 or above; none where it does not reach it.
    fn each_link(&self, level: usize, slot: u32, visit: impl FnMut(u32));
    /// Most links of a slot on a level.
    fn most_links(&self, level: usize, slot: u32) -> usize;
    /// Fetches what [`Links::each_link`] will read.
    fn fetch_links(&self, level: usize, slot: u32);
}
