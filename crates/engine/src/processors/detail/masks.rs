//! From what a detector finds to what is drawn anew: which things count, in which order, and how their masks change.

use lowtide_media::Mask;

use super::pass::{Joined, KeptBy, Pass, Sorted};
use crate::Result;
use crate::detector::Detection;

/// The things of a picture of `width` x `height` that a pass repairs, in the order in which it does.
pub(super) fn chosen(
    things: Vec<Detection>,
    pass: &Pass,
    (width, height): (u32, u32),
) -> Vec<Detection> {
    let pixels = width as f32 * height as f32;
    let counts =
        |thing: &Detection| (pass.min_ratio..=pass.max_ratio).contains(&(thing.area() / pixels));
    let mut things: Vec<Detection> = things.into_iter().filter(counts).collect();
    // Sorts keep the order of equal ones: the surest first.
    if pass.mask_k > 0 {
        match pass.kept_by {
            KeptBy::Area => things.sort_by(|a, b| b.area().total_cmp(&a.area())),
            KeptBy::Confidence => things.sort_by(|a, b| b.score.total_cmp(&a.score)),
        }
        things.truncate(pass.mask_k);
    }
    let middle = |thing: &Detection| {
        let [left, top, right, bottom] = thing.edges;
        let (x, y) = ((left + right) / 2.0, (top + bottom) / 2.0);
        (x - width as f32 / 2.0).hypot(y - height as f32 / 2.0)
    };
    match pass.sorted {
        Sorted::AsFound => {}
        Sorted::LeftToRight => things.sort_by(|a, b| a.edges[0].total_cmp(&b.edges[0])),
        Sorted::CenterToEdge => things.sort_by(|a, b| middle(a).total_cmp(&middle(b))),
        Sorted::Area => things.sort_by(|a, b| b.area().total_cmp(&a.area())),
    }
    things
}

/// What is drawn anew, one after the other: a mask a thing, or one for all; none where nothing is left.
///
/// # Errors
/// [`crate::Error::Picture`].
pub(super) fn masks(
    things: &[Detection],
    pass: &Pass,
    (width, height): (u32, u32),
) -> Result<Vec<Mask>> {
    let mut masks = Vec::with_capacity(things.len());
    for thing in things {
        let mask = thing.mask(width, height)?;
        let mask = mask.moved(pass.x_offset, -pass.y_offset);
        let mask = mask.grown(pass.dilate_erode);
        if !mask.is_empty() {
            masks.push(mask);
        }
    }
    if pass.joined == Joined::No {
        return Ok(masks);
    }
    let all = masks.into_iter().reduce(|all, mask| all.united(&mask));
    let all = all.map(|all| match pass.joined {
        Joined::Inverted => all.inverted(),
        _ => all,
    });
    Ok(all.into_iter().filter(|all| !all.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thing(edges: [f32; 4], score: f32) -> Detection {
        Detection {
            edges,
            score,
            class: 0,
            label: "thing".to_owned(),
            outline: None,
        }
    }

    /// The surest first: a small one on the right, a large one in the middle, one on the left.
    fn things() -> Vec<Detection> {
        vec![
            thing([80.0, 40.0, 84.0, 44.0], 0.9),
            thing([40.0, 20.0, 60.0, 70.0], 0.8),
            thing([5.0, 5.0, 15.0, 15.0], 0.7),
        ]
    }

    fn lefts(pass: &Pass) -> Vec<f32> {
        let chosen = chosen(things(), pass, (100, 100));
        chosen.iter().map(|thing| thing.edges[0]).collect()
    }

    #[test]
    fn things_are_chosen_by_size_and_number_and_sorted() {
        let plain = Pass::of("face");
        assert_eq!(lefts(&plain), [80.0, 40.0, 5.0]);
        let ratio = |min_ratio, max_ratio| Pass {
            min_ratio,
            max_ratio,
            ..plain.clone()
        };
        assert_eq!(lefts(&ratio(0.005, 1.0)), [40.0, 5.0]);
        assert_eq!(lefts(&ratio(0.0, 0.05)), [80.0, 5.0]);
        let most = |mask_k, kept_by| Pass {
            mask_k,
            kept_by,
            ..plain.clone()
        };
        assert_eq!(lefts(&most(2, KeptBy::Area)), [40.0, 5.0]);
        assert_eq!(lefts(&most(1, KeptBy::Confidence)), [80.0]);
        let sorted = |sorted| Pass {
            sorted,
            ..plain.clone()
        };
        assert_eq!(lefts(&sorted(Sorted::LeftToRight)), [5.0, 40.0, 80.0]);
        assert_eq!(lefts(&sorted(Sorted::CenterToEdge)), [40.0, 80.0, 5.0]);
        assert_eq!(lefts(&sorted(Sorted::Area)), [40.0, 5.0, 80.0]);
    }

    #[test]
    fn masks_are_moved_grown_joined_and_inverted() {
        let size = (100, 100);
        let masks = |pass: &Pass| super::masks(&things(), pass, size).unwrap();
        let plain = Pass {
            dilate_erode: 0,
            ..Pass::of("face")
        };
        let counts = |pass: &Pass| masks(pass).iter().map(Mask::count).collect::<Vec<_>>();
        assert_eq!(counts(&plain), [25, 21 * 51, 121]);
        let grown = Pass {
            dilate_erode: 3,
            ..plain.clone()
        };
        assert_eq!(counts(&grown), [49, 23 * 53, 169]);
        // What is eroded away is not drawn.
        let eroded = Pass {
            dilate_erode: -6,
            ..plain.clone()
        };
        assert_eq!(counts(&eroded), [16 * 46, 36]);
        let moved = Pass {
            x_offset: 10,
            y_offset: 30,
            ..plain.clone()
        };
        let first = &masks(&moved)[0];
        assert_eq!(first.values()[10 * 100 + 90], 255, "up is positive");
        let joined = |joined| {
            counts(&Pass {
                joined,
                ..plain.clone()
            })
        };
        let all = 25 + 21 * 51 + 121;
        assert_eq!(joined(Joined::Merged), [all]);
        assert_eq!(joined(Joined::Inverted), [10_000 - all]);
        assert!(super::masks(&[], &plain, size).unwrap().is_empty());
    }
}
