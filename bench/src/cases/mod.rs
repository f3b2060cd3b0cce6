//! The cases, one file per family. A file has the trait that its contenders implement, the contenders, the code that
//! drives them all, and the rows with their targets.

mod actor;
mod call;
mod channel;
mod frameworks;
mod group;
mod growth;
mod latency;
mod registry;
mod scope;
mod service;

use crate::harness::Case;

/// In the order of the table; the growth of costs comes last.
pub(crate) fn all() -> Vec<Case> {
    let families =
        [channel::cases, latency::cases, call::cases, registry::cases, actor::cases, group::cases, scope::cases]
            .into_iter()
            .chain([service::cases as fn() -> Vec<Case>, growth::cases]);
    families.flat_map(|cases| cases()).collect()
}
