//! Ranks for a budget of latent channels.

/// What the latent channels of one projection would keep.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// Eigenvalues of each group's outputs, descending.
    pub groups: Vec<Vec<f64>>,
}

/// Ranks of all groups of all projections whose sum is `budget` at most, each at least 1: one channel after the other goes
/// where it keeps most of its projection's energy. As each group's eigenvalues descend, no other choice drops a smaller sum
/// of these shares. None where the budget is smaller than the number of groups.
#[must_use]
pub fn allocate(shares: &[Share], budget: usize) -> Option<Vec<Vec<usize>>> {
    let mut ranks: Vec<Vec<usize>> = shares.iter().map(|share| vec![1; share.groups.len()]).collect();
    let left = budget.checked_sub(ranks.iter().map(Vec::len).sum())?;
    let mut gains: Vec<(f64, usize, usize, usize)> = Vec::new();
    for (index, share) in shares.iter().enumerate() {
        let total: f64 = share.groups.iter().flatten().sum();
        for (group, values) in share.groups.iter().enumerate() {
            let of_total = |value: f64| if total > 0.0 { value / total } else { 0.0 };
            gains.extend(values.iter().enumerate().skip(1).map(|(rank, value)| (of_total(*value), index, group, rank)));
        }
    }
    // Among equals in order, so that a group's channels are taken from the first on.
    gains.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    for (_, index, group, _) in gains.into_iter().take(left) {
        ranks[index][group] += 1;
    }
    Some(ranks)
}
