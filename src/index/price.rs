//! What a walk costs, and a scan. Prices are counts of rows, not times: the same query takes the same way on every machine.

/// What a row scored by a walk costs, in rows scored by a scan: it lies anywhere, and its node has links to read and a place
/// in the heaps. `benches/filters.rs` (1024 components, 4-bit codes) gives 2.4 beside a scan of 10 000 rows and 4.4 beside one
/// of 2000, which stay in the cache.
pub(super) const STEP: f64 = 3.0;
/// Rows that a walk scores for a place of its beam, as a share of a node's row of links: most links lead to nodes that were
/// seen. The same bench gives 0.35 for a beam of 96; wider ones take less.
const FRESH: f64 = 0.33;
/// What bringing a query into the codes' form costs, in rows scored by a scan. The same bench has both scans equal at 200 rows.
const CODING: f64 = 1024.0;

/// What a scan costs, in rows scored on codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScanPrice {
    /// Every row on its code, and the best in full.
    pub on_codes: f64,
    /// Every row in full.
    pub in_full: f64,
}

impl ScanPrice {
    /// Of so many rows, of which `wanted` are rescored.
    ///
    /// * `row`: what a row costs in full.
    pub fn of(count: usize, wanted: usize, row: f64) -> Self {
        let (count, wanted) = (count as f64, wanted as f64);
        ScanPrice { on_codes: CODING + count + wanted * row, in_full: count * row }
    }

    /// Whether it begins on codes.
    pub fn codes_pay(self) -> bool {
        self.on_codes < self.in_full
    }

    /// What a walk may cost before the scan, so that both together cost less than the scan in full; where that is the only
    /// scan there is, a quarter of it.
    pub fn purse(self) -> f64 {
        let least = self.on_codes.min(self.in_full);
        least.min((self.in_full - least).max(least / 4.0))
    }
}

/// What a walk with a beam of `ef` costs, in rows scored by a scan of codes.
///
/// * `row_len`: words of a node's row of links.
pub(super) fn walk_price(row_len: usize, ef: f64) -> f64 {
    STEP * FRESH * row_len as f64 * ef
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn walk_and_scan_together_cost_less_than_the_scan_in_full_or_a_quarter_more(
            count in 0usize..1 << 24, wanted in 1usize..2000, row in 0.25f64..64.0
        ) {
            let price = ScanPrice::of(count, wanted, row);
            let scan = if price.codes_pay() { price.on_codes } else { price.in_full };
            prop_assert!(price.purse() >= 0.0 && scan <= price.in_full);
            prop_assert!(price.purse() + scan <= price.in_full * 1.25 + 1e-6);
            // Where codes are small, there is no quarter.
            if row >= 4.0 && count > 4 * wanted + 1000 {
                prop_assert!(price.purse() + scan <= price.in_full);
            }
        }
    }
}
