//! Several blocks on their way at once.

use std::collections::VecDeque;

/// Calls `start` for every block in order and `finish` for what it gave, in the same order, with up to `depth` blocks
/// started and not finished. `start` uploads, queues kernels and begins to read back; `finish` waits for the bytes: so the
/// device works on the next blocks while the processor looks at the last one. At the first error what is on its way is
/// given up.
///
/// # Errors
/// The first error of `start` or `finish`.
pub fn in_flight<B, T, E>(
    blocks: impl IntoIterator<Item = B>,
    depth: usize,
    mut start: impl FnMut(B) -> Result<T, E>,
    mut finish: impl FnMut(T) -> Result<(), E>,
) -> Result<(), E> {
    let mut started = VecDeque::with_capacity(depth);
    for block in blocks {
        if started.len() >= depth.max(1)
            && let Some(oldest) = started.pop_front()
        {
            finish(oldest)?;
        }
        started.push_back(start(block)?);
    }
    started.into_iter().try_for_each(finish)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn events(depth: usize, fail_at: Option<i32>) -> (Vec<String>, Result<(), i32>) {
        let log = RefCell::new(Vec::new());
        let outcome = in_flight(
            0..4,
            depth,
            |block| {
                log.borrow_mut().push(format!("+{block}"));
                Ok(block)
            },
            |block| {
                log.borrow_mut().push(format!("-{block}"));
                if Some(block) == fail_at { Err(block) } else { Ok(()) }
            },
        );
        (log.into_inner(), outcome)
    }

    #[test]
    fn blocks_are_started_ahead_and_finished_in_order() {
        assert_eq!(events(2, None).0.join(" "), "+0 +1 -0 +2 -1 +3 -2 -3");
        assert_eq!(events(0, None), (events(1, None).0, Ok(())));
        assert_eq!(events(9, None).0.join(" "), "+0 +1 +2 +3 -0 -1 -2 -3");
        let (log, outcome) = events(3, Some(0));
        assert_eq!((log.join(" ").as_str(), outcome), ("+0 +1 +2 -0", Err(0)));
    }
}
