//! Fairness between owners: within a class each has its turn, whoever sent more.

use std::collections::HashMap;
use std::collections::VecDeque;

use lowtide_core::job::Moment;

use crate::Candidate;

/// Owners that are looked at in one go. Of more than these, those that were served longest ago.
pub(crate) const OWNERS_MAX: usize = 128;

/// Who was served longer ago than this counts as never served.
pub(crate) const SERVED_KEPT_MS: u64 = 3_600_000;

/// How many jobs of each of so many owners are looked at, to have `most` in all.
pub(crate) fn share(most: usize, owners: usize) -> usize {
    most.div_ceil(owners.max(1)).max(1)
}

/// The order in which the jobs of a class are to begin. They come in the order of arrival, those that a hand moved to
/// the front first, and with them whether that is so: these stay before all others. Of the others every owner has one
/// in each round, the one that was served longest ago first; jobs without an owner are those of one more.
pub(crate) fn in_turns(
    jobs: Vec<(bool, Candidate)>,
    served: &HashMap<String, Moment>,
) -> Vec<Candidate> {
    let (moved, others): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|(moved, _)| *moved);
    let mut ordered: Vec<Candidate> = moved.into_iter().map(|(_, job)| job).collect();
    let mut lines: Vec<(Moment, VecDeque<Candidate>)> = Vec::new();
    let mut places: HashMap<Option<String>, usize> = HashMap::new();
    for (_, job) in others {
        let place = *places.entry(job.owner.clone()).or_insert_with(|| {
            let at = job.owner.as_ref().and_then(|owner| served.get(owner));
            lines.push((at.copied().unwrap_or_default(), VecDeque::new()));
            lines.len() - 1
        });
        lines[place].1.push_back(job);
    }
    // A stable order: of those that were served at the same time, the one whose job arrived first.
    lines.sort_by_key(|(at, _)| *at);
    while !lines.is_empty() {
        for (_, line) in &mut lines {
            ordered.extend(line.pop_front());
        }
        lines.retain(|(_, line)| !line.is_empty());
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use lowtide_core::job::{JobId, Priority, Setbacks};

    fn job(number: u64, owner: &str) -> (bool, Candidate) {
        let job = Candidate {
            id: JobId(u128::from(number)),
            kind: "k".to_owned(),
            model: "m".to_owned(),
            priority: Priority::Normal,
            owner: (!owner.is_empty()).then(|| owner.to_owned()),
            submitted: Moment(number),
            deadline: None,
            setbacks: Setbacks::default(),
            hints: None,
            session: None,
        };
        (false, job)
    }

    fn order(jobs: Vec<(bool, Candidate)>, served: &[(&str, u64)]) -> Vec<u128> {
        let served = served
            .iter()
            .map(|&(owner, at)| (owner.to_owned(), Moment(at)))
            .collect();
        let ordered = in_turns(jobs, &served);
        ordered.into_iter().map(|job| job.id.0).collect()
    }

    #[test]
    fn who_sent_much_waits_for_who_sent_little() {
        let jobs = || vec![job(1, "a"), job(2, "a"), job(3, "a"), job(4, "b")];
        assert_eq!(order(jobs(), &[]), [1, 4, 2, 3]);
        assert_eq!(order(jobs(), &[("a", 9)]), [4, 1, 2, 3]);
        assert_eq!(order(jobs(), &[("a", 9), ("b", 10)]), [1, 4, 2, 3]);
    }

    #[test]
    fn one_owner_and_none_keep_the_order_of_arrival() {
        assert_eq!(
            order(vec![job(1, ""), job(2, ""), job(3, "")], &[]),
            [1, 2, 3]
        );
        assert_eq!(order(vec![job(1, "a"), job(2, "a")], &[("a", 5)]), [1, 2]);
        let mixed = vec![job(1, "a"), job(2, "a"), job(3, "")];
        assert_eq!(order(mixed, &[("a", 5)]), [3, 1, 2]);
    }

    #[test]
    fn what_a_hand_moved_to_the_front_stays_there() {
        let mut jobs = vec![job(7, "a"), job(1, "b"), job(2, "b")];
        jobs[0].0 = true;
        assert_eq!(order(jobs, &[("a", 9)]), [7, 1, 2]);
    }
}
