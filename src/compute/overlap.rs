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

/// The same where something has to be queued again when the first half of a block is there: `go_on` is called for every
/// block once `depth` later ones are started, `finish` once it has been called for `depth` later ones. With `depth` 0 one
/// block is done after the other.
///
/// # Errors
/// The first error of any of the three.
pub fn in_flight_twice<B, T, E>(
    blocks: impl IntoIterator<Item = B>,
    depth: usize,
    start: impl FnMut(B) -> Result<T, E>,
    mut go_on: impl FnMut(&mut T) -> Result<(), E>,
    mut finish: impl FnMut(T) -> Result<(), E>,
) -> Result<(), E> {
    let mut halfway = VecDeque::with_capacity(depth);
    let half_done = |mut block: T| {
        go_on(&mut block)?;
        if depth == 0 {
            return finish(block);
        }
        if halfway.len() >= depth
            && let Some(oldest) = halfway.pop_front()
        {
            finish(oldest)?;
        }
        halfway.push_back(block);
        Ok(())
    };
    if depth == 0 {
        let mut half_done = half_done;
        return blocks.into_iter().map(start).try_for_each(|block| half_done(block?));
    }
    in_flight(blocks, depth, start, half_done)?;
    halfway.into_iter().try_for_each(finish)
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

    fn events_twice(depth: usize) -> String {
        let log = RefCell::new(Vec::new());
        let note = |sign: char, block: i32| {
            log.borrow_mut().push(format!("{sign}{block}"));
            Ok::<_, ()>(block)
        };
        let outcome = in_flight_twice(
            0..4,
            depth,
            |block| note('+', block),
            |block| note('=', *block).map(drop),
            |block| note('-', block).map(drop),
        );
        assert_eq!(outcome, Ok(()));
        log.into_inner().join(" ")
    }

    #[test]
    fn both_halves_of_a_block_overlap_with_others() {
        assert_eq!(events_twice(0), "+0 =0 -0 +1 =1 -1 +2 =2 -2 +3 =3 -3");
        assert_eq!(events_twice(1), "+0 =0 +1 =1 -0 +2 =2 -1 +3 =3 -2 -3");
        assert_eq!(events_twice(2), "+0 +1 =0 +2 =1 +3 =2 -0 =3 -1 -2 -3");
        let failing = in_flight_twice(0..4, 2, Ok, |block| if *block == 1 { Err(1) } else { Ok(()) }, |_| Ok(()));
        assert_eq!(failing, Err(1));
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
