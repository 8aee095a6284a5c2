//! From what the heads say to things: boxes above a score, each thing once, and outlines.

use super::{Config, Level, Output};

/// Boxes that are compared with each other at most, the best ones.
const COMPARED_MAX: usize = 30_000;

/// Which things count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sieve<'a> {
    /// Scores from this on, 0 to 1.
    pub score: f32,
    /// Of two boxes of a kind that share more than this of their area, the better one.
    pub overlap: f32,
    /// Kinds that are looked for; `None` is all.
    pub classes: Option<&'a [usize]>,
    /// The most things.
    pub most: usize,
}

/// A thing.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Left, top, right and bottom, in pixels of the network's input.
    pub edges: [f32; 4],
    /// How sure it is, 0 to 1.
    pub score: f32,
    /// Which kind.
    pub class: usize,
    /// What its outline is made of; empty where the model tells none.
    coefficients: Vec<f32>,
}

/// What share two boxes have in common of what either covers.
pub fn overlap(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let side = |from: f32, to: f32| (to - from).max(0.0);
    let area = |[left, top, right, bottom]: [f32; 4]| side(left, right) * side(top, bottom);
    let both = area([
        a[0].max(b[0]),
        a[1].max(b[1]),
        a[2].min(b[2]),
        a[3].min(b[3]),
    ]);
    let either = area(*a) + area(*b) - both;
    match either > 0.0 {
        true => both / either,
        false => 0.0,
    }
}

/// The things that the heads see, the surest first, each once.
pub fn find(config: &Config, output: &Output, sieve: &Sieve<'_>) -> Vec<Found> {
    let mut seen: Vec<Found> = output
        .levels
        .iter()
        .flat_map(|level| of_level(config, level, sieve))
        .collect();
    // The same order whatever the sort does: by score, then as they came.
    seen.sort_by(|a, b| b.score.total_cmp(&a.score));
    seen.truncate(COMPARED_MAX);
    let mut found: Vec<Found> = Vec::new();
    for thing in seen {
        if found.len() == sieve.most {
            break;
        }
        let same = |known: &Found| {
            known.class == thing.class && overlap(&known.edges, &thing.edges) > sieve.overlap
        };
        if !found.iter().any(same) {
            found.push(thing);
        }
    }
    found
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn of_level<'a>(
    config: &'a Config,
    level: &'a Level,
    sieve: &'a Sieve<'a>,
) -> impl Iterator<Item = Found> + 'a {
    let shape = level.classes.shape();
    let (height, width) = (shape[1], shape[2]);
    let plane = height * width;
    let wanted = |class: &usize| sieve.classes.is_none_or(|wanted| wanted.contains(class));
    (0..plane).filter_map(move |place| {
        let scores = level.classes.data().iter().skip(place).step_by(plane);
        let (class, &logit) = scores
            .enumerate()
            // Of equal ones the first.
            .reduce(|best, next| if next.1 > best.1 { next } else { best })?;
        let score = sigmoid(logit);
        if !(score > sieve.score && wanted(&class)) {
            return None;
        }
        let distance = |side: usize| {
            let first = (side * config.bins) * plane + place;
            let steps = level.edges.data()[first..].iter().step_by(plane);
            expected(steps.take(config.bins).copied())
        };
        let stride = level.stride as f32;
        let (x, y) = ((place % width) as f32 + 0.5, (place / width) as f32 + 0.5);
        let edges = [
            x - distance(0),
            y - distance(1),
            x + distance(2),
            y + distance(3),
        ];
        let outlines = level.outlines.as_ref();
        let coefficients = outlines.map(|outlines| {
            let all = outlines.data()[place..].iter().step_by(plane);
            all.copied().collect()
        });
        Some(Found {
            edges: edges.map(|edge| edge * stride),
            score,
            class,
            coefficients: coefficients.unwrap_or_default(),
        })
    })
}

/// The mean of 0, 1, 2 ... under the distribution whose logarithms these are, but for a constant.
fn expected(logits: impl Iterator<Item = f32> + Clone) -> f32 {
    let most = logits.clone().fold(f32::NEG_INFINITY, f32::max);
    let (mut sum, mut mean) = (0.0, 0.0);
    for (step, logit) in logits.enumerate() {
        let share = (logit - most).exp();
        sum += share;
        mean += share * step as f32;
    }
    mean / sum
}

/// The outline of a thing: where its values are above 0.
#[derive(Clone, Debug)]
pub struct Outline {
    values: Vec<f32>,
    height: usize,
    width: usize,
    /// Pixels of the network's input a value.
    step: f32,
}

impl Outline {
    /// That of `thing`, which `output` told of an input of `height` rows; `None` where the model tells no outlines.
    pub fn of(output: &Output, thing: &Found, input_height: usize) -> Option<Outline> {
        let prototypes = output.prototypes.as_ref()?;
        let &[_, height, width] = prototypes.shape() else {
            return None;
        };
        let mut values = vec![0.0; height * width];
        let planes = prototypes.data().chunks_exact(height * width);
        for (plane, &coefficient) in planes.zip(&thing.coefficients) {
            for (value, prototype) in values.iter_mut().zip(plane) {
                *value += coefficient * prototype;
            }
        }
        Some(Outline {
            values,
            height,
            width,
            step: input_height as f32 / height as f32,
        })
    }

    /// Whether the point (`x`, `y`) of the network's input, in pixels from its top left corner, is within it; between
    /// values a line is drawn.
    pub fn has(&self, x: f32, y: f32) -> bool {
        let at = |along: f32, count: usize| {
            let along = (along / self.step - 0.5).clamp(0.0, (count - 1) as f32);
            let first = along.floor();
            let next = (first as usize + 1).min(count - 1);
            (first as usize, next, along - first)
        };
        let (left, right, across) = at(x, self.width);
        let (top, bottom, down) = at(y, self.height);
        let value = |row: usize, column: usize| self.values[row * self.width + column];
        let between = |row: usize| value(row, left) * (1.0 - across) + value(row, right) * across;
        between(top) * (1.0 - down) + between(bottom) * down > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_share_what_both_cover_of_what_either_does() {
        let square = [0.0, 0.0, 2.0, 2.0];
        assert_eq!(overlap(&square, &square), 1.0);
        assert_eq!(overlap(&square, &[1.0, 0.0, 3.0, 2.0]), 2.0 / 6.0);
        assert_eq!(overlap(&square, &[2.0, 0.0, 3.0, 2.0]), 0.0);
        assert_eq!(overlap(&[0.0; 4], &[0.0; 4]), 0.0);
    }

    #[test]
    fn a_distance_is_the_mean_of_its_distribution() {
        let even = [0.5; 16];
        assert!((expected(even.into_iter()) - 7.5).abs() < 1e-6);
        let mut sure = [-100.0; 16];
        sure[3] = 1000.0;
        assert_eq!(expected(sure.into_iter()), 3.0);
    }
}
