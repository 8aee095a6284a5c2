//! Several steps in one command.

use crate::Place;
use serde_json::Value;

const FIRST: &str = "--size 64x64 --steps 2 --seed 5";
const THEN: &str =
    r#"{"kind": "text-to-image", "request": {"steps": 4, "strength": 0.5, "seed": 9}}"#;

fn first<'a>(verb: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![verb, "a red heart"];
    args.extend(FIRST.split(' '));
    args.extend(more);
    args
}

#[test]
fn steps_of_one_command_give_what_the_commands_give_one_by_one() {
    let place = Place::new();
    place
        .run(first("generate", &["-o", "first.png", "--local"]))
        .ok();
    let over = "generate;a red heart;--steps;4;--seed;9;--image;first.png;--strength;0.5;-o;by-hand.png;--local";
    place.run(over.split(';')).ok();
    let told = place
        .run(first(
            "generate",
            &["-o", "chain.png", "--local", "--json", "--then", THEN],
        ))
        .json();
    let read = |name: &str| std::fs::read(place.path(name)).unwrap();
    assert_eq!(read("chain.png"), read("by-hand.png"));
    let steps = told["chain"]["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 2);
    let second = |seconds: &Value, of: &str| seconds[of].as_f64().unwrap();
    for seconds in steps
        .iter()
        .map(|step| &step["seconds"])
        .chain([&told["chain"]["seconds"]])
    {
        let sum = second(seconds, "work") + second(seconds, "waiting");
        assert!(
            (sum - second(seconds, "total")).abs() < 1e-6 && second(seconds, "loading") >= 0.0,
            "{seconds}"
        );
    }
    // The same model twice: only what a picture to begin from needs besides is read in the second step.
    let bytes = |step: usize| {
        steps[step]["bytes_read"].as_u64().unwrap() + steps[step]["bytes_ahead"].as_u64().unwrap()
    };
    assert!(bytes(1) < bytes(0) / 4, "{} {}", bytes(0), bytes(1));
}

/// What a picture says of its model is no path of whoever made it, in a chain as elsewhere.
#[test]
fn a_model_named_by_its_path_is_called_by_its_name() {
    let place = Place::new();
    place.copy_demo("mine");
    place
        .run(first("generate", &["-o", "first.png", "--local"]))
        .ok();
    let over = "generate;a red heart;--model;./mine;--steps;4;--seed;9;--image;first.png;--strength;0.5;-o;by-hand.png;--local";
    place.run(over.split(';')).ok();
    let step = THEN.replacen('{', r#"{"model": "./mine", "#, 1);
    place
        .run(first(
            "generate",
            &["-o", "chain.png", "--local", "--then", &step],
        ))
        .ok();
    let read = |name: &str| std::fs::read(place.path(name)).unwrap();
    assert_eq!(read("chain.png"), read("by-hand.png"));
}

#[test]
fn a_plan_of_several_steps_says_what_each_reads_and_a_refusal_which_is_too_large() {
    let place = Place::new();
    let plan = place.run(first("plan", &["--then", THEN])).ok();
    assert!(
        plan.contains("step 1, text-to-image with demo: reads "),
        "{plan}"
    );
    assert!(plan.contains("step 2, text-to-image with demo: "), "{plan}");
    assert!(plan.contains("2 denoise"), "{plan}");
    let large = r#"{"kind": "text-to-image", "request": {"width": 256, "height": 256}}"#;
    let refused = place
        .run(first("plan", &["--then", large, "--budget", "8MiB"]))
        .error(3);
    assert!(
        refused.contains("step 2 (text-to-image with demo)"),
        "{refused}"
    );
}

#[test]
fn a_step_that_cannot_be_is_a_mistake() {
    let place = Place::new();
    for (step, says) in [
        ("upscale", "such as"),
        (
            r#"{"kind": "noise"}"#,
            "steps[1].kind 'noise' takes no picture",
        ),
        (
            r#"{"kind": "text-to-image", "request": {"width": 100}}"#,
            "steps[1].request.width is 100",
        ),
    ] {
        let told = place
            .run(first("generate", &["--local", "--then", step]))
            .error(2);
        assert!(told.contains(says), "{told}");
    }
}
