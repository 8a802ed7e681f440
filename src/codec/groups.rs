//! The loops over groups of columns that all row kernels share.

/// Elements worked on at once: enough for a few vectors of any width, so that the inner loop has a fixed length and needs
/// no remainder.
const RUN: usize = 64;

/// Calls `convert` on every element with the two parameters of its group of `group` columns.
///
/// Has to be inlined into a function that is compiled per instruction set. Groups of 64 and more are cut into runs;
/// smaller ones that divide a run have their parameters spread over it first.
#[inline(always)]
pub(super) fn convert<A: Copy, B>(
    elements: &[A],
    (first, second): (&[f32], &[f32]),
    group: usize,
    out: &mut [B],
    convert: impl Fn(A, f32, f32) -> B,
) {
    let (mut elements, mut out, mut first, mut second) = (elements, out, first, second);
    if group < RUN && RUN.is_multiple_of(group) {
        let per_run = RUN / group;
        let runs = (elements.len() / RUN).min(first.len() / per_run).min(second.len() / per_run);
        let (whole, rest) = elements.split_at(runs * RUN);
        let (out_whole, out_rest) = out.split_at_mut(runs * RUN);
        for (index, (elements, out)) in
            whole.as_chunks::<RUN>().0.iter().zip(out_whole.as_chunks_mut::<RUN>().0).enumerate()
        {
            let (mut firsts, mut seconds) = ([0.0; RUN], [0.0; RUN]);
            let of_run = index * per_run..(index + 1) * per_run;
            spread(&first[of_run.clone()], group, &mut firsts);
            spread(&second[of_run], group, &mut seconds);
            for ((element, out), (first, second)) in elements.iter().zip(out).zip(firsts.iter().zip(&seconds)) {
                *out = convert(*element, *first, *second);
            }
        }
        (elements, out) = (rest, out_rest);
        (first, second) = (&first[runs * per_run..], &second[runs * per_run..]);
    }
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

#[inline(always)]
fn spread(values: &[f32], group: usize, run: &mut [f32; RUN]) {
    for (lanes, value) in run.chunks_exact_mut(group).zip(values) {
        lanes.fill(*value);
    }
}
