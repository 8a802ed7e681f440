//! The loops over groups of columns that all row kernels share.

/// Elements worked on at once: enough for a few vectors of any width, so that the inner loop has a fixed length and needs
/// no remainder.
const RUN: usize = 64;

/// Calls `convert` on every element with the two parameters of its group of `group` columns.
///
/// Has to be inlined into a function that is compiled per instruction set.
#[inline(always)]
pub(super) fn convert<A: Copy, B>(
    elements: &[A],
    parameters: (&[f32], &[f32]),
    group: usize,
    out: &mut [B],
    convert: impl Fn(A, f32, f32) -> B,
) {
    match group {
        16 => short_groups::<16, A, B>(elements, parameters, out, convert),
        32 => short_groups::<32, A, B>(elements, parameters, out, convert),
        _ => long_groups(elements, parameters, group, out, convert),
    }
}

/// Groups of 64 and more are cut into runs; any other length works too.
#[inline(always)]
fn long_groups<A: Copy, B>(
    elements: &[A],
    (first, second): (&[f32], &[f32]),
    group: usize,
    out: &mut [B],
    convert: impl Fn(A, f32, f32) -> B,
) {
    for ((elements, out), (&first, &second)) in
        elements.chunks(group).zip(out.chunks_mut(group)).zip(first.iter().zip(second))
    {
        let (runs, rest) = elements.as_chunks::<RUN>();
        let (out_runs, out_rest) = out.as_chunks_mut::<RUN>();
        for (elements, out) in runs.iter().zip(out_runs) {
            for (element, out) in elements.iter().zip(out) {
                *out = convert(*element, first, second);
            }
        }
        for (element, out) in rest.iter().zip(out_rest) {
            *out = convert(*element, first, second);
        }
    }
}

/// Groups that divide a run have their parameters spread over it first.
#[inline(always)]
fn short_groups<const GROUP: usize, A: Copy, B>(
    elements: &[A],
    (first, second): (&[f32], &[f32]),
    out: &mut [B],
    convert: impl Fn(A, f32, f32) -> B,
) {
    let per_run = RUN / GROUP;
    let runs = (elements.len() / RUN).min(first.len() / per_run).min(second.len() / per_run);
    let (whole, rest) = elements.split_at(runs * RUN);
    let (out_whole, out_rest) = out.split_at_mut(runs * RUN);
    let (first_whole, first_rest) = first.split_at(runs * per_run);
    let (second_whole, second_rest) = second.split_at(runs * per_run);
    let parameters = first_whole.chunks_exact(per_run).zip(second_whole.chunks_exact(per_run));
    let runs = whole.as_chunks::<RUN>().0.iter().zip(out_whole.as_chunks_mut::<RUN>().0);
    for ((elements, out), (first, second)) in runs.zip(parameters) {
        let (first, second) = (spread::<GROUP>(first), spread::<GROUP>(second));
        for ((element, out), (first, second)) in elements.iter().zip(out).zip(first.iter().zip(&second)) {
            *out = convert(*element, *first, *second);
        }
    }
    long_groups(rest, (first_rest, second_rest), GROUP, out_rest, convert);
}

#[inline(always)]
fn spread<const GROUP: usize>(values: &[f32]) -> [f32; RUN] {
    let mut run = [0.0; RUN];
    for (lanes, value) in run.as_chunks_mut::<GROUP>().0.iter_mut().zip(values) {
        *lanes = [*value; GROUP];
    }
    run
}
