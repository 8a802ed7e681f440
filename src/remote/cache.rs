//! Blocks of objects: fetched once, kept up to a limit, some of them before they are asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use super::{BLOCK_BYTES, DEFAULT_KEPT_BYTES, Object, READ_AHEAD_BLOCKS, RemoteError, store::Store};

/// Object and block.
type Key = (usize, u64);

/// A block, and the part of it that is meant.
pub(super) type Part = (Arc<Vec<u8>>, Range<usize>);

/// Told what became of a block.
type Then = Box<dyn FnOnce(Result<Vec<u8>, RemoteError>) + Send>;

/// Where blocks come from.
pub(super) trait Source: Send + Sync {
    /// Length of an object in bytes.
    fn bytes(&self, object: usize) -> u64;
    /// Bytes of an object.
    fn read(&self, object: usize, range: Range<u64>) -> Result<Vec<u8>, RemoteError>;
    /// The same in the background.
    fn read_later(&self, object: usize, range: Range<u64>, then: Then);
}

/// The objects of a checkpoint in a store.
#[derive(Debug)]
pub(super) struct Objects {
    pub(super) store: Arc<Store>,
    pub(super) objects: Vec<Object>,
}

impl Source for Objects {
    fn bytes(&self, object: usize) -> u64 {
        self.objects[object].bytes
    }

    fn read(&self, object: usize, range: Range<u64>) -> Result<Vec<u8>, RemoteError> {
        self.store.read(&self.objects[object], range)
    }

    fn read_later(&self, object: usize, range: Range<u64>, then: Then) {
        self.store.read_later(&self.objects[object], range, then);
    }
}

enum Entry {
    /// A request is under way.
    Coming,
    Here {
        block: Arc<Vec<u8>>,
        /// Larger for blocks that were used later.
        used: u64,
        /// Whether it has been asked for, or only came ahead.
        wanted: bool,
    },
}

#[derive(Default)]
struct State {
    blocks: BTreeMap<Key, Entry>,
    bytes: u64,
    limit: u64,
    clock: u64,
    /// To be fetched ahead, in the order of files.
    announced: BTreeSet<Key>,
    /// Blocks that came or come ahead and were not asked for yet.
    ahead: usize,
}

/// The blocks of all objects of a checkpoint.
pub(super) struct Cache<S> {
    source: S,
    state: Mutex<State>,
    arrived: Condvar,
}

impl<S: Source + 'static> Cache<S> {
    pub(super) fn new(source: S) -> Arc<Self> {
        let state = State { limit: DEFAULT_KEPT_BYTES, ..State::default() };
        Arc::new(Self { source, state: Mutex::new(state), arrived: Condvar::new() })
    }

    pub(super) fn source(&self) -> &S {
        &self.source
    }

    /// Sets how many bytes of blocks are kept.
    pub(super) fn keep(&self, bytes: u64) {
        let mut state = self.lock();
        state.limit = bytes;
        state.evict();
    }

    /// The blocks that hold a range, in order, each with the part of it that the range covers.
    pub(super) fn blocks(self: &Arc<Self>, object: usize, range: Range<u64>) -> Result<Vec<Part>, RemoteError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let numbers = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
        if numbers.end - numbers.start > 1 {
            self.announce(object, numbers.start * BLOCK_BYTES + BLOCK_BYTES..range.end);
        }
        let mut found = Vec::with_capacity((numbers.end - numbers.start) as usize);
        for number in numbers {
            let block = self.block((object, number))?;
            let start = number * BLOCK_BYTES;
            let from = range.start.saturating_sub(start) as usize;
            let to = ((range.end - start) as usize).min(block.len());
            found.push((block, from..to));
        }
        Ok(found)
    }

    fn block(self: &Arc<Self>, key: Key) -> Result<Arc<Vec<u8>>, RemoteError> {
        let mut state = self.lock();
        state.announced.remove(&key);
        loop {
            state.clock += 1;
            let now = state.clock;
            match state.blocks.get_mut(&key) {
                Some(Entry::Here { block, used, wanted }) => {
                    *used = now;
                    let (block, first) = (Arc::clone(block), !std::mem::replace(wanted, true));
                    if first {
                        state.ahead -= 1;
                        drop(state);
                        self.fetch_ahead();
                    }
                    return Ok(block);
                }
                Some(Entry::Coming) => {
                    state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                None => break,
            }
        }
        state.blocks.insert(key, Entry::Coming);
        drop(state);
        let read = self.source.read(key.0, self.range_of(key));
        let mut state = self.lock();
        let block = match read {
            Ok(bytes) => Arc::new(bytes),
            Err(error) => {
                state.blocks.remove(&key);
                self.arrived.notify_all();
                return Err(error);
            }
        };
        state.insert(key, Arc::clone(&block), true);
        state.evict();
        drop(state);
        self.arrived.notify_all();
        self.fetch_ahead();
        Ok(block)
    }

    /// Has the blocks of a range fetched, a few at a time and only while there is room.
    pub(super) fn announce(self: &Arc<Self>, object: usize, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut state = self.lock();
        for number in range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES) {
            if !state.blocks.contains_key(&(object, number)) {
                state.announced.insert((object, number));
            }
        }
        drop(state);
        self.fetch_ahead();
    }

    fn fetch_ahead(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            let room = state.bytes + (state.ahead as u64 + 1) * BLOCK_BYTES <= state.limit;
            if !room || state.ahead >= READ_AHEAD_BLOCKS {
                return;
            }
            let Some(key) = state.announced.pop_first() else { return };
            if state.blocks.contains_key(&key) {
                continue;
            }
            state.blocks.insert(key, Entry::Coming);
            state.ahead += 1;
            drop(state);
            let cache = Arc::clone(self);
            let then = move |read: Result<Vec<u8>, RemoteError>| {
                let mut state = cache.lock();
                if let Ok(bytes) = read {
                    state.insert(key, Arc::new(bytes), false);
                } else {
                    // Who asks for it will be told.
                    state.ahead -= 1;
                    state.blocks.remove(&key);
                }
                drop(state);
                cache.arrived.notify_all();
            };
            self.source.read_later(key.0, self.range_of(key), Box::new(then));
        }
    }

    /// Lets go of the blocks that lie within a range.
    pub(super) fn release(&self, object: usize, range: Range<u64>) {
        let mut state = self.lock();
        let end = if range.end >= self.source.bytes(object) { u64::MAX } else { range.end / BLOCK_BYTES };
        let within = (object, range.start.div_ceil(BLOCK_BYTES))..(object, end);
        if within.start >= within.end {
            return;
        }
        let here = state.blocks.range(within).filter(|(_, entry)| matches!(entry, Entry::Here { .. }));
        let gone: Vec<Key> = here.map(|(key, _)| *key).collect();
        for key in gone {
            state.remove(key);
        }
    }

    fn range_of(&self, (object, number): Key) -> Range<u64> {
        let start = number * BLOCK_BYTES;
        start..(start + BLOCK_BYTES).min(self.source.bytes(object))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn insert(&mut self, key: Key, block: Arc<Vec<u8>>, wanted: bool) {
        self.clock += 1;
        self.bytes += block.len() as u64;
        self.blocks.insert(key, Entry::Here { block, used: self.clock, wanted });
    }

    fn remove(&mut self, key: Key) {
        if let Some(Entry::Here { block, wanted, .. }) = self.blocks.remove(&key) {
            self.bytes -= block.len() as u64;
            self.ahead -= usize::from(!wanted);
        }
    }

    /// Removes the blocks used longest ago until the limit is kept; the last one stays.
    fn evict(&mut self) {
        while self.bytes > self.limit {
            let here = self.blocks.iter().filter_map(|(key, entry)| match entry {
                Entry::Here { used, .. } => Some((*used, *key)),
                Entry::Coming => None,
            });
            let mut oldest: Vec<_> = here.collect();
            oldest.sort_unstable();
            match oldest[..] {
                [(_, key), _, ..] => self.remove(key),
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Objects whose bytes tell where they stand; every read is noted. The second object cannot be read.
    struct Told {
        bytes: u64,
        reads: Mutex<Vec<(usize, Range<u64>)>>,
    }

    fn content(at: u64) -> u8 {
        (at / 1000 * 7 + at) as u8
    }

    impl Source for Told {
        fn bytes(&self, _object: usize) -> u64 {
            self.bytes
        }

        fn read(&self, object: usize, range: Range<u64>) -> Result<Vec<u8>, RemoteError> {
            self.reads.lock().unwrap().push((object, range.clone()));
            if object == 1 {
                return Err(RemoteError::Changed { url: "s3://b/x".into(), message: "it is gone".into() });
            }
            Ok(range.map(content).collect())
        }

        fn read_later(&self, object: usize, range: Range<u64>, then: Then) {
            then(self.read(object, range));
        }
    }

    fn cache(blocks: u64) -> Arc<Cache<Told>> {
        Cache::new(Told { bytes: blocks * BLOCK_BYTES - 100, reads: Mutex::default() })
    }

    fn reads(cache: &Cache<Told>) -> usize {
        cache.source().reads.lock().unwrap().len()
    }

    #[test]
    fn ranges_are_put_together_and_every_block_is_fetched_once() {
        let cache = cache(3);
        let end = cache.source().bytes(0);
        for range in [0..1, 5..4000, BLOCK_BYTES - 3..BLOCK_BYTES + 3, 100..end, end - 1..end, 7..7] {
            let blocks = cache.blocks(0, range.clone()).unwrap();
            let bytes: Vec<u8> = blocks.iter().flat_map(|(block, part)| block[part.clone()].to_vec()).collect();
            assert!(bytes == range.clone().map(content).collect::<Vec<u8>>(), "{range:?}");
        }
        assert_eq!(reads(&cache), 3);
        assert!(cache.source().reads.lock().unwrap().iter().all(|(_, range)| range.end - range.start <= BLOCK_BYTES));
    }

    #[test]
    fn no_more_than_the_limit_is_kept_and_the_longest_unused_goes() {
        let cache = cache(6);
        cache.keep(2 * BLOCK_BYTES);
        let touch = |block: u64| drop(cache.blocks(0, block * BLOCK_BYTES..block * BLOCK_BYTES + 1).unwrap());
        for block in [0, 1, 0, 2] {
            touch(block);
        }
        assert_eq!(cache.lock().bytes, 2 * BLOCK_BYTES);
        touch(0);
        assert_eq!(reads(&cache), 3, "the block in use stayed");
        touch(1);
        assert_eq!(reads(&cache), 4);
        cache.release(0, BLOCK_BYTES..3 * BLOCK_BYTES);
        assert_eq!(cache.lock().bytes, BLOCK_BYTES);
        cache.release(0, 0..u64::MAX);
        let state = cache.lock();
        assert_eq!((state.bytes, state.ahead), (0, 0));
    }

    #[test]
    fn read_ahead_is_bounded_and_moves_on_as_blocks_are_used() {
        let cache = cache(20);
        cache.announce(0, 0..20 * BLOCK_BYTES);
        assert_eq!(reads(&cache), READ_AHEAD_BLOCKS);
        drop(cache.blocks(0, 0..1).unwrap());
        assert_eq!(reads(&cache), READ_AHEAD_BLOCKS + 1);
        cache.keep(0);
        cache.announce(0, 0..20 * BLOCK_BYTES);
        let before = reads(&cache);
        cache.announce(0, 0..20 * BLOCK_BYTES);
        assert_eq!(reads(&cache), before, "there is no room");
    }

    #[test]
    fn what_cannot_be_read_is_told_each_time() {
        let cache = cache(2);
        cache.announce(1, 0..BLOCK_BYTES);
        for _ in 0..2 {
            assert!(matches!(cache.blocks(1, 0..1), Err(RemoteError::Changed { .. })));
        }
        assert_eq!(cache.lock().ahead, 0);
    }
}
