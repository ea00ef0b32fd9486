//! Memory that is counted before it is taken.
//!
//! ```text
//! Budget ─ take ─► Lease ─ grow, shrink ─► … ─ drop ─► given back
//!    └ not enough left: Full, and nothing was allocated
//! ```
//! A [`Budget`] is so many bytes that its holders share. Whoever is about to allocate much for somebody else takes a [`Lease`] of it
//! first. A [`Tab`] is what one request holds, written down by everybody who works for it.
//!
//! Left out: counting every small allocation. What is bounded by itself (a few KiB a request) has its room beside the budget.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that many share.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    total: u64,
    held: AtomicU64,
}

/// There is not enough left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it needs {} of memory, and of {} for all requests {} are in use", Size(*asked), Size(*total), Size(*held))]
pub struct Full {
    /// Bytes that were asked for.
    pub asked: u64,
    /// Bytes that others held.
    pub held: u64,
    /// Bytes that there are.
    pub total: u64,
}

impl Full {
    /// Whether it would not fit into an empty budget either.
    pub fn for_good(&self) -> bool {
        self.asked > self.total
    }
}

/// Bytes as people read them.
struct Size(u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            bytes if bytes >= 1 << 20 => write!(f, "{} MiB", bytes >> 20),
            bytes if bytes >= 1 << 10 => write!(f, "{} KiB", bytes >> 10),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

impl Budget {
    /// A budget of so many bytes, all of them free.
    pub fn of(bytes: u64) -> Self {
        Budget(Arc::new(Counted { total: bytes, held: AtomicU64::new(0) }))
    }

    /// One that nothing exceeds, for work that nobody else shares a process with.
    pub fn unlimited() -> Self {
        Budget::of(u64::MAX)
    }

    /// Bytes that there are.
    pub fn total(&self) -> u64 {
        self.0.total
    }

    /// Bytes that are held.
    pub fn held(&self) -> u64 {
        self.0.held.load(Ordering::Relaxed)
    }

    /// Bytes that are left.
    pub fn left(&self) -> u64 {
        self.total().saturating_sub(self.held())
    }

    /// A lease of nothing yet.
    pub fn lease(&self) -> Lease {
        Lease { budget: self.clone(), bytes: 0 }
    }

    /// Takes so many bytes.
    ///
    /// # Errors
    /// [`Full`]; then nothing was taken.
    pub fn take(&self, bytes: u64) -> Result<Lease, Full> {
        let mut lease = self.lease();
        lease.grow(bytes)?;
        Ok(lease)
    }

    fn add(&self, bytes: u64) -> Result<(), Full> {
        let Counted { total, held } = &*self.0;
        let more = |now: u64| now.checked_add(bytes).filter(|then| then <= total);
        match held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(()),
            Err(held) => Err(Full { asked: bytes, held, total: *total }),
        }
    }
}

/// Bytes of a budget that somebody holds, until it is dropped.
#[derive(Debug)]
pub struct Lease {
    budget: Budget,
    bytes: u64,
}

impl Lease {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that it may come to hold: what it holds, and what is left.
    pub fn reach(&self) -> u64 {
        self.bytes.saturating_add(self.budget.left())
    }

    /// Takes so many more.
    ///
    /// # Errors
    /// [`Full`]; then it is as it was.
    pub fn grow(&mut self, bytes: u64) -> Result<(), Full> {
        self.budget.add(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Holds so many from now on.
    ///
    /// # Errors
    /// [`Full`], where that is more; then it is as it was.
    pub fn resize(&mut self, bytes: u64) -> Result<(), Full> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.grow(more),
            None => {
                self.note(bytes);
                Ok(())
            }
        }
    }

    /// Holds so many from now on, whatever is left: of what is there already, and only has to be known of.
    pub fn note(&mut self, bytes: u64) {
        let held = &self.budget.0.held;
        match bytes.checked_sub(self.bytes) {
            Some(more) => held.fetch_add(more, Ordering::Relaxed),
            None => held.fetch_sub(self.bytes - bytes, Ordering::Relaxed),
        };
        self.bytes = bytes;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.0.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What one request holds; everybody who works for it writes on the same one. Given back with the last of them.
#[derive(Debug, Clone)]
pub struct Tab(Arc<Mutex<Lease>>);

impl Tab {
    /// An empty one.
    pub fn of(budget: &Budget) -> Self {
        Tab(Arc::new(Mutex::new(budget.lease())))
    }

    /// So many bytes are about to be taken, and stay until the request has ended.
    ///
    /// # Errors
    /// [`Full`]; then nothing was written down.
    pub fn add(&self, bytes: u64) -> Result<(), Full> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).grow(bytes)
    }

    /// Takes bytes that are given back sooner, with what is returned.
    ///
    /// # Errors
    /// As [`Tab::add`].
    pub fn meanwhile(&self, bytes: u64) -> Result<Lease, Full> {
        let budget = self.0.lock().unwrap_or_else(PoisonError::into_inner).budget.clone();
        budget.take(bytes)
    }
}

impl Default for Tab {
    fn default() -> Self {
        Tab::of(&Budget::unlimited())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_given_back() {
        let budget = Budget::of(100);
        let mut first = budget.take(60).unwrap();
        let refused = budget.take(41).unwrap_err();
        assert_eq!(refused, Full { asked: 41, held: 60, total: 100 });
        assert!(!refused.for_good() && budget.take(101).unwrap_err().for_good());
        assert_eq!(first.resize(101).unwrap_err().asked, 41, "and nothing has changed");
        first.note(150);
        assert!(budget.held() == 150 && budget.left() == 0 && budget.take(1).is_err());
        first.resize(10).unwrap();
        assert_eq!((first.bytes(), budget.held(), first.reach()), (10, 10, 100));
        let tab = Tab::of(&budget);
        let other = tab.clone();
        tab.add(50).unwrap();
        other.add(30).unwrap();
        assert!(tab.add(11).is_err() && tab.meanwhile(11).is_err());
        drop(tab.meanwhile(10).unwrap());
        drop(tab);
        assert_eq!(budget.held(), 90, "somebody still works for it");
        drop((other, first));
        assert_eq!(budget.held(), 0);
        assert!(Budget::unlimited().take(u64::MAX).is_ok());
    }

    #[test]
    fn it_holds_among_many() {
        let budget = Budget::of(1000);
        std::thread::scope(|scope| {
            for seed in 0..4u64 {
                let budget = &budget;
                scope.spawn(move || {
                    for i in 0..2000 {
                        let lease = budget.take((i * 7 + seed * 13) % 700);
                        assert!(budget.held() <= 1000);
                        drop(lease);
                    }
                });
            }
        });
        assert_eq!(budget.held(), 0);
    }
}
